"""Scores of predicted boxes against gold ones: arrays in, numbers out, jitted.

Read the boxes with `vrl_jax.rewards.parse_boxes`. One call scores one response;
`jax.vmap` scores a batch, since padding changes nothing.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from vrl_jax import geometry


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Boxes:
    """Padded boxes with labels as numbers and confidences; `mask` is True on boxes."""

    boxes: Float[Array, "N 4"]
    mask: Bool[Array, " N"]
    labels: Int[Array, " N"]
    confidences: Float[Array, " N"]


def overlaps(predicted: Boxes, gold: Boxes) -> Float[Array, "N M"]:
    """IoU of every pair; 0 on padding."""
    found = geometry.iou(*geometry.pairwise(predicted.boxes, gold.boxes))
    return jnp.where(predicted.mask[:, None] & gold.mask, found, 0)


def labelled_overlaps(predicted: Boxes, gold: Boxes) -> Float[Array, "N M"]:
    """`overlaps`, 0 where the labels differ."""
    same = predicted.labels[:, None] == gold.labels
    return jnp.where(same, overlaps(predicted, gold), 0)


def first_iou(predicted: Boxes, gold: Boxes) -> Float[Array, ""]:
    """IoU of the first predicted and the first gold box: grounding of one thing."""
    return overlaps(predicted, gold)[0, 0]


def iou_reached(
    predicted: Boxes, gold: Boxes, *, iou_threshold: float | Float[Array, ""] = 0.5
) -> Float[Array, ""]:
    """1 where `first_iou` is at least the threshold, else 0."""
    return (first_iou(predicted, gold) >= iou_threshold).astype(jnp.float32)


def pixel_iou(predicted: Boxes, gold: Boxes) -> Float[Array, ""]:
    """`first_iou` in the inclusive pixels of VLM-R1; in whole pixels only."""
    found = geometry.inclusive_pixel_iou(predicted.boxes[0], gold.boxes[0])
    return jnp.where(predicted.mask[0] & gold.mask[0], found, 0)


def union_iou(predicted: Boxes, gold: Boxes) -> Float[Array, ""]:
    """IoU of the two unions: SATORI-R1, https://arxiv.org/abs/2505.19094."""
    return geometry.union_iou(predicted.boxes, predicted.mask, gold.boxes, gold.mask)


def without_ignored(predicted: Boxes, ignored: Boxes, *, share: float = 0.5) -> Boxes:
    """The predictions but for those with `share` of their area in an ignored region.

    Regions of a crowd that nobody annotated: what lies there is neither hit nor miss.
    The rule of crowd regions in
    https://github.com/cocodataset/cocoapi/blob/master/PythonAPI/pycocotools/cocoeval.py
    """
    a, b = geometry.pairwise(predicted.boxes, ignored.boxes)
    inside = geometry.area(geometry.intersection(a, b))
    inside = jnp.where(ignored.mask, inside, 0).max(-1)
    own = geometry.area(predicted.boxes)
    dropped = (own > 0) & (inside >= share * own)
    return dataclasses.replace(predicted, mask=predicted.mask & ~dropped)


def precision_recall_f1(
    hits: Float[Array, ""], predicted: Boxes, gold: Boxes
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """hits / predicted, hits / gold, and 2 hits / (predicted + gold).

    Nothing to find and nothing found is 1, 1, 1; one side empty is 0, 0, 0.
    """
    n_predicted, n_gold = predicted.mask.sum(), gold.mask.sum()
    empty = (n_predicted + n_gold) == 0

    def share(part: Float[Array, ""], whole: Int[Array, ""]) -> Float[Array, ""]:
        return jnp.where(empty, 1.0, part / jnp.maximum(whole, 1))

    return (
        share(hits, n_predicted),
        share(hits, n_gold),
        share(2.0 * hits, n_predicted + n_gold),
    )


def greedy_f1(
    predicted: Boxes, gold: Boxes, *, iou_threshold: float | Float[Array, ""] = 0.5
) -> Float[Array, ""]:
    """F1 of greedy matching by IoU, the largest first; a hit has IoU >= threshold."""
    return _f1(geometry.greedy_match, predicted, gold, iou_threshold)


def hungarian_f1(
    predicted: Boxes, gold: Boxes, *, iou_threshold: float | Float[Array, ""] = 0.5
) -> Float[Array, ""]:
    """F1 of the matching of largest total IoU; a hit has IoU >= threshold."""
    return _f1(geometry.hungarian_match, predicted, gold, iou_threshold)


def grounding_consistency(predicted: Boxes, detected: Boxes) -> Float[Array, ""]:
    """2 sum of matched IoU / (predicted + detected), matched for the largest total.

    What a response points at, against what the same policy then detects under that
    name: CGPO (ACM MM 2026) adds 0.5 of it to the reward of a right answer, as released
    in https://github.com/zsxm1998/awesome-perception-aware-rlvr. No box at all is 1.
    """
    scores = overlaps(predicted, detected)
    found = geometry.matched_scores(scores, geometry.hungarian_match(scores))
    return precision_recall_f1(found.sum(), predicted, detected)[2]


def _f1(match, predicted: Boxes, gold: Boxes, iou_threshold) -> Float[Array, ""]:
    scores = overlaps(predicted, gold)
    found = geometry.matched_scores(scores, match(scores))
    return precision_recall_f1(_hits(found, iou_threshold), predicted, gold)[2]


def _hits(found: Float[Array, " N"], iou_threshold) -> Float[Array, ""]:
    return ((found >= iou_threshold) & (found > 0)).sum().astype(jnp.float32)


def weighted_precision_recall(
    predicted: Boxes,
    gold: Boxes,
    *,
    precision_weight: float = 0.5,
    iou_threshold: float = 0.5,
) -> Float[Array, ""]:
    """w P + (1 - w) R of the Hungarian matching; 0.3 leans to recall for crowds.

    DIP-R1, https://arxiv.org/abs/2505.23179, whose abstract leaves weights and
    matching open.
    """
    scores = overlaps(predicted, gold)
    found = geometry.matched_scores(scores, geometry.hungarian_match(scores))
    precision, recall, _ = precision_recall_f1(
        _hits(found, iou_threshold), predicted, gold
    )
    return precision_weight * precision + (1 - precision_weight) * recall


def matched_iou_share(
    predicted: Boxes, gold: Boxes, *, iou_threshold: float = 0.5
) -> Float[Array, ""]:
    """sum of matched IoU / max(predicted, gold), the most confident box first.

    A box takes the free gold box of largest IoU and matches if that is above the
    threshold. The training code of Visual-RFT, https://arxiv.org/abs/2503.01785; the
    paper divides by the predictions, so that missing objects cost nothing. No box on
    either side is 1.
    """
    found, _ = _by_confidence(predicted, gold, iou_threshold)
    most = jnp.maximum(predicted.mask.sum(), gold.mask.sum())
    return jnp.where(most > 0, found.sum() / jnp.maximum(most, 1), 1.0)


def confidence_reward(
    predicted: Boxes, gold: Boxes, *, iou_threshold: float = 0.5
) -> Float[Array, ""]:
    """mean of c_i for matched boxes and 1 - c_i for the others, clipped to [0, 1].

    Visual-RFT, https://arxiv.org/abs/2503.01785. 0 without boxes.
    """
    found, confidences = _by_confidence(predicted, gold, iou_threshold)
    honest = jnp.where(found > 0, confidences, 1 - confidences)
    count = predicted.mask.sum()
    total = jnp.where(predicted.mask[_order(predicted)], honest, 0).sum()
    return jnp.clip(jnp.where(count > 0, total / jnp.maximum(count, 1), 0), 0, 1)


def _order(predicted: Boxes) -> Int[Array, " N"]:
    return jnp.argsort(-jnp.where(predicted.mask, predicted.confidences, -jnp.inf))


def _by_confidence(
    predicted: Boxes, gold: Boxes, iou_threshold: float
) -> tuple[Float[Array, " N"], Float[Array, " N"]]:
    """Matched IoU (0 for none) and confidence, the most confident first."""
    order = _order(predicted)
    scores = overlaps(predicted, gold)[order]
    scores = jnp.where(scores > iou_threshold, scores, 0)
    found = geometry.matched_scores(scores, geometry.greedy_match_by_row(scores))
    return found, jnp.clip(jnp.nan_to_num(predicted.confidences), 0, 1)[order]


def position_and_completeness(
    predicted: Boxes,
    gold: Boxes,
    *,
    iou_threshold: float = 0.5,
    alpha: float = 0.7,
    beta: float = 0.0,
    gamma: float = 0.3,
) -> Float[Array, ""]:
    """(alpha position + beta label + gamma completeness) / (alpha + beta + gamma).

    Greedy pairs with IoU >= threshold, whatever their labels. A wrong label zeroes the
    pair's IoU; position is the mean IoU and label the share of right labels of the
    pairs, completeness 1 - (missed / gold + false / predicted) / 2. Both sides empty
    is 1, one of them 0. VLM-R1's detection score, https://github.com/om-ai-lab/VLM-R1.
    """
    scores = overlaps(predicted, gold)
    scores = jnp.where(scores >= iou_threshold, scores, 0)
    matched = geometry.greedy_match(scores)
    pairs = (matched >= 0).sum()
    same = (gold.labels[jnp.maximum(matched, 0)] == predicted.labels) & (matched >= 0)
    found = jnp.where(same, geometry.matched_scores(scores, matched), 0)
    position = found.sum() / jnp.maximum(pairs, 1)
    labels = same.sum() / jnp.maximum(pairs, 1)
    n_predicted, n_gold = predicted.mask.sum(), gold.mask.sum()
    missed = (n_gold - pairs) / jnp.maximum(n_gold, 1)
    false = (n_predicted - pairs) / jnp.maximum(n_predicted, 1)
    mixed = alpha * position + beta * labels + gamma * (1 - (missed + false) / 2)
    one_empty = (n_predicted == 0) | (n_gold == 0)
    both_empty = (n_predicted == 0) & (n_gold == 0)
    score = jnp.where(one_empty, 0, mixed / (alpha + beta + gamma))
    return jnp.where(both_empty, 1.0, score)


def label_first_score(
    predicted: Boxes,
    gold: Boxes,
    *,
    iou_threshold: float | Float[Array, ""] = 0.5,
    completeness_weight: float = 0.0,
) -> Float[Array, ""]:
    """S_eps of V-Triune: each gold box takes its best free box of the same label.

    S = (1 - w) sum of matched IoU / gold + w (1 - (missed / gold + false / predicted)
    / 2), times 0.6^|predicted - gold|, the penalty of its code;
    https://arxiv.org/abs/2505.18129.
    """
    scores = labelled_overlaps(predicted, gold)
    scores = jnp.where(scores >= iou_threshold, scores, 0)
    found = geometry.matched_scores(scores.T, geometry.greedy_match_by_row(scores.T))
    return _triune(found, predicted, gold, completeness_weight)


def iou_first_score(
    predicted: Boxes,
    gold: Boxes,
    *,
    iou_threshold: float | Float[Array, ""] = 0.5,
    completeness_weight: float = 0.0,
) -> Float[Array, ""]:
    """S_eps of V-Triune with the largest pair of all first, whatever its labels.

    A pair of two labels is taken and counts 0. The released code loses its maximum in
    the search; this is the rule it states.
    """
    scores = overlaps(predicted, gold)
    matched = geometry.greedy_match(jnp.where(scores >= iou_threshold, scores, 0))
    scores = labelled_overlaps(predicted, gold)
    found = geometry.matched_scores(scores, matched)
    return _triune(found, predicted, gold, completeness_weight)


def _triune(
    found: Float[Array, " K"], predicted: Boxes, gold: Boxes, weight: float
) -> Float[Array, ""]:
    n_predicted, n_gold = predicted.mask.sum(), gold.mask.sum()
    pairs = (found > 0).sum()
    missed = (n_gold - pairs) / jnp.maximum(n_gold, 1)
    false = (n_predicted - pairs) / jnp.maximum(n_predicted, 1)
    completeness = 1 - (missed + false) / 2
    mean = found.sum() / jnp.maximum(n_gold, 1)
    score = (1 - weight) * mean + weight * completeness
    score = score * size_penalty(predicted, gold)
    return jnp.where((n_predicted > 0) & (n_gold > 0), score, 0)


def size_penalty(predicted: Boxes, gold: Boxes) -> Float[Array, ""]:
    """0.6^|predicted - gold|, which multiplies every score in V-Triune's code.

    https://github.com/MiniMax-AI/One-RL-to-See-Them-All
    """
    return 0.6 ** jnp.abs(predicted.mask.sum() - gold.mask.sum())


def surplus_penalty(predicted: Boxes, gold: Boxes) -> Float[Array, ""]:
    """gold / predicted where more boxes were named than there are, else 1.

    Multiplies the average precision in VLM-R1's detection where that is asked for,
    https://github.com/om-ai-lab/VLM-R1.
    """
    n_predicted, n_gold = predicted.mask.sum(), gold.mask.sum()
    share = n_gold / jnp.maximum(n_predicted, 1)
    return jnp.where(n_predicted > n_gold, share, 1.0)


def dynamic_threshold(
    step: int | Shaped[Array, ""], total_steps: int | Shaped[Array, ""]
) -> Float[Array, ""]:
    """0.85 in the first tenth of training, 0.95 up to a quarter, then 0.99.

    The dynamic IoU of V-Triune, https://arxiv.org/abs/2505.18129.
    """
    progress = step / jnp.maximum(total_steps, 1)
    return jnp.where(progress <= 0.1, 0.85, jnp.where(progress <= 0.25, 0.95, 0.99))


def area_within(
    boxes: Boxes, size: Float[Array, " 2"], *, share: float = 0.6
) -> Float[Array, ""]:
    """1 where the union of the boxes is at most `share` of the (width, height) picture.

    0 without a box of positive area. The crop reward of ERGO,
    https://arxiv.org/abs/2509.21991, whose gamma is 0.6.
    """
    used = geometry.union_area(boxes.boxes, boxes.mask)
    whole = jnp.asarray(size[0] * size[1], jnp.float32)
    return ((used > 0) & (used <= share * whole)).astype(jnp.float32)


def box_and_point_score(
    predicted: Boxes,
    gold: Boxes,
    points: Float[Array, "N 2"],
    gold_points: Float[Array, "M 2"],
    *,
    iou_threshold: float = 0.5,
    l1: float = 10.0,
    distance: float = 30.0,
) -> Float[Array, ""]:
    """Total over max(predicted, gold) of [IoU > .5] + [mean L1 < 10] + [point].

    In pixels; a point counts within 30 pixels of the gold one and inside the predicted
    box. Pairs are those of largest total, 3 at most each. VisionReasoner,
    https://arxiv.org/abs/2505.12081.
    """
    a, b = geometry.pairwise(predicted.boxes, gold.boxes)
    close = jnp.abs(a - b).mean(-1) < l1
    apart = jnp.linalg.norm(points[:, None] - gold_points, axis=-1)
    inside = geometry.point_in_box(points, predicted.boxes)[:, None]
    score = (geometry.iou(a, b) > iou_threshold) * 1.0 + close
    score = score + ((apart < distance) & inside)
    score = jnp.where(predicted.mask[:, None] & gold.mask, score, 0)
    found = geometry.matched_scores(score, geometry.hungarian_match(score))
    most = jnp.maximum(predicted.mask.sum(), gold.mask.sum())
    return jnp.where(most > 0, found.sum() / jnp.maximum(most, 1), 0)
