"""Rows of a file as samples, and the order in which they come.

Parquet, JSONL, JSON, CSV and folders of TensorFlow Datasets are read as they are, in
the `formats` of EasyR1, TRL, R1-V, verl, V-Triune, ms-swift, VLM-R1, ShareGPT,
OpenRLHF-M and GUI sets; TSV, VLMEvalKit's benchmarks. A row that cannot be used is
counted by reason, and the rest train.
"""

import csv
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
import pyarrow as pa
import pyarrow.csv as table
import pyarrow.parquet as pq

from vrl_jax.training import tfds, tsv
from vrl_jax.training.formats import (
    ANSWERS,
    CHATS,
    QUESTIONS,
    Exchange,
    Unusable,
    answered,
    has,
    one_turn,
    read_exchange,
    read_sample,
)
from vrl_jax.types import PLACEHOLDER, Sample


@dataclasses.dataclass(frozen=True)
class DataReport:
    """What became of a file's rows; `dropped` holds a message a row, by reason."""

    path: str
    used: int
    dropped: Mapping[str, Sequence[str]]
    prepended: int = 0
    bounded: int = 0

    def summary(self, shown: int = 3) -> str:
        """A few lines: counts, and the first rows of each reason."""
        total = self.used + sum(map(len, self.dropped.values()))
        lines = [f"{self.path}: {self.used} of {total} rows can be used."]
        if self.prepended:
            lines.append(
                f"  {self.prepended} questions had pictures but no {PLACEHOLDER}: "
                "the pictures come first."
            )
        if self.bounded:
            lines.append(
                f"  {self.bounded} pictures name bounds of their own, such as "
                "max_pixels: those of the processor hold for all."
            )
        for reason, messages in self.dropped.items():
            lines.append(f"  {len(messages)} x {reason}, such as")
            lines += [f"    {message}" for message in messages[:shown]]
        return "\n".join(lines)


def read_samples(
    path: str | Path, *, image_root: str | Path | None = None
) -> tuple[list[Sample], DataReport]:
    """The usable rows of a parquet, JSONL, JSON, CSV or TSV file.

    Or of a folder of the first two. JSON is a list of rows, or lines; CSV has a picture
    a row, a path or base64, and texts.
    `FOLDER@SPLIT` is a split of a folder of TensorFlow Datasets, FOLDER its only one.
    Relative picture paths start at `image_root`, by default the file's folder. A JSON
    object in a column `annotations`, and every other column that is not read here,
    becomes annotations. A system message becomes `annotations["system"]`, and an answer
    among the messages `annotations["demonstration"]`, beside the row's own answer or
    in its place. Pictures that parts of the questions hold are read where the row has
    none in its column. What tells of a column `tools` becomes
    `annotations["tools_message"]`, which `engine.processing.question` says.
    """
    return _read(path, image_root, one_turn)


def read_dialogues(
    path: str | Path, *, image_root: str | Path | None = None
) -> tuple[list[Sample], DataReport]:
    """Rows of one or several questions with an answer to each, for `programs.dialogue`.

    As `read_samples`, of messages that take turns: user, assistant, user, assistant. Of
    several, `annotations["demonstration"]` lists the answers and `annotations["asks"]`
    the questions, each with `<image>` for its own pictures; the sample's question is
    all of them, its answer the last one if the row has no other. Calls of tools are
    answers and what tools say is asked, as `formats` says.
    """
    return _read(path, image_root, answered)


def _read(
    path: str | Path,
    image_root: str | Path | None,
    check: Callable[[Exchange], None],
) -> tuple[list[Sample], DataReport]:
    samples: list[Sample] = []
    dropped: dict[str, list[str]] = {}
    prepended = bounded = 0
    seen: set[str] = set()
    for file, rows in _tables(Path(path)):
        _check_columns(file, rows)
        for number, row in enumerate(rows):
            label = f"{file.name} row {number}"
            try:
                exchange = read_exchange(row)
                check(exchange)
                root = Path(image_root or file.parent)
                sample, added, sized = read_sample(row, exchange, file, number, root)
            except Unusable as unusable:
                reason, detail = unusable.args
                name = f"{label} (id {row['id']})" if has(row, "id") else label
                dropped.setdefault(reason, []).append(f"{name}: {detail}")
                continue
            if sample.id in seen:  # draws are keyed by id: equal ids, equal draws
                sample = dataclasses.replace(
                    sample, id=f"{sample.id}#{file.stem}:{number}"
                )
            seen.add(sample.id)
            samples.append(sample)
            prepended += added
            bounded += sized
    report = DataReport(str(path), len(samples), dropped, prepended, bounded)
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


def asked(
    samples: Sequence[Sample], instruction: str, system: str = ""
) -> list[Sample]:
    """The questions with the instruction under each, and a system message before them.

    A row's own system message stays in its place. Of several questions to a row the
    first has the instruction.
    """
    under = f"\n\n{instruction}" if instruction else ""

    def told(sample: Sample) -> Sample:
        known = dict(sample.annotations)
        if system and not known.get("system"):  # a column may be there and empty
            known["system"] = system
        match known.get("asks"):
            case [str(first), *others]:
                known["asks"] = [first + under, *others]
        question = sample.question + under  # of several all, as long as they are
        return dataclasses.replace(sample, question=question, annotations=known)

    return [*map(told, samples)]


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
    """The data file, or those of a folder in the order of their names.

    Of a folder of TensorFlow Datasets all, whatever the split.
    """
    if found := tfds.located(path):
        return sorted(entry for entry in found[0].iterdir() if entry.is_file())
    if path.is_dir():
        files = sorted([*path.glob("*.parquet"), *path.glob("*.jsonl")])
        if not files:
            raise FileNotFoundError(
                f"{path} is a folder without .parquet or .jsonl files, and not one of "
                f"TensorFlow Datasets ({' and '.join(tfds.METADATA)}); it holds "
                f"{sorted(entry.name for entry in path.iterdir())[:10]}."
            )
        return files
    if not path.exists():
        raise FileNotFoundError(
            f"there is no data file {path}; give the path of a {_SUFFIXES} file, of a "
            f"folder, or FOLDER@SPLIT (this is {Path.cwd()})."
        )
    if path.suffix not in _READERS:
        raise ValueError(f"data files end in {_SUFFIXES}, got {path}; convert it.")
    return [path]


def _tables(path: Path) -> Iterator[tuple[Path, list[dict[str, Any]]]]:
    """The files with their rows; a split counts as a file in its folder."""
    if found := tfds.located(path):
        name, rows = tfds.read_rows(*found)
        yield found[0] / name, rows
        return
    for file in files_of(path):
        yield file, list(_READERS[file.suffix](file))


def _parquet_rows(file: Path) -> Iterator[dict[str, Any]]:
    try:
        for batch in pq.ParquetFile(file).iter_batches(1024):
            yield from batch.to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise _unreadable(file, "parquet", error) from error


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    """A line that is not an object comes as {"": the line}."""
    with file.open(encoding="utf-8-sig") as lines:
        for line in filter(str.strip, lines):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):  # too many digits, too deep
                row = None
            yield row if isinstance(row, dict) else {"": line}


def _json_rows(file: Path) -> Iterator[dict[str, Any]]:
    """Of a list of objects; of lines, which some call .json as well."""
    text = file.read_text(encoding="utf-8")
    if not text.lstrip().startswith("["):
        yield from _lines(file)
        return
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise _unreadable(file, "a list of JSON", error) from error
    for row in found:
        yield row if isinstance(row, dict) else {"": json.dumps(row)}


def _comma_rows(file: Path) -> Iterator[dict[str, Any]]:
    """All cells as text; what is empty is ""."""
    with file.open(encoding="utf-8-sig", newline="") as lines:
        names = next(csv.reader(lines), [])
    if {"A", "B"} <= {*names}:
        raise ValueError(
            f"{file} has options in columns, as VLMEvalKit's tables do: they are read "
            "with tabs between their columns, from a .tsv file."
        )
    try:
        found = table.read_csv(
            file,
            # A row must lie in one block, and may hold a large picture.
            read_options=table.ReadOptions(block_size=2**31 - 1),
            parse_options=table.ParseOptions(newlines_in_values=True),
            convert_options=table.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string())
            ),
        )
    except (pa.ArrowInvalid, OSError) as error:
        raise _unreadable(file, "a table with commas", error) from error
    yield from found.to_pylist()


def _unreadable(file: Path, what: str, error: Exception) -> ValueError:
    reason = str(error).partition("\n")[0][:300]
    return ValueError(
        f"{file} cannot be read as {what} ({reason}); write or copy it again."
    )


_READERS: Mapping[str, Callable[[Path], Iterator[dict[str, Any]]]] = {
    ".parquet": _parquet_rows,
    ".jsonl": _lines,
    ".json": _json_rows,
    ".csv": _comma_rows,
    ".tsv": tsv.read_rows,
}
_SUFFIXES = ", ".join([*_READERS][:-1]) + f" or {[*_READERS][-1]}"


def _check_columns(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    columns = dict.fromkeys(key for row in rows for key in row if key)
    answers = (*ANSWERS, *CHATS)
    for what, names in (("a question", QUESTIONS), ("an answer", answers)):
        if columns and not columns.keys() & set(names):
            raise ValueError(
                f"{file} has no column for {what}: it must be called one of "
                f"{', '.join(names)}; the columns are {', '.join(columns)}."
            )
