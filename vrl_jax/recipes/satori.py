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
than in the code, boxes end at the picture's edge, and a swapped one has no area.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vrl_jax import advantages, geometry, objectives, reductions
from vrl_jax.engine.reference import Anchor, free
from vrl_jax.programs.single_turn import single_turn
from vrl_jax.rewards.answers import one_of
from vrl_jax.rewards.combine import per_response, weighted
from vrl_jax.rewards.format import blocks_in_order
from vrl_jax.rewards.grounding import Frame, original, resized
from vrl_jax.rewards.parse import first_tag, read_json
from vrl_jax.rewards.parse_boxes import as_boxes, as_detections
from vrl_jax.rewards.text import caption_score
from vrl_jax.training.anchored import anchored
from vrl_jax.training.iteration import Recipe
from vrl_jax.types import Episode

MOST = 32
"""Boxes of a response that count."""

_union_iou = jax.jit(geometry.union_iou)


def looks_first(text: str) -> bool:
    """A caption block, a bbox block `[[...]]`, perhaps a think block, an answer block.

    And nothing else but blanks around them.
    """
    boxes = first_tag(text, "bbox") or ""
    return (boxes.startswith("[[") and boxes.endswith("]]")) and (
        blocks_in_order(text, ("caption", "bbox", "answer"))
        or blocks_in_order(text, ("caption", "bbox", "think", "answer"))
    )


def captioned(episode: Episode) -> float:
    """The caption block against the column `image_caption`; 0 without one."""
    given = first_tag(episode.text, "caption")
    gold = episode.sample.annotations["image_caption"]
    return 0.0 if given is None else caption_score(given, gold)


def located(episode: Episode, *, frame: Frame = resized) -> float:
    """IoU of the union of the boxes with that of the column `bboxs`.

    The row's are in pixels of the picture as it came, the response's in `frame`: by
    default pixels of the picture as the model sees it. One box may stand alone; what
    is not a list of boxes is none.
    """
    size = episode.image_sizes[0]
    whole = np.array(original(size), np.float32)
    given = _boxes(read_json(first_tag(episode.text, "bbox") or ""))
    moved = geometry.rescale(given[0], jnp.array(frame(size)), whole)
    inside = jnp.clip(moved, 0, np.tile(whole, 2))
    gold = _boxes(episode.sample.annotations["bboxs"])
    return float(_union_iou(inside, given[1], *gold))


def answered(episode: Episode) -> float:
    """1 where the answer block is in the column `possible_answers`, case and all."""
    given = first_tag(episode.text, "answer")
    return float(one_of(given, episode.sample.annotations["possible_answers"]))


anchored_reward = weighted(
    {
        "format": (per_response(lambda e: float(looks_first(e.text))), 1.0),
        "caption": (per_response(captioned), 1.0),
        "bbox": (per_response(located), 1.0),
        "answer": (per_response(answered), 1.0),
    }
)
"""The actor's reward: the four parts, equally weighed, at most 4."""


def satori(*, group_size: int = 16, clip: float = 0.2, anchor: Anchor = free) -> Recipe:
    """The actor's reward is `anchored_reward`."""
    act = functools.partial(single_turn, group_size=group_size)
    return anchored(
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


def _boxes(found: Sequence) -> tuple[np.ndarray, np.ndarray]:
    """Padded boxes and which are there; none where an item is not four numbers."""
    items = as_detections(found)
    table = as_boxes(items[:MOST], size=MOST)
    return table.boxes, table.mask
