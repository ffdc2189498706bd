"""Some of a group look at other pictures than the rest."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import jax
from jaxtyping import Array, Key

from vrl_jax.engine.actor import Actor
from vrl_jax.engine.processing import encode
from vrl_jax.programs.groups import as_rollout, beside, response_keys, sample
from vrl_jax.types import Images, Prompts, Rollout, Sample

Pictures = Callable[[Actor, Key[Array, ""], Prompts], Images]


def mixed_views(
    actor: Actor,
    batches: Iterator[Sequence[Sample]],
    key: Key[Array, ""],
    *,
    group_size: int,
    pictures: Pictures,
    perturbed: int,
) -> Rollout:
    """The last `perturbed` responses of each group are sampled from other pictures.

    `pictures` makes them of the clean ones, and may ask the actor for its step. Every
    response is scored as an answer to the clean picture: the prompts are the clean
    ones, and the old log-probs are computed again under them. States that were noted
    while sampling are of either view, and are dropped.
    """
    samples = next(batches)
    encoded = encode(actor.processor, samples)
    sample_key, view_key = jax.random.split(key)
    keys = response_keys(samples, sample_key, group_size).reshape(len(samples), -1)
    clean, other = keys[:, : group_size - perturbed], keys[:, group_size - perturbed :]
    images = pictures(actor, view_key, encoded.prompts)
    seen = dataclasses.replace(encoded.prompts, images=images)
    sampled = beside(
        len(samples),
        sample(actor, encoded.prompts, clean.reshape(-1)),
        sample(actor, seen, other.reshape(-1)),
    )
    rollout = as_rollout(actor, samples, encoded, sampled)
    logprobs = actor.likelihood(rollout).logprobs
    return dataclasses.replace(rollout, old_logprobs=logprobs, states=None)
