"""What a reward reads of a row, or one error that says what the row lacks."""

from typing import Any

from vrl_jax.types import Sample


def column(sample: Sample, name: str, kind: type, what: str) -> Any:
    """The row's column `name`, a `kind`; `what` says what it should hold.

    A row without one is a ValueError that names both.
    """
    given = sample.annotations.get(name)
    if isinstance(given, kind):
        return given
    raise ValueError(f"{sample.id} needs the column {name!r}, {what}; got {given!r}.")
