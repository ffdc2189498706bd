"""Small transit maps whose stops are handwritten digits, with every route known.

One line runs down, the others cross it from left to right; a stop is named by the digit
at it, a scan of `worlds.digits` with its split. Questions are those of ReasonMap-Plus
and ReasonMap, under RewardMap's columns: see `recipes.rewardmap`.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from vrl_jax.types import Sample
from vrl_jax.worlds.digits import Split, choose_scans, enlarged, generator
from vrl_jax.worlds.shapes import COLOURS
from vrl_jax.worlds.writing import add_noise, png_bytes

ASK_ROUTE = (
    "<image>How do you get from {start} to {end}? Name for each ride its line, where "
    "you get on, and where you get off."
)

KINDS = ("TorF1", "TorF2", "Counting2", "Counting3", "Counting1", "planning")

SIDE = 28
"""Pixels of a stop each way: one token of Qwen2.5-VL."""

ROWS = 3
"""What a map has from top to bottom, columns from left to right."""

CITIES = {2: "easy", 3: "middle", 4: "hard"}
"""How hard a map with so many lines is called."""

Cell = tuple[int, int]
"""(row, column)"""


class Map(NamedTuple):
    """The cells that each line serves, in order, and the stop in each cell."""

    lines: Mapping[str, Sequence[Cell]]
    stops: Mapping[Cell, str]

    def named(self) -> dict[str, list[str]]:
        """The stops of each line, in order."""
        return {
            name: [self.stops[cell] for cell in cells]
            for name, cells in self.lines.items()
        }


class Asked(NamedTuple):
    """A question, its answer, what else its row says, and a right response."""

    question: str
    answer: str
    facts: Mapping[str, object]
    demonstration: str


def maps(
    count: int,
    *,
    split: Split,
    seed: int,
    kinds: Sequence[str] = KINDS,
    lines: int = 2,
    columns: int = 4,
    noise: float = 0.02,
) -> list[Sample]:
    """Questions of the `kinds` in turn, each about a map of its own.

    2 to 4 lines on a grid of 3 rows and 3 to 8 columns. The annotation `json` holds the
    stops of each line, `demonstration` a right response as RewardMap reads it.
    """
    if lines not in CITIES or not 3 <= columns <= 8:
        raise ValueError(
            f"a map has 2 to 4 lines and 3 to 8 columns, got {lines} and {columns}."
        )
    if not kinds or {*kinds} - {*KINDS}:
        raise ValueError(f"kinds are some of {', '.join(KINDS)}, got {kinds!r}.")
    samples, size = [], (ROWS, columns)
    for index in range(count):
        rng = generator(seed, split, index, task=3)
        kind = kinds[index % len(kinds)]
        drawn = draw_map(lines, columns, rng)
        asked = QUESTIONS[kind](drawn, rng)
        samples.append(
            Sample(
                id=f"transit-{lines}x{columns}-{kind}-{split}-{seed}-{index}",
                source=f"transit/{kind}",
                question=asked.question,
                images=(picture_of(drawn, size, split, noise, rng),),
                answer=asked.answer,
                annotations={
                    "type": kind,
                    "difficulty_city": CITIES[lines],
                    "json": drawn.named(),
                    **asked.facts,
                    "demonstration": asked.demonstration,
                },
            )
        )
    return samples


def draw_map(lines: int, columns: int, rng: np.random.Generator) -> Map:
    """The first line runs down, and each other one crosses it in a row of its own.

    Drawn again until it has at most ten stops: there are ten digits.
    """
    while True:
        names = [str(name) for name in rng.permutation(list(COLOURS))[:lines]]
        crossed = int(rng.integers(columns))
        rows = [int(row) for row in rng.permutation(ROWS)[: lines - 1]]
        first, last = _span(min(rows), max(rows), ROWS, rng)
        served = {names[0]: [(row, crossed) for row in range(first, last + 1)]}
        for row, name in zip(rows, names[1:], strict=True):
            first, last = _span(crossed, crossed, columns, rng)
            served[name] = [(row, column) for column in range(first, last + 1)]
        cells = sorted({cell for line in served.values() for cell in line})
        if len(cells) <= 10:
            digits = map(str, rng.permutation(10)[: len(cells)])
            return Map(served, dict(zip(cells, digits, strict=True)))


def _span(low: int, high: int, size: int, rng: np.random.Generator) -> tuple[int, int]:
    """The ends of two places or more, of `size`, that hold all from low to high."""
    while True:
        first, last = int(rng.integers(low + 1)), int(rng.integers(high, size))
        if first < last:
            return first, last


def picture_of(
    drawn: Map,
    size: tuple[int, int],
    split: Split,
    noise: float,
    rng: np.random.Generator,
) -> bytes:
    """The lines as bands, and at each stop its digit; `size` is rows and columns."""
    rows, columns = size
    image = Image.new("RGB", (columns * SIDE, rows * SIDE), "white")
    pen = ImageDraw.Draw(image)
    for name, cells in drawn.lines.items():
        (top, left), (bottom, right) = cells[0], cells[-1]
        # A line goes on behind its last stops: one that begins on another is seen.
        along, across = (0.4, 0.25) if top == bottom else (0.25, 0.4)
        corners = (left - along, top - across, right + along, bottom + across)
        band = [round((corner + 0.5) * SIDE) for corner in corners]
        pen.rectangle(band, fill=COLOURS[name])
    picture = np.array(image)
    side = SIDE * 5 // 7
    inset = (SIDE - side) // 2
    for (row, column), digit in drawn.stops.items():
        (scan,) = choose_scans([int(digit)], split, rng)
        top, left = row * SIDE + inset, column * SIDE + inset
        there = picture[top : top + side, left : left + side]
        # Ink on the colours of the lines, which stay visible behind it.
        there[:] = there * (enlarged(side)[scan][..., None] / 255)
    return png_bytes(add_noise(picture, noise, rng))


def _serves(drawn: Map, rng: np.random.Generator) -> Asked:
    """Does a line stop there?"""
    name, cells = _line(drawn, rng)
    yes = bool(rng.integers(2))
    others = [cell for cell in drawn.stops if cell not in cells]
    stop = drawn.stops[_one(cells if yes else others, rng)]
    return _yes_or_no(f"<image>Does the {name} line stop at {stop}?", yes)


def _direct(drawn: Map, rng: np.random.Generator) -> Asked:
    """Are two stops on one line?"""
    yes = bool(rng.integers(2))
    start, end = _trip(drawn, rng, direct=yes)
    asked = f"<image>Is there a line that stops at {start} and at {end}?"
    return _yes_or_no(asked, yes)


def _yes_or_no(question: str, yes: bool) -> Asked:
    said = "yes" if yes else "no"
    return Asked(f"{question} Answer yes or no.", str(int(yes)), {}, _boxed(said))


def _stops_of_a_line(drawn: Map, rng: np.random.Generator) -> Asked:
    name, cells = _line(drawn, rng)
    number = str(len(cells))
    asked = f"<image>How many stops has the {name} line?"
    return Asked(asked, number, {}, _boxed(number))


def _stops_in_all(drawn: Map, rng: np.random.Generator) -> Asked:
    number = str(len(drawn.stops))
    asked = "<image>How many stops are there in all?"
    return Asked(asked, number, {}, _boxed(number))


def _stops_between(drawn: Map, rng: np.random.Generator) -> Asked:
    """Of the longest line; four choices, whose letters stand for 0 to 3."""
    name, cells = max(drawn.lines.items(), key=lambda line: len(line[1]))
    number = int(rng.integers(len(cells) - 1))
    first = int(rng.integers(len(cells) - 1 - number))
    last = first + number + 1
    start, end = drawn.stops[cells[first]], drawn.stops[cells[last]]
    near = [*range(max(0, number - 3), number), *range(number + 1, number + 4)]
    wrong = rng.permutation(near)[:3]
    options = [int(option) for option in rng.permutation([number, *wrong])]
    letters = "\n".join(f"{'ABCD'[i]}. {option}" for i, option in enumerate(options))
    place = options.index(number)
    asked = f"<image>How many stops of the {name} line lie between {start} and {end}?"
    return Asked(f"{asked}\n{letters}", str(place), {}, _boxed("abcd"[place]))


def _planning(drawn: Map, rng: np.random.Generator) -> Asked:
    """From one stop to another, by as few lines as can be."""
    start, end = _trip(drawn, rng, direct=bool(rng.integers(2)))
    rides = route(drawn, start, end)
    facts = {
        "station_1": start,
        "station_2": end,
        "question_transfer_count": len(rides) - 1,
    }
    written = "\n--\n".join(
        f"Route Name: {line}\nDeparture Stop: {get_on}\nArrival Stop: {get_off}"
        for line, get_on, get_off in rides
    )
    asked = ASK_ROUTE.format(start=start, end=end)
    return Asked(asked, written, facts, written)


def route(drawn: Map, start: str, end: str) -> list[tuple[str, str, str]]:
    """(line, stop, stop) of each ride between two stops, with the fewest transfers."""
    lines = drawn.named()
    for name, stops in lines.items():
        if {start, end} <= {*stops}:
            return [(name, start, end)]
    (main, through), *crossing = lines.items()
    rides, here = [], start
    for name, stops in crossing:
        if start in stops and start not in through:
            (here,) = {*stops} & {*through}
            rides.append((name, start, here))
    if end in through:
        return [*rides, (main, here, end)]
    ((name, stops),) = ((n, s) for n, s in crossing if end in s)
    (transfer,) = {*stops} & {*through}
    return [*rides, (main, here, transfer), (name, transfer, end)]


def _trip(drawn: Map, rng: np.random.Generator, *, direct: bool) -> tuple[str, str]:
    """Two stops, on one line or not."""
    lines = [{*stops} for stops in drawn.named().values()]
    stops = [str(stop) for stop in rng.permutation(list(drawn.stops.values()))]
    return next(
        pair
        for pair in itertools.permutations(stops, 2)
        if any({*pair} <= line for line in lines) == direct
    )


def _line(drawn: Map, rng: np.random.Generator) -> tuple[str, Sequence[Cell]]:
    names = list(drawn.lines)
    name = names[rng.integers(len(names))]
    return name, drawn.lines[name]


def _one(cells: Sequence[Cell], rng: np.random.Generator) -> Cell:
    return cells[rng.integers(len(cells))]


def _boxed(text: str) -> str:
    return f"\\boxed{{{text}}}"


QUESTIONS: Mapping[str, Callable[[Map, np.random.Generator], Asked]] = {
    "TorF1": _serves,
    "TorF2": _direct,
    "Counting1": _stops_between,
    "Counting2": _stops_of_a_line,
    "Counting3": _stops_in_all,
    "planning": _planning,
}
