"""VL-PRM: a model that reads a solution step by step and says + or - of each.

2025, https://arxiv.org/abs/2509.23250; code https://github.com/theogbrand/vlprm.

    before  of each solution, cut into steps (`programs.step_labels`):
            score_t = share of 16 continuations after step t that are right
            e = the judge's first wrong step, z = the first with score_t = 0
            "+" before min(e, z), "-" at it, nothing after it
    act     the conversation of a row: the user says a step, the first one behind
            picture and question, the assistant its label, + or -
    score   nothing
    credit  1 on labels alone
    loss    -log pi(label), mean over all labels

This is `sft()` on that act, and nothing more. What the model is for is a choice among
solutions, with p+ = e^l+ / (e^l+ + e^l-) of the two tokens:

    one-shot    p+ of the solution as one step; p+^0.3 / L^0.6 if p+ >= p-, else -1,
                L = all tokens that were read
                best_of_n(n=16, values=one_shot())
    steps       the mean of p+ over steps, or another of `rewards.steps`
                best_of_n(n=16, values=every_step()), 16 + 16 S asks
    greedy      each next step of 16, scored as in one-shot behind the steps before it,
                which are all marked "+"
                tree_search(values=next_step(), width=16, beam=1, depth=100,
                step_tokens=1024), 32 asks a step, 3200 in all

The programs are `programs.search`'s, play(..., models={"prm": actor}) says who judges.
S is the mean number of steps. Steps and greedy need more asks than an episode has by
default: limits=Limits(asks=4000) is enough for both, up to S = 200 and with some asked
again that have no room. A step ends at a blank line; 1024 tokens are there so that no
step is cut before, as the search's default of 64 would.
Where all are -1 the smallest p- is taken, else the first of equal ones; empty ones are
passed over. The policies draw at temperature 0.7, top-p 0.8, top-k 20; training has
learning rate 1e-5, two epochs, a tower that is trained too. As a reward, a value is the
fact `value` of best_of_n(n=1).

How the labels are merged is our reading: the released code keeps both, and the paper
says that later steps are left out and that they are negative
(`step_labels.wrong_to_the_end`). The code's collator learns every + and - of a row,
those inside steps too; here those of the assistant's place alone. Its search samples
whole solutions, for the stop at a blank line is commented out; here it is on. The words
of the judge's prompt are ours, as is its JSON.
"""

import dataclasses
from collections.abc import Callable, Generator, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vrl_jax import reductions
from vrl_jax.engine.conversation import Ask
from vrl_jax.engine.desk import Limits
from vrl_jax.engine.episode import Answer, Steps
from vrl_jax.engine.processing import question
from vrl_jax.programs.recital import recited
from vrl_jax.programs.search import Judging, Values, says_more
from vrl_jax.programs.step_labels import SIGNS, steps_of
from vrl_jax.programs.verdicts import probability, those_that_fit, verdict
from vrl_jax.rewards.columns import column
from vrl_jax.rewards.parse import paragraphs
from vrl_jax.rewards.steps import as_table, mean_step, one_shot_score
from vrl_jax.training.iteration import Recipe
from vrl_jax.training.likelihood_recipe import likelihood_recipe
from vrl_jax.types import Message, Sample, Turn, literal

Cut = Callable[[str], list[str]]
"""What a text says, step by step."""

Count = Callable[[Turn], int]
"""L of a verdict."""

Worth = Callable[[Float[Array, " N"], Int[Array, " N"]], Float[Array, " N"]]
"""(p+, L) -> what a candidate is worth."""

Aggregate = Callable[..., Float[Array, " N"]]
"""One of `rewards.steps`: (scores [N, S], mask) -> a score each."""


def vl_prm(*, limits: Limits | None = None) -> Recipe:
    """Rows have the columns `steps` and `labels`, those of `step_labels.labelled`.

    What follows the first step, with a label each, must fit `row_tokens` of the
    `limits`. A row without usable columns, or without room, is a ValueError.
    """

    def act(actor, batches, key):
        rows = [_recital(sample) for sample in next(batches)]
        return recited(actor, iter([rows]), key, program=marked_steps, limits=limits)

    return likelihood_recipe(act, reduction=reductions.token_mean)


def marked_steps(sample: Sample) -> Steps:
    """The row's steps, as many as have a label, each answered with + or -."""
    *context, _ = question(sample)
    for message in in_turns(sample, steps_of(sample)[: len(_labels(sample))]):
        context.append(message)
        said = yield Ask(tuple(context), allowed=SIGNS, max_new_tokens=1)
        context.append(said)


def in_turns(sample: Sample, steps: Sequence[str]) -> list[Message]:
    """What the user says: pictures, question and step 1, then a step at a time."""
    first, *rest = map(literal, steps)
    opening = Message(f"{sample.question}\n\n{first}", sample.images)
    return [opening, *map(Message, rest)]


def judging(sample: Sample, steps: Sequence[str], *, prm: str = "prm") -> Ask:
    """Whether the last step is right, behind earlier ones that are all marked "+"."""
    *context, _ = question(sample)
    for message in in_turns(sample, steps):
        context += [message, Message(SIGNS[0], role="assistant")]
    return verdict(tuple(context[:-1]), model=prm, words=SIGNS)


def released_worth(
    right: Float[Array, " N"], tokens: Int[Array, " N"]
) -> Float[Array, " N"]:
    """`one_shot_score`, but -1 - p- where that is -1: so the best is the code's.

    Which takes the smallest p- where all are -1.
    """
    return jnp.where(right >= 0.5, one_shot_score(right, tokens), right - 2)


def tokens_read(said: Turn) -> int:
    """All that the model read before its verdict, with pictures: as in the code."""
    return said.read


def whole(text: str) -> list[str]:
    """All of it as one step."""
    return [text.strip()] if text.strip() else []


def next_step(
    *,
    prm: str = "prm",
    cut: Cut = paragraphs,
    count: Count = tokens_read,
    worth: Worth = released_worth,
) -> Values:
    """worth(p+, L) of the last step of each, the steps before it all marked "+"."""

    def values(sample: Sample, turns: Sequence[Turn]) -> Judging:
        written = [_written(turn, cut) for turn in turns]
        said = yield from _verdicts(sample, written, prm)
        known = [said.get(steps) for steps in written]
        right = [probability(k, SIGNS) if k else 0.0 for k in known]
        tokens = [count(k) if k else 1 for k in known]
        found = np.asarray(worth(jnp.array(right), jnp.array(tokens))).tolist()
        return [f if k else None for f, k in zip(found, known, strict=True)]

    return values


def one_shot(
    *, prm: str = "prm", count: Count = tokens_read, worth: Worth = released_worth
) -> Values:
    """worth(p+, L) of each solution as one step."""
    return next_step(prm=prm, cut=whole, count=count, worth=worth)


def every_step(
    *, prm: str = "prm", cut: Cut = paragraphs, aggregate: Aggregate = mean_step
) -> Values:
    """aggregate(p+ of all steps), each behind those before it, all marked "+".

    A solution is judged where there is room for all of it. Each step is an ask: raise
    the limits' asks.
    """

    def values(sample: Sample, turns: Sequence[Turn]) -> Judging:
        written = [_written(turn, cut) for turn in turns]
        starts = [steps[: t + 1] for steps in written for t in range(len(steps))]
        said = yield from _verdicts(sample, starts, prm)
        right = {steps: probability(turn, SIGNS) for steps, turn in said.items()}
        judged = [steps in right for steps in written]
        scores = [
            [right[steps[: t + 1]] for t in range(len(steps))] if there else []
            for steps, there in zip(written, judged, strict=True)
        ]
        table = as_table(scores)
        found = np.asarray(aggregate(*table)).tolist()
        return [f if there else None for f, there in zip(found, judged, strict=True)]

    return values


def _verdicts(
    sample: Sample, solutions: Sequence[tuple[str, ...]], prm: str
) -> Generator[Ask | Sequence[Ask], Answer, dict[tuple[str, ...], Turn]]:
    """The verdict on each that has steps and room; equal ones are asked once."""
    asks = {steps: judging(sample, steps, prm=prm) for steps in solutions if steps}
    said = yield from those_that_fit([*asks.values()])
    return {steps: turn for steps, turn in zip(asks, said, strict=True) if turn}


def _written(turn: Turn, cut: Cut) -> tuple[str, ...]:
    """Its steps; none where it wrote nothing but blanks or its end."""
    return tuple(cut(turn.text)) if says_more(turn) else ()


def _labels(sample: Sample) -> list[str]:
    """The row's labels, of as many steps as have one."""
    labels = column(sample, "labels", list, "a + or - for each step that is learnt")
    most = len(steps_of(sample))
    if not 0 < len(labels) <= most or not all(label in SIGNS for label in labels):
        raise ValueError(
            f"{sample.id} needs the column 'labels', a + or - for each of its first 1 "
            f"to {most} steps; got {labels!r}."
        )
    return labels


def _recital(sample: Sample) -> Sample:
    """What is said to the asks of `marked_steps`."""
    told = {**sample.annotations, "demonstration": _labels(sample)}
    return dataclasses.replace(sample, annotations=told)
