"""SEE: each task has an expert, who says first whether a question is its own.

"SEE: Continual Fine-tuning with Sequential Ensemble of Experts", Wang et al., 2025,
https://arxiv.org/abs/2504.06664. We have not seen its code.

    rows    of task t: its questions, answered "accept" y; questions kept of the tasks
            before it, answered "reject"
    act     d, one token, and after an acceptance y: the row's demonstration
    score   nothing
    credit  A_i = w where d rejects, else 1
    loss    -A_i (log pi(d) + sum_k log pi(y_k)) / n, n the row's tokens, mean over rows
    answer  the expert of the newest task is asked first; the first to accept answers,
            and where none does a general model

A task is learnt by a fresh adapter over the frozen base, and then put before the
others, which stay as they are:

    rows = reconstructed(task, memory)
    trains = lora.adapters(key, table, rank=8)
    learner = make_learner(policy, base, adamw(1e-4), allowed, trains=trains)
    ...                                     # see() on the rows, three epochs
    adapters[name] = Lora(learner.trained, scale)           # scale = alpha / rank
    memory += remembered(task, key, share=0.1)

What answers is `programs.cascade.first_to_accept`, played by the newest of `experts`
with the others as the models of the play; `evals.continual` has the measures. Under
`evals.held_out` with greedy=True the newest alone is greedy: older experts and the
general model draw their answers as their own actors say, so give these `top_k=1`.

What we read of the paper is its abstract and a summary of its figure: the two words,
one token each, the order of the experts, who of them sees what as a negative, w, the
mean and all numbers are ours. Newest first is the order in which each expert has
rejected in training what those behind it accept. Rows kept of old tasks are negatives
alone. The first task has no older one: its negatives are general questions, or there
are none and it accepts whatever it is asked.

Where an expert shall learn by reward, `decide_then_answer` is what it plays, and
`routed` what pays it:

    play = functools.partial(act, program=decide_then_answer, group_size=8)
    grpo(group_size=8)._replace(act=play)   # with Actor(reward=routed(reward), ...)
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from vrl_jax import reductions
from vrl_jax.engine.actor import Actor
from vrl_jax.engine.conversation import one_token
from vrl_jax.models import lora
from vrl_jax.programs.cascade import ACCEPT, REJECT, decide_then_answer
from vrl_jax.programs.recital import recited
from vrl_jax.rewards.columns import column
from vrl_jax.rewards.combine import Reward, paid_if, per_response, weighted
from vrl_jax.training.iteration import Recipe
from vrl_jax.training.likelihood_recipe import likelihood_recipe
from vrl_jax.training.metrics import Metrics
from vrl_jax.types import Batch, Episode, Likelihood, Sample

OWN = "own"
"""Column of a reconstructed row: whether it is of the expert's task."""


def see(
    *, rejection: float = 1.0, accept: str = ACCEPT, reject: str = REJECT
) -> Recipe:
    """On the rows of `reconstructed`; `rejection` is w, such as `balanced` gives.

    `see/decided` is the share of decisions that have more than half of all probability,
    so that nothing can be likelier: no more than the accuracy between the two.
    """
    if reject.startswith(accept):
        raise ValueError(
            "an acceptance with its answer must not read as a rejection: choose a word "
            f"of rejection that does not begin with {accept!r}, got {reject!r}."
        )
    marks = {"accept": accept, "reject": reject}
    program = functools.partial(decide_then_answer, **marks)

    def act(actor, batches, key):
        for mark in marks.values():
            one_token(actor.processor, mark)
        rows = [_in_turns(sample, **marks) for sample in next(batches)]
        return recited(actor, iter([rows]), key, program=program)

    def weights(mask: Bool[Array, "B T"]) -> Float[Array, " B"]:
        # An acceptance is followed by an answer, be it a stop token.
        return jnp.where(mask.sum(axis=1) == 1, rejection, 1.0)

    return likelihood_recipe(
        act, reduction=reductions.sequence_mean, weights=weights, measure=_decisions
    )


def _decisions(new: Likelihood, batch: Batch) -> Metrics:
    logprobs, valid = new.logprobs[:, 0], batch.mask[:, 0]
    sure = (jnp.exp(logprobs) > 0.5).astype(jnp.float32)
    return {
        "see/decided": reductions.row_mean(sure, valid),
        "see/decision_loss": reductions.row_mean(-logprobs, valid),
    }


def reconstructed(
    task: Sequence[Sample],
    others: Sequence[Sample],
    *,
    accept: str = ACCEPT,
    reject: str = REJECT,
) -> list[Sample]:
    """The task's rows, to be accepted and answered, then the others, to be rejected.

    A `demonstration` is the word `accept` and, behind it, the row's own one, or the
    word `reject` alone. The column `own` says which. `ValueError` where a row of the
    task has no demonstration, or is among the others.
    """
    foreign = {sample.id for sample in others}
    for sample in task:
        if sample.id in foreign:
            raise ValueError(
                f"{sample.id} is a row of the task and one of the others: it cannot be "
                "accepted and rejected. Leave it out of one of them."
            )

    def accepted(sample: Sample) -> Sample:
        answer = column(sample, "demonstration", str, "the answer, as one text")
        return _with(sample, {"demonstration": f"{accept}{answer}", OWN: True})

    rejected = {"demonstration": reject, OWN: False}
    return [*map(accepted, task), *(_with(sample, rejected) for sample in others)]


def remembered(
    task: Sequence[Sample], key: Key[Array, ""], *, share: float = 0.1
) -> list[Sample]:
    """M_t: a share of the task's rows, at least one, uniformly and in their order."""
    if not task or not 0 < share <= 1:
        raise ValueError(
            "a share in (0, 1] of some rows is remembered, got "
            f"share={share} of {len(task)} rows."
        )
    count = max(1, round(share * len(task)))
    places = jax.random.choice(key, len(task), (count,), replace=False)
    return [task[place] for place in sorted(places.tolist())]


def balanced(task: int, others: int, *, most: float = 10.0) -> float:
    """w = min(|task| / |others|, most), of numbers of rows."""
    return most if task >= most * others else task / others


def experts(actor: Actor, adapters: Mapping[str, lora.Lora]) -> dict[str, Actor]:
    """The base actor with each of the adapters.

    What no adapter changes is the same arrays in all of them; of the matrices that it
    does change, every expert has its own.
    """
    return {
        name: dataclasses.replace(actor, params=lora.merge(actor.params, one))
        for name, one in adapters.items()
    }


def routed(answer: Reward, *, accept: str = ACCEPT, reject: str = REJECT) -> Reward:
    """1[d = (accept if own else reject)] + 1[d = accept] answer(y).

    The actor's reward where it plays `decide_then_answer` on rows with a column `own`;
    the paper has none. Parts: `route`, `answer` and its own, `answer_condition` the
    share that was accepted. A turn that is no decision earns nothing.
    """

    def route(episode: Episode) -> float:
        own = column(
            episode.sample, OWN, bool, "whether the row is of the expert's task"
        )
        return float(episode.turns[0].text == (accept if own else reject))

    accepts = per_response(lambda episode: float(episode.turns[0].text == accept))
    return weighted(
        {"route": (per_response(route), 1.0), "answer": (paid_if(accepts, answer), 1.0)}
    )


def _in_turns(sample: Sample, accept: str, reject: str) -> Sample:
    """The row with its demonstration as the program will ask for it."""
    what = f"{accept!r} with an answer behind it or {reject!r} alone, see reconstructed"
    text = column(sample, "demonstration", str, what)
    if text == reject:
        return _with(sample, {"demonstration": [reject]})
    if text.startswith(accept):
        turns = [accept, text.removeprefix(accept)]
        return _with(sample, {"demonstration": turns})
    raise ValueError(
        f"{sample.id} needs the column 'demonstration', {what}; got {text!r}."
    )


def _with(sample: Sample, columns: Mapping[str, Any]) -> Sample:
    annotations = {**sample.annotations, **columns}
    return dataclasses.replace(sample, annotations=annotations)
