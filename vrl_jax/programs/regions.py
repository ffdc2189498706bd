"""Where to look, then, shown that part of the picture too, the answer.

Two contexts: a box, and afresh the pictures with the crop behind them. Each is a row.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from vrl_jax.engine import tools
from vrl_jax.engine.conversation import Ask, user
from vrl_jax.engine.episode import Outcome, Steps
from vrl_jax.rewards.parse import answer_tag
from vrl_jax.rewards.parse_boxes import are_numbers, four_numbers
from vrl_jax.types import Message, Sample

FIND = """\
{question}

Do not answer yet. In which region of the picture is the answer to be seen? Give it as
[left, top, right, bottom], in parts of the width and the height from 0 to 1."""

ZOOMED = """\
{question}

<image>This is that region, closer. Write the answer in <answer> and </answer>."""

UNCUT = """\
{question}

Write the answer in <answer> and </answer>."""

Box = tuple[float, float, float, float]
ReadBox = Callable[[str], Box | None]
"""What a text points at, in parts of the picture's width and height."""


def unit_box(text: str) -> Box | None:
    """The first list of four numbers in the text, in its answer tag if it has one.

    None unless it has an area and lies inside [0, 1].
    """
    tagged = answer_tag(text)
    return in_unit_square(four_numbers(text if tagged is None else tagged))


def in_unit_square(given: Any) -> Box | None:
    """Four numbers as a box; None for anything else, and as in `unit_box`."""
    if not are_numbers(given, 4):
        return None
    left, top, right, bottom = map(float, given)
    inside = 0 <= left < right <= 1 and 0 <= top < bottom <= 1
    return (left, top, right, bottom) if inside else None


def spelled_box(box: Box) -> str:
    """Such as [0.25, 0.5, 0.375, 1.0]: three decimals at most."""
    return str([round(side, 3) for side in box])


def cut(sample: Sample, box: Box | None) -> bytes | None:
    """That part of the first picture; None where there is none."""
    if box is None or not sample.images:
        return None
    picture = tools.opened(sample.images[0])
    pixels = np.round(np.array(box) * np.tile(picture.size, 2), 6)  # whole stay whole
    try:
        return tools.as_png(tools.crop([picture], bbox_2d=pixels.tolist()))
    except tools.ToolError:
        return None


def point(sample: Sample, *, find: str = FIND) -> Steps:
    """Where to look, alone."""
    asked = user(find.format(question=sample.question), sample.images)
    pointed = yield Ask((asked,))
    return (pointed,)


def look_then_answer(
    sample: Sample,
    *,
    find: str = FIND,
    zoomed: str = ZOOMED,
    uncut: str = UNCUT,
    read_box: ReadBox = unit_box,
) -> Steps:
    """A box, then in a fresh context picture and crop, and the answer: two rows.

    A box that cannot be cut out shows no crop: the answer is asked for by `uncut`, and
    the fact `box` is 0.
    """
    (pointed,) = yield from point(sample, find=find)
    crop = cut(sample, read_box(pointed.text))
    said = yield Ask((asked_closely(sample, crop, zoomed, uncut),))
    return Outcome((pointed, said), {"box": int(crop is not None)})


def asked_closely(
    sample: Sample, crop: bytes | None, zoomed: str, uncut: str = UNCUT
) -> Message:
    """The question with its pictures: `zoomed`, the crop behind them, or else `uncut`.

    That shows no crop, and speaks of none.
    """
    if crop is None:
        return user(uncut.format(question=sample.question), sample.images)
    return user(zoomed.format(question=sample.question), (*sample.images, crop))
