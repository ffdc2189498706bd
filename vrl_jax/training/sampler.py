"""Weights of another kind for sampling: rounded, gathered; a recipe that allows it."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vrl_jax import mismatch, objectives
from vrl_jax.engine.actor import Actor
from vrl_jax.engine.slots import Weights, unstack
from vrl_jax.models.policy import Params, Policy
from vrl_jax.models.sharding import gathered
from vrl_jax.training.iteration import Recipe
from vrl_jax.training.metrics import Metrics, once
from vrl_jax.types import Batch, Rollout, Sample

Correct = Callable[..., Float[Array, "B T"]]


def corrected(recipe: Recipe, *, correct: Correct = mismatch.truncated) -> Recipe:
    """The recipe on responses that another policy than the actor's sampled.

    `old_logprobs` are the actor's, which costs a scoring pass, and advantages are
    multiplied by correct(exp(old - sampler), mask), which is truncated importance
    sampling: see `mismatch`.
    """

    def score(actor: Actor, rollout: Rollout, key: Key[Array, ""]) -> Rollout:
        sampler = {**rollout.extra_logprobs, "sampler": rollout.old_logprobs}
        newest = actor.likelihood(rollout).logprobs
        rollout = dataclasses.replace(
            rollout, old_logprobs=newest, extra_logprobs=sampler, states=None
        )
        return recipe.score(actor, rollout, key)

    def credit(rollout: Rollout) -> tuple[Batch, Metrics]:
        batch, metrics = recipe.credit(rollout)
        ratio = objectives.importance_ratio(
            rollout.old_logprobs, rollout.extra_logprobs["sampler"]
        )
        weights = correct(ratio, rollout.mask)
        weighted = dataclasses.replace(batch, advantages=batch.advantages * weights)
        mean = weights.sum() / jnp.maximum(rollout.mask.sum(), 1)
        return weighted, {**metrics, "mismatch/weight": once(mean)}

    return recipe._replace(score=score, credit=credit)


def sampling_in(
    recipe: Recipe,
    dtype: jnp.dtype = jnp.bfloat16,
    *,
    correct: Correct = mismatch.truncated,
) -> Recipe:
    """The recipe, `corrected`, with responses sampled from params rounded to `dtype`.

    The copy is made before sampling and gone after it: half the memory and half the
    reads of float32 params while responses are written.
    """

    def act(
        actor: Actor, batches: Iterator[Sequence[Sample]], key: Key[Array, ""]
    ) -> Rollout:
        params = jax.tree.map(lambda leaf: leaf.astype(dtype), actor.params)
        return recipe.act(dataclasses.replace(actor, params=params), batches, key)

    return corrected(recipe, correct=correct)._replace(act=act)


def sampling_gathered(recipe: Recipe) -> Recipe:
    """The recipe, with tokens written from weights that are whole along `fsdp`.

    The decoder's are gathered when slots begin to be written, and not again for each
    token, which costs their size over the `tensor` axis in memory until none is. The
    same params, so nothing to correct; prompts are read from them as they lie.
    """

    def act(
        actor: Actor, batches: Iterator[Sequence[Sample]], key: Key[Array, ""]
    ) -> Rollout:
        return recipe.act(dataclasses.replace(actor, weights=whole), batches, key)

    return recipe._replace(act=act)


def whole(policy: Policy, params: Params) -> Weights:
    """The weights that tokens are written from, whole along `fsdp`."""
    return gathered(unstack(policy, params))
