"""How every family reads a `config.json`."""

from collections.abc import Mapping
from typing import Any


def needed(config: Mapping[str, Any], part: str, name: str) -> Any:
    """The value of a key of one part. Raises `ValueError` if there is none."""
    if config.get(name) is None:
        raise ValueError(
            f"config.json lacks {name!r} in {part}. The library's defaults differ from "
            "the released models, so none is assumed: add the key."
        )
    return config[name]


def supported(name: str, value: Any, *allowed: Any) -> None:
    """Raises `ValueError` for a value that the arithmetic has no place for."""
    if value not in allowed:
        raise ValueError(
            f"config.json says {name} = {value!r}; supported here: "
            f"{', '.join(map(repr, allowed))}."
        )
