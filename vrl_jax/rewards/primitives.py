"""Points, lines and circles of a diagram: read, drawn, and held against others.

Coordinates are from -10 to 10, to the right and down: pixel / size * 20 - 10. A text
has one primitive a line, a point with any name or none, a line by two points or more:

    point A (-7.5, 3)
    line (-7.5, 3) (2, 4) (9, -1)
    circle (1, 2) 4

Up to 32 primitives of a kind are read, and up to 32 points of a line. A number is
between -100 and 100, with up to 20 decimals, as computers print it: 7.1e-15 too.
"""

import itertools
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw
from scipy.optimize import linear_sum_assignment

MOST = 32
"""Primitives of a kind that are read of a text, and points of a line."""
LONGEST = 2000
"""Characters of a line that is read."""
REACH = 10.0
"""The largest coordinate in the picture."""
PAPER, INK = (255, 255, 255), (20, 20, 20)

# Under 100: what lies far outside is unread.
_NUMBER = r"([+-]?\d{1,2}(?:\.\d{1,20})?(?:e-\d{1,3})?)"
_PLACE = rf"\(\s*{_NUMBER}\s*,\s*{_NUMBER}\s*\)"
_POINT = re.compile(rf"point(?:\s+[^\s(]{{1,20}})?\s*{_PLACE}")
_LINE = re.compile(rf"line(?:\s*{_PLACE})+")
_CIRCLE = re.compile(rf"circle\s*{_PLACE}\s*{_NUMBER}")
_PLACES = re.compile(_PLACE)

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

    @property
    def count(self) -> int:
        """How many there are, of all kinds."""
        return len(self.points) + len(self.lines) + len(self.circles)


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
    found = Primitives(tuple(points), tuple(lines), tuple(circles))
    return found._replace(unread=len(said) - found.count)


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


class _Fitted(NamedTuple):
    """The middle of the places, the direction of their line, and where each lies on it.

    The direction is the first principal axis.
    """

    middle: Float[np.ndarray, " 2"]
    along: Float[np.ndarray, " 2"]
    spans: Float[np.ndarray, " n"]


def _fitted(chain: Sequence[Place]) -> _Fitted:
    places = np.array(chain, float)
    middle = places.mean(0)
    (xx, xy), (_, yy) = (places - middle).T @ (places - middle)
    angle = 0.5 * math.atan2(2 * xy, xx - yy)
    along = np.array([math.cos(angle), math.sin(angle)])
    return _Fitted(middle, along, (places - middle) @ along)


def primitive_score(
    given: Primitives, gold: Primitives, *, missed: float = 1.0, extra: float = 1.0
) -> float:
    """exp(-mean cost): VPR of CogFlow, equation 1, https://arxiv.org/abs/2601.01874.

    Within a kind, pairs of the smallest total cost, the distance of their parameters:
    (x, y), the (a, b, c) of `fitted_line` of the nearer sign, (x, y, radius). Where one
    side alone has a kind, each of it costs `missed` or `extra`. The mean is over all of
    these: how the paper counts the last, and lambda_FN and lambda_FP themselves, are
    not given. As in its algorithm 1, what is left over beside pairs of its kind costs
    nothing: leaving out is not punished beside a pair of its kind, and neither is
    guessing on. One primitive of each kind, exact, is 1; `complete_primitive_score`
    asks for all.

    Without any pair it is 0, our reading: the mean is over pairs. So saying nothing
    earns nothing, where any guess of the right kind earns something. Two empty sides
    are 1.
    """
    kinds = _matched(given, gold)
    return _score(
        [paired or [missed] * left + [extra] * over for paired, left, over in kinds],
        any(paired for paired, _, _ in kinds),
    )


def complete_primitive_score(
    given: Primitives, gold: Primitives, *, missed: float = 1.0, extra: float = 1.0
) -> float:
    """`primitive_score` in which all that is left over costs `missed` or `extra`.

    Beside pairs of its kind too, as F1 counts it. There are as many pairs as can be, so
    that leaving one out pays where the guess would be further off than `missed`.
    """
    kinds = _matched(given, gold)
    return _score(
        [paired + [missed] * left + [extra] * over for paired, left, over in kinds],
        any(paired for paired, _, _ in kinds),
    )


def _score(costs: Sequence[Sequence[float]], met: bool) -> float:
    """exp(-mean cost) over the kinds; 0 where there are costs and no pair."""
    every = [*itertools.chain(*costs)]
    if every and not met:
        return 0.0
    return math.exp(-sum(every) / max(len(every), 1))


def _matched(given: Primitives, gold: Primitives) -> list[tuple[list[float], int, int]]:
    """Of each kind, the costs of its pairs, and how many gold and given are left over.

    As many pairs as can be, of the smallest total.
    """
    ours_fitted, theirs_fitted = (
        [*map(fitted_line, side.lines)] for side in (given, gold)
    )
    found = []
    for ours, theirs, distances in (
        (given.points, gold.points, _apart),
        (ours_fitted, theirs_fitted, _lines_apart),
        (given.circles, gold.circles, _apart),
    ):
        paired = []
        if ours and theirs:
            costs = distances(np.array(theirs), np.array(ours))
            paired = costs[linear_sum_assignment(costs)].tolist()
        found.append((paired, len(theirs) - len(paired), len(ours) - len(paired)))
    return found


def _apart(
    a: Float[np.ndarray, "N K"], b: Float[np.ndarray, "M K"]
) -> Float[np.ndarray, "N M"]:
    return np.linalg.norm(a[:, None] - b, axis=-1)


def _lines_apart(
    a: Float[np.ndarray, "N 3"], b: Float[np.ndarray, "M 3"]
) -> Float[np.ndarray, "N M"]:
    """Of both signs, which are the same line, the nearer one."""
    return np.minimum(_apart(a, b), _apart(a, -b))


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
    ours, theirs = ([*map(_fitted, side.lines)] for side in (given, gold))
    allowed = np.array(
        [[_same_segment(b, a, degrees, overlap) for b in ours] for a in theirs]
    )
    pairs = allowed[linear_sum_assignment(allowed, maximize=True)].sum()
    return float(2 * pairs / (len(ours) + len(theirs)))


def _same_segment(
    given: _Fitted, gold: _Fitted, degrees: float, overlap: float
) -> bool:
    middle, along, spans = gold
    other, direction, others = given
    across = abs(along[0] * direction[1] - along[1] * direction[0])
    angle = math.degrees(math.atan2(across, abs(along @ direction)))
    ends = (other + np.outer([others.min(), others.max()], direction) - middle) @ along
    shared = min(ends.max(), spans.max()) - max(ends.min(), spans.min())
    return angle <= degrees and shared >= overlap * np.ptp(spans)
