"""What a reward reads of a row, or one error that says what the row lacks."""

from collections.abc import Mapping
from typing import Any, TypeVar

from vrl_jax.types import Sample

T = TypeVar("T")


def column(sample: Sample, name: str, kind: type | tuple[type, ...], what: str) -> Any:
    """The row's column `name`, a `kind`; `what` says what it should hold.

    A row without one is a ValueError that names both.
    """
    given = sample.annotations.get(name)
    if isinstance(given, kind):
        return given
    raise ValueError(f"{sample.id} needs the column {name!r}, {what}; got {given!r}.")


def chosen(sample: Sample, what: str, name: Any, table: Mapping[str, T]) -> T:
    """table[name], where a row names how it is judged.

    Any other name is a ValueError that says which there are; `what` is what was read.
    """
    if isinstance(name, str) and name in table:
        return table[name]
    raise ValueError(
        f"{sample.id} needs {what}, one of {', '.join(table)}; got {name!r}."
    )
