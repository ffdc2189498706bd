"""What a recipe learns by, in words: by which a resumed run knows its own."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vrl_jax.training.iteration import Recipe


def method_of(recipe: Recipe) -> list[str]:
    """`credit` and `loss` with the numbers and functions that they were made with.

    Not `act` and `score`, which choices of memory wrap. Of arrays, params and models
    only that they are there, of functions their names: code that was mended in the same
    place is the same method.
    """
    return [in_words(recipe.credit), in_words(recipe.loss)]


def in_words(function: Callable) -> str:
    """Its name, with the numbers and functions that it was made with."""
    if isinstance(function, functools.partial):
        return _told(function)
    try:
        held = inspect.getclosurevars(function).nonlocals
    except TypeError:  # not written in Python
        held = {}
    return f"{_name(function)}({_pairs(held)})"


def _told(value: Any, depth: int = 3) -> str:
    deeper = functools.partial(_told, depth=depth - 1)
    match value:
        case None | bool() | int() | float() | str():
            return repr(value)
        case functools.partial():
            given = {**dict(enumerate(value.args)), **value.keywords}
            return f"{_name(value.func)}({_pairs(given, deeper)})"
        case Mapping() | Sequence() if depth == 0:
            return type(value).__name__
        case tuple() if hasattr(value, "_asdict"):
            return f"{type(value).__name__}({_pairs(value._asdict(), deeper)})"
        case Mapping():
            return f"{{{_pairs(value, deeper)}}}"
        case list() | tuple():
            return f"[{', '.join(map(deeper, value))}]"
        case _ if inspect.isroutine(value):
            return _name(value)
    return type(value).__name__


def _name(function: Callable) -> str:
    module, name = (
        getattr(function, part, "") for part in ("__module__", "__qualname__")
    )
    return f"{module}.{name}" if name else type(function).__name__


def _pairs(values: Mapping[Any, Any], told: Callable[[Any], str] = _told) -> str:
    return ", ".join(f"{name}={told(value)}" for name, value in values.items())
