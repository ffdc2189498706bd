"""SATORI-R1: say what is there, say where to look, then answer; each part is checked.

"SATORI-R1: Incentivizing Multimodal Reasoning through Explicit Visual Anchoring", Shen
et al., 2025, https://arxiv.org/abs/2505.19094; code
https://github.com/justairr/SATORI-R1.

    act     y_i = caption, boxes, answer ~ pi_old(. | image, q), i = 1..G;
            R_i = format + (BLEU-4 + ROUGE-L) / 2 of the caption + IoU of the unions of
            boxes + answer
    score   log pi_ref(y_i | image, q), with an anchor
    credit  A_it = (R_i - mean(R)) / (std(R) + 1e-4)
    loss    clipped surrogate (0.2, 0.2) + weight k3(l_it, l_ref_it), mean over each
            response, then over responses

The code's anchor is near(reference, weight=0.001), its optimiser ms-swift's. Version 2
of the paper thinks between boxes and answer, which is allowed here and not paid. Other
than in the code, boxes end at the picture's edge, a swapped one has no area, and boxes
whose list was cut off may be read.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from vrl_jax import advantages, geometry, objectives, reductions
from vrl_jax.engine.reference import Anchor, free
from vrl_jax.programs.single_turn import single_turn
from vrl_jax.rewards.answers import one_of
from vrl_jax.rewards.columns import column
from vrl_jax.rewards.combine import of_text, per_response, weighted
from vrl_jax.rewards.format import blocks_in_order
from vrl_jax.rewards.grounding import Frame, first_size, original, resized
from vrl_jax.rewards.parse import first_tag, read_json
from vrl_jax.rewards.parse_boxes import are_numbers
from vrl_jax.rewards.text import caption_score
from vrl_jax.training.clipped_recipe import clipped_recipe
from vrl_jax.training.iteration import Recipe
from vrl_jax.types import Episode

MOST = 32
"""Boxes of a response that count, and of a row at most."""


@jax.jit
def _union_iou(
    given: Float[Array, "N 4"],
    there: Bool[Array, " N"],
    frame: Float[Array, " 2"],
    gold: Float[Array, "M 4"],
    known: Bool[Array, " M"],
    whole: Float[Array, " 2"],
) -> Float[Array, ""]:
    """Of boxes in `frame`, cut at the edge of the picture, and gold boxes in it."""
    inside = jnp.clip(geometry.rescale(given, frame, whole), 0, jnp.tile(whole, 2))
    return geometry.union_iou(inside, there, gold, known)


def looks_first(text: str) -> bool:
    """A caption block, a bbox block `[[...]]`, perhaps a think block, an answer block.

    And nothing else but blanks around them.
    """
    boxes = first_tag(text, "bbox") or ""
    return (boxes.startswith("[[") and boxes.endswith("]]")) and (
        blocks_in_order(text, ("caption", "bbox", "answer"))
        or blocks_in_order(text, ("caption", "bbox", "think", "answer"))
    )


def described(episode: Episode) -> float:
    """The caption block against the column `image_caption`; 0 without one."""
    given = first_tag(episode.text, "caption")
    gold = column(episode.sample, "image_caption", str, "the caption to compare with")
    return 0.0 if given is None else caption_score(given, gold)


def located(episode: Episode, *, frame: Frame = resized) -> float:
    """IoU of the union of the boxes with that of the column `bboxs`.

    The row's are in pixels of the picture as it came, the response's in `frame`: by
    default pixels of the picture as the model sees it. One box may stand alone; what
    is not a list of boxes is none.
    """
    size = first_size(episode)
    found = _boxes(read_json(first_tag(episode.text, "bbox") or ""))
    gold = _boxes(column(episode.sample, "bboxs", list, "boxes [x1, y1, x2, y2]"))
    if not 0 < len(gold) <= MOST:
        raise ValueError(
            f"{episode.sample.id} needs 1 to {MOST} boxes of four numbers in the "
            f"column 'bboxs'; got {len(gold)}."
        )
    seen, whole = np.array([frame(size), original(size)], np.float32)
    return float(_union_iou(*_padded(found[:MOST]), seen, *_padded(gold), whole))


def answered(episode: Episode) -> float:
    """1 where the answer block is in the column `possible_answers`, case and all."""
    given = first_tag(episode.text, "answer")
    golds = column(episode.sample, "possible_answers", list, "the accepted answers")
    return float(one_of(given, golds))


satori_reward = weighted(
    {
        "format": (of_text(looks_first), 1.0),
        "caption": (per_response(described), 1.0),
        "bbox": (per_response(located), 1.0),
        "answer": (per_response(answered), 1.0),
    }
)
"""The actor's reward: the four parts, equally weighed, at most 4."""


def satori(*, group_size: int = 16, clip: float = 0.2, anchor: Anchor = free) -> Recipe:
    """The actor's reward is `satori_reward`."""
    act = functools.partial(single_turn, group_size=group_size)
    return clipped_recipe(
        act,
        advantage=functools.partial(
            advantages.group_zscore, group_size=group_size, eps=1e-4
        ),
        surrogate=objectives.clipped_surrogate,
        reduction=reductions.sequence_mean,
        anchor=anchor,
        clip_low=clip,
        clip_high=clip,
    )


def _boxes(found: Any) -> list[Sequence[float]]:
    """A list of boxes, or one box; none where an item is not four numbers."""
    boxes = [found] if are_numbers(found, 4) else found
    good = isinstance(boxes, list) and all(are_numbers(box, 4) for box in boxes)
    return boxes if good else []


def _padded(boxes: list[Sequence[float]]) -> tuple[np.ndarray, np.ndarray]:
    """MOST boxes, and which of them are there."""
    table = np.zeros((MOST, 4), np.float32)
    table[: len(boxes)] = np.array(boxes, np.float32).reshape(-1, 4)
    return table, np.arange(MOST) < len(boxes)
