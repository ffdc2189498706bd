"""Boxes with confidences, read and paid as Visual-RFT does.

https://arxiv.org/abs/2503.01785; code https://github.com/Liuziyu77/Visual-RFT.
"""

from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jaxtyping import Array, Float

from vrl_jax.rewards.boxes import Boxes, confidence_reward, matched_iou_share
from vrl_jax.rewards.combine import Reward
from vrl_jax.rewards.grounding import Frame, first_size, in_pixels, thousandths
from vrl_jax.rewards.parse import answer_or_rest, read_json
from vrl_jax.rewards.parse_boxes import (
    Detection,
    as_boxes,
    as_detections,
    without_repeats,
)
from vrl_jax.types import Episode

NOTHING = "No Objects"
MOST = 64
"""Boxes of a response that count, the most confident ones, and of a row at most."""


def detection_reward(
    *, frame: Frame = thousandths, gold_frame: Frame = thousandths
) -> Reward:
    """R_IoU + R_conf of `[{"Position": [x1, y1, x2, y2], "Confidence": c}, ...]`.

    `boxes.matched_iou_share` and `boxes.confidence_reward` of what the answer block
    holds, equal boxes once. The row's answer is such a list, in `gold_frame`. Both are
    1 where both sides say "No Objects", 0 where one does or the response cannot be
    read; an answer that cannot be read leaves the group unscored.
    """

    def reward(episodes: Sequence[Episode]) -> list[dict[str, float]]:
        gold = _read(episodes[0].sample.answer)
        if gold is None:
            return [{"overall": float("nan")} for _ in episodes]
        if len(gold) > MOST:
            raise ValueError(
                f"{episodes[0].sample.id} has {len(gold)} boxes, and {MOST} are room "
                "for: leave it out, or ask for a part of the picture."
            )
        given = [_most_confident(_read(answer_or_rest(e.text))) for e in episodes]
        tables = (_table(one or []) for one in given)
        predicted, wanted = jax.tree.map(lambda *x: np.stack(x), *tables), _table(gold)
        if frame is not gold_frame:  # in a common one IoU is what it is in pixels
            size = first_size(episodes[0])
            predicted = in_pixels(predicted, frame, size)
            wanted = in_pixels(wanted, gold_frame, size)
        shares, honesty = _matched(predicted, wanted)
        scores = []
        for one, iou, confidence in zip(
            given, shares.tolist(), honesty.tolist(), strict=True
        ):
            if one is None or not one or not gold:
                iou = confidence = float(one is not None and not one and not gold)
            scores.append({"overall": iou + confidence, "iou": iou, "conf": confidence})
        return scores

    return reward


@jax.jit
def _matched(
    predicted: Boxes, gold: Boxes
) -> tuple[Float[Array, " G"], Float[Array, " G"]]:
    """Of each response."""
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
