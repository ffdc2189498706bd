"""Points, lines and circles of a diagram: read, drawn, and held against others.

Coordinates are from -10 to 10, to the right and down: pixel / size * 20 - 10. A text
has one primitive a line, a point with any name or none, a line by two points or more:

    point A (-7.5, 3)
    line (-7.5, 3) (2, 4) (9, -1)
    circle (1, 2) 4
"""

import itertools
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float
from PIL import Image, ImageDraw

from vrl_jax import geometry

MOST = 32
"""Primitives of a kind that are read of a text, and points of a line."""
LONGEST = 2000
"""Characters of a line that is read."""
REACH = 10.0
"""The largest coordinate in the picture."""
PAPER, INK = (255, 255, 255), (20, 20, 20)

_NUMBER = r"([+-]?\d{1,2}(?:\.\d{1,9})?)"  # under 100: what lies far outside is unread
_PLACE = rf"\(\s*{_NUMBER}\s*,\s*{_NUMBER}\s*\)"
_POINT = re.compile(rf"point(?:\s+[^\s(]{{1,20}})?\s*{_PLACE}")
_LINE = re.compile(rf"line(?:\s*{_PLACE})+")
_CIRCLE = re.compile(rf"circle\s*{_PLACE}\s*{_NUMBER}")
_PLACES = re.compile(_PLACE)

_match = jax.jit(geometry.cheapest_match)

Place = tuple[float, float]


class Primitives(NamedTuple):
    """What a diagram is made of.

    `lines` are chains of places that are not all the same, `circles` are (x, y, radius)
    with radius > 0. `unread` counts lines of text that are none of these, and what was
    beyond `MOST` of its kind.
    """

    points: tuple[Place, ...] = ()
    lines: tuple[tuple[Place, ...], ...] = ()
    circles: tuple[tuple[float, float, float], ...] = ()
    unread: int = 0


def read_primitives(text: str) -> Primitives:
    """The primitives of a text, in order; whatever it says, nothing raises."""
    points, lines, circles = [], [], []
    said = [line for line in map(str.strip, text.splitlines()) if line]
    for line in said:
        if len(line) > LONGEST:
            continue
        numbers = [*map(_numbers, _PLACES.findall(line))]
        if _POINT.fullmatch(line) and len(points) < MOST:
            points.append(numbers[0])
        elif _LINE.fullmatch(line) and len(lines) < MOST:
            if len(numbers) <= MOST and len({*numbers}) > 1:
                lines.append(tuple(numbers))
        elif (found := _CIRCLE.fullmatch(line)) and len(circles) < MOST:
            x, y, radius = _numbers(found.groups())
            if radius > 0:
                circles.append((x, y, radius))
    unread = len(said) - len(points) - len(lines) - len(circles)
    return Primitives(tuple(points), tuple(lines), tuple(circles), unread)


def _numbers(found: Sequence[str]) -> tuple[float, ...]:
    return tuple(map(float, found))


def as_text(primitives: Primitives) -> str:
    """What `read_primitives` reads; points are named A, B, ... and then again."""

    def place(x: float, y: float) -> str:
        return f"({_plain(x)}, {_plain(y)})"

    names = itertools.cycle("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    points = zip(names, primitives.points, strict=False)
    lines = [f"point {name} {place(*point)}" for name, point in points]
    lines += [
        " ".join(["line", *(place(*end) for end in line)]) for line in primitives.lines
    ]
    lines += [f"circle {place(x, y)} {_plain(r)}" for x, y, r in primitives.circles]
    return "\n".join(lines)


def _plain(x: float) -> str:
    """At most four decimals, and none that are 0; no minus before 0."""
    return f"{round(x, 4) + 0.0:.4f}".rstrip("0").rstrip(".")


def draw(primitives: Primitives, *, pixels: int) -> Image.Image:
    """Black on white, `pixels` wide and high; what lies outside is cut off."""
    picture = Image.new("RGB", (pixels, pixels), PAPER)
    pen, width = ImageDraw.Draw(picture), max(pixels // 80, 1)

    def across(x: float) -> float:
        return (x + REACH) / (2 * REACH) * pixels

    def box(x: float, y: float, radius: float) -> list[float]:
        ends = (x - radius, y - radius, x + radius, y + radius)
        return [*map(across, ends)]

    for circle in primitives.circles:
        pen.ellipse(box(*circle), outline=INK, width=width)
    for line in primitives.lines:
        ends = [(across(x), across(y)) for x, y in line]
        pen.line(ends, fill=INK, width=width)
    for point in primitives.points:
        pen.ellipse(box(*point, 0.5), fill=INK)
    return picture


def fitted_line(chain: Sequence[Place]) -> tuple[float, float, float]:
    """(a, b, c) of the straight line a x + b y + c = 0 nearest to the places.

    Nearest in squared distance; a^2 + b^2 = 1. (-a, -b, -c) is the same line.
    """
    (x, y), (along_x, along_y), _ = _fitted(chain)
    a, b = -along_y, along_x
    return float(a), float(b), float(-(a * x + b * y))


def _fitted(
    chain: Sequence[Place],
) -> tuple[Float[np.ndarray, " 2"], Float[np.ndarray, " 2"], Float[np.ndarray, " n"]]:
    """The middle of the places, the direction of their line, and where each lies on it.

    The direction is the first principal axis.
    """
    places = np.array(chain, float)
    middle = places.mean(0)
    (xx, xy), (_, yy) = (places - middle).T @ (places - middle)
    angle = 0.5 * math.atan2(2 * xy, xx - yy)
    along = np.array([math.cos(angle), math.sin(angle)])
    return middle, along, (places - middle) @ along


def primitive_score(
    given: Primitives, gold: Primitives, *, missed: float = 1.0, extra: float = 1.0
) -> float:
    """exp(-mean cost): VPR of CogFlow, equation 1, https://arxiv.org/abs/2601.01874.

    Within a kind, pairs of the smallest total cost, the distance of their parameters:
    (x, y), the (a, b, c) of `fitted_line` of the nearer sign, (x, y, radius). Where one
    side alone has a kind, each of it costs `missed` or `extra`. The mean is over all of
    these: how the paper counts the last, and lambda_FN and lambda_FP themselves, are
    not given. As in its algorithm 1, what is left over beside pairs of its kind costs
    nothing, so that more is never worse. Two empty sides are 1.
    """
    total, count = 0.0, 0
    ours_fitted, theirs_fitted = (
        [*map(fitted_line, side.lines)] for side in (given, gold)
    )
    for ours, theirs, distances in (
        (given.points, gold.points, _apart),
        (ours_fitted, theirs_fitted, _lines_apart),
        (given.circles, gold.circles, _apart),
    ):
        if ours and theirs:
            costs = distances(np.array(theirs), np.array(ours))
            paired = _pairs(costs, np.ones(costs.shape, bool))
            total += sum(costs[pair] for pair in paired)
            count += len(paired)
        else:
            total += missed * len(theirs) + extra * len(ours)
            count += len(theirs) + len(ours)
    return float(np.exp(-total / max(count, 1)))


def _apart(
    a: Float[np.ndarray, "N K"], b: Float[np.ndarray, "M K"]
) -> Float[np.ndarray, "N M"]:
    return np.linalg.norm(a[:, None] - b, axis=-1)


def _lines_apart(
    a: Float[np.ndarray, "N 3"], b: Float[np.ndarray, "M 3"]
) -> Float[np.ndarray, "N M"]:
    """Of both signs, which are the same line, the nearer one."""
    return np.minimum(_apart(a, b), _apart(a, -b))


def _pairs(
    costs: Float[np.ndarray, "N M"], allowed: Bool[np.ndarray, "N M"]
) -> list[tuple[int, int]]:
    """`geometry.cheapest_match` in one size, so that it is compiled once."""
    table, mask = np.zeros((MOST, MOST), np.float32), np.zeros((MOST, MOST), bool)
    here = tuple(map(slice, costs.shape))
    table[here], mask[here] = costs, allowed
    matched = np.asarray(_match(table, mask)).tolist()
    return [(row, column) for row, column in enumerate(matched) if column >= 0]


def segment_f1(
    given: Primitives, gold: Primitives, *, degrees: float = 6.0, overlap: float = 0.2
) -> float:
    """2 pairs / (given + gold) lines: what a public file has for CogFlow's VPR.

    A line is the part of its fitted line that its places span. A pair is allowed up to
    an angle, and from a share of the gold line's length that the other one covers,
    measured along the gold line. There are as many pairs as can be. The file chooses
    among them by a cost, which does not change their number, so it is not here. Points
    and circles are not looked at; no line on both sides is 1.

    https://arxiv.org/abs/2601.01874; which share is our reading.
    """
    if not given.lines or not gold.lines:
        return float(not given.lines and not gold.lines)
    allowed = np.array(
        [
            [_same_segment(b, a, degrees, overlap) for b in given.lines]
            for a in gold.lines
        ]
    )
    pairs = _pairs(np.zeros(allowed.shape), allowed)
    return 2 * len(pairs) / (len(given.lines) + len(gold.lines))


def _same_segment(
    given: Sequence[Place], gold: Sequence[Place], degrees: float, overlap: float
) -> bool:
    middle, along, spans = _fitted(gold)
    other, direction, others = _fitted(given)
    across = abs(along[0] * direction[1] - along[1] * direction[0])
    angle = math.degrees(math.atan2(across, abs(along @ direction)))
    ends = (other + np.outer([others.min(), others.max()], direction) - middle) @ along
    shared = min(ends.max(), spans.max()) - max(ends.min(), spans.min())
    return angle <= degrees and shared >= overlap * np.ptp(spans)
