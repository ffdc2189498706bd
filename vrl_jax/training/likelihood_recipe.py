"""The recipe of demonstrations: how likely what is shown is; nothing is sampled.

Such a paper is what it shows, how a row is weighed, and who counts how often.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vrl_jax import objectives, reductions
from vrl_jax.training.iteration import Act, Recipe, as_batch
from vrl_jax.training.metrics import Metrics
from vrl_jax.types import Batch, Likelihood, Mean

Weights = Callable[[Bool[Array, "B T"]], Float[Array, " B"]]
"""Of each row, from which of its tokens are learnt."""

Reduction = Callable[[Float[Array, "B T"], Bool[Array, "B T"]], Mean]
Measure = Callable[[Likelihood, Batch], Metrics]


def alike(mask: Bool[Array, "B T"]) -> Float[Array, " B"]:
    """Every row weighs 1."""
    return jnp.ones(len(mask))


def nothing(new: Likelihood, batch: Batch) -> Metrics:
    """No more is logged."""
    return {}


def likelihood_recipe(
    act: Act,
    *,
    reduction: Reduction,
    weights: Weights = alike,
    measure: Measure = nothing,
) -> Recipe:
    """reduction(-w_i log pi(y_it)), w_i the weight of the row.

    `reduction` is such as `reductions.token_mean`; `measure` is logged beside the loss
    and the entropy.
    """

    def score(actor, rollout, key):
        return rollout

    def credit(rollout):
        return as_batch(rollout, weights(rollout.mask)[:, None]), {}

    def loss(policy, batch):
        new = policy(batch)
        per_token = objectives.weighted(new.logprobs, batch.advantages)
        mean = reduction(per_token, batch.mask)
        entropy = reductions.token_mean(new.entropy, batch.mask)
        metrics = {"sft/loss": mean, "actor/entropy": entropy}
        return mean, {**metrics, **measure(new, batch)}

    return Recipe(act, score, credit, loss)
