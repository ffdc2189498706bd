"""Responses that the data set brings, as if the policy had written them."""

import dataclasses
import functools
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from vrl_jax.engine.actor import Actor
from vrl_jax.engine.conversation import ids_of
from vrl_jax.engine.decoding import Model, Request, Response, Sampled
from vrl_jax.engine.desk import Limits
from vrl_jax.engine.likelihood import first_positions
from vrl_jax.engine.play import Program, play
from vrl_jax.engine.processing import encode
from vrl_jax.engine.rows import as_rollout as rows_as_rollout
from vrl_jax.engine.sampling import response_positions
from vrl_jax.programs.groups import as_rollout, beside, response_keys, sample
from vrl_jax.types import Prompts, Rollout, Sample


def demonstrations(
    actor: Actor, batches: Iterator[Sequence[Sample]], key: Key[Array, ""]
) -> Rollout:
    """One response a sample: its `demonstration` annotation and a stop token.

    Nobody scored or sampled it: the reward is NaN, the old log-probs are 0. Raises
    `ValueError` where a demonstration is missing or longer than the budget.
    """
    del key  # nothing is drawn
    samples = next(batches)
    return _unscored(
        actor, samples, ("demonstration",), jnp.full(len(samples), jnp.nan)
    )


def recited(
    actor: Actor,
    batches: Iterator[Sequence[Sample]],
    key: Key[Array, ""],
    *,
    program: Program,
    rows: int = 1,
    models: Sequence[str] = (),
    limits: Limits | None = None,
) -> Rollout:
    """One episode a sample, in which every answer is the data set's.

    The annotation `demonstration` lists what is said to each ask of the program, in
    order; `models` are the names of the others that it asks, whose answers are listed
    too and not trained. So a conversation is learnt in the very words, and with the
    very pictures, that the program will show. Nobody scored or sampled it: the reward
    is NaN, the old log-probs are 0. Raises `ValueError` where an answer is missing or
    longer than its budget, or the program ends before its end.
    """
    samples = next(batches)
    # Nothing is drawn, so nothing is drawn more warmly.
    actor = dataclasses.replace(actor, temperature=1.0)
    groups = play(
        actor,
        program,
        samples,
        key,
        models=dict.fromkeys(models, actor),
        limits=limits,
        write=functools.partial(_recite, actor),
    )
    for (one,) in groups:
        for fact in one.episode.facts:
            if fact.startswith("ended/"):
                raise ValueError(
                    f"the demonstration of sample {one.episode.sample.id} ends early, "
                    f"by {fact.removeprefix('ended/')}; the log says more."
                )
    unscored = [{"overall": float("nan")}] * len(samples)
    return rows_as_rollout(actor, groups, unscored, rows=rows, limits=limits)


def _recite(
    actor: Actor,
    model: Model,
    queue: deque[Request],
    meanwhile: Callable[[], None],
) -> Iterator[list[Response]]:
    """Answers what is queued with the samples' own words, a stop token after each."""
    del model, meanwhile  # no device is at work
    while True:
        yield [_answer(actor, queue.popleft()) for _ in range(len(queue))]


def _answer(actor: Actor, request: Request) -> Response:
    sample, number = request.tag[0].sample, request.turn
    said = demonstrated(sample)
    if number >= len(said):
        raise ValueError(
            f"sample {sample.id} needs the annotation `demonstration`, a list of what "
            f"is said in each turn; number {number + 1} is asked for, got {said!r}."
        )
    ids = [*ids_of(actor.processor, said[number]), request.rule.stops[0]]
    if len(ids) > request.limit:
        raise ValueError(
            f"turn {number + 1} of the demonstration of sample {sample.id} has "
            f"{len(ids)} tokens, where {request.limit} may be written: raise "
            "max_new_tokens or the limits' row_tokens."
        )
    zeros = np.zeros(len(ids), np.float32)
    tokens = np.array(ids, np.int32)
    return Response(request, tokens, zeros, zeros, np.zeros((len(ids), 0)), True)


def preference_pairs(
    actor: Actor, batches: Iterator[Sequence[Sample]], key: Key[Array, ""]
) -> Rollout:
    """Two responses a sample: its `chosen`, then its `rejected` annotation.

    The rewards are 1 and 0, the old log-probs 0. Raises `ValueError` as
    `demonstrations` does.
    """
    del key  # nothing is drawn
    samples = next(batches)
    rewards = jnp.tile(jnp.array([1.0, 0.0]), len(samples))
    return _unscored(actor, samples, ("chosen", "rejected"), rewards)


def demonstrated(sample: Sample) -> Sequence[str]:
    """The sample's `demonstration`, turn by turn; one text is one turn."""
    said = sample.annotations.get("demonstration", ())
    return (said,) if isinstance(said, str) else tuple(map(str, said))


def beside_demonstration(
    actor: Actor,
    batches: Iterator[Sequence[Sample]],
    key: Key[Array, ""],
    *,
    group_size: int,
) -> Rollout:
    """group_size - 1 sampled responses and, last in each group, the demonstration.

    All are rewarded by the same rule; the demonstration's old log-probs are 0.
    """
    samples = next(batches)
    encoded = encode(actor.processor, samples)
    keys = response_keys(samples, key, group_size - 1)
    sampled = sample(actor, encoded.prompts, keys)
    given = written(actor, samples, encoded.prompts, ("demonstration",))
    both = beside(len(samples), sampled, given)
    return as_rollout(actor, samples, encoded, both)


def written(
    actor: Actor,
    samples: Sequence[Sample],
    prompts: Prompts,
    annotations: Sequence[str],
) -> Sampled:
    """The annotations of each sample as responses, a stop token after each."""
    rows, length = len(samples) * len(annotations), actor.max_new_tokens
    tokens = np.full((rows, length), int(actor.stop_ids[0]), np.int32)
    mask = np.zeros((rows, length), bool)
    wanted = itertools.product(samples, annotations)
    for row, (given, name) in enumerate(wanted):
        if name not in given.annotations:
            raise ValueError(
                f"sample {given.id} has no `{name}` to learn from; add the column, or "
                "leave the stage that needs it out."
            )
        text = given.annotations[name]
        ids = actor.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) + 1 > length:
            raise ValueError(
                f"the {name} of sample {given.id} has {len(ids) + 1} tokens, the "
                f"budget max_new_tokens is {length}."
            )
        tokens[row, : len(ids)] = ids
        mask[row, : len(ids) + 1] = True
    start = jnp.repeat(first_positions(prompts), len(annotations))
    return Sampled(
        tokens=jnp.asarray(tokens),
        positions=response_positions(start, length),
        mask=jnp.asarray(mask),
        logprobs=jnp.zeros((rows, length)),
        log_kept=jnp.zeros((rows, length)),
        noted=jnp.zeros((rows, length, 0)),
        finished=jnp.ones(rows, bool),
    )


def _unscored(
    actor: Actor,
    samples: Sequence[Sample],
    annotations: Sequence[str],
    rewards: Array,
) -> Rollout:
    """The annotations alone, with the rewards given and no temperature."""
    prompts = encode(actor.processor, samples).prompts
    given = written(actor, samples, prompts, annotations)
    return Rollout(
        prompts=prompts,
        tokens=given.tokens,
        positions=given.positions,
        mask=given.mask,
        temperature=jnp.ones(len(rewards)),
        old_logprobs=given.logprobs,
        extra_logprobs={},
        rewards=rewards,
        reward_parts={},
        group=jnp.repeat(jnp.arange(len(samples)), len(annotations)),
    )
