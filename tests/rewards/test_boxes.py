"""Numbers from the worked examples of the papers named in each function, by hand."""

import contextlib
import functools
import inspect
import io
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from vrl_jax.rewards import boxes as functions
from vrl_jax.rewards.average_precision import (
    mean_average_precision,
    penalised_average_precision,
)
from vrl_jax.rewards.parse_boxes import Detection, as_boxes, as_detections, as_points

boxes = SimpleNamespace(  # every rule must run jitted
    **{
        name: jax.jit(rule)
        for name, rule in vars(functions).items()
        if inspect.isfunction(rule)
    }
)
LABELS = ["car", "dog"]


def made(*items, size=5):
    return as_boxes([Detection(*item) for item in items], size=size, labels=LABELS)


NOTHING = made()
GOLD = made(((0, 0, 100, 100), "car"), ((200, 200, 300, 300), "dog"), size=3)
NEAR = made(
    ((0, 0, 100, 95), "car"),
    ((200, 200, 300, 290), "dog"),
    ((400, 400, 450, 450), "car"),
)


@pytest.mark.parametrize(
    ("progress", "expected"), [(0.05, 0.5385), (0.20, 0.2745), (0.60, 0.0)]
)
def test_scores_of_v_triune_tighten(progress, expected):
    threshold = boxes.dynamic_threshold(progress, 1)
    for rule in (boxes.label_first_score, boxes.iou_first_score):
        got = rule(NEAR, GOLD, iou_threshold=threshold, completeness_weight=0.3)
        assert got == pytest.approx(expected, abs=1e-6)


def test_scores_of_visual_rft():
    predicted = made(
        ((0, 0, 100, 80), "", 0.9),
        ((0, 0, 100, 100), "", 0.6),
        ((200, 200, 300, 300), "", 0.3),
    )
    assert boxes.matched_iou_share(predicted, GOLD) == pytest.approx(0.6)
    assert boxes.confidence_reward(predicted, GOLD) == pytest.approx(1.6 / 3)
    one = made(((0, 0, 100, 80), "", 0.9))
    three = made(((0, 0, 100, 100),), ((200, 200, 300, 300),), ((500, 500, 600, 600),))
    assert boxes.matched_iou_share(one, three) == pytest.approx(0.8 / 3)
    assert boxes.confidence_reward(one, three) == pytest.approx(0.9)


def test_grounding_consistency_counts_overlap_both_ways():
    # IoU 0.95 and 0.9 matched, of three boxes and two.
    wanted = 2 * (0.95 + 0.9) / 5
    assert boxes.grounding_consistency(NEAR, GOLD) == pytest.approx(wanted)
    assert boxes.grounding_consistency(GOLD, NEAR) == pytest.approx(wanted)
    assert boxes.grounding_consistency(NOTHING, NOTHING) == 1
    assert boxes.grounding_consistency(NEAR, NOTHING) == 0


def test_greedy_against_hungarian():
    # IoU [[0.8, 0.571429], [0.75, 0.285714]]: greedy keeps 0.8 and loses the rest.
    predicted = made(((0, 0, 100, 100),), ((0, 0, 100, 60),))
    gold = made(((0, 0, 100, 80),), ((0, 20, 100, 140),), size=4)
    assert boxes.greedy_f1(predicted, gold) == 0.5
    assert boxes.hungarian_f1(predicted, gold) == 1.0


def test_union_iou_of_satori():
    predicted = made(((0, 0, 10, 10),), ((5, 0, 15, 10),))
    gold = made(((0, 0, 10, 20),))
    halves = made(((0, 0, 10, 11),), ((0, 9, 10, 20),), size=2)
    assert boxes.union_iou(predicted, gold) == pytest.approx(0.4)
    assert boxes.union_iou(predicted, halves) == pytest.approx(0.4)


def test_precision_and_recall_weighted():
    predicted = made(
        *[((i, i, i + 9, i + 9),) for i in (0, 100, 300)]
    )  # two of three hit, two of three found
    gold = made(*[((i, i, i + 9, i + 9),) for i in (0, 100, 200)])
    assert boxes.weighted_precision_recall(predicted, gold) == pytest.approx(2 / 3)
    short = made(((0, 0, 9, 9),))  # P 1, R 1/3: 0.3 + 0.7 / 3
    got = boxes.weighted_precision_recall(short, gold, precision_weight=0.3)
    assert got == pytest.approx(0.533333, abs=1e-6)


@pytest.mark.parametrize(
    "rule",
    [
        boxes.greedy_f1,
        boxes.hungarian_f1,
        boxes.matched_iou_share,
        boxes.position_and_completeness,
        boxes.weighted_precision_recall,
        jax.jit(functools.partial(mean_average_precision, classes=2)),
    ],
)
def test_nothing_found_where_nothing_is(rule):
    assert rule(NOTHING, NOTHING) == 1.0
    assert rule(NEAR, NOTHING) == 0.0
    assert rule(NOTHING, GOLD) == 0.0


def test_area_within_wants_a_small_box():
    size = np.array([100.0, 100.0])
    small, large = made(((0, 0, 60, 100),)), made(((0, 0, 61, 100),))
    assert boxes.area_within(small, size) == 1
    assert boxes.area_within(large, size) == 0
    assert boxes.area_within(NOTHING, size) == 0


def test_box_and_point_score_of_vision_reasoner():
    gold = as_detections([{"bbox_2d": [0, 0, 100, 100], "point_2d": [50, 50]}])
    predicted = as_detections(
        [
            {"bbox_2d": [2, 2, 100, 100], "point_2d": [60, 60]},  # all three
            {"bbox_2d": [300, 300, 400, 400], "point_2d": [50, 50]},
        ]
    )
    arrays = [
        as_boxes(predicted, size=3),
        as_boxes(gold, size=2),
        as_points(predicted, size=3),
        as_points(gold, size=2),
    ]
    assert boxes.box_and_point_score(*arrays) == pytest.approx(3 / 2)


def test_surplus_boxes_cost_average_precision_its_share():
    """One gold box found first and three false ones after it: 1 x 1 / 4."""
    gold, right = made(((0, 0, 10, 10), "car")), ((0, 0, 10, 10), "car")
    false = [((50 * i, 50, 50 * i + 10, 60), "car", 0.5) for i in range(1, 4)]
    score = jax.jit(functools.partial(penalised_average_precision, classes=2))
    assert score(made(right, *false), gold) == pytest.approx(1 / 4)
    assert score(made(right), gold) == pytest.approx(1)
    assert score(NOTHING, NOTHING) == 1 and score(NOTHING, gold) == 0
    # Fewer boxes than there are cost no more than they do without: a label of two.
    one = made(((0, 0, 10, 10), "car"), ((20, 20, 30, 30), "dog"))
    assert score(made(right), one) == pytest.approx(0.5)


def test_a_box_is_found_from_the_threshold_on():
    gold = made(((0, 0, 100, 100),))
    assert boxes.iou_reached(made(((0, 0, 50, 100),)), gold) == 1
    assert boxes.iou_reached(made(((0, 0, 49, 100),)), gold) == 0
    assert boxes.iou_reached(NOTHING, gold) == 0


def test_order_decides_equal_confidences():
    gold = made(((0, 0, 10, 10), "car"))
    exact, false = ((0, 0, 10, 10), "car"), ((50, 50, 60, 60), "car")
    score = jax.jit(lambda p: mean_average_precision(p, gold, classes=2))
    assert score(made(false, exact)) == pytest.approx(0.5)
    assert score(made(exact, false)) == pytest.approx(1.0)


def coco_map(predicted, gold):
    """pycocotools on one picture of 1000 x 1000."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "images": [{"id": 1, "width": 1000, "height": 1000}],
            "categories": [{"id": i + 1} for i in range(len(LABELS))],
            "annotations": [
                {
                    "id": number,  # from 1: pycocotools takes 0 for unmatched
                    "image_id": 1,
                    "category_id": label + 1,
                    "bbox": [b[0], b[1], b[2] - b[0], b[3] - b[1]],
                    "area": (b[2] - b[0]) * (b[3] - b[1]),
                    "iscrowd": 0,
                }
                for number, (b, label) in enumerate(gold, 1)
            ],
        }
        truth.createIndex()
        found = truth.loadRes(
            [
                {
                    "image_id": 1,
                    "category_id": label + 1,
                    "bbox": [b[0], b[1], b[2] - b[0], b[3] - b[1]],
                    "score": score,
                }
                for b, label, score in predicted
            ]
        )
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        precision = evaluation.eval["precision"][:, :, :, 0, 2]
    return precision[precision > -1].mean()


def test_mean_average_precision_equals_pycocotools():
    rng = np.random.default_rng(0)
    score = jax.jit(lambda p, g: mean_average_precision(p, g, classes=2))
    for _ in range(40):
        gold, predicted = [], []
        for _ in range(rng.integers(1, 6)):
            corner = rng.integers(0, 900, 2)
            box = np.concatenate([corner, corner + rng.integers(20, 100, 2)])
            gold.append((box.tolist(), int(rng.integers(2))))
            for _ in range(rng.integers(0, 3)):
                moved = box + rng.integers(-12, 13, 4)
                confidence = float(rng.integers(0, 9)) / 8  # ties on purpose
                predicted.append((moved.tolist(), int(rng.integers(2)), confidence))
        if not predicted:
            continue
        arrays = made(
            *[(tuple(b), LABELS[label], s) for b, label, s in predicted], size=12
        )
        truth = made(*[(tuple(b), LABELS[label]) for b, label in gold], size=6)
        expected = coco_map(predicted, gold)
        assert score(arrays, truth) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("rule", [boxes.greedy_f1, boxes.union_iou, boxes.hungarian_f1])
def test_padding_and_batches_change_nothing(rule):
    poisoned = made(((0, 0, 100, 95), "car"), size=4)
    poisoned.boxes[1:] = np.nan
    alone = rule(made(((0, 0, 100, 95), "car"), size=1), GOLD)
    batch = jax.tree.map(lambda *x: jnp.stack(x), poisoned, made(size=4))
    together = jax.jit(jax.vmap(rule, (0, None)))(batch, GOLD)
    np.testing.assert_allclose(together, [alone, 0.0], rtol=1e-6)


def test_as_boxes_says_when_there_are_too_many():
    with pytest.raises(ValueError, match="3 boxes do not fit size=2"):
        made(*[((0, 0, 1, 1),)] * 3, size=2)


def test_without_ignored_drops_what_lies_in_a_crowd():
    """By hand: of NEAR's boxes, the third lies in the region, half of the second."""
    crowd = made(((350, 350, 500, 500), ""), ((200, 200, 250, 290), ""))
    assert boxes.without_ignored(NEAR, crowd).mask.tolist() == [True] + [False] * 4
    stricter = functions.without_ignored(NEAR, crowd, share=0.6)
    assert stricter.mask.tolist() == [True, True, False, False, False]
    np.testing.assert_array_equal(boxes.without_ignored(NEAR, NOTHING).mask, NEAR.mask)
    # Two predictions, both right: nothing is charged for the one in the crowd.
    assert boxes.hungarian_f1(stricter, GOLD) == 1
    assert boxes.hungarian_f1(NEAR, GOLD) == pytest.approx(0.8)
