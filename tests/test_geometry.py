import functools
import inspect
import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from vrl_jax import geometry as functions

geometry = SimpleNamespace(  # every function must run jitted
    **{
        name: jax.jit(function)
        for name, function in vars(functions).items()
        if inspect.isfunction(function)
    }
)

UNIT = jnp.array([0.0, 0, 1, 1])
NOT_BOXES = jnp.array(
    [[0, 0, jnp.nan, 1], [0, 0, jnp.inf, jnp.inf], [5, 5, 1, 9], [0, 0, 3e38, 3e38]]
)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        # GIoU by hand, https://arxiv.org/abs/1902.09630: 0.311304 and 0.125 after + 1
        ([0.1, 0.1, 0.5, 0.5], [0.2, 0.2, 0.6, 0.6], 0.311304),
        ([0, 0, 0.1, 0.1], [0.3, 0.3, 0.4, 0.4], -0.875),
        ([0.0, 0, 1, 1], [0.0, 0, 1, 1], 1.0),
        ([0.0, 0, 0, 0], [0.0, 0, 0, 0], -1.0),
    ],
)
def test_giou_golden(a, b, expected):
    assert geometry.giou(jnp.array(a), jnp.array(b)) == pytest.approx(expected, 1e-5)


@pytest.mark.parametrize(
    ("rule", "low"),
    [(geometry.iou, 0), (geometry.giou, -1), (geometry.inclusive_pixel_iou, 0)],
)
def test_what_is_no_box_overlaps_nothing(rule, low):
    for a, b in itertools.product([*NOT_BOXES[:3], UNIT], [*NOT_BOXES[:3]]):
        assert rule(a, b) == low and rule(b, a) == low
    assert np.isfinite(rule(NOT_BOXES, NOT_BOXES)).all()


def test_areas_are_finite():
    np.testing.assert_array_equal(geometry.area(NOT_BOXES), 0)
    assert geometry.area(UNIT) == 1


def test_union_areas_equal_a_count_of_pixels():
    rng = np.random.default_rng(1)
    corners = rng.integers(0, 20, (2, 6, 2))
    boxes = np.concatenate([corners, corners + rng.integers(1, 9, (2, 6, 2))], -1)
    mask = rng.random((2, 6)) < 0.7
    pictures = np.zeros((2, 40, 40), bool)
    for side, row in itertools.product(range(2), range(6)):
        if mask[side, row]:
            x1, y1, x2, y2 = boxes[side, row]
            pictures[side, x1:x2, y1:y2] = True
    a, b = pictures
    floats = jnp.asarray(boxes, jnp.float32)
    got = jax.jit(geometry.union_areas)(floats[0], mask[0], floats[1], mask[1])
    np.testing.assert_array_equal(got, [a.sum(), b.sum(), (a & b).sum()])


def test_union_area_is_that_of_the_first_of_two():
    rng = np.random.default_rng(4)
    corners = rng.random((6, 2), np.float32)
    boxes, mask = jnp.concatenate([corners, corners + 0.5], -1), rng.random(6) < 0.7
    whole, _, _ = geometry.union_areas(boxes, mask, boxes[:1], mask[:1])
    assert geometry.union_area(boxes, mask) == pytest.approx(float(whole), rel=1e-6)
    assert geometry.union_area(boxes, mask & False) == 0


def test_coverage_equals_a_count_of_pixels():
    """5 x 5 cells of 8 x 6 pixels; boxes stand out of the picture on all sides."""
    rng = np.random.default_rng(5)
    corners = rng.integers(-9, 40, (12, 2))
    boxes = np.concatenate([corners, corners + rng.integers(1, 12, (12, 2))], -1)
    mask = rng.random(12) < 0.7
    picture = np.zeros((40, 30), bool)
    for x1, y1, x2, y2 in np.maximum(boxes[mask], 0):
        picture[x1:x2, y1:y2] = True
    wanted = picture.reshape(5, 8, 5, 6).mean((1, 3))
    assert (wanted * (1 - wanted)).max() > 0  # some cells are covered in part
    size = jnp.array([40.0, 30.0])
    cover = jax.jit(functools.partial(functions.coverage, cells=5))
    floats = jnp.asarray(boxes, jnp.float32)
    np.testing.assert_allclose(cover(floats, mask, size), wanted, atol=1e-6)
    broken = jnp.concatenate([floats, NOT_BOXES[:3]])
    kept = np.concatenate([mask, np.ones(3, bool)])
    np.testing.assert_allclose(cover(broken, kept, size), wanted, atol=1e-6)


def test_rescale_converts_frames():
    # SATORI: 800 x 600 is 728 x 532 to the model; [91, 133, 182, 266] there.
    size, seen = jnp.array([800.0, 600.0]), jnp.array([728.0, 532.0])
    box = jnp.array([91.0, 133, 182, 266])
    np.testing.assert_allclose(
        geometry.rescale(box, seen, size), [100, 150, 200, 300], rtol=1e-6
    )
    unit, thousandths = jnp.ones(2), jnp.full(2, 1000.0)
    np.testing.assert_allclose(
        geometry.rescale(jnp.array([0.25, 0.5]), unit, thousandths), [250, 500]
    )


def test_hungarian_match_has_the_largest_total():
    rng = np.random.default_rng(2)
    for shape in [(3, 3), (2, 5), (5, 2), (1, 1), (4, 1)]:
        scores = rng.random(shape).astype(np.float32)
        got = jax.jit(geometry.hungarian_match)(scores)
        rows, columns = linear_sum_assignment(-scores)
        total = geometry.matched_scores(jnp.asarray(scores), got).sum()
        assert total == pytest.approx(scores[rows, columns].sum(), rel=1e-5)
        taken = np.asarray(got[got >= 0])
        assert len(set(taken.tolist())) == len(taken) == min(shape)


def test_matches_take_positive_scores_only():
    scores = jnp.array([[0.0, jnp.nan], [0.7, 0.0]])
    for match in (
        geometry.greedy_match,
        geometry.greedy_match_by_row,
        geometry.hungarian_match,
    ):
        np.testing.assert_array_equal(match(scores), [-1, 0])
        np.testing.assert_array_equal(match(jnp.zeros((2, 0))), [-1, -1])


def test_greedy_matches_take_the_best_first():
    scores = jnp.array([[0.6, 0.5], [0.9, 0.4]])
    np.testing.assert_array_equal(geometry.greedy_match(scores), [1, 0])
    np.testing.assert_array_equal(geometry.greedy_match_by_row(scores), [0, 1])
