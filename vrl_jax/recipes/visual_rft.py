"""Visual-RFT: answers about a picture that a rule can check.

"Visual-RFT: Visual Reinforcement Fine-Tuning", Liu et al., 2025,
https://arxiv.org/abs/2503.01785; code https://github.com/Liuziyu77/Visual-RFT.

    act     y_1..y_G ~ pi_old(. | image, q);  R_i = format(y_i) + one of
            detection       sum of matched IoU / max(predicted, gold) + confidence
            classification  1 if the name contains the gold name, or the other way
            grounding       GIoU + 1
    score   log pi_ref(y_i | image, q), with an anchor
    credit  A_it = (R_i - mean(R)) / (std(R) + 1e-4)
    loss    clipped surrogate (0.2, 0.2) + weight k3(l_it, l_ref_it), mean over each
            response, then over responses

The code's anchor is near(reference, weight=0.04), and its one update a batch clips
nothing. Detection follows the code: the paper divides by the predicted boxes alone, so
that what is missed costs nothing. Boxes are in thousandths of the picture. Other than
in the code, a picture without the object may be answered, "No Objects", an empty name
is not in every name, and no answer is tried as mathematics first. Of a list that was
cut off or holds other things the readable boxes count; one without confidence is sure.
"""

import functools
import re
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jaxtyping import Array, Float

from vrl_jax import advantages, geometry, objectives, reductions
from vrl_jax.engine.reference import Anchor, free
from vrl_jax.programs.single_turn import single_turn
from vrl_jax.rewards.answers import contains_either_way
from vrl_jax.rewards.boxes import Boxes, confidence_reward, matched_iou_share
from vrl_jax.rewards.combine import Reward, with_format
from vrl_jax.rewards.format import think_then_answer
from vrl_jax.rewards.parse import answer_or_rest, first_tag, read_json
from vrl_jax.rewards.parse_boxes import (
    Detection,
    as_boxes,
    as_detections,
    without_repeats,
)
from vrl_jax.training.clipped_recipe import clipped_recipe
from vrl_jax.training.iteration import Recipe
from vrl_jax.types import Episode

NOTHING = "No Objects"
MOST = 64
"""Boxes of a response that count, the most confident ones, and of a row at most."""

_CORNERS = re.compile(r"\((\d{1,4}),\s*(\d{1,4})\),\s*\((\d{1,4}),\s*(\d{1,4})\)")


def checked(accuracy: Reward) -> Reward:
    """accuracy + format: a think block, then an answer block, and nothing else."""
    return with_format(accuracy, think_then_answer)


def detection(episodes: Sequence[Episode]) -> list[dict[str, float]]:
    """R_IoU + R_conf of `[{"Position": [x1, y1, x2, y2], "Confidence": c}, ...]`.

    The row's answer is such a list. Both are 1 where both sides say "No Objects", 0
    where one does or the response cannot be read; an answer that cannot be read leaves
    the group unscored.
    """
    gold = _read(episodes[0].sample.answer)
    if gold is None:
        return [{"overall": float("nan")} for _ in episodes]
    if len(gold) > MOST:
        raise ValueError(
            f"{episodes[0].sample.id} has {len(gold)} boxes, and {MOST} are room for: "
            "leave it out, or ask for a part of the picture."
        )
    given = [_most_confident(_read(answer_or_rest(e.text))) for e in episodes]
    found = jax.tree.map(lambda *x: np.stack(x), *(_table(one or []) for one in given))
    shares, honesty = _matched(found, _table(gold))
    scores = []
    for one, iou, confidence in zip(
        given, shares.tolist(), honesty.tolist(), strict=True
    ):
        if one is None or not one or not gold:
            iou = confidence = float(one is not None and not one and not gold)
        scores.append({"overall": iou + confidence, "iou": iou, "conf": confidence})
    return scores


def classification(episodes: Sequence[Episode]) -> list[float]:
    """1 where the name in the answer block contains the row's answer, or is in it."""
    return [
        float(contains_either_way(first_tag(e.text, "answer"), e.sample.answer))
        for e in episodes
    ]


def grounding(episodes: Sequence[Episode]) -> list[float]:
    """GIoU + 1 of `(x1,y1),(x2,y2)`, in [0, 2]; 0 for what is not a box."""
    gold = _corners(episodes[0].sample.answer)
    if gold is None:
        return [float("nan")] * len(episodes)
    given = [_corners(answer_or_rest(episode.text)) for episode in episodes]
    boxes = np.array([one or (0, 0, 0, 0) for one in given], np.float32) / 1000
    found = geometry.giou(boxes, np.array(gold, np.float32) / 1000) + 1
    return np.where([one is not None for one in given], found, 0).tolist()


def visual_rft(
    *, group_size: int = 8, clip: float = 0.2, anchor: Anchor = free
) -> Recipe:
    """The actor's reward is `checked` of one of the three above."""
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


@jax.jit
def _matched(
    predicted: Boxes, gold: Boxes
) -> tuple[Float[Array, " G"], Float[Array, " G"]]:
    """Of each response; IoU is the same in thousandths as in pixels."""
    rules = (matched_iou_share, confidence_reward)
    return tuple(jax.vmap(rule, (0, None))(predicted, gold) for rule in rules)


def _read(text: str) -> list[Detection] | None:
    """Boxes without repeats, or none where it says so.

    None for what is no list, begins with no object, or holds no box.
    """
    if text.strip().lower() == NOTHING.lower():
        return []
    match read_json(text):
        case [[*items]] | [*items] if items and isinstance(items[0], Mapping):
            objects = [item for item in items if isinstance(item, Mapping)]
            return without_repeats(as_detections(objects)) or None
        case []:
            return []
    return None


def _most_confident(found: list[Detection] | None) -> list[Detection] | None:
    """As many as count."""
    if found is None:
        return None
    return sorted(found, key=lambda one: -one.confidence)[:MOST]


def _table(found: Sequence[Detection]) -> Boxes:
    return as_boxes(found, size=MOST)


def _corners(text: str) -> tuple[int, ...] | None:
    found = _CORNERS.search(text)
    return tuple(map(int, found.groups())) if found else None
