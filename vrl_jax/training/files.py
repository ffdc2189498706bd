"""The files of a run folder: JSON lines that a resumed run continues.

Of several processes the first one writes; to the others, writing does nothing.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vrl_jax.training import processes


def append_line(file: Path, row: Mapping[str, Any]) -> None:
    """Adds one JSON object; what is not finite is null, which every reader takes."""
    if not processes.leads():
        return
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }
    try:
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(finite) + "\n")
    except OSError as error:
        raise OSError(
            f"{file} could not be written: {error}. Make room or give the folder back "
            "its permissions, and run the same command again: it resumes."
        ) from error


def sizes(files: Iterable[Path]) -> dict[str, int]:
    """Bytes written so far, by name; 0 for a file that is not there."""
    return {file.name: file.stat().st_size if file.exists() else 0 for file in files}


def cut(files: Iterable[Path], sizes: Mapping[str, int]) -> None:
    """Takes back what was written after a checkpoint that noted `sizes`.

    Raises `ValueError` for a file that has lost lines since.
    """
    if not processes.leads():
        return
    for file in files:
        if file.exists():
            noted, found = sizes.get(file.name, 0), file.stat().st_size
            if found < noted:
                raise ValueError(
                    f"{file} has {found} bytes and had {noted} at the checkpoint: "
                    "lines were taken out of it. Put them back, or choose another run "
                    "folder."
                )
            os.truncate(file, noted)


def write_json(file: Path, value: Mapping[str, Any]) -> None:
    """Whole or not at all."""
    if not processes.leads():
        return
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, file)


def read_lines(file: Path) -> list[dict[str, Any]]:
    """All objects of a file of JSON lines; none where there is no file."""
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def write_lines(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Whole or not at all."""
    if not processes.leads():
        return
    partial = file.with_suffix(".partial")
    text = "".join(json.dumps(row) + "\n" for row in rows)
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, file)
