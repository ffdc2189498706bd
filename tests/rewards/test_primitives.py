"""Points, lines and circles: read, drawn, compared."""

import itertools
import math

import jax
import numpy as np
import pytest

from vrl_jax.rewards import primitives
from vrl_jax.rewards.primitives import (
    MOST,
    Primitives,
    as_text,
    complete_primitive_score,
    draw,
    fitted_line,
    primitive_score,
    read_primitives,
    segment_f1,
)

TEXT = """
    point A (-7.5, 3)
    point (2,4)

    line (-7.5, 3) (2, 4) (9, -1)
    circle (1, 2) 4
"""
KNOWN = Primitives(
    points=((-7.5, 3), (2, 4)),
    lines=(((-7.5, 3), (2, 4), (9, -1)),),
    circles=((1, 2, 4),),
)


def test_a_text_has_a_primitive_a_line():
    assert read_primitives(TEXT) == KNOWN
    assert read_primitives(as_text(KNOWN)) == KNOWN
    assert as_text(KNOWN).splitlines()[:2] == ["point A (-7.5, 3)", "point B (2, 4)"]
    assert as_text(Primitives(points=((-0.00001, 10),))) == "point A (0, 10)"


@pytest.mark.parametrize(
    "line",
    [
        "point A",
        "point A (1, 2, 3)",
        "point A (100, 2)",
        "point A (nan, 1e9)",
        "Point A (1, 2)",
        "point A B (1, 2)",
        "line (1, 2)",
        "line (1, 2) (1, 2.0)",
        "line" + " (1, 2) (3, 4)" * MOST,
        "circle (1, 2)",
        "circle (1, 2) 0",
        "circle (1, 2) -3",
        "square (1, 2) 3",
        "point A (1, 2)" + " " * 9999 + "!",
        "١",
    ],
)
def test_what_is_no_primitive_is_counted(line):
    found = read_primitives(f"point A (1, 2)\n{line}\ncircle (0, 0) 1")
    assert found == Primitives(points=((1, 2),), circles=((0, 0, 1),), unread=1)


@pytest.mark.parametrize(
    "number", [-50 / 7, 1 / 3, 0.1 + 0.2, 0.0001 / 3, math.sin(math.pi), 1e-05, -1e-300]
)
def test_numbers_are_read_as_computed(number):
    """Python prints -7.142857142857143, 3.3333333333333335e-05, 1.2246e-16."""
    text = f"point A ({number!r}, 2)\npoint A ({number:.20f}, 2)"
    found = read_primitives(text)
    assert found.points[0] == (number, 2) and found.unread == 0
    assert found.points[1][0] == pytest.approx(number, abs=1e-19)
    chain = "line" + f" ({-50 / 7:.20f}, {number:.20f}) (9.5, 1)" * (MOST // 2)
    assert read_primitives(chain).lines


def test_only_so_many_are_read():
    found = read_primitives("point (1, 2)\n" * 500 + "line (0, 0) (1, 1)\n" * 50)
    assert (len(found.points), len(found.lines)) == (MOST, MOST)
    assert found.unread == 550 - 2 * MOST
    assert found.count == 2 * MOST


@pytest.mark.parametrize(
    ("chain", "line"),
    [
        (((0, 2), (5, 2)), (0, 1, -2)),
        (((3, 0), (3, 7), (3, -1)), (1, 0, -3)),
        (((0, 0), (3, 4)), (0.8, -0.6, 0)),
        # By hand: xx = 8/3, xy = 0, yy = 2/3 around (0, 1/3).
        (((-2, 0), (0, 1), (2, 0)), (0, 1, -1 / 3)),
    ],
)
def test_lines_are_fitted(chain, line):
    found = np.array(fitted_line(chain))
    sign = np.sign(found @ line)
    np.testing.assert_allclose(sign * found, line, atol=1e-12)


def test_the_worked_costs():
    """0.05, 0.10 and 0.30 have mean 0.15: exp(-0.15) = 0.860708."""
    gold = Primitives(points=((0, 0), (5, 0)), circles=((1, 1, 2),))
    given = Primitives(points=((5, 0.1), (0.05, 0)), circles=((1, 1, 2.3),))
    assert primitive_score(given, gold) == pytest.approx(0.860708, abs=1e-6)


def test_a_kind_on_one_side_costs_a_penalty_each():
    """A point at no cost, two lines missed, a circle too many: of four things."""
    gold = Primitives(points=((0, 0),), lines=KNOWN.lines * 2)
    given = Primitives(points=((0, 0),), circles=((1, 1, 2),))
    assert primitive_score(given, gold) == pytest.approx(math.exp(-3 / 4))
    score = primitive_score(given, gold, missed=0.5, extra=2.0)
    assert score == pytest.approx(math.exp(-(2 * 0.5 + 2) / 4))
    assert primitive_score(Primitives(), Primitives()) == 1
    # Beside pairs of its kind, as in algorithm 1, what is left over costs nothing.
    more = Primitives(points=((9, 9), (0, 0), (-9, 9)))
    alone = Primitives(points=((0, 0),))
    assert primitive_score(more, alone) == primitive_score(alone, more) == 1


@pytest.mark.parametrize("score", [primitive_score, complete_primitive_score])
def test_without_a_pair_there_is_no_score(score):
    """Neither of nothing nor of a kind that the other side lacks."""
    assert score(Primitives(), Primitives()) == 1
    points, ring = Primitives(points=((0, 0),)), Primitives(circles=((1, 1, 2),))
    for given, gold in itertools.permutations((Primitives(), points, ring), 2):
        assert score(given, gold) == 0


def test_the_complete_score_charges_what_is_left_over():
    """By hand: of 3 points, 2 lines and a circle, costs 0.2 each, or three of them."""
    gold = Primitives(
        points=((0, 0), (5, 0), (0, 5)),
        lines=(((0, 0), (5, 0)), ((0, 0), (0, 5))),
        circles=((1, 1, 2),),
    )
    one_of_each = Primitives(gold.points[:1], gold.lines[:1], gold.circles)
    # y + 0.2 costs a horizontal line 0.2 too, and a vertical one 0.2 as x + 0.2.
    near = Primitives(
        points=((0, 0.2), (5, 0.2), (0, 5.2)),
        lines=(((0, 0.2), (5, 0.2)), ((0.2, 0), (0.2, 5))),
        circles=((1, 1, 2.2),),
    )
    assert primitive_score(one_of_each, gold) == 1
    for score in (primitive_score, complete_primitive_score):
        assert score(near, gold) == pytest.approx(math.exp(-0.2))
    few = complete_primitive_score(one_of_each, gold)
    assert few == pytest.approx(math.exp(-3 / 6))
    assert few < complete_primitive_score(near, gold)
    assert complete_primitive_score(gold, one_of_each, extra=2) == pytest.approx(
        math.exp(-3 * 2 / 6)
    )
    assert complete_primitive_score(one_of_each, gold, missed=2) == pytest.approx(
        math.exp(-3 * 2 / 6)
    )
    # As in the other, a kind on one side alone: the circle is missed, of six.
    ringless = gold._replace(circles=())
    assert complete_primitive_score(ringless, gold) == pytest.approx(math.exp(-1 / 6))


def test_scores_are_found_on_the_host():
    """No device waits for a reward, nor a reward for a device."""
    with jax.transfer_guard("disallow"):
        with pytest.raises(Exception, match="Disallowed"):
            jax.jit(lambda x: x)(np.zeros(2))
        for score in (primitive_score, complete_primitive_score, segment_f1):
            assert score(KNOWN, KNOWN) == 1


def test_a_line_is_fitted_once(monkeypatch):
    fits = []
    known = primitives._fitted
    monkeypatch.setattr(
        primitives, "_fitted", lambda chain: fits.append(chain) or known(chain)
    )
    assert f1(FOUR[:3]) == pytest.approx(6 / 7)
    assert len(fits) == 7


def test_most_primitives_are_matched_with_themselves():
    """32 of each kind on both sides: the same set in another order is all there."""
    angles = np.linspace(0, 3, MOST)
    gold = Primitives(
        points=tuple((9 * math.cos(a), 9 * math.sin(a)) for a in angles),
        lines=tuple(((0, 0), (9 * math.cos(a), 9 * math.sin(a))) for a in angles),
        circles=tuple((a, -a, 1 + a) for a in angles),
    )
    turned = Primitives(*(kind[::-1] for kind in gold[:3]))
    for score in (primitive_score, complete_primitive_score, segment_f1):
        assert score(turned, gold) == pytest.approx(1)


def test_pairs_are_those_of_the_smallest_total():
    """Not the nearest pair first: 2 + 2 costs less than 1 + 5."""
    gold = Primitives(points=((0, 0), (3, 0)))
    given = Primitives(points=((2, 0), (5, 0)))
    assert primitive_score(given, gold) == pytest.approx(math.exp(-2))


def test_a_line_is_the_same_from_its_other_end_and_in_parts():
    for angle in np.linspace(0, math.pi, 7):
        end = (3 * math.cos(angle), 3 * math.sin(angle))
        half = (end[0] / 2, end[1] / 2)
        gold = Primitives(lines=(((0, 0), end),))
        given = Primitives(lines=((end, half),))
        assert primitive_score(given, gold) == pytest.approx(1)
        turned = (3 * math.cos(angle + 1e-6), 3 * math.sin(angle + 1e-6))
        near = Primitives(lines=(((0, 0), turned),))
        assert primitive_score(near, gold) == pytest.approx(1, abs=1e-5)


FOUR = (
    ((-5, 0), (5, 0)),
    ((-5, 5), (5, 5)),
    ((-8, -5), (-8, 5)),
    ((8, -5), (8, 5)),
)


def f1(given, gold=FOUR):
    return segment_f1(Primitives(lines=tuple(given)), Primitives(lines=tuple(gold)))


def test_the_worked_lines():
    """3 lines, 2 of the row's 4: P 2/3, R 1/2, F1 0.571429."""
    given = [((5, 0), (-5, 0.5)), ((-5, 5), (5, 5)), ((0, 0), (5, 5))]
    assert f1(given) == pytest.approx(0.571429, abs=1e-6)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (((-5, 0), (5, 1)), True),  # atan(0.1) is 5.7 degrees
        (((-5, 0), (5, 1.1)), False),  # 6.3
        (((5, 1), (-5, 0)), True),
        (((3, 0), (13, 0)), True),  # 2 of 10
        (((3.1, 0), (13, 0)), False),
        (((-9, 0), (9, 0)), True),
        (((-5, 9), (5, 9)), True),  # how far away is not asked
        (((6, 0), (9, 0)), False),
    ],
)
def test_pairs_of_lines_are_nearly_parallel_and_overlap(line, found):
    assert f1([line], FOUR[:1]) == float(found)


def test_lines_on_one_side_or_none():
    assert f1([], []) == 1
    assert f1([], FOUR) == f1(FOUR, []) == 0
    assert f1(FOUR[::-1]) == 1
    # As many pairs as can be: the first may take either, the second only one.
    assert f1([((-5, 0), (5, 0.5)), ((-5, 0), (5, 1))], FOUR[:1] * 2) == 1
    wide, left = ((-5, 0), (5, 0)), ((-5, 0), (-4, 0))
    assert f1([wide, ((0, 0), (5, 0))], [left, wide]) == 1


def test_drawings_show_what_is_there():
    blank = np.asarray(draw(Primitives(), pixels=40))
    assert blank.shape == (40, 40, 3) and (blank == 255).all()
    found = np.asarray(draw(Primitives(points=((5, -5),)), pixels=40))[..., 0] < 128
    rows, columns = np.nonzero(found)
    # (5, -5) is 30 pixels to the right and 10 down.
    np.testing.assert_allclose([columns.mean(), rows.mean()], [30, 10], atol=0.6)
    line = np.asarray(draw(Primitives(lines=(((-10, 0), (10, 0)),)), pixels=40))
    assert ((line[..., 0] < 128).sum(0) == 1).all()
    ring = np.asarray(draw(Primitives(circles=((0, 0, 5),)), pixels=40))[..., 0] < 128
    distance = np.hypot(*(np.argwhere(ring) - 20).T)
    np.testing.assert_allclose(distance, 10, atol=1)
    assert len(distance) > 40
    outside = Primitives(points=((99, 99),), circles=((-99, 99, 99),))
    draw(outside, pixels=40)
