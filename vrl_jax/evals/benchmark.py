"""A policy on a set of rows: every response written down, and what they come to.

A folder of an evaluation holds `manifest.json`, with all settings, and
`predictions.jsonl`, a line a response; called again it goes on behind the last whole
question. Numbers come from the lines alone, so they can be had again, or by others'
scorers, without a model.
"""

import contextlib
import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float, Key

from vrl_jax.engine.actor import Actor
from vrl_jax.evals.held_out import Answered, GroupAct, in_passes
from vrl_jax.programs.single_turn import single_turn
from vrl_jax.rewards.parse import final_answer
from vrl_jax.training import processes
from vrl_jax.training.files import append_line, write_json, write_lines
from vrl_jax.training.progress import progress_bar
from vrl_jax.training.rollouts import noted, turns_of
from vrl_jax.types import ImageRef, Sample

Row = dict[str, Any]
AT_ONCE = 4_000_000
"""Numbers that a bootstrap holds at a time."""


class Files(NamedTuple):
    """Of an evaluation's folder."""

    manifest: Path
    predictions: Path


def files(folder: Path) -> Files:
    """Their names."""
    return Files(folder / "manifest.json", folder / "predictions.jsonl")


def predict(
    actor: Actor,
    samples: Sequence[Sample],
    key: Key[Array, ""],
    *,
    folder: Path,
    manifest: Mapping[str, Any],
    each: int,
    greedy: bool,
    size: int | None = None,
    act: GroupAct = single_turn,
) -> list[Row]:
    """The rows of `each` response to every sample, as `predictions.jsonl` holds them.

    `size` samples are asked at a time, and written down before the next are. `act` is
    how, as `held_out.in_passes` takes it: `programs.acting.measured` of any program.

    Raises `ValueError` where the folder holds an evaluation with another manifest.
    """
    places = files(folder)
    _open(places, manifest)
    rows = _whole(places.predictions, each)
    processes.wait()
    known = {line["id"] for line in rows}
    left = [sample for sample in samples if sample.id not in known]
    with progress_bar("evaluation", len(samples), len(samples) - len(left)) as show:
        how = {"greedy": greedy, "each": each, "size": size, "act": act}
        for groups in in_passes(actor, left, key, **how) if left else ():
            new = [row(one, number) for g in groups for number, one in enumerate(g)]
            for line in new:
                append_line(places.predictions, line)
            rows += new
            show(len(rows) // each, f"accuracy {mean(rows, 'correct'):.3f}")
    # As after a resumption: what the file says, of these samples, in their order.
    order = {sample.id: number for number, sample in enumerate(samples)}
    chosen = [json.loads(json.dumps(line)) for line in rows if line["id"] in order]
    return sorted(chosen, key=lambda line: order[line["id"]])


def _open(places: Files, manifest: Mapping[str, Any]) -> None:
    places.manifest.parent.mkdir(parents=True, exist_ok=True)
    changed: list[str] = []
    # The first process alone: times of files are those of its own disk.
    if processes.leads() and places.manifest.exists():
        before = json.loads(places.manifest.read_text())
        now = json.loads(json.dumps(manifest))
        changed = [
            f"{name} was {before.get(name)!r} and is {now.get(name)!r}"
            for name in {**before, **now}
            if before.get(name) != now.get(name)
        ]
    if processes.any_of(bool(changed)):
        raise ValueError(
            f"{places.manifest.parent} holds another evaluation "
            f"({'; '.join(changed)}). Choose another --out, or delete the folder."
        )
    write_json(places.manifest, manifest)


def _whole(file: Path, each: int) -> list[Row]:
    """The rows of questions that have all their responses.

    What was cut off when a run was killed leaves the file, and is asked again.
    """
    found = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):  # the last, half written
            found.append(json.loads(line))
    count = Counter(line["id"] for line in found)
    whole = [line for line in found if count[line["id"]] == each]
    if file.exists():
        write_lines(file, whole)
    return whole


def row(one: Answered, number: int) -> Row:
    """A line of `predictions.jsonl`: the response, what was read off it, its scores.

    `correct` is the reward's part `accuracy` or, without one, the reward.
    `prediction` is `parse.final_answer`, None where the response names no answer.
    `turns` are those of an episode of several, and what was said between them, as
    `training.rollouts` writes them; `facts` what the program noted, if it noted any.
    """
    episode, scores = one
    facts = noted(episode.facts)
    facts.pop("asks", None)  # the engine's own, of single turns too
    sample = episode.sample
    known = {name: None if math.isnan(x) else x for name, x in scores.items()}
    return {
        "benchmark": sample.source,
        "id": sample.id,
        "sample": number,
        "images": [image_name(image) for image in sample.images],
        "prompt": sample.question,
        "response": episode.text,
        **turns_of(episode, image_name),
        "finished": episode.finished,
        "prediction": final_answer(episode.text),
        "answer": sample.answer,
        "correct": known.get("accuracy", known.get("overall")),
        "meta": {
            "scores": known,
            "tokens": sum(len(turn.tokens) for turn in episode.turns if turn.chosen),
            "image_sizes": [size._asdict() for size in episode.image_sizes],
            **({"facts": facts} if facts else {}),
        },
    }


def image_name(image: ImageRef) -> str:
    """A picture's path, or the digest of its bytes."""
    if isinstance(image, str):
        return image
    return f"sha256:{hashlib.sha256(image).hexdigest()}"


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """What the rows come to, in all and for each benchmark where there are several.

    `accuracy` is the mean of what was scored, [low, high] its 95 % bootstrap interval
    over questions. Of k responses each: `mean@k` the same number; `pass@n`, for powers
    of 2 and k, the chance that one of n is fully right, unbiased, equation 1 of
    https://arxiv.org/abs/2107.03374; `maj@k` whether the most frequent prediction, the
    first of several, is right. `unread` is the share that names no answer, and so has
    no prediction, which some rewards do not ask for; `cut_off` that which reached no
    end. `fact/<name>` is the mean of a number that a program noted; an episode without
    it counts as 0, one that does not know it does not count. What cannot be told is
    None.
    """
    groups: dict[str, list[Row]] = {}
    for line in rows:
        groups.setdefault(line["benchmark"], []).append(line)
    found = _summary(rows)
    if len(groups) > 1:
        found["benchmarks"] = {name: _summary(part) for name, part in groups.items()}
    return found


def _summary(rows: Sequence[Row]) -> dict[str, Any]:
    questions: dict[str, list[Row]] = {}
    for line in rows:
        questions.setdefault(line["id"], []).append(line)
    known = [
        [line for line in group if line["correct"] is not None]
        for group in questions.values()
    ]
    scored = [group for group in known if group]
    each = max(map(len, questions.values()))
    means = np.array([mean(group, "correct") for group in scored])
    low, high = interval(means)
    found = {
        "questions": len(questions),
        "responses": len(rows),
        "accuracy": float(means.mean()) if len(means) else None,
        "low": low,
        "high": high,
        "unscored": sum(line["correct"] is None for line in rows),
        "unread": _share(line["prediction"] is None for line in rows),
        "cut_off": _share(not line["finished"] for line in rows),
        "tokens": float(np.mean([line["meta"]["tokens"] for line in rows])),
    }
    for name in dict.fromkeys(name for line in rows for name in line["meta"]["scores"]):
        values = [line["meta"]["scores"].get(name) for line in rows]
        found[f"score/{name}"] = _mean(x for x in values if x is not None)
    facts = [line["meta"].get("facts", {}) for line in rows]
    numbers = {k for one in facts for k, x in one.items() if isinstance(x, int | float)}
    for name in sorted(numbers):
        values = [one.get(name, 0) for one in facts]
        found[f"fact/{name}"] = _mean(x for x in values if isinstance(x, int | float))
    if each > 1 and scored:
        found[f"mean@{each}"] = found["accuracy"]
        whole = [group for group in scored if len(group) == each]
        for n in sorted({each, *(2**i for i in range(each.bit_length()))}):
            found[f"pass@{n}"] = _mean(pass_at(n, group) for group in whole)
        found[f"maj@{each}"] = _mean(majority(group) for group in scored)
    return found


def pass_at(n: int, group: Sequence[Row]) -> float:
    """1 - C(wrong, n) / C(all, n): the chance that one of n of them is fully right."""
    wrong = sum(line["correct"] < 1 - 1e-6 for line in group)
    return 1 - math.comb(wrong, n) / math.comb(len(group), n)


def majority(group: Sequence[Row]) -> float:
    """How right those are that give the most frequent prediction; all if none does."""
    given = [line["prediction"] for line in group if line["prediction"] is not None]
    chosen = Counter(given).most_common(1)[0][0] if given else None
    return mean([line for line in group if line["prediction"] == chosen], "correct")


def all_right(rows: Sequence[Row], group: Callable[[Row], Hashable]) -> float | None:
    """The share of groups of rows in which every one is fully right.

    HallusionBench's fAcc and qAcc, https://arxiv.org/abs/2310.14566, where a group is a
    figure, or a question on all its figures; DynaMath's worst case,
    https://arxiv.org/abs/2411.00836, where it is a seed with its variants. What was not
    scored is not right.
    """
    right: dict[Hashable, bool] = {}
    for line in rows:
        one = line["correct"] is not None and line["correct"] >= 1 - 1e-6
        right[group(line)] = right.get(group(line), True) and one
    return _mean(right.values())


def interval(
    values: Float[np.ndarray, " N"], *, draws: int = 2000
) -> tuple[float | None, float | None]:
    """95 % of the means of so many draws with replacement; the same each time."""
    count = len(values)
    if not count:
        return None, None
    random, means = np.random.default_rng(0), []
    some = max(AT_ONCE // count, 1)
    for start in range(0, draws, some):
        rows = random.integers(0, count, (min(some, draws - start), count))
        means.append(values[rows].mean(axis=1))
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return float(low), float(high)


def mean(rows: Sequence[Row], name: str) -> float:
    """Of what is not None; NaN where all is."""
    known = [line[name] for line in rows if line[name] is not None]
    return float(np.mean(known)) if known else math.nan


def _share(told: Iterable[bool]) -> float:
    return float(np.mean([*told]))


def _mean(values: Iterable[float]) -> float | None:
    found = [*values]
    return float(np.mean(found)) if found else None
