"""Mean average precision of one picture's boxes, by the rule of pycocotools."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vrl_jax import geometry
from vrl_jax.rewards.boxes import Boxes, surplus_penalty

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)


def average_precision(
    predicted: Boxes, gold: Boxes, label: Int[Array, ""], iou_threshold: float
) -> Float[Array, ""]:
    """Interpolated precision at 101 recalls, for one label and threshold.

    Predictions by falling confidence, equal ones in the order given; each takes the
    free gold box of largest IoU >= threshold (the last of equals). NaN without gold
    boxes of the label. `COCOeval` of
    https://github.com/cocodataset/cocoapi/blob/master/PythonAPI/pycocotools/cocoeval.py
    """
    mine = predicted.mask & (predicted.labels == label)
    theirs = gold.mask & (gold.labels == label)
    confidence = jnp.where(mine, jnp.nan_to_num(predicted.confidences), -jnp.inf)
    order = jnp.argsort(-confidence, stable=True)
    boxes, kept = predicted.boxes[order], mine[order]
    scores = geometry.iou(*geometry.pairwise(boxes, gold.boxes))
    scores = jnp.where(kept[:, None] & theirs, scores, 0)
    # pycocotools compares with min(threshold, 1 - 1e-10), and goes on at equality.
    scores = jnp.where(scores >= iou_threshold, scores, 0)[:, ::-1]
    hit = geometry.greedy_match_by_row(scores) >= 0
    true = jnp.cumsum(hit & kept)
    false = jnp.cumsum(~hit & kept)
    precision = true / jnp.maximum(true + false, 1)
    return _interpolated(true, precision, kept, theirs.sum())


def _interpolated(
    true: Int[Array, " N"],
    precision: Float[Array, " N"],
    kept: Bool[Array, " N"],
    count: Int[Array, ""],
) -> Float[Array, ""]:
    precision = jnp.where(kept, precision, 0)
    precision = jax.lax.cummax(precision, reverse=True)
    # recall >= r in whole numbers: no rounding decides. r = k / 100.
    reached = 100 * true[None] >= jnp.arange(101)[:, None] * count
    reached = reached & kept[None]
    at = jnp.where(reached.any(1), precision[jnp.argmax(reached, axis=1)], 0)
    return jnp.where(count > 0, at.mean(), jnp.nan)


def mean_average_precision(
    predicted: Boxes,
    gold: Boxes,
    *,
    thresholds: Float[Array, " K"] | tuple[float, ...] = tuple(THRESHOLDS),
    classes: int,
) -> Float[Array, ""]:
    """Mean over thresholds and over the labels 0..classes - 1 that gold has.

    Labels that gold lacks do not count. No box on either side is 1, no gold box with
    predictions 0. With equal confidences the order of the predictions matters (one
    gold box, an exact and a false prediction: 1.0 with the exact one first, 0.5 with it
    last), so train on confidences or on F1. `thresholds=(0.5,)` is AP50.
    """
    predicted, gold = jax.tree.map(jnp.asarray, (predicted, gold))
    over_labels = jax.vmap(average_precision, (None, None, 0, None))
    over_both = jax.vmap(over_labels, (None, None, None, 0))
    table = over_both(predicted, gold, jnp.arange(classes), jnp.asarray(thresholds))
    n_predicted, n_gold = predicted.mask.sum(), gold.mask.sum()
    known = ~jnp.isnan(table)
    mean = jnp.where(known, table, 0).sum() / jnp.maximum(known.sum(), 1)
    return jnp.where(n_gold > 0, mean, (n_predicted == 0).astype(mean.dtype))


def penalised_average_precision(
    predicted: Boxes,
    gold: Boxes,
    *,
    thresholds: Float[Array, " K"] | tuple[float, ...] = tuple(THRESHOLDS),
    classes: int,
) -> Float[Array, ""]:
    """`mean_average_precision` times `surplus_penalty`: VLM-R1, if over-long.

    Average precision alone forgives false boxes after the right ones.
    https://github.com/om-ai-lab/VLM-R1
    """
    precision = mean_average_precision(
        predicted, gold, thresholds=thresholds, classes=classes
    )
    return precision * surplus_penalty(predicted, gold)
