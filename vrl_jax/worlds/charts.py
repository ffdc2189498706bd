"""Bar charts whose every value is known, with handwritten digits for numbers.

Of `bars` the axis is numbered. It counts by ones or by twos, so a bar's height alone
does not tell its value. Whole tokens of Qwen2.5-VL hold a number of the axis, and each
bar has a column of them. Of `numbered` each bar has a number, in small print: made
small enough for a few tokens, such a chart still shows which bar is where and how high,
and no longer what is under it. All digits are scans of `worlds.digits`, with their
split.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from vrl_jax.types import Sample
from vrl_jax.worlds.digits import Split, choose_scans, enlarged, generator
from vrl_jax.worlds.shapes import COLOURS
from vrl_jax.worlds.writing import add_noise, png_bytes

KINDS = ("value", "highest", "difference", "above")

SIDE = 28
"""Pixels from one number of the axis to the next, and of a bar's column."""

LABELS = 5
"""Numbers of the axis: 0, step, ..., 4 step."""

GRID = (205, 205, 205)

BARS = (150, 150, 150)
"""Of `numbered`, but for one."""

UNDER = "<image>Which number is under the coloured bar?"


class Chart(NamedTuple):
    """The bars from left to right with their values, and what the axis counts by."""

    values: Mapping[str, int]
    step: int

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return SIDE * (1 + len(self.values)), SIDE * LABELS

    def height(self, value: int) -> int:
        """The row of pixels at which a value stands."""
        return round(SIDE * (LABELS - 0.5 - value / self.step))

    def box(self, name: str) -> list[int]:
        """Left, top, right, bottom of a bar in pixels."""
        left = SIDE * (1 + list(self.values).index(name))
        return [left + 4, self.height(self.values[name]), left + 24, self.height(0)]


class Asked(NamedTuple):
    """A question, its answer, and the bars that one has to read for it."""

    question: str
    answer: str
    about: Sequence[str]


def bars(
    count: int,
    *,
    split: Split,
    seed: int,
    kinds: Sequence[str] = KINDS,
    columns: int = 3,
    noise: float = 0.02,
) -> list[Sample]:
    r"""Questions of the `kinds` in turn, each about a chart of 2 to 4 bars of its own.

    Values are whole numbers from 1 to 9. The annotations hold `values` by the bars'
    colours, `step`, `about` (whom it is asked of), `boxes` in the order of `values`,
    `facts`, and a `demonstration` that reads before it answers: `red 3: \boxed{3}`.
    """
    if not 2 <= columns <= len(COLOURS):
        raise ValueError(f"a chart has 2 to {len(COLOURS)} bars, got {columns}.")
    if not kinds or {*kinds} - {*KINDS}:
        raise ValueError(f"kinds are some of {', '.join(KINDS)}, got {kinds!r}.")
    samples = []
    for index in range(count):
        rng = generator(seed, split, index, task=4)
        kind = kinds[index % len(kinds)]
        drawn = draw_chart(columns, rng)
        asked = QUESTIONS[kind](drawn, rng)
        facts = [f"{name} {drawn.values[name]}" for name in asked.about]
        samples.append(
            Sample(
                id=f"charts-{columns}-{kind}-{split}-{seed}-{index}",
                source=f"charts/{kind}",
                question=f"<image>{asked.question}",
                images=(picture_of(drawn, split, noise, rng),),
                answer=asked.answer,
                annotations={
                    "values": dict(drawn.values),
                    "step": drawn.step,
                    "about": list(asked.about),
                    "boxes": [drawn.box(name) for name in drawn.values],
                    "facts": facts,
                    "demonstration": f"{', '.join(facts)}: \\boxed{{{asked.answer}}}",
                },
            )
        )
    return samples


def numbered(
    count: int,
    *,
    split: Split,
    seed: int,
    columns: int = 4,
    column_pixels: int = 168,
    digit_pixels: int = 28,
) -> list[Sample]:
    """Large charts with small numbers under grey bars: which is under the coloured one?

    The paper's shade changes from left to right and so tells a place, as in `scenes`:
    on white paper a tiny policy hardly learns to say where a bar stands. Annotations
    hold from left to right `numbers`, `heights`, `boxes` of the bars and `feet`, the
    squares around the numbers, half as wide as a column, in pixels; `about` is the
    place of the coloured one from 0.
    """
    half, side = column_pixels // 2, column_pixels * columns
    if columns < 2 or column_pixels % 4 or not 1 <= digit_pixels <= half:
        raise ValueError(
            "a chart has at least 2 columns, of pixels that divide by 4, and a digit "
            f"takes at most half of them; got columns={columns}, column_pixels="
            f"{column_pixels}, digit_pixels={digit_pixels}."
        )
    samples = []
    for index in range(count):
        rng = generator(seed, split, index, task=6)
        levels = rng.permutation(np.arange(1, 2 * columns))[:columns].tolist()
        numbers = rng.integers(0, 10, columns).tolist()
        about = int(rng.integers(columns))
        lefts = range(half // 2, side, column_pixels)
        feet = [[left, side - half, left + half, side] for left in lefts]
        boxes = [
            [left, side - half * (1 + level), left + half, side - half]
            for left, level in zip(lefts, levels, strict=True)
        ]
        colours = [BARS] * columns
        colours[about] = COLOURS[str(rng.choice(list(COLOURS)))]
        picture = _with_bars(_shaded(side), boxes, colours)
        margin = (half - digit_pixels) // 2
        scans = choose_scans(numbers, split, rng)
        for (left, top, _, _), scan in zip(feet, scans, strict=True):
            rows = slice(top + margin, top + margin + digit_pixels)
            places = slice(left + margin, left + margin + digit_pixels)
            picture[rows, places] = enlarged(digit_pixels)[scan][..., None]
        samples.append(
            Sample(
                id=f"charts-numbered-{columns}-{split}-{seed}-{index}",
                source="charts/numbered",
                question=UNDER,
                images=(png_bytes(picture),),
                answer=str(numbers[about]),
                annotations={
                    "numbers": numbers,
                    "heights": levels,
                    "about": about,
                    "boxes": boxes,
                    "feet": feet,
                },
            )
        )
    return samples


def _with_bars(
    paper: UInt8[np.ndarray, "H W 3"],
    boxes: Sequence[Sequence[int]],
    colours: Sequence[tuple[int, int, int]],
) -> UInt8[np.ndarray, "H W 3"]:
    image = Image.fromarray(paper)
    pen = ImageDraw.Draw(image)
    for (left, top, right, bottom), colour in zip(boxes, colours, strict=True):
        pen.rectangle((left, top, right - 1, bottom - 1), fill=colour)
    return np.array(image)


def _shaded(side: int) -> UInt8[np.ndarray, "side side 3"]:
    """Dark paper, from blue at the left to red at the right."""
    across = np.arange(side)[:, None] / side
    row = (60, 100, 170) + across * (120, 0, -50)
    return np.tile(row.round().astype(np.uint8), (side, 1, 1))


def draw_chart(columns: int, rng: np.random.Generator) -> Chart:
    """Colours in any order; no two values are equal."""
    step = int(rng.integers(1, 3))
    names = [str(name) for name in rng.permutation(list(COLOURS))[:columns]]
    highest = min(9, step * LABELS - 1)
    values = rng.permutation(np.arange(1, highest + 1))[:columns]
    return Chart(dict(zip(names, map(int, values), strict=True)), step)


def picture_of(
    drawn: Chart, split: Split, noise: float, rng: np.random.Generator
) -> bytes:
    """The axis at the left, a grey line at each of its numbers, and the bars."""
    image = Image.new("RGB", drawn.size, "white")
    pen = ImageDraw.Draw(image)
    numbers = [drawn.step * place for place in range(LABELS)]
    for number in numbers:
        row = drawn.height(number)
        pen.line((SIDE, row, drawn.size[0], row), fill=GRID)
    for name in drawn.values:
        left, top, right, bottom = drawn.box(name)
        pen.rectangle((left, top, right - 1, bottom - 1), fill=COLOURS[name])
    picture = np.array(image)
    scans = choose_scans(numbers, split, rng)
    for number, scan in zip(numbers, scans, strict=True):
        top = drawn.height(number) - SIDE // 2
        picture[top : top + SIDE, :SIDE] = enlarged(SIDE)[scan][..., None]
    return png_bytes(add_noise(picture, noise, rng))


def _value(drawn: Chart, rng: np.random.Generator) -> Asked:
    name = _names(drawn, rng)[0]
    answer = str(drawn.values[name])
    return Asked(f"What is the value of the {name} bar?", answer, [name])


def _highest(drawn: Chart, rng: np.random.Generator) -> Asked:
    highest = max(drawn.values, key=drawn.values.__getitem__)
    return Asked("Which bar is the highest?", highest, list(drawn.values))


def _difference(drawn: Chart, rng: np.random.Generator) -> Asked:
    pair = _names(drawn, rng)[:2]
    high, low = sorted(pair, key=drawn.values.__getitem__, reverse=True)
    answer = str(drawn.values[high] - drawn.values[low])
    asked = f"By how much is the {high} bar higher than the {low} bar?"
    return Asked(asked, answer, [high, low])


def _above(drawn: Chart, rng: np.random.Generator) -> Asked:
    level = int(rng.integers(1, drawn.step * (LABELS - 1)))
    answer = str(sum(value > level for value in drawn.values.values()))
    return Asked(f"How many bars are above {level}?", answer, list(drawn.values))


def _names(drawn: Chart, rng: np.random.Generator) -> list[str]:
    return [str(name) for name in rng.permutation(list(drawn.values))]


QUESTIONS: Mapping[str, Callable[[Chart, np.random.Generator], Asked]] = {
    "value": _value,
    "highest": _highest,
    "difference": _difference,
    "above": _above,
}
"""What each of the `KINDS` asks."""
