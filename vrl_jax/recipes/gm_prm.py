"""GM-PRM: a critic that writes what is wrong with a step, and the step as it should be.

"GM-PRM", 2025, https://arxiv.org/abs/2508.04088. We could read its abstract alone: what
is below is our reading of it, and no numbers of the paper are known here.

    critic  picture, question and numbered steps -> a record of each step: its intent,
            whether that, what was seen and the logic are right, a verdict, and at the
            first wrong step a corrected one
    act     the row's record, as an answer to picture, question and steps
    score   nothing
    credit  1
    loss    -log pi(record), mean over all tokens

`gm_prm` trains the critic by this: it is `sft()` on rows that are asked as the critic
is. The paper has 20K of them. `agreed` is a filter of rows: the record and `scores`,
shares of right continuations (`programs.step_labels.estimated`), name the same error.

What the critic is for is `refined_best_of_n`, with models={"critic": actor}:

    N/2 solutions are drawn and criticised. One with an error is written again from the
    steps before it and the corrected step; beside one without, a fresh one is drawn.
    All N are scored by the critic, S = mean_t p_t; the best is the answer. p_t is the
    probability of the verdict 1 among 1 and 0, where the record has it.

That is 2 N + N K asks, K the mean number of steps: 16 + 8 K for N = 8, more than the 64
that an episode has by default where K > 6. Give limits=Limits(asks=1024), enough up to
K = 100 with some asked again that have no room; `by_axes` needs 2 N alone.

Plain best of N is best_of_n(values=critic_values()), of as many asks. Nothing here
changes GRPO: as a reward, `process_reward` pays correct + 0.5 S to best_of_n(n=1,
values=...), with any recipe's loss. `step_advantages` is the credit that a step could
have of its own; no recipe uses it, for rollouts have no table that says which step a
token belongs to.

The record is JSON and judges all steps, though it may correct one alone: S is of all. A
refined solution inherits a wrong correction, so its original stays in the pool. The
critic scores what it corrected itself: the share of answers that were refined is told.
"""

import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vrl_jax import advantages, reductions
from vrl_jax.engine.conversation import Ask
from vrl_jax.engine.episode import Answer, Outcome, Steps
from vrl_jax.engine.processing import question
from vrl_jax.programs.demonstrations import demonstrations
from vrl_jax.programs.search import Judging, Values, first_best
from vrl_jax.programs.step_labels import numbered, prefix_of, scores_of, steps_of
from vrl_jax.programs.verdicts import probability, those_that_fit, verdict
from vrl_jax.rewards.columns import column
from vrl_jax.rewards.combine import Reward, fact, weighted
from vrl_jax.rewards.parse import paragraphs
from vrl_jax.rewards.step_records import (
    AXES,
    Record,
    as_record,
    first_wrong,
    read_record,
    spelled,
)
from vrl_jax.rewards.steps import as_table, mean_step, share_to_go
from vrl_jax.training.iteration import Recipe
from vrl_jax.training.likelihood_recipe import likelihood_recipe
from vrl_jax.types import Sample, Turn, literal, plain

CRITIC = """\
{question}

Somebody answered in these steps:

{steps}

Judge every step in order. Reply with a JSON list, an object for each step: "intent",
what the step is for; "purpose", "alignment" and "logic", 1 or 0, whether that is the
thing to do, whether it agrees with the picture, whether it follows; "verdict", 1 if all
three are, else 0; "correction", at the first wrong step how it should read, else
empty."""

_VERDICT = re.compile(r'(?<!\\)"verdict"\s*:\s*(?=[01]\b)')
_WORDS = ("1", "0")


class Critique(NamedTuple):
    """A record that could be read, and the score of each step."""

    record: Record
    scores: Sequence[float]


class Written(NamedTuple):
    """What the critic was asked of a solution, and the record that it wrote."""

    ask: Ask
    said: Turn
    record: Record


Scoring = Generator[Ask | Sequence[Ask], Answer, list[Sequence[float] | None]]
Read = Callable[[str, int], Record | None]
"""What a text says of so many steps; None where that cannot be read."""

ScoreSteps = Callable[[Sequence[Written]], Scoring]
"""Scores of the steps of each solution; it may ask the critic again."""

Aggregate = Callable[..., Float[Array, " N"]]
"""One of `rewards.steps`: (scores [N, S], mask) -> a score each."""


def by_verdict(solutions: Sequence[Written]) -> Scoring:
    """p_t = P(1) / (P(1) + P(0)) where the record has its verdict of step t.

    The critic is asked for each verdict again, behind its own words up to there. None
    where the verdicts cannot be found, or there is no room.
    """
    asks = [
        [
            verdict(
                one.ask.context,
                model=one.ask.model,
                words=_WORDS,
                given=plain(one.said.text[: found.end()]),
            )
            for found in _VERDICT.finditer(one.said.text)
        ]
        for one in solutions
    ]
    pairs = zip(asks, solutions, strict=True)
    usable = [some if len(some) == len(one.record) else [] for some, one in pairs]
    said = iter((yield from those_that_fit([*itertools.chain(*usable)])))
    replies = [[next(said) for _ in some] for some in usable]
    return [
        [probability(turn, _WORDS) for turn in turns]
        if turns and None not in turns
        else None
        for turns in replies
    ]


def by_axes(solutions: Sequence[Written]) -> Scoring:
    """The mean of the three axes of each step; nobody is asked."""
    yield from ()
    return [[sum(one.axes) / len(AXES) for one in w.record] for w in solutions]


def asked(sample: Sample, steps: Sequence[str], *, rule: str = CRITIC) -> Sample:
    """The sample as the critic is asked: `rule` of its question and of these steps."""
    words = {"question": sample.question, "steps": literal(numbered(steps))}
    return dataclasses.replace(sample, question=rule.format(**words))


def criticised(
    sample: Sample,
    turns: Sequence[Turn],
    *,
    critic: str = "critic",
    rule: str = CRITIC,
    score: ScoreSteps = by_verdict,
    read_reply: Read = read_record,
) -> Generator[Ask | Sequence[Ask], Answer, list[Critique | None]]:
    """What the critic says of each solution; None where `read_reply` cannot read that.

    Solutions are cut at blank lines. The critic is greedy, and not trained where it is
    the policy itself. None also where there is no room, or no step.
    """
    cut = [paragraphs(turn.text) for turn in turns]
    asks = {
        place: Ask(
            question(asked(sample, steps, rule=rule)),
            model=critic,
            trained=False,
            top_k=1,
        )
        for place, steps in enumerate(cut)
        if steps
    }
    said = yield from those_that_fit([*asks.values()])
    readable = {}
    for (place, ask), reply in zip(asks.items(), said, strict=True):
        record = read_reply(reply.text, len(cut[place])) if reply else None
        if record:
            readable[place] = Written(ask, reply, record)
    scores = yield from score([*readable.values()])
    found = {
        place: Critique(one.record, known)
        for (place, one), known in zip(readable.items(), scores, strict=True)
        if known
    }
    return [found.get(place) for place in range(len(turns))]


def critic_values(
    *,
    critic: str = "critic",
    rule: str = CRITIC,
    score: ScoreSteps = by_verdict,
    read_reply: Read = read_record,
    aggregate: Aggregate = mean_step,
) -> Values:
    """S of each solution, for `programs.search`."""

    def values(sample: Sample, turns: Sequence[Turn]) -> Judging:
        critiques = yield from criticised(
            sample,
            turns,
            critic=critic,
            rule=rule,
            score=score,
            read_reply=read_reply,
        )
        return _solution_scores(critiques, aggregate)

    return values


def _solution_scores(
    critiques: Sequence[Critique | None], aggregate: Aggregate
) -> list[float | None]:
    table = as_table([one.scores if one else [] for one in critiques])
    found = np.asarray(aggregate(*table)).tolist()
    return [f if one else None for f, one in zip(found, critiques, strict=True)]


def refined_best_of_n(
    sample: Sample,
    *,
    n: int = 8,
    critic: str = "critic",
    rule: str = CRITIC,
    score: ScoreSteps = by_verdict,
    read_reply: Read = read_record,
    aggregate: Aggregate = mean_step,
    temperature: float = 0.7,
) -> Steps:
    """n / 2 solutions, as many refined or fresh ones, and of all the best.

    Of equal ones the earliest. The best is the only row; of a refined one what follows
    the corrected step. Where an error has no correction, or the record cannot be read,
    the other is a fresh one too. What has no score counts as 0.

    Facts: `value` is the best S, `best` its place; `refined` counts refined solutions,
    `refined/best` says whether the best is one; `unjudged` counts solutions without a
    score, `unfit` those for which no room was left; `policy_tokens` are written in all,
    and `critic_tokens`, verdicts too. `ValueError` unless n is even and 2 at least.

    It asks 2 n + n K times, K the mean number of steps, `by_axes` 2 n: raise the
    limits' asks.
    """
    if n < 2 or n % 2:
        raise ValueError(f"half of n solutions are refined: n is even, got n={n}.")
    criticise = functools.partial(
        criticised,
        sample,
        critic=critic,
        rule=rule,
        score=score,
        read_reply=read_reply,
    )
    fresh = Ask(question(sample), tentative=True, temperature=temperature)
    first = yield [fresh] * (n // 2)
    heard: list[Turn] = []
    critiques = yield from _noted(criticise(first), heard)
    starts = [
        _corrected(turn, critique)
        for turn, critique in zip(first, critiques, strict=True)
    ]
    second = yield from those_that_fit(
        [dataclasses.replace(fresh, given=start) for start in starts]
    )
    added = [(t, bool(s)) for t, s in zip(second, starts, strict=True) if t]
    critiques += yield from _noted(criticise([turn for turn, _ in added]), heard)
    everyone = [(turn, False) for turn in first] + added
    worth = _solution_scores(critiques, aggregate)
    best = first_best([value or 0.0 for value in worth])
    turn, is_refined = everyone[best]
    return Outcome(
        (turn,),
        {
            "value": worth[best] or 0.0,
            "best": best,
            "refined": sum(refined for _, refined in added),
            "refined/best": int(is_refined),
            "unjudged": worth.count(None),
            "unfit": n - len(everyone),
            "policy_tokens": _tokens_written([turn for turn, _ in everyone]),
            "critic_tokens": _tokens_written(heard),
        },
    )


def _tokens_written(turns: Sequence[Turn]) -> int:
    return sum(len(turn.tokens) - turn.given for turn in turns)


def _noted(talking: Generator, heard: list[Turn]) -> Generator:
    """The same talk; each answer in it is added to `heard`."""
    step = functools.partial(next, talking)
    while True:
        try:
            asks = step()
        except StopIteration as end:
            return end.value
        try:
            answer = yield asks
        except Exception as error:  # it hears what is wrong, and may ask otherwise
            step = functools.partial(talking.throw, error)
        else:
            heard += [answer] if isinstance(answer, Turn) else answer
            step = functools.partial(talking.send, answer)


def _corrected(turn: Turn, critique: Critique | None) -> str:
    """The steps before the first wrong one and that one corrected; "" for afresh."""
    wrong = first_wrong(critique.record) if critique else None
    if wrong is None or not critique.record[wrong].correction:
        return ""
    before = paragraphs(turn.text)[:wrong]
    return prefix_of([*before, critique.record[wrong].correction])


def process_reward(accuracy: Reward, *, weight: float = 0.5) -> Reward:
    """accuracy + weight S, S the fact `value` of best_of_n(n=1, values=...)."""
    return weighted({"accuracy": (accuracy, 1.0), "process": (fact("value"), weight)})


def step_advantages(
    scores: Float[Array, "B S"],
    steps: Bool[Array, "B S"],
    number: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    group_size: int,
) -> Float[Array, "B T"]:
    """A_t = group z-score of sum_{u >= step of t} p_u / S, over all steps of the group.

    `number` says which step a token belongs to; 0 off the mask.
    """
    to_go = share_to_go(scores, steps)
    credit = advantages.step_zscore(to_go, steps, group_size=group_size)
    return advantages.at_tokens(credit, number, mask)


def agreed(sample: Sample) -> bool:
    """Whether `record` and `scores` of a row find the same first error, or none.

    By `scores` a step is wrong after which no continuation was right.
    """
    zero = next((t for t, score in enumerate(scores_of(sample)) if not score), None)
    return first_wrong(_own_record(sample)) == zero


def _own_record(sample: Sample) -> Record:
    """The row's column `record`; `ValueError` where it is none of its steps."""
    given = column(sample, "record", list, "what is to be said of each step")
    record = as_record(given, len(steps_of(sample)))
    wrong = first_wrong(record or ())
    if (
        record is None
        or any(one.verdict != all(one.axes) for one in record)
        or (wrong is not None and not record[wrong].correction)
    ):
        raise ValueError(
            f"{sample.id} needs in the column 'record' an object for each of "
            f"{len(steps_of(sample))} steps, with intent, {', '.join(AXES)}, verdict, "
            "1 if all three are, else 0, and, at the first wrong step, a correction; "
            f"got {given!r}."
        )
    return record


def gm_prm(
    *,
    rule: str = CRITIC,
    spell: Callable[[Record], str] = spelled,
    read_reply: Read = read_record,
) -> Recipe:
    """Rows have the columns `steps`, and `record`, a list of objects.

    `spell` writes a record as the critic is to write it, and `read_reply` must read it
    again, else `ValueError`; so must that of `criticised`.
    """

    def act(actor, batches, key):
        rows = []
        for sample in next(batches):
            record = _own_record(sample)
            text = spell(record)
            if read_reply(text, len(record)) != record:
                raise ValueError(
                    f"{sample.id}: what `spell` writes must be read by `read_reply` as "
                    f"the same record; got {text!r} of the column 'record', {record!r}."
                )
            told = {**sample.annotations, "demonstration": text}
            shown = asked(sample, steps_of(sample), rule=rule)
            rows.append(dataclasses.replace(shown, annotations=told))
        return demonstrations(actor, iter([rows]), key)

    return likelihood_recipe(act, reduction=reductions.token_mean)
