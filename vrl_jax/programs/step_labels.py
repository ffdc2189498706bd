"""Which steps of solutions are right: by how they can be ended, and by a judge.

The data of VL-PRM, https://arxiv.org/abs/2509.23250: `solved`, `estimated`, `judged`
and `labelled`, in this order, make the rows that `recipes.vl_prm` learns from. Each
gives new rows with a column more; what is not wanted is left out.
"""

import collections
import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, Key

from vrl_jax.engine.actor import Actor
from vrl_jax.engine.conversation import Ask
from vrl_jax.engine.desk import Limits
from vrl_jax.engine.episode import Check, Steps
from vrl_jax.engine.processing import question
from vrl_jax.engine.tools import as_png
from vrl_jax.models.front_end import load_image, on_white
from vrl_jax.programs.acting import played
from vrl_jax.rewards.columns import column
from vrl_jax.rewards.judge import AnswersQuestions, picture_part
from vrl_jax.rewards.parse import json_text, paragraphs, read_json
from vrl_jax.rewards.steps import as_table, step_labels
from vrl_jax.types import Episode, Sample, plain, wording

SIGNS = ("+", "-")
"""What is said of a step that is right, and of one that is wrong."""

RULE = """\
Below are a question about a picture and the numbered steps of a solution. Go through
the steps in order, first those that say what is to be seen, then those that reason. Say
of each in one sentence whether it is right, and stop at the first error that matters.
Reply with JSON alone, {"analyses": ["...", ...], "conclusion": "Correct"}, or
"Incorrect" if the step that you analysed last is wrong."""


def steps_of(sample: Sample) -> list[str]:
    """The row's column `steps`, one text or more; `ValueError` without."""
    steps = column(sample, "steps", list, "the texts of the steps of a solution")
    if not steps or not all(isinstance(step, str) and step.strip() for step in steps):
        raise ValueError(
            f"{sample.id} needs the column 'steps', the texts of the steps of a "
            f"solution, at least one and none empty; got {steps!r}."
        )
    return steps


def scores_of(sample: Sample) -> list[float]:
    """The row's column `scores`, 0 to 1 for each of its steps; `ValueError` without."""
    scores = column(sample, "scores", list, "a share of right ends for each step")
    most = len(steps_of(sample))
    if len(scores) != most or not all(map(_is_share, scores)):
        raise ValueError(
            f"{sample.id} needs a number from 0 to 1 in 'scores' for each of {most} "
            f"steps, got {scores!r}."
        )
    return scores


def _is_share(score: Any) -> bool:
    return isinstance(score, int | float) and 0 <= score <= 1


def prefix_of(steps: Sequence[str]) -> str:
    """How a solution begins that has these steps: a blank line after each.

    It can be put into a model's mouth: it spells no token of a turn or a picture.
    """
    return plain("".join(f"{step}\n\n" for step in steps))


def continuations(sample: Sample, *, each: int = 16) -> Steps:
    """`each` ends of the row's solution after each of its steps, none trained.

    The steps up to there are put into the policy's mouth. All are in flight together.
    """
    steps = steps_of(sample)
    return (
        yield [
            Ask(question(sample), trained=False, given=prefix_of(steps[: number + 1]))
            for number in range(len(steps))
            for _ in range(each)
        ]
    )


def solved(
    actor: Actor,
    samples: Sequence[Sample],
    key: Key[Array, ""],
    *,
    each: int = 6,
    limits: Limits | None = None,
) -> tuple[list[Sample], dict[str, int]]:
    """Each sample `each` times, with a solution as `steps`; and counts.

    Solutions are the actor's, cut at blank lines; those that the budget cut off and
    empty ones are left out and counted.
    """

    def solve(sample: Sample) -> Steps:
        return (yield [Ask(question(sample), trained=False)] * each)

    rows, counts = [], collections.Counter()
    limits = _with_asks(limits, each)
    for episode in played(actor, solve, samples, key, limits=limits):
        counts["questions"] += 1
        if end := _ended(episode):
            counts[f"questions/{end}"] += 1
            continue
        for number, turn in enumerate(episode.turns):
            steps = paragraphs(turn.text)
            counts["solutions"] += 1
            if steps and turn.finished:
                row = _with(episode.sample, steps=steps)
                rows.append(dataclasses.replace(row, id=f"{row.id}-{number}"))
            else:
                counts["solutions/cut off" if steps else "solutions/empty"] += 1
    return rows, dict(counts)


def estimated(
    actor: Actor,
    samples: Sequence[Sample],
    key: Key[Array, ""],
    *,
    right: Check,
    each: int = 16,
    limits: Limits | None = None,
) -> tuple[list[Sample], dict[str, int]]:
    """The samples with the column `scores`; and counts.

    scores_t = (continuations after step t that are right) / each. `right` sees the
    whole solution; one that is cut off, or whose answer cannot be read, is wrong. The
    released run has 16 at temperature 1. A solution for which there is no room is left
    out and counted. The limits' asks are raised to as many as are needed.
    """
    program = functools.partial(continuations, each=each)
    asks = each * max((len(steps_of(sample)) for sample in samples), default=0)
    rows, counts = [], collections.Counter()
    limits = _with_asks(limits, asks)
    for episode in played(actor, program, samples, key, limits=limits):
        counts["solutions"] += 1
        if end := _ended(episode):
            counts[f"solutions/{end}"] += 1
            continue
        known = [
            turn.finished and right(episode.sample, turn) for turn in episode.turns
        ]
        counts["continuations"] += len(known)
        counts["continuations/right"] += sum(known)
        scores = np.reshape(known, (-1, each)).mean(1).tolist()
        rows.append(_with(episode.sample, scores=scores))
    return rows, dict(counts)


def judged_error(reply: str) -> float | None:
    """The number of the first wrong step, from 1; 0 where none is wrong.

    It is the last step that was analysed, of a conclusion "Incorrect". None where the
    reply cannot be read: Judge(endpoint, read=judged_error).
    """
    match read_json(json_text(reply)):
        case {"analyses": [*said], "conclusion": str(conclusion)} if said:
            wrong = {"correct": 0.0, "incorrect": float(len(said))}
            return wrong.get(conclusion.strip().lower())
    return None


def judged(
    judge: AnswersQuestions,
    samples: Sequence[Sample],
    *,
    rule: str = RULE,
    size: int = 64,
) -> tuple[list[Sample], dict[str, int]]:
    """The samples with the column `judged_error`, as `judged_error` says; and counts.

    The judge sees pictures, question and steps. What it does not answer, or answers of
    a step that is not there, is left out and counted. `size` solutions are asked at a
    time: no more pictures are in memory, and each time has the judge's whole budget.
    """
    verdicts = []
    for start in range(0, len(samples), size):
        some = samples[start : start + size]
        verdicts += judge.verdicts([_question(sample, rule) for sample in some])
    rows = [
        _with(sample, judged_error=int(verdict))
        for sample, verdict in zip(samples, verdicts, strict=True)
        if not math.isnan(verdict) and 0 <= verdict <= len(steps_of(sample))
    ]
    unread = len(samples) - len(rows)
    return rows, {"solutions": len(samples), "solutions/not judged": unread}


def labelled(sample: Sample) -> Sample:
    """With the column `labels`: "+" before the first bad step, "-" at it.

    Later steps have none: nobody knows what they are worth. By the row's `scores` a
    step without a right continuation is bad, by `judged_error` the one that it names;
    with both columns the earlier one, with one that alone; a column of None is none.
    `ValueError` with neither.
    """
    steps, told = steps_of(sample), sample.annotations
    scored = told.get("scores") is not None
    error = told.get("judged_error")
    if not scored and error is None:
        raise ValueError(
            f"{sample.id} needs the column 'scores' or 'judged_error': make them by "
            "programs.step_labels.estimated or judged."
        )
    scores = scores_of(sample) if scored else [1.0] * len(steps)
    error = 0 if error is None else error
    if not isinstance(error, int) or not 0 <= error <= len(steps):
        raise ValueError(
            f"{sample.id} needs in 'judged_error' the number of a step, 1 to "
            f"{len(steps)}, or 0 for none; got {error!r}."
        )
    table, mask = as_table([scores])
    first = np.array([error - 1 if error else mask.shape[1]])
    known = np.asarray(step_labels(table, mask, first))[0]
    labels = [SIGNS[0] if label else SIGNS[1] for label in known if label >= 0]
    return _with(sample, labels=labels)


def wrong_to_the_end(sample: Sample) -> Sample:
    """A `labelled` row in which all steps after the first bad one are "-" too.

    The paper says both. Default is to leave them out.
    """
    labels = column(sample, "labels", list, "a + or - for each step")
    later = len(steps_of(sample)) - len(labels)
    return _with(sample, labels=[*labels, *[SIGNS[1]] * later])


def _with_asks(limits: Limits | None, asks: int) -> Limits:
    """The limits, with room for as many asks."""
    limits = limits or Limits()
    return limits._replace(asks=max(limits.asks, asks))


def _ended(episode: Episode) -> str | None:
    """What ended it early, if anything."""
    ends = [fact for fact in episode.facts if fact.startswith("ended/")]
    return ends[0].removeprefix("ended/") if ends else None


def _with(sample: Sample, **columns: Any) -> Sample:
    return dataclasses.replace(sample, annotations={**sample.annotations, **columns})


def _question(sample: Sample, rule: str) -> list[dict[str, Any]]:
    asked = wording(sample.question)  # a judge takes text as it is
    listed = numbered(steps_of(sample))
    pictures = [as_png(load_image(image, on_white)) for image in sample.images]
    text = f"{rule}\n\nQuestion: {asked}\nSteps:\n{listed}"
    content = [*map(picture_part, pictures), {"type": "text", "text": text}]
    return [{"role": "user", "content": content}]


def numbered(steps: Sequence[str]) -> str:
    """The steps as a list, from 1."""
    return "\n".join(f"{number}. {step}" for number, step in enumerate(steps, 1))
