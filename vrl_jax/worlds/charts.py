"""Bar charts whose every value is known; the axis is numbered by handwritten digits.

The axis counts by ones or by twos, so a bar's height alone does not tell its value. Its
digits are scans of `worlds.digits`, with their split. Whole tokens of Qwen2.5-VL hold a
number of the axis, and each bar has a column of them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
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
