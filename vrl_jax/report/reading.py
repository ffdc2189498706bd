"""What a run folder holds, read once and checked."""

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

Row = dict[str, Any]
NOT_METRICS = ("phase", "step", "time_s")


class Series(NamedTuple):
    """One metric over the run; NaN where it was logged without a finite value."""

    steps: Float[np.ndarray, " N"]
    values: Float[np.ndarray, " N"]


@dataclasses.dataclass(frozen=True)
class Run:
    """A run folder. Optional files that are missing read as empty.

    `notes` says what could not be read, for the reader of the page.
    """

    folder: Path
    config: Row
    metrics: list[Row]
    evaluations: list[Row]
    examples: list[Row]
    dependency: Row
    data_report: Row
    rollouts: dict[Path, list[Row]]
    notes: tuple[str, ...]


def read_run(folder: Path) -> Run:
    """Read every file of the run that a report shows."""
    if not folder.is_dir():
        raise FileNotFoundError(
            f"A report needs a run folder, but {folder} is none. Pass the folder "
            "that holds metrics.jsonl; a training run prints it when it starts."
        )
    metrics, cut_metrics = _read_lines(folder / "metrics.jsonl", ("phase", "step"))
    if not metrics:
        raise FileNotFoundError(
            f"A report needs at least one finished step, but {folder}/metrics.jsonl "
            "is missing or empty. Run the experiment again with the same folder: it "
            "resumes and writes that file."
        )
    evaluations, cut_evaluations = _read_lines(
        folder / "evaluations.jsonl", ("name", "phase", "step")
    )
    examples, cut_examples = _read_lines(
        folder / "examples.jsonl", ("question", "answer", "response", "reward")
    )
    _check_turns(folder / "examples.jsonl", examples)
    rollouts, cut_rollouts = {}, ()
    for file in _newest_rollouts(folder / "rollouts", metrics):
        rollouts[file], cut = _read_lines(file, ("step", "id", "prompt", "reward"))
        cut_rollouts += cut
        _check_turns(file, rollouts[file])
    return Run(
        folder=folder,
        config=_read_object(folder / "config.json"),
        metrics=metrics,
        evaluations=evaluations,
        examples=examples,
        dependency=_read_object(folder / "dependency.json"),
        data_report=_read_object(folder / "data_report.json"),
        rollouts=rollouts,
        notes=cut_metrics + cut_evaluations + cut_examples + cut_rollouts,
    )


def _newest_rollouts(folder: Path, metrics: Sequence[Row]) -> list[Path]:
    """`<phase>_<step>.jsonl` of each phase's last step, in the order of the phases."""
    steps: dict[str, dict[int, Path]] = {}
    for file in sorted(folder.glob("*.jsonl")):
        if found := re.fullmatch(r"(.+)_(\d+)", file.stem):
            steps.setdefault(found[1], {})[int(found[2])] = file
    phases = dict.fromkeys(str(row["phase"]).replace(" ", "_") for row in metrics)
    names = [name for name in phases if name in steps]
    return [steps[name][max(steps[name])] for name in names]


def _check_turns(file: Path, rows: Sequence[Row]) -> None:
    """What a page shows of them is there, and of its kind."""
    for row in rows:
        turns, reward = row.get("turns") or [], row["reward"]
        told = isinstance(turns, list) and all(
            isinstance(turn, dict) and "text" in turn for turn in turns
        )
        if not told or not (reward is None or _is_number(reward)):
            raise ValueError(
                f"{file}: the turns of {row.get('id')} must be a list of objects with "
                f"a text, and its reward a number; got {str(turns)[:80]} and "
                f"{reward!r}. Repair the line or remove it."
            )


def _read_object(path: Path) -> Row:
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path} must hold JSON ({error}). Repair it, or remove it and the report "
            "leaves its section out."
        ) from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, got {_kind(value)}.")
    return value


def _read_lines(path: Path, required: Sequence[str]) -> tuple[list[Row], tuple]:
    """The rows, and a note where a killed run left half a line at the end."""
    if not path.exists():
        return [], ()
    # Bytes, because a kill can cut the last line inside a character. Split on \n
    # alone: JSON may hold the other line separators of Unicode.
    lines = path.read_bytes().rstrip().split(b"\n")
    rows: list[Row] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                return rows, (f"The last line of {path.name} is cut: left out.",)
            raise ValueError(
                f"{path}, line {number} must hold JSON ({error}). Remove that line."
            ) from error
        if not isinstance(row, dict):
            raise ValueError(
                f"{path}, line {number} must hold a JSON object, got {_kind(row)}."
            )
        if missing := [key for key in required if key not in row]:
            raise ValueError(
                f"{path}, line {number} must have the keys {', '.join(required)}; "
                f"{', '.join(missing)} missing. Add them or remove that line."
            )
        rows.append(row)
    return rows, ()


def brief(value: object) -> str:
    """As a page shows it: a number to three digits."""
    if value is None:
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _kind(value: object) -> str:
    return {list: "an array", str: "a string"}.get(type(value), repr(value))


def phase_offsets(rows: Sequence[Row]) -> dict[str, float]:
    """What to add to a phase's steps so that the phases follow one another.

    The last phase keeps its own steps. An earlier one whose steps would overlap the
    next one is moved to end where that starts: cold start -99..0, then RL 0..120.
    """
    spans: dict[str, tuple[float, float]] = {}
    for row in rows:
        first, last = spans.get(row["phase"], (row["step"], row["step"]))
        spans[row["phase"]] = min(first, row["step"]), max(last, row["step"])
    offsets: dict[str, float] = {}
    bound = math.inf
    for phase, (first, last) in reversed(spans.items()):
        # Steps count from 0 or from 1; the earlier phase ends at 0 in both cases.
        offsets[phase] = 0.0 if last <= bound else min(bound, 0.0) - last
        bound = first + offsets[phase]
    return offsets


def metric_names(rows: Sequence[Row]) -> list[str]:
    """All metrics in the order in which they first appear; text is not a metric."""
    pairs = [pair for row in rows for pair in row.items()]
    names = dict.fromkeys(name for name, x in pairs if x is None or _is_number(x))
    return [name for name in names if name not in NOT_METRICS]


def series(
    rows: Sequence[Row], name: str, offsets: Mapping[str, float] | None = None
) -> Series:
    """Steps and values of the rows that have the metric; None reads as NaN."""
    offsets = offsets or {}
    logged = [row for row in rows if name in row]
    return Series(
        np.array([row["step"] + offsets.get(row["phase"], 0.0) for row in logged]),
        np.array([_number(row[name]) for row in logged]),
    )


def smooth(values: Float[np.ndarray, " N"], window: int) -> Float[np.ndarray, " N"]:
    """Centred moving mean over the finite values; the window shrinks at the ends."""
    finite = np.isfinite(values)
    box = np.ones(min(window, len(values)) | 1)
    margin = len(box) // 2

    def window_sum(x: np.ndarray) -> np.ndarray:
        return np.convolve(np.pad(x, margin), box, mode="valid")

    with np.errstate(invalid="ignore"):
        return window_sum(np.where(finite, values, 0.0)) / window_sum(finite * 1.0)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested objects as (dotted key, value) pairs."""
    pairs: list[tuple[str, Any]] = []
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            pairs += flatten(value, f"{prefix}{key}.")
        else:
            pairs.append((f"{prefix}{key}", value))
    return pairs


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: object) -> float:
    finite = _is_number(value) and math.isfinite(value)
    return float(value) if finite else math.nan
