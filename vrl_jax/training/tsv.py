"""Benchmarks as VLMEvalKit keeps them: one table, pictures inside, options in columns.

Columns `index`, `question`, `image` (base64, a list of such, or the index of the row
that holds it) or `image_path`, `A`, `B`, ..., `answer`, `hint`, `category`, `split`;
https://github.com/open-compass/VLMEvalKit. What a model said goes back in the same
form, for that project's scorers and judges.
"""

import ast
import csv
import io
import re
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as table

from vrl_jax.types import PLACEHOLDER

SELECT = "Please select the correct answer from the options above."
_MENTION = re.compile(r"<image[ _](\d+)>")
_SHORTEST = 64
"""Characters of a picture; fewer are the index of another row."""


def read_rows(file: Path) -> Iterator[dict[str, Any]]:
    """Rows as `training.data` reads them: `id`, `problem`, `images`, `answer`, others.

    A choice is asked as that project does it by default, with hint, question and
    options under their names; an open question is itself. Pictures stand where
    `<image 1>` mentions them, others come first. `options` are the texts of A, B,
    ..., "" for a letter that is not used.
    """
    rows = _table(file)
    held = {row.get("index"): row.get("image") or "" for row in rows}
    for row in rows:
        cell = row.get("image") or ""
        if len(cell) < _SHORTEST and cell in held:
            cell = held[cell]
        yield _row(row, _pictures(cell or row.get("image_path") or ""))


def _table(file: Path) -> list[dict[str, str]]:
    """All cells as text; what is empty is "" or None."""
    with file.open(encoding="utf-8-sig", newline="") as lines:
        names = next(csv.reader(lines, delimiter="\t"), [])
    try:
        read = table.read_csv(
            file,
            # A row must lie in one block, and may hold large pictures.
            read_options=table.ReadOptions(block_size=2**31 - 1),
            parse_options=table.ParseOptions(delimiter="\t", newlines_in_values=True),
            convert_options=table.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string())
            ),
        )
    except (pa.ArrowInvalid, OSError) as error:
        reason = str(error).partition("\n")[0][:300]
        raise ValueError(
            f"{file} cannot be read as a table with tabs between its columns "
            f"({reason}); write or copy it again."
        ) from error
    rows = read.to_pylist()
    indices = [row.get("index") for row in rows]
    if not all(indices) or len({*indices}) < len(indices):
        raise ValueError(
            f"{file} must have a column `index` with another number in each row: by it "
            "predictions find their rows again."
        )
    return rows


def _pictures(cell: str) -> list[str]:
    """One picture, or a list of them written as Python does."""
    if not cell.startswith("["):
        return [cell] if cell else []
    try:
        found = ast.literal_eval(cell)  # of text alone: nothing is run
    except (ValueError, SyntaxError):
        return [cell]  # which no decoder will take, and that is told
    return [str(one) for one in found]


def _row(row: Mapping[str, str | None], pictures: Sequence[str]) -> dict[str, Any]:
    letters = [c for c in string.ascii_uppercase if row.get(c) not in (None, "")]
    text, hint = row.get("question") or "", row.get("hint")
    if letters:
        asked = [f"Hint: {hint}"] if hint else []
        asked += [f"Question: {text}", "Options:"]
        asked += [f"{letter}. {row[letter]}" for letter in letters]
        text = "\n".join([*asked, SELECT])
    mentioned = [int(number) - 1 for number in _MENTION.findall(text)]
    known = all(place in range(len(pictures)) for place in mentioned)
    if not known:
        mentioned = []
    first = [place for place in range(len(pictures)) if place not in mentioned]
    text = _MENTION.sub(PLACEHOLDER, text) if mentioned else text
    kept = {
        name: value
        for name, value in row.items()
        if name not in ("image", "image_path", "index", *letters) and value
    }
    return {
        **kept,
        "id": row.get("index"),
        "problem": PLACEHOLDER * len(first) + text,
        "images": [_encoded(pictures[place]) for place in (*first, *mentioned)],
        "answer": row.get("answer"),
        "options": [row.get(letter) or "" for letter in _up_to(letters)],
    }


def _up_to(letters: Sequence[str]) -> str:
    """All letters to the last of these, so that an option's place is its letter's."""
    alphabet = string.ascii_uppercase
    return alphabet[: alphabet.index(letters[-1]) + 1] if letters else ""


def _encoded(picture: str) -> str:
    """A path as it is, base64 as what a reader of data URIs takes."""
    if len(picture) < _SHORTEST or Path(picture[:255]).suffix:
        return picture
    return f"data:image;base64,{picture}"


def write_predictions(
    file: Path, source: Path, predictions: Iterable[Mapping[str, Any]]
) -> None:
    """The rows of the benchmark `source` that were answered, without pictures.

    `predictions` are lines of `evals.benchmark`; of several responses the first one
    counts. A column `prediction` holds what the model said.
    """
    said: dict[str, str] = {}
    for line in predictions:
        said.setdefault(line["id"], line["response"])
    rows = _table(source)
    kept = [row for row in rows if row["index"] in said]
    names = [name for name in rows[0] if name not in ("image", "image_path")]
    out = io.StringIO()
    writer = csv.writer(out, delimiter="\t", lineterminator="\n")
    writer.writerow([*names, "prediction"])
    for row in kept:
        writer.writerow([*(row[name] for name in names), said[row["index"]]])
    partial = file.with_suffix(".partial")
    partial.write_text(out.getvalue(), encoding="utf-8")
    partial.replace(file)
