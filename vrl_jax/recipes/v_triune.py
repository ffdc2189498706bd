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

After the report: the shipped script adds a distance from a reference. Boxes earn the
layout where an answer block holds one, mathematics by the code's tags with newlines.
Math-verify compares what stands in the last box as it stands: the code lower-cases both
sides, which breaks some LaTeX, and reads dollars where there is no box. A row that
cannot be judged is an error that names it, or marked `unchecked`, where the code pays
0. Prompts are the rows': the code draws their tails from a pool. Outside a run, in an
evaluation, eps is 0.85. The tower is frozen in the paper, as a learner of
`trains=only(language)` has it.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from vrl_jax import advantages, objectives, reductions
from vrl_jax.engine.reference import free
from vrl_jax.programs.single_turn import single_turn
from vrl_jax.rewards.average_precision import THRESHOLDS, mean_average_precision
from vrl_jax.rewards.boxed import boxed_math
from vrl_jax.rewards.boxes import (
    Boxes,
    dynamic_threshold,
    iou_first_score,
    label_first_score,
    size_penalty,
)
from vrl_jax.rewards.columns import chosen, column
from vrl_jax.rewards.combine import Reward
from vrl_jax.rewards.format import tag_share
from vrl_jax.rewards.grounding import first_size
from vrl_jax.rewards.math_verifier import MathVerifier
from vrl_jax.rewards.parse import read_json
from vrl_jax.rewards.parse_boxes import (
    Detection,
    are_numbers,
    as_boxes,
    as_detections,
    triune_detections,
    without_repeats,
)
from vrl_jax.training.clipped_recipe import clipped_recipe
from vrl_jax.training.iteration import Recipe
from vrl_jax.types import Episode, ImageSize, Sample

Thresholds = Callable[[int, int], Sequence[float]]
"""(step, total steps) -> the IoU from which a box is found; scores are averaged."""

MOST = 64
"""Boxes of a response that count, and of a row at most."""


def _of_a_group(
    rule: Callable[..., Float[Array, ""]],
) -> Callable[..., Float[Array, " G"]]:
    def one(
        predicted: Boxes, gold: Boxes, bound: float, completeness: float
    ) -> Float[Array, ""]:
        return rule(
            predicted, gold, iou_threshold=bound, completeness_weight=completeness
        )

    return jax.jit(jax.vmap(one, (0, None, None, None)))


_SCORES = {
    "iou_max_label_first": _of_a_group(label_first_score),
    "iou_max_iou_first": _of_a_group(iou_first_score),
}
_PRECISIONS = {"map": tuple(THRESHOLDS), "map50": (0.5,), "map75": (0.75,)}


@functools.partial(jax.jit, static_argnums=(2, 3))
def _precision(
    predicted: Boxes, gold: Boxes, thresholds: tuple[float, ...], classes: int
) -> Float[Array, " G"]:
    """Mean average precision with V-Triune's penalty; 0 without a box."""

    def one(boxes: Boxes) -> Float[Array, ""]:
        found = mean_average_precision(
            boxes, gold, thresholds=thresholds, classes=classes
        )
        return size_penalty(boxes, gold) * found

    return jax.vmap(one)(predicted)


def tightening(step: int, total_steps: int) -> Sequence[float]:
    """The paper's dynamic IoU."""
    return (float(dynamic_threshold(step, total_steps)),)


def averaged(step: int, total_steps: int) -> Sequence[float]:
    """0.5, 0.55, ..., 0.95 and 0.99, whatever the step."""
    del step, total_steps
    return (*THRESHOLDS.tolist(), 0.99)


def verified(verifier: MathVerifier, *, thresholds: Thresholds = tightening) -> Reward:
    """The actor's reward: what the mapping in the row's column `reward_model` says.

    Its `verifier` is "mathverify" or "detection"; `accuracy_ratio` and `format_ratio`
    are a and b. Boxes may have a mapping `verifier_parm`: `det_verifier_normalized`,
    where the row's are in thousandths and the response's in pixels that the model sees,
    and `det_reward_ratio`, weights up to 1 of iou_max_label_first (the default),
    iou_max_iou_first, map, map50 and map75, with the share iou_completeness of the
    first two.
    """
    # The only two that the released rows name.
    verifiers = {
        "mathverify": functools.partial(_mathematics, boxed_math(verifier)),
        "detection": functools.partial(_detection, thresholds),
    }

    def reward(episodes: Sequence[Episode]) -> list[dict[str, float]]:
        sample = episodes[0].sample
        row = column(sample, "reward_model", Mapping, "a mapping: how it is judged")
        what = "a verifier in its reward_model"
        judged = chosen(sample, what, row.get("verifier"), verifiers)
        a, b = _ratios(sample, row)
        return [
            {
                **found,
                "overall": (a * found["accuracy"] + b * found["format"]) / (a + b),
            }
            for found in judged(row, episodes)
        ]

    return reward


def v_triune(
    *, group_size: int = 8, clip_low: float = 0.2, clip_high: float = 0.28
) -> Recipe:
    """The actor's reward is `verified(verifier)`."""
    return clipped_recipe(
        functools.partial(single_turn, group_size=group_size),
        advantage=functools.partial(advantages.group_zscore, group_size=group_size),
        surrogate=objectives.clipped_surrogate,
        reduction=reductions.token_mean,
        anchor=free,
        clip_low=clip_low,
        clip_high=clip_high,
    )


def _ratios(sample: Sample, row: Mapping[str, Any]) -> tuple[float, float]:
    """a and b; a missing one is the service's default."""
    given = [row.get("accuracy_ratio"), row.get("format_ratio")]
    pair = [d if x is None else x for x, d in zip(given, (1.0, 0.1), strict=True)]
    if not (are_numbers(pair, 2) and min(pair) >= 0 and sum(pair) > 0):
        raise ValueError(
            f"{sample.id} needs an accuracy_ratio and a format_ratio of 0 or more, and "
            f"not both 0, in its reward_model; got {given}."
        )
    return pair[0], pair[1]


def _mathematics(
    accuracy: Reward, row: Mapping[str, Any], episodes: Sequence[Episode]
) -> list[dict[str, float]]:
    del row
    return [
        {
            "accuracy": score["overall"],
            "format": tag_share(episode.text),
            "unchecked": score["unchecked"],
        }
        for score, episode in zip(accuracy(episodes), episodes, strict=True)
    ]


def _detection(
    thresholds: Thresholds, row: Mapping[str, Any], episodes: Sequence[Episode]
) -> list[dict[str, float]]:
    sample, parm = episodes[0].sample, row.get("verifier_parm") or {}
    weights = _weights(sample, parm)
    gold = _gold(sample)
    given = [triune_detections(episode.text)[:MOST] for episode in episodes]
    if parm.get("det_verifier_normalized"):
        size = first_size(episodes[0])
        given = [[_in_thousandths(one, size) for one in found] for found in given]
    labels = sorted({one.label for one in gold})
    bounds = thresholds(episodes[0].step, episodes[0].total_steps)
    tables = [as_boxes(found, size=MOST, labels=labels) for found in given]
    predicted = jax.tree.map(lambda *x: np.stack(x), *tables)
    wanted = as_boxes(gold, size=MOST, labels=labels)
    scores = _weighted(predicted, wanted, weights, bounds, len(labels))
    return [
        {"accuracy": float(score), "format": float(bool(found))}
        for score, found in zip(scores, given, strict=True)
    ]


def _gold(sample: Sample) -> list[Detection]:
    """The row's boxes, without repeats; each has four numbers and a label."""
    given = read_json(sample.answer.lower())
    items = [given] if isinstance(given, Mapping) else given or []
    boxes = as_detections(items)
    labelled = len(boxes) == len(items) and all(box.label for box in boxes)
    boxes = without_repeats(boxes)
    if not labelled or not 0 < len(boxes) <= MOST:
        raise ValueError(
            f"{sample.id} needs 1 to {MOST} boxes as its answer, each with bbox_2d and "
            f"a label; got {sample.answer[:80]!r}."
        )
    return boxes


def _weights(sample: Sample, parm: Any) -> dict[str, float]:
    """Those in (0, 1], as in the code; others do not count."""
    given = parm.get("det_reward_ratio") if isinstance(parm, Mapping) else parm
    given = {"iou_max_label_first": 1.0} if given is None else given
    found = {}
    if isinstance(parm, Mapping) and isinstance(given, Mapping):
        known = {**_SCORES, **_PRECISIONS, "iou_completeness": None}
        numbers = {k: w for k, w in given.items() if k in known and are_numbers([w], 1)}
        found = {name: w for name, w in numbers.items() if 0 < w <= 1}
    if not {*found} - {"iou_completeness"}:
        raise ValueError(
            f"{sample.id} needs a mapping verifier_parm whose det_reward_ratio weighs, "
            f"up to 1, some of {', '.join({**_SCORES, **_PRECISIONS})}; got {given!r}."
        )
    return found


def _weighted(
    predicted: Boxes,
    gold: Boxes,
    weights: Mapping[str, float],
    bounds: Sequence[float],
    classes: int,
) -> Float[np.ndarray, " G"]:
    """The mean of the scores by their weights, for each response of the group."""
    completeness = weights.get("iou_completeness", 0.0)

    def score(name: str) -> Float[np.ndarray, " G"]:
        if name in _PRECISIONS:
            return np.asarray(_precision(predicted, gold, _PRECISIONS[name], classes))
        rule = _SCORES[name]
        found = [rule(predicted, gold, bound, completeness) for bound in bounds]
        return np.mean(np.array(found), axis=0)

    shares = {name: w for name, w in weights.items() if name != "iou_completeness"}
    total = sum(share * score(name) for name, share in shares.items())
    return total / sum(shares.values())


def _in_thousandths(found: Detection, size: ImageSize) -> Detection:
    """Of the picture as the model sees it, cut to whole numbers as in the code."""
    sides = (size.width, size.height) * 2
    box = zip(found.box, sides, strict=True)
    return found._replace(box=tuple(float(int(x * 1000 / side)) for x, side in box))
