"""Programs by their names, as the command line takes them."""

import importlib
import inspect
from pathlib import Path

from vrl_jax.engine.episode import Program
from vrl_jax.rewards.adapters import load


def named_program(reference: str) -> tuple[Program, Path]:
    """That of path.py:function or package.module:function, and its file.

    The file or the module is run, so it must be yours. `ValueError`, which names
    --program, for one that is not there or that a sample alone does not start.
    """
    place, colon, name = reference.rpartition(":")
    if not colon or not name.isidentifier():
        raise ValueError(
            "--program is path.py:function or package.module:function, got "
            f"{reference!r}."
        )
    try:
        if place.endswith(".py"):
            program, file = load(reference), Path(place)
        else:
            module = importlib.import_module(place)
            program, file = getattr(module, name), Path(module.__file__)
    except Exception as error:  # of the user's file too, at import
        raise ValueError(
            f"--program {reference}: {type(error).__name__}: {error}"
        ) from error
    if not inspect.isgeneratorfunction(program):
        raise ValueError(
            f"--program {reference} is no generator function: it yields what it asks; "
            "one that calls another says `return (yield from other(sample))`."
        )
    try:
        inspect.signature(program).bind(None)
    except TypeError as error:
        raise ValueError(
            f"--program {reference} is called with a sample alone: {error}. Give the "
            "rest in a file of your own, by functools.partial."
        ) from None
    return program, file
