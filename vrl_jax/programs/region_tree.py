"""Regions of a picture, the zooms between them, and a tree of them: no model asked.

The actions and the tree search of GeoViS, https://arxiv.org/abs/2512.02715. Boxes are
(left, top, right, bottom); a region is one in parts of the first picture's width and
height. A tree goes in and another comes out.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from vrl_jax.engine.tools import MIN_SIDE
from vrl_jax.models.front_end import load_image, on_white
from vrl_jax.programs.regions import Box
from vrl_jax.types import Sample

WHOLE: Box = (0.0, 0.0, 1.0, 1.0)
CELLS = 3
"""A region is cut into 3 x 3 cells, numbered row by row from 1."""

NUMBERS = tuple(str(number + 1) for number in range(CELLS**2))
OUT = "out"


def zoom_in(region: Box, cell: int) -> Box:
    """One of the 3 x 3 cells, 1 to 9."""
    left, top, right, bottom = region
    row, place = divmod(cell - 1, CELLS)
    wide, high = (right - left) / CELLS, (bottom - top) / CELLS
    x, y = left + place * wide, top + row * high
    return x, y, x + wide, y + high


def zoom_out(region: Box, factor: float, *, whole: Box = WHOLE) -> Box:
    """`factor` times as wide and high about the centre, as far as the whole reaches."""
    left, top, right, bottom = region
    wide, high = (right - left) * factor / 2, (bottom - top) * factor / 2
    x, y = (left + right) / 2, (top + bottom) / 2
    return (
        max(x - wide, whole[0]),
        max(y - high, whole[1]),
        min(x + wide, whole[2]),
        min(y + high, whole[3]),
    )


def to_global(box: Box, region: Box) -> Box:
    """A box in parts of the region's sides, in the frame that the region is in."""
    left, top, right, bottom = region
    wide, high = right - left, bottom - top
    return (
        left + box[0] * wide,
        top + box[1] * high,
        left + box[2] * wide,
        top + box[3] * high,
    )


def to_local(box: Box, region: Box) -> Box:
    """The inverse of `to_global`."""
    left, top, right, bottom = region
    wide, high = right - left, bottom - top
    return (
        (box[0] - left) / wide,
        (box[1] - top) / high,
        (box[2] - left) / wide,
        (box[3] - top) / high,
    )


def picture_size(sample: Sample) -> tuple[int, int]:
    """Width and height of the first picture in pixels; 0 and 0 without one."""
    return load_image(sample.images[0], on_white).size if sample.images else (0, 0)


def moved(
    region: Box, move: str, size: tuple[int, int], *, factor: float = 1.5
) -> Box | None:
    """Where a move leads, in whole pixels: the number of a cell, or `out`.

    None for any other text, for a cell with a side under 28 pixels, which could not be
    cut out as it is, and for `out` of the whole picture.
    """
    left, top, right, bottom = region
    sides = (right - left) * size[0], (bottom - top) * size[1]
    if move == OUT and region != WHOLE:
        found = zoom_out(region, factor)
    elif move in NUMBERS and min(sides) > CELLS * MIN_SIDE - 1e-6:
        found = zoom_in(region, int(move))
    else:
        return None
    left, top, right, bottom = (
        round(edge * side) / side for edge, side in zip(found, size * 2, strict=True)
    )
    return left, top, right, bottom


class Node(NamedTuple):
    """A region of the tree, and what the simulations that came to it returned.

    `worth` is what it was itself found to be worth. `children` are places in the tree;
    None until they are known.
    """

    region: Box
    parent: int = -1
    depth: int = 0
    visits: int = 0
    total: float = 0.0
    worth: float | None = None
    children: tuple[int, ...] | None = None

    @property
    def value(self) -> float:
        """Q, the mean return."""
        return self.total / max(self.visits, 1)


Tree = tuple[Node, ...]
"""The root first, each parent before its children."""


def uct(
    value: float,
    visits: int,
    parent_visits: int,
    *,
    explore: float = 1.0,
    eps: float = 1e-6,
) -> float:
    """Q(s, a) + c sqrt(ln N(s) / (N(s, a) + eps)), c = `explore`.

    What was not tried comes first, from the second visit of its parent on.
    """
    bound = math.log(max(parent_visits, 1)) / (visits + eps)
    return value + explore * math.sqrt(bound)


def selected(tree: Tree, *, explore: float = 1.0) -> int:
    """The place without children that is reached by the largest `uct` at every step.

    Of equal ones the first is followed.
    """
    place = 0
    while tree[place].children:
        above = tree[place].visits

        def bound(child: int, above: int = above) -> float:
            node = tree[child]
            return uct(node.value, node.visits, above, explore=explore)

        place = max(tree[place].children, key=bound)
    return place


def expanded(tree: Tree, place: int, regions: Sequence[Box]) -> Tree:
    """The tree with these regions as the children of a place."""
    node = tree[place]
    children = tuple(range(len(tree), len(tree) + len(regions)))
    parent = node._replace(children=children)
    new = (Node(region, place, node.depth + 1) for region in regions)
    return (*tree[:place], parent, *tree[place + 1 :], *new)


def backed_up(tree: Tree, place: int, reward: float) -> Tree:
    """One more visit with this return, for the place and for all above it."""
    nodes = list(tree)
    while place >= 0:
        node = nodes[place]
        total = node.total + reward
        nodes[place] = node._replace(visits=node.visits + 1, total=total)
        place = node.parent
    return tuple(nodes)


def best(tree: Tree) -> int:
    """The visited place of the highest mean return, of equal ones the smallest region.

    The root where nothing was visited.
    """

    def rank(place: int) -> tuple[float, float]:
        left, top, right, bottom = tree[place].region
        return tree[place].value, -(right - left) * (bottom - top)

    visited = [place for place, node in enumerate(tree) if node.visits]
    return max(visited or [0], key=rank)
