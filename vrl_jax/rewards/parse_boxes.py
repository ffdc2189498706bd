"""Boxes and points that a response names, as numbers in the frame it used.

Convert frames with `vrl_jax.geometry.rescale`; nothing here guesses one.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from vrl_jax.rewards.answers import number
from vrl_jax.rewards.boxes import Boxes
from vrl_jax.rewards.parse import answer_tag, first_tag, json_in, read_json

# At most 6 digits: no picture has more pixels, and no number takes long to read.
_FOUR = re.compile(r"\[\s*(\d{1,6}),\s*(\d{1,6}),\s*(\d{1,6}),\s*(\d{1,6})\s*\]")
# Nor any of these; 20 decimals are more than a float has.
_ONE = r"(-?(?:\d{1,9}(?:\.\d{0,20})?|\.\d{1,20}))"
_FOUR_NUMBERS = re.compile(r"\[\s*" + r"\s*,\s*".join([_ONE] * 4) + r"\s*\]")
_PAIR = r"\(\s{0,9}X\s{0,9},\s{0,9}X\s{0,9}\)".replace("X", _ONE)
_CORNERS = re.compile(rf"{_PAIR}\s{{0,9}},?\s{{0,9}}{_PAIR}")
_NUMBER = re.compile(r"(?<![\d.])-?(?:\d{1,9}(?:\.\d{0,9})?|\.\d{1,9})(?![\d.])")
_BOX_KEYS = ("bbox_2d", "bbox", "box", "box_2d", "Position", "position")
_POINT_KEYS = ("point_2d", "point", "click_point")
_SCORE_KEYS = ("score", "confidence", "Confidence")


class Detection(NamedTuple):
    """One named box; `point` where the response gave one."""

    box: tuple[float, float, float, float]
    label: str = ""
    confidence: float = 1.0
    point: tuple[float, float] | None = None


def detections(text: str) -> list[Detection]:
    """The boxes of the JSON in the last answer tag, or in the text without one.

    A list of objects with `bbox_2d` (or bbox, box, Position), `label`, and perhaps
    `point_2d` and `confidence`; of bare boxes [x1, y1, x2, y2]; or one of these, which
    may also be [[x1, y1], [x2, y2]]. Items without four finite numbers, with x1 > x2 or
    with y1 > y2, are left out. Without JSON, every (x1,y1),(x2,y2) is a box.
    """
    return as_detections(json_in(text)) or _between_corners(text)


def _between_corners(text: str) -> list[Detection]:
    tagged = answer_tag(text)
    corners = _CORNERS.findall(text if tagged is None else tagged)
    return as_detections([[float(side) for side in four] for four in corners])


def as_detections(found: Any) -> list[Detection]:
    """The same of JSON that is already read, such as a row's annotations."""
    if isinstance(found, Mapping):
        found = [found]
    if not isinstance(found, Sequence) or isinstance(found, str):
        return []
    if len(found) == 2 and all(are_numbers(corner, 2) for corner in found):
        found = [*found[0], *found[1]]
    if are_numbers(found, 4):
        found = [found]
    if len(found) == 1 and isinstance(found[0], list) and not are_numbers(found[0], 4):
        found = found[0]  # [[...]]
    items = (_detection(item) for item in found)
    return [item for item in items if item is not None]


def without_repeats(boxes: Sequence[Detection]) -> list[Detection]:
    """The first of those with equal coordinates: V-Triune and Visual-RFT."""
    return list({item.box: item for item in reversed(boxes)}.values())[::-1]


def triune_detections(text: str) -> list[Detection]:
    """V-Triune's reading: first answer tag, lower-cased, cut ends closed, no repeats.

    Labels are texts or the item is left out.
    https://github.com/MiniMax-AI/One-RL-to-See-Them-All
    """
    tagged = first_tag(text, "answer")
    found = None if tagged is None else read_json(tagged.lower())
    return without_repeats([item for item in as_detections(found) if item.label])


def first_four_integers(text: str) -> tuple[int, int, int, int] | None:
    """The first [x1, y1, x2, y2] of integers in the first answer tag.

    Whether it is a box is not asked. VLM-R1's grounding,
    https://github.com/om-ai-lab/VLM-R1, which rescales it from the pixels that the
    model saw to the picture's own.
    """
    tagged = first_tag(text, "answer")
    return None if tagged is None else four_integers(tagged)


def four_integers(text: str) -> tuple[int, int, int, int] | None:
    """The first [x1, y1, x2, y2] of integers in a text, be it a box or not."""
    found = _FOUR.search(text)
    if found is None:
        return None
    x1, y1, x2, y2 = map(int, found.groups())
    return x1, y1, x2, y2


def four_numbers(text: str) -> tuple[float, float, float, float] | None:
    """The first [x1, y1, x2, y2] in a text, whatever the numbers, be it a box or not.

    Brackets around it, or a name before it as in JSON, do no harm.
    """
    found = _FOUR_NUMBERS.search(text)
    if found is None:
        return None
    x1, y1, x2, y2 = map(float, found.groups())
    return x1, y1, x2, y2


def first_point(text: str) -> tuple[float, float] | None:
    """A point of the answer: its JSON, or its only two numbers; a box gives its centre.

    None for any other count of numbers: a wrong reading must not be paid.
    """
    found = json_in(text)
    several = isinstance(found, list) and not are_numbers(found, 4)
    for item in found if several else [found]:
        if isinstance(item, Mapping):
            point = _first_of(item, _POINT_KEYS, 2)
            if point is not None:
                return float(point[0]), float(point[1])
        detection = _detection(item)
        if detection is not None:
            x1, y1, x2, y2 = detection.box
            return (x1 + x2) / 2, (y1 + y2) / 2
    cornered = detections(text)
    if len(cornered) == 1:
        x1, y1, x2, y2 = cornered[0].box
        return (x1 + x2) / 2, (y1 + y2) / 2
    tagged = answer_tag(text)
    numbers = _NUMBER.findall(text if tagged is None else tagged)
    return (float(numbers[0]), float(numbers[1])) if len(numbers) == 2 else None


def as_boxes(
    found: Sequence[Detection], *, size: int, labels: Sequence[str] = ()
) -> Boxes:
    """Arrays for `vrl_jax.rewards.boxes`, padded to `size`; more boxes are an error.

    A label is its place in `labels`, which must hold those of gold; any other is
    len(labels), and so equals no gold label.
    """
    if len(found) > size:
        raise ValueError(
            f"{len(found)} boxes do not fit size={size}: keep the first {size} with "
            "detections[:size], or score them as too many."
        )
    numbers = {label: place for place, label in enumerate(labels)}
    boxes = np.zeros((size, 4), np.float32)
    names = np.full(size, len(numbers), np.int32)
    confidences = np.zeros(size, np.float32)
    for row, item in enumerate(found):
        boxes[row] = item.box
        names[row] = numbers.get(item.label, len(numbers))
        confidences[row] = item.confidence
    return Boxes(boxes, np.arange(size) < len(found), names, confidences)


def as_points(found: Sequence[Detection], *, size: int) -> Float[np.ndarray, "N 2"]:
    """Their points, NaN where one has none: such a point is near nothing."""
    points = np.full((size, 2), np.nan, np.float32)
    for row, item in enumerate(found[:size]):
        if item.point is not None:
            points[row] = item.point
    return points


def _detection(item: Any) -> Detection | None:
    if are_numbers(item, 4):
        box, label, score, point = item, "", 1.0, None
    elif isinstance(item, Mapping):
        box = _first_of(item, _BOX_KEYS, 4)
        label = item.get("label", "")
        score = next((item[key] for key in _SCORE_KEYS if key in item), 1.0)
        point = _first_of(item, _POINT_KEYS, 2)
    else:
        return None
    if box is None or box[0] > box[2] or box[1] > box[3]:
        return None
    return Detection(
        tuple(map(float, box)),
        label.strip() if isinstance(label, str) else "",
        _confidence(score),
        None if point is None else (float(point[0]), float(point[1])),
    )


def _confidence(score: Any) -> float:
    """In [0, 1], be it a number or the text of one; 0 for anything else."""
    value = number(score) if isinstance(score, str) else score
    return min(max(float(value), 0.0), 1.0) if _number(value) else 0.0


def _first_of(item: Mapping[str, Any], keys: Sequence[str], count: int) -> Any:
    return next((item[k] for k in keys if are_numbers(item.get(k), count)), None)


def are_numbers(value: Any, count: int) -> bool:
    """Whether it is so many finite numbers, none larger than a picture could have."""
    return (
        isinstance(value, list | tuple)
        and len(value) == count
        and all(map(_number, value))
    )


def _number(value: Any) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and -1e9 < value < 1e9
        and math.isfinite(value)
    )
