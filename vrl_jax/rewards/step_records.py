"""What a critic writes of a solution: an object for each step, as JSON.

The record of GM-PRM, https://arxiv.org/abs/2508.04088, whose abstract names its parts;
the keys are ours.
"""

import json
from typing import Any, NamedTuple

from vrl_jax.rewards.parse import json_text, read_json

AXES = ("purpose", "alignment", "logic")
"""What a step is judged by: is it the thing to do, does it agree with the picture, does
it follow?"""


class Judged(NamedTuple):
    """What a record says of a step. `axes` are of its purpose, alignment and logic."""

    intent: str
    axes: tuple[int, int, int]
    verdict: int
    correction: str = ""


Record = tuple[Judged, ...]
"""Of every step of a solution, in order."""


def read_record(text: str, steps: int) -> Record | None:
    """The record of so many steps; None where it is no such list."""
    return as_record(read_json(json_text(text)), steps)


def as_record(found: Any, steps: int) -> Record | None:
    """The same of JSON, or of a row's column. Other keys are passed over."""
    if not isinstance(found, list) or not found or len(found) != steps:
        return None
    record = tuple(map(_as_judged, found))
    return None if None in record else record


def _as_judged(found: Any) -> Judged | None:
    match found:
        case {"intent": str(intent), "verdict": said, **others}:
            axes = tuple(others.get(axis) for axis in AXES)
            correction = others.get("correction") or ""
            if all(_is_bit(bit) for bit in (said, *axes)) and isinstance(
                correction, str
            ):
                return Judged(intent, (*map(int, axes),), int(said), correction.strip())
    return None


def _is_bit(value: Any) -> bool:
    return isinstance(value, int) and value in (0, 1)


def spelled(record: Record) -> str:
    """The record as the critic is to write it."""
    return json.dumps(
        [
            {
                "intent": one.intent,
                **dict(zip(AXES, one.axes, strict=True)),
                "verdict": one.verdict,
                "correction": one.correction,
            }
            for one in record
        ]
    )


def first_wrong(record: Record) -> int | None:
    """The place of the first step with verdict 0."""
    return next((t for t, one in enumerate(record) if not one.verdict), None)
