"""Responses that the data set brings, as if the policy had written them."""

import itertools
from collections.abc import Iterator, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from vrl_jax.engine.actor import Actor
from vrl_jax.engine.conversation import ids_of
from vrl_jax.engine.likelihood import first_positions
from vrl_jax.engine.processing import Processor, encode
from vrl_jax.engine.responses import Sampled
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
        if not isinstance(text, str):
            raise ValueError(
                f"the {name} of sample {given.id} is no text but {text!r}; answers of "
                "several turns are learnt by programs.recital.recited."
            )
        stop = (int(actor.stop_ids[0]),)
        what = f"the {name} of sample {given.id}"
        ids = spelled(actor.processor, text, stop, most=length, what=what)
        tokens[row, : len(ids)] = ids
        mask[row, : len(ids)] = True
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


def spelled(
    processor: Processor, text: str, stop: Sequence[int], *, most: int, what: str
) -> list[int]:
    """The text as ids and what ends it.

    `ValueError`, of `what`, if they are more, or one of them stands for a picture.
    """
    try:
        ids = [*ids_of(processor, text).tolist(), *stop]
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error
    if len(ids) > most:
        raise ValueError(
            f"{what} has {len(ids)} tokens with its end, and {most} may be written: "
            "raise max_new_tokens (--response-tokens) or, of several turns, the "
            "limits' row_tokens (--row-tokens)."
        )
    return ids


def fits(processor: Processor, text: str, *, most: int) -> bool:
    """Whether the text and a stop token are `most` tokens, and can be `spelled`.

    What a policy wrote may not: broken characters take more tokens than they were
    written with, and letters may spell the token of a picture.
    """
    try:
        return len(ids_of(processor, text)) < most
    except ValueError:
        return False


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
