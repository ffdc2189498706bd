"""V-Triune: one run for reasoning and perception; each row says how it is judged.

"One RL to See Them All: Visual Triple Unified Reinforcement Learning", Ma et al., 2025,
https://arxiv.org/abs/2505.18129; code
https://github.com/MiniMax-AI/One-RL-to-See-Them-All.

    act     y_1..y_G ~ pi_old(. | image, q);
            R_i = (a accuracy_i + b format_i) / (a + b), a = 1 and b = 0.1 or the row's,
            by the row's verifier: mathematics, or boxes with IoU >= eps,
            eps = 0.85 up to a tenth of the run, 0.95 up to a quarter, then 0.99
    score   nothing
    credit  A_it = (R_i - mean(R)) / (std(R) + 1e-6)
    loss    clipped surrogate (0.2, 0.28), mean over all tokens

After the report: the shipped script adds a distance from a reference. Boxes pay for the
layout as in the code, where an answer block has a box; mathematics by the code's tags
with newlines. Math-verify reads the last box as it stands, where the code lower-cases
both sides, which breaks some LaTeX. What a rule cannot read of a row is an error that
names it, where the code pays 0. The tower is frozen in the paper, as a learner of
`trains=only(language)` has it; its metrics are of each source of data.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from vrl_jax import advantages, objectives, reductions
from vrl_jax.engine.reference import free
from vrl_jax.programs.single_turn import single_turn
from vrl_jax.rewards.average_precision import mean_average_precision
from vrl_jax.rewards.boxed import boxed_math
from vrl_jax.rewards.boxes import (
    Boxes,
    dynamic_threshold,
    iou_first_score,
    label_first_score,
)
from vrl_jax.rewards.columns import column
from vrl_jax.rewards.combine import Reward, as_parts
from vrl_jax.rewards.format import tag_share
from vrl_jax.rewards.grounding import first_size
from vrl_jax.rewards.math_verifier import MathVerifier
from vrl_jax.rewards.parse import read_json
from vrl_jax.rewards.parse_boxes import (
    Detection,
    as_boxes,
    as_detections,
    triune_detections,
)
from vrl_jax.training.anchored import anchored
from vrl_jax.training.iteration import Recipe
from vrl_jax.types import Episode, ImageSize

Thresholds = Callable[[int, int], Sequence[float]]
"""(step, total steps) -> the IoU from which a box is found; scores are averaged."""

MOST = 64
"""Boxes of a response that count, and of a row at most."""

_SCORES = {
    "iou_max_label_first": jax.jit(label_first_score),
    "iou_max_iou_first": jax.jit(iou_first_score),
}
_PRECISIONS = {"map": None, "map50": (0.5,), "map75": (0.75,)}
_mean_average_precision = jax.jit(
    mean_average_precision, static_argnames=("thresholds", "classes")
)


def tightening(step: int, total_steps: int) -> Sequence[float]:
    """The paper's dynamic IoU."""
    return (float(dynamic_threshold(step, total_steps)),)


def averaged(step: int, total_steps: int) -> Sequence[float]:
    """0.5, 0.55, ..., 0.95 and 0.99, whatever the step."""
    del step, total_steps
    return (*np.linspace(0.5, 0.95, 10).tolist(), 0.99)


def verified(verifier: MathVerifier, *, thresholds: Thresholds = tightening) -> Reward:
    """The actor's reward, by the row's column `reward_model`, a mapping with

    `verifier`, "mathverify" or "detection"; perhaps `accuracy_ratio` and
    `format_ratio`; and for boxes perhaps `verifier_parm`: `det_verifier_normalized`,
    where the row's boxes are in thousandths and the response's in pixels that the model
    sees, and the weights `det_reward_ratio`, of which the default is
    {"iou_max_label_first": 1}.
    """
    # The only two that the released rows name.
    verifiers = {
        "mathverify": functools.partial(_mathematics, boxed_math(verifier)),
        "detection": functools.partial(_detection, thresholds),
    }

    def reward(episodes: Sequence[Episode]) -> list[dict[str, float]]:
        sample = episodes[0].sample
        row = column(sample, "reward_model", Mapping, "how the row is judged")
        name = row.get("verifier")
        if not isinstance(name, str) or name not in verifiers:
            raise ValueError(
                f"{sample.id} needs a verifier in its reward_model, one of "
                f"{', '.join(verifiers)}; got {name!r}."
            )
        a, b = row.get("accuracy_ratio", 1.0), row.get("format_ratio", 0.1)
        return [
            {
                "overall": (a * accuracy + b * layout) / (a + b),
                "accuracy": accuracy,
                "format": layout,
            }
            for accuracy, layout in verifiers[name](row, episodes)
        ]

    return reward


def v_triune(
    *, group_size: int = 8, clip_low: float = 0.2, clip_high: float = 0.28
) -> Recipe:
    """The actor's reward is `verified(verifier)`."""
    return anchored(
        functools.partial(single_turn, group_size=group_size),
        advantage=functools.partial(advantages.group_zscore, group_size=group_size),
        surrogate=objectives.clipped_surrogate,
        reduction=reductions.token_mean,
        anchor=free,
        clip_low=clip_low,
        clip_high=clip_high,
    )


def _mathematics(
    accuracy: Reward, row: Mapping[str, Any], episodes: Sequence[Episode]
) -> list[tuple[float, float]]:
    del row
    right = [as_parts(score)["overall"] for score in accuracy(episodes)]
    return [(r, tag_share(e.text)) for r, e in zip(right, episodes, strict=True)]


def _detection(
    thresholds: Thresholds, row: Mapping[str, Any], episodes: Sequence[Episode]
) -> list[tuple[float, float]]:
    sample, parm = episodes[0].sample, row.get("verifier_parm") or {}
    gold = as_detections(read_json(sample.answer.lower()))
    if not 0 < len(gold) <= MOST:
        raise ValueError(
            f"{sample.id} needs 1 to {MOST} boxes as its answer, a list of bbox_2d and "
            f"label; {len(gold)} were read of {sample.answer[:80]!r}."
        )
    given = [triune_detections(episode.text)[:MOST] for episode in episodes]
    if parm.get("det_verifier_normalized"):
        size = first_size(episodes[0])
        given = [[_in_thousandths(one, size) for one in found] for found in given]
    labels = sorted({one.label for one in gold})
    weights = parm.get("det_reward_ratio") or {"iou_max_label_first": 1.0}
    bounds = thresholds(episodes[0].step, episodes[0].total_steps)
    wanted = as_boxes(gold, size=MOST, labels=labels)
    return [
        (
            _weighted(
                as_boxes(found, size=MOST, labels=labels),
                wanted,
                weights=weights,
                bounds=bounds,
                classes=len(labels),
            )
            if found
            else 0.0,
            float(bool(found)),
        )
        for found in given
    ]


def _weighted(
    predicted: Boxes,
    gold: Boxes,
    *,
    weights: Mapping[str, float],
    bounds: Sequence[float],
    classes: int,
) -> float:
    """The mean of the scores that have a weight in (0, 1]; others have none."""
    kept = {k: w for k, w in weights.items() if isinstance(w, int | float)}
    kept = {k: w for k, w in kept.items() if 0 < w <= 1}
    completeness = kept.pop("iou_completeness", 0.0)
    penalty = 0.6 ** abs(int(predicted.mask.sum()) - int(gold.mask.sum()))
    total = weight = 0.0
    for name, share in kept.items():
        if name in _SCORES:
            scores = [
                float(
                    _SCORES[name](
                        predicted,
                        gold,
                        iou_threshold=bound,
                        completeness_weight=completeness,
                    )
                )
                for bound in bounds
            ]
            score = math.fsum(scores) / len(scores)
        elif name in _PRECISIONS:
            at = _PRECISIONS[name]
            only = {} if at is None else {"thresholds": at}
            score = penalty * float(
                _mean_average_precision(predicted, gold, classes=classes, **only)
            )
        else:
            continue
        total, weight = total + share * score, weight + share
    return total / weight if weight else 0.0


def _in_thousandths(found: Detection, size: ImageSize) -> Detection:
    """Of the picture as the model sees it, cut to whole numbers as in the code."""
    sides = (size.width, size.height) * 2
    box = zip(found.box, sides, strict=True)
    return found._replace(box=tuple(float(int(x * 1000 / side)) for x, side in box))
