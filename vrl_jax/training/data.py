"""Rows of a file as samples, and the order in which they come.

Read as they are, from parquet and JSONL: rows of EasyR1 (`problem`, `images`,
`answer`), of TRL and R1-V (`image`, `solution`), and of verl (`prompt` as messages with
one user turn, `reward_model.ground_truth`); from TSV, VLMEvalKit's benchmarks. A row
that cannot be used is counted by reason, and the rest train.
"""

import base64
import binascii
import contextlib
import dataclasses
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from vrl_jax.rewards.parse import answer_tag
from vrl_jax.training import tsv
from vrl_jax.types import PLACEHOLDER, ImageRef, Sample, text_pieces

_QUESTIONS = ("problem", "prompt", "question")
_PICTURES = ("images", "image")
_ANSWERS = ("answer", "solution", "ground_truth", "reward_model")
_SOURCES = ("data_source", "source")


@dataclasses.dataclass(frozen=True)
class DataReport:
    """What became of a file's rows; `dropped` holds a message a row, by reason."""

    path: str
    used: int
    dropped: Mapping[str, Sequence[str]]
    prepended: int = 0

    def summary(self, shown: int = 3) -> str:
        """A few lines: counts, and the first rows of each reason."""
        total = self.used + sum(map(len, self.dropped.values()))
        lines = [f"{self.path}: {self.used} of {total} rows can be used."]
        if self.prepended:
            lines.append(
                f"  {self.prepended} questions had pictures but no {PLACEHOLDER}: "
                "the pictures come first."
            )
        for reason, messages in self.dropped.items():
            lines.append(f"  {len(messages)} x {reason}, such as")
            lines += [f"    {message}" for message in messages[:shown]]
        return "\n".join(lines)


class _Unusable(Exception):
    """(reason, detail) of a row that cannot be used."""


def read_samples(
    path: str | Path, *, image_root: str | Path | None = None
) -> tuple[list[Sample], DataReport]:
    """The usable rows of a parquet, JSONL or TSV file, or of a folder of the first two.

    Relative picture paths start at `image_root`, by default the file's folder. A JSON
    object in a column `annotations`, and every other column that is not read here,
    becomes annotations. A verl system message becomes `annotations["system"]`.
    """
    samples: list[Sample] = []
    dropped: dict[str, list[str]] = {}
    prepended = 0
    seen: set[str] = set()
    for file in files_of(Path(path)):
        rows = list(_rows(file))
        _check_columns(file, rows)
        for number, row in enumerate(rows):
            label = f"{file.name} row {number}"
            try:
                sample, added = _sample(row, file, number, image_root or file.parent)
            except _Unusable as unusable:
                reason, detail = unusable.args
                name = f"{label} (id {row['id']})" if _has(row, "id") else label
                dropped.setdefault(reason, []).append(f"{name}: {detail}")
                continue
            if sample.id in seen:  # draws are keyed by id: equal ids, equal draws
                sample = dataclasses.replace(
                    sample, id=f"{sample.id}#{file.stem}:{number}"
                )
            seen.add(sample.id)
            samples.append(sample)
            prepended += added
    report = DataReport(str(path), len(samples), dropped, prepended)
    if not samples:
        raise ValueError(
            f"no row can be used; mend these rows or choose another file.\n"
            f"{report.summary()}"
        )
    return samples, report


def evenly(samples: Sequence[Sample], count: int | None) -> list[Sample]:
    """`count` of the samples, evenly spread; all if there are no more, or for None."""
    if count is None or count >= len(samples):
        return list(samples)
    if count < 1:
        raise ValueError(f"at least one row is needed, got {count}.")
    return [samples[number * len(samples) // count] for number in range(count)]


def asked(samples: Sequence[Sample], instruction: str) -> list[Sample]:
    """The questions with the instruction under each."""
    if not instruction:
        return list(samples)
    return [
        dataclasses.replace(sample, question=f"{sample.question}\n\n{instruction}")
        for sample in samples
    ]


def sample_stream(samples: Sequence[Sample], *, seed: int) -> grain.DatasetIterator:
    """The samples one at a time for ever, each epoch in a new order.

    `get_state()` gives a small JSON-able dict after which `set_state` continues.
    """
    if not samples:
        raise ValueError("a stream needs at least one sample, got none.")
    order = grain.MapDataset.source(samples).seed(seed).shuffle().repeat()
    # The samples are in memory already: read-ahead threads have nothing to hide.
    return iter(
        order.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    )


def files_of(path: Path) -> list[Path]:
    """The data file, or those of a folder in the order of their names."""
    if path.is_dir():
        files = sorted([*path.glob("*.parquet"), *path.glob("*.jsonl")])
        if not files:
            raise FileNotFoundError(
                f"{path} is a folder without .parquet or .jsonl files; it holds "
                f"{sorted(entry.name for entry in path.iterdir())[:10]}."
            )
        return files
    if not path.exists():
        raise FileNotFoundError(
            f"there is no data file {path}; give the path of a .parquet, .jsonl or "
            f".tsv file, or of a folder (this is {Path.cwd()})."
        )
    if path.suffix not in (".parquet", ".jsonl", ".tsv"):
        raise ValueError(
            f"data files end in .parquet, .jsonl or .tsv, got {path}; convert it."
        )
    return [path]


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    """The rows; a JSONL line that is not an object comes as {"": the line}."""
    if file.suffix == ".parquet":
        try:
            for batch in pq.ParquetFile(file).iter_batches(1024):
                yield from batch.to_pylist()
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(
                f"{file} cannot be read as parquet ({error}); write or copy it again."
            ) from error
        return
    if file.suffix == ".tsv":
        yield from tsv.read_rows(file)
        return
    with file.open(encoding="utf-8") as lines:
        for line in filter(str.strip, lines):
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                row = None
            yield row if isinstance(row, dict) else {"": line}


def _check_columns(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    columns = dict.fromkeys(key for row in rows for key in row if key)
    for what, names in (("a question", _QUESTIONS), ("an answer", _ANSWERS)):
        if columns and not columns.keys() & set(names):
            raise ValueError(
                f"{file} has no column for {what}: it must be called one of "
                f"{', '.join(names)}; the columns are {', '.join(columns)}."
            )


def _sample(
    row: Mapping[str, Any], file: Path, number: int, root: str | Path
) -> tuple[Sample, bool]:
    """The sample of a row, and whether placeholders were put in front."""
    if "" in row:
        raise _Unusable("not a JSON object", repr(row[""][:80]))
    if _has(row, "videos"):
        raise _Unusable("has videos", "only pictures are read")
    question, extra = _question(row)
    pictures = _first(row, _PICTURES) or []
    pictures = pictures if isinstance(pictures, list) else [pictures]
    images = tuple(_picture(picture, Path(root)) for picture in pictures)
    placeholders = len(text_pieces(question)) - 1
    prepended = not placeholders and bool(images)
    if prepended:
        question = PLACEHOLDER * len(images) + question
    elif placeholders != len(images):
        raise _Unusable(
            f"{PLACEHOLDER} and pictures differ in number",
            f"{placeholders} {PLACEHOLDER}, {len(images)} pictures: {question[:80]!r}",
        )
    sample = Sample(
        id=str(row["id"] if _has(row, "id") else f"{file.stem}:{number}"),
        source=str(_first(row, _SOURCES) or file.stem),
        question=question,
        images=images,
        answer=_answer(row),
        annotations={
            **_unread(row),
            **_annotations(row),
            **extra,
        },
    )
    return sample, prepended


def _has(row: Mapping[str, Any], column: str) -> bool:
    return row.get(column) not in (None, "", [])


def _column(row: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """The first of the columns that the row fills."""
    return next((name for name in names if _has(row, name)), None)


def _first(row: Mapping[str, Any], names: Sequence[str]) -> Any:
    return row.get(_column(row, names))


def _unread(row: Mapping[str, Any]) -> dict[str, Any]:
    """The columns that are not a field of the sample as they stand."""
    read = {_column(row, names) for names in (_QUESTIONS, _PICTURES, _SOURCES)}
    read |= {"id", "answer", "annotations"}
    return {name: value for name, value in row.items() if name not in read}


def _question(row: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    """The question as text, and the system message where there is one."""
    question = _first(row, _QUESTIONS)
    if isinstance(question, str):
        return question, {}
    if not isinstance(question, list) or not all(
        isinstance(turn, Mapping) for turn in question
    ):
        raise _Unusable("no question", f"{question!r}"[:80])
    texts = [(turn.get("role"), _content(turn.get("content"))) for turn in question]
    if [role for role, _ in texts if role != "system"] != ["user"]:
        raise _Unusable(
            "messages other than one user turn", ", ".join(str(r) for r, _ in texts)
        )
    system = "\n".join(text for role, text in texts if role == "system")
    user = next(text for role, text in texts if role == "user")
    return user, {"system": system} if system else {}


def _content(content: Any) -> str:
    """The text of a message; each picture among its parts becomes a placeholder."""
    if isinstance(content, str):
        return content
    return "".join(
        PLACEHOLDER if part.get("type") == "image" else part.get("text") or ""
        for part in content or []
    )


def _answer(row: Mapping[str, Any]) -> str:
    answer = _first(row, _ANSWERS)
    if isinstance(answer, Mapping):
        answer = answer.get("ground_truth")
    if answer is None:
        raise _Unusable("no answer", f"none of {', '.join(_ANSWERS)} is filled")
    if not isinstance(answer, str):
        return json.dumps(answer)
    tagged = answer_tag(answer)  # R1-V stores its solutions in answer tags
    return answer if tagged is None else tagged


def _annotations(row: Mapping[str, Any]) -> dict[str, Any]:
    annotations = row.get("annotations")
    if isinstance(annotations, str):
        with contextlib.suppress(json.JSONDecodeError):  # then it stays text
            annotations = json.loads(annotations)
    if isinstance(annotations, Mapping):
        return dict(annotations)
    return {} if annotations is None else {"annotations": annotations}


def _picture(cell: Any, root: Path) -> ImageRef:
    """The encoded picture, or its path; found and readable."""
    if isinstance(cell, Mapping):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, str) and cell.startswith("data:"):
        try:
            cell = base64.b64decode(cell.partition(",")[2], validate=True)
        except binascii.Error as error:
            raise _Unusable("a picture does not decode", f"base64: {error}") from error
    if isinstance(cell, str):
        if cell.startswith(("http://", "https://")):
            raise _Unusable("a picture is behind a URL", f"download {cell} first")
        file = root / cell.removeprefix("file://")
        if not file.is_file():
            raise _Unusable("a picture file is missing", str(file))
        cell = str(file)
    if not isinstance(cell, bytes | str):
        raise _Unusable("a picture is neither bytes nor a path", type(cell).__name__)
    try:
        with Image.open(cell if isinstance(cell, str) else io.BytesIO(cell)) as image:
            image.verify()  # checksums of a PNG, headers of others: no pixels
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        # Pillow names a BytesIO by its address, which says nothing.
        name = cell if isinstance(cell, str) else f"{len(cell)} bytes"
        raise _Unusable(
            "a picture does not decode", f"{name}: {type(error).__name__}"
        ) from error
    return cell
