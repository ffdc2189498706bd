"""The recipe of preferences: responses in pairs, the better one first.

Such a paper is where its pairs come from, and what a pair costs.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from vrl_jax import masked, preference, reductions
from vrl_jax.engine.reference import near
from vrl_jax.models.policy import Params
from vrl_jax.training.iteration import Act, Recipe, as_batch


class Side(NamedTuple):
    """The chosen, or the rejected, responses of the pairs; sums over their tokens."""

    gain: Float[Array, " P"]
    """h = sum_t log(pi / pi_ref)"""
    logprob: Float[Array, " P"]
    """sum_t log pi"""


PairLoss = Callable[[Side, Side], Float[Array, " P"]]


def pair_recipe(
    act: Act,
    *,
    pair_loss: PairLoss,
    reference: Params | None = None,
    steps: Mapping[str, float] = {},
) -> Recipe:
    """pair_loss(chosen, rejected), mean over pairs.

    Rows 2k and 2k + 1 of what `act` gives are pair k, rewarded 1 and 0, whatever their
    prompts: a sample may have several, such as one for each step of its answer. A pair
    counts where both of it have tokens. `reference` stays what it is; None takes the
    policy before each iteration: margins then start at 0 in each.

    Where every episode has as many rows as there are `steps`, those name the rows by
    their `place` and say what each weighs: of episodes the mean of sum_s weight_s
    pair_loss_s. The loss, margins and accuracies of each step are logged too.
    """

    def score(actor, rollout, key):
        params = actor.params if reference is None else reference
        return near(params, weight=0.0).score(actor, rollout)

    def credit(rollout):
        sign = 2 * rollout.rewards - 1  # says which is which; the loss reads the order
        first = jnp.zeros(len(rollout.mask), int)
        place = first if rollout.place is None else rollout.place
        step = jnp.broadcast_to(place[:, None], rollout.mask.shape)
        extra = {**rollout.extra_logprobs, "step": step}
        return as_batch(rollout, sign[:, None], extra), {}

    def loss(policy, batch):
        new = policy(batch)
        gain = preference.log_ratio(new.logprobs, batch.extra["reference"], batch.mask)
        logprob = masked.sum(new.logprobs, batch.mask, axis=1)
        sides = map(Side, gain.reshape(-1, 2).T, logprob.reshape(-1, 2).T)
        chosen, rejected = sides
        both = batch.mask.any(axis=1).reshape(-1, 2).all(axis=1)
        lost, margin = pair_loss(chosen, rejected), chosen.gain - rejected.gain
        right = (margin > 0).astype(jnp.float32)
        metrics = {
            "actor/entropy": reductions.token_mean(new.entropy, batch.mask),
            "rewards/margins": reductions.row_mean(margin, both),
            "rewards/accuracies": reductions.row_mean(right, both),
            "logps/chosen": reductions.row_mean(chosen.logprob, both),
            "logps/rejected": reductions.row_mean(rejected.logprob, both),
        }
        if not steps:
            return reductions.row_mean(lost, both), metrics
        step = batch.extra["step"][::2, 0]
        for place, name in enumerate(steps):
            here = both & (step == place)
            metrics |= {
                f"actor/{name}_loss": reductions.row_mean(lost, here),
                f"rewards/{name}_margins": reductions.row_mean(margin, here),
                f"rewards/{name}_accuracies": reductions.row_mean(right, here),
            }
        # An episode has a pair of each step: the mean over pairs is 1 / len of it.
        weight = len(steps) * jnp.array([*steps.values()])[step]
        return reductions.row_mean(weight * lost, both), metrics

    return Recipe(act, score, credit, loss)
