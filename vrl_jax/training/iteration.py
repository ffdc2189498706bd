"""The algorithm box: one iteration, the same for every recipe."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vrl_jax.engine.actor import Actor
from vrl_jax.training.learner import Learner, Loss, split, update
from vrl_jax.training.metrics import (
    Metrics,
    advantage_metrics,
    average,
    fact_metrics,
    rollout_metrics,
    sampler_gap,
)
from vrl_jax.types import Batch, Rollout, Sample

Batches = Iterator[Sequence[Sample]]
Act = Callable[[Actor, Batches, Key[Array, ""]], Rollout]


class Recipe(NamedTuple):
    """A method is four functions; a new method replaces one of them.

    act      plays a program for each sample, computes rewards       host and engine
    score    adds log-probs of the same tokens (other view, reference)     no gradient
    credit   advantages, weights, masks: usually the paper's idea              pure jnp
    loss     the differentiated objective                                      pure jnp

    `credit` and `loss` also return what they want logged.
    """

    act: Act
    score: Callable[[Actor, Rollout, Key[Array, ""]], Rollout]
    credit: Callable[[Rollout], tuple[Batch, Metrics]]
    loss: Loss


def as_batch(
    rollout: Rollout,
    advantages: Float[Array, " E #T"] | Float[Array, " B #T"],
    extra: Mapping[str, Array] | None = None,
) -> Batch:
    """The rollout's tokens with an advantage for each; [B, 1] is one per response.

    An episode's advantage goes to all its rows.
    """
    if rollout.episode is not None and len(advantages) != len(rollout.tokens):
        advantages = advantages[rollout.episode]
    return Batch(
        prompts=rollout.prompts,
        tokens=rollout.tokens,
        positions=rollout.positions,
        mask=rollout.mask,
        temperature=rollout.temperature,
        old_logprobs=rollout.old_logprobs,
        advantages=jnp.broadcast_to(advantages, rollout.mask.shape),
        extra=dict(extra or {}),
        log_kept=rollout.log_kept,
        shown=rollout.shown,
        views=rollout.views,
    )


def iteration(
    recipe: Recipe,
    actor: Actor,
    learner: Learner,
    batches: Batches,
    key: Key[Array, ""],
) -> tuple[Learner, Metrics]:
    """Sample, score, credit, update; `act` takes as many batches as it needs."""
    act_key, score_key = jax.random.split(key)
    actor = dataclasses.replace(actor, params=learner.params)
    rollout = recipe.act(actor, batches, act_key)  # y_i ~ pi_old(. | x), R_i
    facts, rollout = fact_metrics(rollout), dataclasses.replace(rollout, facts={})
    rollout = recipe.score(actor, rollout, score_key)  # extra log-probs of y_i
    batch, credited = jax.jit(recipe.credit)(rollout)  # A_it
    history = []
    for minibatch in split(batch, learner.minibatches):
        learner, metrics = update(recipe.loss, learner, minibatch)
        history.append(metrics)
    metrics = {
        **facts,
        **jax.jit(rollout_metrics)(rollout),
        **jax.jit(advantage_metrics)(batch),
        **credited,
        **average(history),
        **jax.jit(sampler_gap)(history[0]),
    }
    return learner, metrics
