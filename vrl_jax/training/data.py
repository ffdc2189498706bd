"""Rows of a file as samples, and the order in which they come.

Read as they are, from parquet and JSONL: rows of EasyR1 (`problem`, `images`,
`answer`), of TRL and R1-V (`image`, `solution`), of verl (`prompt` as messages with one
user turn, `reward_model.ground_truth`), of ms-swift (`messages`) and of VLM-R1 and
ShareGPT (`conversations`); from TSV, VLMEvalKit's benchmarks; the same columns from
folders of TensorFlow Datasets. A row that cannot be used is counted by reason, and the
rest train.
"""

import base64
import contextlib
import dataclasses
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grain
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from vrl_jax.rewards.parse import answer_tag
from vrl_jax.training import tfds, tsv
from vrl_jax.types import PLACEHOLDER, ImageRef, Sample, text_pieces

_CHATS = ("messages", "conversations")
_QUESTIONS = ("problem", "prompt", "question", *_CHATS)
_PICTURES = ("images", "image")
_ANSWERS = ("answer", "solution", "ground_truth", "reward_model")
_SOURCES = ("data_source", "source")
_ROLES = {"human": "user", "gpt": "assistant"}
"""ShareGPT's names."""
_BLANKS = ("<ref-object>", "<bbox>")
"""What ms-swift fills from a column `objects`."""
_CARRIED = ("image", "image_url", "url", "path")
"""Where a part of a message holds its own picture, beside `base64`."""


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

    `FOLDER@SPLIT` is a split of a folder of TensorFlow Datasets, FOLDER its only one.
    Relative picture paths start at `image_root`, by default the file's folder. A JSON
    object in a column `annotations`, and every other column that is not read here,
    becomes annotations. A system message becomes `annotations["system"]`, and an answer
    among the messages `annotations["demonstration"]`, beside the row's own answer or
    in its place. Pictures that parts of the questions hold are read where the row has
    none in its column.
    """
    return _read(path, image_root, _one_turn)


def read_dialogues(
    path: str | Path, *, image_root: str | Path | None = None
) -> tuple[list[Sample], DataReport]:
    """Rows of one or several questions with an answer to each, for `programs.dialogue`.

    As `read_samples`, of messages that take turns: user, assistant, user, assistant. Of
    several, `annotations["demonstration"]` lists the answers and `annotations["asks"]`
    the questions, each with `<image>` for its own pictures; the sample's question is
    all of them, its answer the last one if the row has no other.
    """
    return _read(path, image_root, _answered)


def _read(
    path: str | Path,
    image_root: str | Path | None,
    check: Callable[["_Exchange"], None],
) -> tuple[list[Sample], DataReport]:
    samples: list[Sample] = []
    dropped: dict[str, list[str]] = {}
    prepended = 0
    seen: set[str] = set()
    for file, rows in _tables(Path(path)):
        _check_columns(file, rows)
        for number, row in enumerate(rows):
            label = f"{file.name} row {number}"
            try:
                exchange = _exchange(row)
                check(exchange)
                root = Path(image_root or file.parent)
                sample, added = _sample(row, exchange, file, number, root)
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
            f"there is no data file {path}; give the path of a .parquet, .jsonl or "
            f".tsv file, of a folder, or FOLDER@SPLIT (this is {Path.cwd()})."
        )
    if path.suffix not in (".parquet", ".jsonl", ".tsv"):
        raise ValueError(
            f"data files end in .parquet, .jsonl or .tsv, got {path}; convert it."
        )
    return [path]


def _tables(path: Path) -> Iterator[tuple[Path, list[dict[str, Any]]]]:
    """The files with their rows; a split counts as a file in its folder."""
    if found := tfds.located(path):
        name, rows = tfds.read_rows(*found)
        yield found[0] / name, rows
        return
    for file in files_of(path):
        yield file, list(_rows(file))


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
    answers = (*_ANSWERS, *_CHATS)
    for what, names in (("a question", _QUESTIONS), ("an answer", answers)):
        if columns and not columns.keys() & set(names):
            raise ValueError(
                f"{file} has no column for {what}: it must be called one of "
                f"{', '.join(names)}; the columns are {', '.join(columns)}."
            )


class _Exchange(NamedTuple):
    """What a row asks, turn by turn, what it answers, and its system message."""

    asks: Sequence[str]
    answers: Sequence[str] = ()
    system: str = ""
    pictures: Sequence[Any] = ()


def _one_turn(exchange: _Exchange) -> None:
    if len(exchange.asks) > 1:
        raise _Unusable(
            "questions of several turns",
            f"read_dialogues reads them: {exchange.asks[0][:80]!r}",
        )


def _answered(exchange: _Exchange) -> None:
    if not exchange.answers:
        raise _Unusable("no answer among the messages", f"{exchange.asks[-1][:80]!r}")


def _sample(
    row: Mapping[str, Any], exchange: _Exchange, file: Path, number: int, root: Path
) -> tuple[Sample, bool]:
    """The sample of a row, and whether placeholders were put in front."""
    if _has(row, "videos"):
        raise _Unusable("has videos", "only pictures are read")
    pictures = _first(row, _PICTURES) or exchange.pictures
    pictures = pictures if isinstance(pictures, list | tuple) else [pictures]
    images = tuple(_picture(picture, root) for picture in pictures)
    first, *others = exchange.asks
    placeholders = sum(len(text_pieces(text)) - 1 for text in exchange.asks)
    prepended = not placeholders and bool(images)
    if prepended:
        first = PLACEHOLDER * len(images) + first
    elif placeholders != len(images):
        raise _Unusable(
            f"{PLACEHOLDER} and pictures differ in number",
            f"{placeholders} {PLACEHOLDER}, {len(images)} pictures: {first[:80]!r}",
        )
    found: dict[str, Any] = {"system": exchange.system} if exchange.system else {}
    if others:
        found |= {"asks": [first, *others], "demonstration": list(exchange.answers)}
    elif exchange.answers:
        found["demonstration"] = exchange.answers[0]
    sample = Sample(
        id=str(row["id"] if _has(row, "id") else f"{file.stem}:{number}"),
        source=str(_first(row, _SOURCES) or file.stem),
        question="\n\n".join([first, *others]),
        images=images,
        answer=_answer(row, exchange.answers),
        annotations={**_unread(row), **_annotations(row), **found},
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
    fields = (_QUESTIONS, _PICTURES, _SOURCES)
    read = {_column(row, names) for names in fields} | {"id", "answer", "annotations"}
    read |= {name for names in fields for name in names if not _has(row, name)}
    return {name: value for name, value in row.items() if name not in read}


def _exchange(row: Mapping[str, Any]) -> _Exchange:
    """The questions as text; of messages, with their answers and system message."""
    if "" in row:
        raise _Unusable("not a JSON object", repr(row[""][:80]))
    question = _first(row, _QUESTIONS)
    if isinstance(question, str):
        return _Exchange([question])
    if not isinstance(question, list) or not all(
        isinstance(turn, Mapping) for turn in question
    ):
        raise _Unusable("no question", f"{question!r}"[:80])
    texts = [(_role(turn), _said(turn)) for turn in question]
    turns = [role for role, _ in texts if role != "system"]
    pairs = len(turns) // 2
    if turns not in (["user"], ["user", "assistant"] * max(pairs, 1)):
        raise _Unusable(
            "messages that do not take turns", ", ".join(str(r) for r, _ in texts)
        )
    if _has(row, "objects") and any(b in text for _, text in texts for b in _BLANKS):
        raise _Unusable("blanks to fill", f"{' or '.join(_BLANKS)}, from `objects`")
    system = "\n".join(text for role, text in texts if role == "system")
    asks = [text for role, text in texts if role == "user"]
    answers = [text for role, text in texts if role == "assistant"]
    return _Exchange(asks, answers, system, _pictures_in(question))


def _role(turn: Mapping[str, Any]) -> Any:
    role = turn.get("role") or turn.get("from")
    return _ROLES.get(role, role) if isinstance(role, str) else role


def _said(turn: Mapping[str, Any]) -> str:
    """The text of a message; each picture among its parts becomes a placeholder."""
    content = _content(turn)
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise _Unusable("a message that is not text", f"{content!r}"[:80])
    return "".join(map(_part, content))


def _content(turn: Mapping[str, Any]) -> Any:
    """What the message holds; nothing is empty text."""
    found = (turn.get(name) for name in ("content", "value"))
    return next((content for content in found if content is not None), "")


def _part(part: Any) -> str:
    if not isinstance(part, Mapping):
        raise _Unusable("a part that is not read", f"{part!r}"[:80])
    kind, text = part.get("type") or "text", part.get("text")
    if kind == "image":
        return PLACEHOLDER
    if kind != "text" or not isinstance(text, str) or _carried(part) is not None:
        raise _Unusable(
            "a part that is not read",
            f"of type {kind} with {', '.join(key for key in part if part[key])}"[:80],
        )
    return text


def _carried(part: Mapping[str, Any]) -> Any:
    """The picture that a part of a message holds itself, if it does."""
    if part.get("base64"):
        return f"data:;base64,{part['base64']}"
    return next((part[name] for name in _CARRIED if part.get(name)), None)


def _pictures_in(turns: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Those that the parts of the questions hold; elsewhere none may be."""
    found = []
    for turn in turns:
        content = _content(turn)
        parts = content if isinstance(content, list) else []
        images = [part for part in parts if part.get("type") == "image"]
        if images and _role(turn) != "user":
            raise _Unusable("a picture outside of a question", f"of {_role(turn)}")
        found += [_carried(part) for part in images]
    return [picture for picture in found if picture is not None]


def _answer(row: Mapping[str, Any], answers: Sequence[str]) -> str:
    """The row's own, or the last among its messages."""
    answer = _first(row, _ANSWERS)
    if isinstance(answer, Mapping):
        answer = answer.get("ground_truth")
    if answer is None and answers:
        answer = answers[-1]
    if answer is None:
        raise _Unusable("no answer", f"none of {', '.join(_ANSWERS)} is filled")
    if not isinstance(answer, str):
        try:
            return json.dumps(answer)
        except (TypeError, ValueError) as error:
            raise _Unusable("an answer that is not JSON", str(error)) from error
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
        cell = cell.get("bytes") or cell.get("path") or cell.get("url")
    if isinstance(cell, str) and cell.startswith("data:"):
        try:
            cell = base64.b64decode(cell.partition(",")[2], validate=True)
        except ValueError as error:  # letters that base64 lacks, or a wrong length
            raise _Unusable("a picture does not decode", f"base64: {error}") from error
    if isinstance(cell, str):
        if cell.startswith(("http://", "https://")):
            raise _Unusable("a picture is behind a URL", f"download {cell} first")
        cell = str(_picture_file(Path(cell.removeprefix("file://")), root))
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


def _picture_file(path: Path, root: Path) -> Path:
    """The file at a whole path, or at one from `root`."""
    file = root / path
    try:
        found = file.is_file()
    except OSError:  # longer than names may be
        found = False
    if not found:
        raise _Unusable("a picture file is missing", str(file)[:200])
    return file
