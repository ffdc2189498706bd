"""Questions about coloured shapes: how many, which colour, where, and which are more.

A picture's split follows from its own pixels before noise: one picture in five, by
SHA-256, is held out. So training and test share no picture and no arrangement, for
any two seeds, tasks and counts.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from vrl_jax.types import Sample
from vrl_jax.worlds.writing import add_noise, png_bytes

Split = Literal["train", "test"]

COLOURS = {
    "red": (214, 39, 40),
    "green": (44, 160, 44),
    "blue": (31, 90, 200),
    "yellow": (240, 200, 20),
}
SHAPES = ("circle", "square", "triangle")
PAPER = (245, 245, 245)

Attributes = tuple[str, str]
"""(colour, shape)"""


class Thing(NamedTuple):
    """A drawn shape; `box` is x0 y0 x1 y1 in pixels, ends excluded."""

    colour: str
    shape: str
    box: tuple[int, int, int, int]

    @property
    def name(self) -> str:
        """Such as "red circle"."""
        return f"{self.colour} {self.shape}"


class Scene(NamedTuple):
    """What is in a picture and what is asked of it."""

    things: list[Thing]
    question: str
    answer: str
    facts: list[str]
    demonstration: str


def count(
    samples: int, *, split: Split, seed: int, pixels: int = 84, noise: float = 0.02
) -> list[Sample]:
    """How many things of one colour and shape, 0 to 3, among others?"""
    return _samples("count", _count, samples, split, seed, pixels, noise)


def colour(
    samples: int, *, split: Split, seed: int, pixels: int = 84, noise: float = 0.02
) -> list[Sample]:
    """Which colour has the only thing of its shape?"""
    return _samples("colour", _colour, samples, split, seed, pixels, noise)


def position(
    samples: int, *, split: Split, seed: int, pixels: int = 84, noise: float = 0.02
) -> list[Sample]:
    """Is one thing left, right, above or below, seen from another?"""
    return _samples("position", _position, samples, split, seed, pixels, noise)


def comparison(
    samples: int, *, split: Split, seed: int, pixels: int = 84, noise: float = 0.02
) -> list[Sample]:
    """Are the things of one shape more, fewer or equal in number to another's?"""
    return _samples("comparison", _comparison, samples, split, seed, pixels, noise)


def crowd(
    samples: int, *, split: Split, seed: int, pixels: int = 84, noise: float = 0.02
) -> list[Sample]:
    """How many things of one colour and shape, 3 to 6, among as many others?

    They are small and hide parts of each other.
    """
    return _samples("crowd", _crowd, samples, split, seed, pixels, noise)


def draw(things: Sequence[Thing], pixels: int) -> UInt8[np.ndarray, "pixels pixels 3"]:
    """The things on light paper."""
    return drawn_on(np.full((pixels, pixels, 3), PAPER, np.uint8), things)


def drawn_on(
    picture: UInt8[np.ndarray, "H W 3"], things: Sequence[Thing]
) -> UInt8[np.ndarray, "H W 3"]:
    """The picture with the things on it."""
    image = Image.fromarray(picture)
    pen = ImageDraw.Draw(image)
    for thing in things:
        x0, y0, x1, y1 = thing.box
        last = (x1 - 1, y1 - 1)  # Pillow paints the end pixel too
        fill = COLOURS[thing.colour]
        if thing.shape == "circle":
            pen.ellipse(((x0, y0), last), fill=fill)
        elif thing.shape == "square":
            pen.rectangle(((x0, y0), last), fill=fill)
        else:
            top = ((x0 + x1 - 1) / 2, y0)
            pen.polygon([top, last, (x0, y1 - 1)], fill=fill)
    return np.asarray(image)


def split_of(picture: UInt8[np.ndarray, "H W 3"]) -> Split:
    """The split that a picture without noise belongs to, from its pixels alone."""
    return "test" if hashlib.sha256(picture.tobytes()).digest()[0] % 5 == 0 else "train"


def _samples(
    task: str,
    compose: Callable[[np.random.Generator, int], Scene],
    samples: int,
    split: Split,
    seed: int,
    pixels: int,
    noise: float,
) -> list[Sample]:
    made = []
    for index in range(samples):
        # One generator a sample: the first n do not depend on how many follow.
        key = [seed, ("train", "test").index(split), sum(task.encode()), index]
        rng = np.random.default_rng(key)
        scene = compose(rng, pixels)
        while split_of(picture := draw(scene.things, pixels)) != split:
            scene = compose(rng, pixels)
        made.append(
            Sample(
                id=f"shapes-{task}-{split}-{seed}-{index}",
                source=f"shapes/{task}",
                question=scene.question,
                images=(png_bytes(add_noise(picture, noise, rng)),),
                answer=scene.answer,
                annotations={
                    "objects": [
                        {"colour": t.colour, "shape": t.shape, "box": list(t.box)}
                        for t in scene.things
                    ],
                    "boxes": [list(thing.box) for thing in scene.things],
                    "facts": scene.facts,
                    "demonstration": f"{scene.demonstration} \\boxed{{{scene.answer}}}",
                },
            )
        )
    return made


def _count(rng: np.random.Generator, pixels: int) -> Scene:
    target = _attributes(rng)
    number = int(rng.integers(0, 4))
    others = [_attributes(rng, but=target) for _ in range(rng.integers(1, 4))]
    things = _place([target] * number + others, rng, pixels)
    return _counted(things, target, number)


def _crowd(rng: np.random.Generator, pixels: int) -> Scene:
    target = _attributes(rng)
    number = int(rng.integers(3, 7))
    others = [_attributes(rng, but=target) for _ in range(rng.integers(3, 7))]
    sides = (pixels // 8, pixels // 6)
    # Two things share a strip of at most a third of the smaller one's side.
    things = _place([target] * number + others, rng, pixels, sides, -(sides[0] // 3))
    return _counted(things, target, number)


def _counted(things: list[Thing], target: Attributes, number: int) -> Scene:
    return Scene(
        things,
        f"<image>How many {target[0]} {target[1]}s?",
        str(number),
        [f"there are {number} {target[0]} {target[1]}s"],
        ", ".join(thing.name for thing in things) + ":",
    )


def _colour(rng: np.random.Generator, pixels: int) -> Scene:
    target = _attributes(rng)
    shapes = [shape for shape in SHAPES if shape != target[1]]
    others = [
        (_attributes(rng)[0], str(rng.choice(shapes)))
        for _ in range(rng.integers(1, 4))
    ]
    things = _place([target, *others], rng, pixels)
    return Scene(
        things,
        f"<image>Which colour is the {target[1]}?",
        target[0],
        [f"the {thing.shape} is {thing.colour}" for thing in things],
        ", ".join(thing.name for thing in things) + ":",
    )


def _position(rng: np.random.Generator, pixels: int) -> Scene:
    subject = _attributes(rng)
    other = _attributes(rng, but=subject)
    wanted = str(rng.choice(["left", "right", "above", "below"]))
    placed = _place([subject, other], rng, pixels)
    while direction(*_ordered(placed, subject)) != wanted:
        placed = _place([subject, other], rng, pixels)
    first, second = _ordered(placed, subject)
    joined = f"{wanted} of" if wanted in ("left", "right") else wanted
    statement = f"{first.name} {joined} {second.name}"
    return Scene(
        placed,
        f"<image>Where is the {first.name}, seen from the {second.name}?",
        wanted,
        [statement],
        f"{statement}:",
    )


def _comparison(rng: np.random.Generator, pixels: int) -> Scene:
    first, second = (str(shape) for shape in rng.choice(SHAPES, 2, replace=False))
    low, high = sorted(int(n) for n in rng.choice([1, 2, 3], 2, replace=False))
    same = int(rng.integers(1, 4))
    answer = str(rng.choice(["more", "fewer", "equal"]))
    numbers = {"more": (high, low), "fewer": (low, high), "equal": (same, same)}[answer]
    shapes = [first] * numbers[0] + [second] * numbers[1]
    things = _place([(_attributes(rng)[0], shape) for shape in shapes], rng, pixels)
    statement = f"{first}s {numbers[0]}, {second}s {numbers[1]}"
    return Scene(
        things,
        f"<image>More {first}s than {second}s, fewer, or equal?",
        answer,
        [statement],
        f"{statement}:",
    )


def _attributes(rng: np.random.Generator, but: Attributes | None = None) -> Attributes:
    drawn = but
    while drawn == but:
        drawn = (str(rng.choice(list(COLOURS))), str(rng.choice(SHAPES)))
    return drawn


def _place(
    attributes: Sequence[Attributes],
    rng: np.random.Generator,
    pixels: int,
    sides: tuple[int, int] | None = None,
    gap: int = 2,
) -> list[Thing]:
    """Random boxes of a sixth to a quarter of the picture, `gap` pixels apart or more.

    Or with such `sides`; a negative gap is how far boxes may lie over each other. In
    reading order, left to right, so that a list of them can be checked by eye.
    """
    shortest, longest = sides or (pixels // 6, pixels // 4)
    boxes: list[tuple[int, int, int, int]] = []
    tries = 0
    while len(boxes) < len(attributes):
        side = int(rng.integers(shortest, longest + 1))
        x, y = (int(start) for start in rng.integers(1, pixels - side, 2))
        box = (x, y, x + side, y + side)
        if not any(near(box, placed, gap=gap) for placed in boxes):
            boxes.append(box)
        tries += 1
        if tries % 50 == 0:  # a crowded corner: begin again
            boxes = []
    things = [
        Thing(colour, shape, box)
        for (colour, shape), box in zip(attributes, boxes, strict=True)
    ]
    return sorted(things, key=lambda thing: thing.box)


def near(a: Sequence[int], b: Sequence[int], *, gap: int) -> bool:
    """Whether fewer than `gap` pixels lie between two boxes; 0 is sharing a pixel."""
    return (
        a[0] < b[2] + gap
        and b[0] < a[2] + gap
        and a[1] < b[3] + gap
        and b[1] < a[3] + gap
    )


def _ordered(pair: Sequence[Thing], first: Attributes) -> tuple[Thing, Thing]:
    one, other = pair
    return (one, other) if (one.colour, one.shape) == first else (other, one)


def direction(subject: Thing, other: Thing) -> str | None:
    """Where the subject is, seen from the other; None where it is not clear-cut."""
    dx = (subject.box[0] + subject.box[2] - other.box[0] - other.box[2]) / 2
    dy = (subject.box[1] + subject.box[3] - other.box[1] - other.box[3]) / 2
    if abs(dx) >= 2 * abs(dy):
        return "left" if dx < 0 else "right"
    if abs(dy) >= 2 * abs(dx):
        return "above" if dy < 0 else "below"
    return None
