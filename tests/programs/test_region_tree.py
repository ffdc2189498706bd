"""Where zooms lead, and which way in a tree of them is followed."""

import numpy as np
import pytest

from vrl_jax.programs.region_tree import (
    WHOLE,
    Node,
    backed_up,
    best,
    expanded,
    moved,
    selected,
    to_global,
    to_local,
    uct,
    zoom_in,
    zoom_out,
)

PIXELS = (0, 0, 900, 900)


def test_the_worked_bounds():
    """From the sheet: N(s) = 10, c = 1; the third child is chosen."""
    edges = [(0.60, 6), (0.45, 3), (0.30, 1)]
    found = [uct(value, visits, 10) for value, visits in edges]
    np.testing.assert_allclose(found, [1.219487, 1.326087, 1.817426], atol=2e-6)
    tree = expanded((Node(WHOLE, visits=10),), 0, [WHOLE] * 3)
    edges = zip(tree[1:], edges, strict=True)
    visited = [node._replace(visits=n, total=q * n) for node, (q, n) in edges]
    tree = (tree[0], *visited)
    assert selected(tree) == 3 and selected(tree, explore=0.0) == 1


def test_the_worked_back_up():
    """From the sheet: returns 0.2, 0.8, 0.5 through one edge."""
    tree = expanded((Node(WHOLE),), 0, [WHOLE, WHOLE])
    tree = expanded(tree, 1, [WHOLE])
    for place, reward in ((1, 0.2), (3, 0.8), (3, 0.5)):
        tree = backed_up(tree, place, reward)
    assert (tree[1].value, tree[1].visits) == (pytest.approx(0.5), 3)
    assert (tree[0].value, tree[0].visits) == (pytest.approx(0.5), 3)
    assert (tree[3].value, tree[3].visits) == (pytest.approx(0.65), 2)
    assert (tree[2].value, tree[2].visits) == (0, 0)


def test_the_worked_zooms():
    """From the sheet: row 2, column 1 of 900 x 900, and 1.5 times as large."""
    region = zoom_in(PIXELS, 8)
    assert region == (300, 600, 600, 900)
    assert zoom_out(region, 1.5, whole=PIXELS) == (225, 525, 675, 900)
    assert to_global((0.5, 0.5, 0.75, 0.75), region) == (450, 750, 525, 825)
    assert to_local((450, 750, 525, 825), region) == (0.5, 0.5, 0.75, 0.75)


def test_cells_tile_the_region():
    cells = [zoom_in(PIXELS, number) for number in range(1, 10)]
    assert cells[0] == (0, 0, 300, 300) and cells[8] == (600, 600, 900, 900)
    assert cells[2] == (600, 0, 900, 300) and len({*cells}) == 9


@pytest.mark.parametrize(
    ("move", "region", "size", "found"),
    [
        ("8", WHOLE, (900, 900), (1 / 3, 2 / 3, 2 / 3, 1)),
        ("out", (1 / 3, 2 / 3, 2 / 3, 1), (900, 900), (0.25, 525 / 900, 0.75, 1)),
        ("1", WHOLE, (100, 85), (0, 0, 0.33, 28 / 85)),  # whole pixels
        ("1", WHOLE, (84, 84), (0, 0, 1 / 3, 1 / 3)),
        ("1", WHOLE, (900, 83), None),  # under 28 pixels
        ("out", WHOLE, (900, 900), None),
        ("0", WHOLE, (900, 900), None),
        ("10", WHOLE, (900, 900), None),
        ("²", WHOLE, (900, 900), None),
        ("5, I think", WHOLE, (900, 900), None),
        ("", WHOLE, (900, 900), None),
        ("1", WHOLE, (0, 0), None),  # there is no picture
    ],
)
def test_moves(move, region, size, found):
    seen = moved(region, move, size)
    assert seen == (None if found is None else pytest.approx(found))


def test_the_best_is_the_smallest_of_the_highest_mean():
    assert best((Node(WHOLE),)) == 0
    tree = expanded((Node(WHOLE),), 0, [zoom_in(WHOLE, 1), (0, 0, 0.5, 0.5)])
    assert best(backed_up(tree, 2, 0.4)) == 2  # its parent has the same mean
    both = backed_up(backed_up(tree, 2, 0.4), 1, 0.4)
    assert best(both) == 1
    assert best(backed_up(backed_up(tree, 2, 0.5), 1, 0.4)) == 2
