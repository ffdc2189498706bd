"""DPO: of two given responses, prefer the better one. Nothing is sampled.

Direct Preference Optimization, Rafailov et al., 2023,
https://arxiv.org/abs/2305.18290. Log-ratios are summed over a response, not averaged.

    act     y_1 = the chosen, y_2 = the rejected response of the sample
    score   log pi_ref(y_i | image, q)
    credit  nothing
    loss    -log sigmoid(0.1 (h_1 - h_2)), h_i = sum_t log(pi / pi_ref), mean over pairs
"""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from vrl_jax import preference, reductions
from vrl_jax.models.policy import Params
from vrl_jax.programs.demonstrations import preference_pairs
from vrl_jax.training.iteration import Recipe, as_batch

PairLoss = Callable[[Float[Array, " P"], Float[Array, " P"]], Float[Array, " P"]]


def dpo(
    *, reference: Params | None = None, pair_loss: PairLoss = preference.dpo
) -> Recipe:
    """`reference` stays what it is; None takes the policy before each iteration.

    `pair_loss` may be `preference.ipo`, or either with another constant.
    """

    def score(actor, rollout, key):
        if reference is not None:
            actor = dataclasses.replace(actor, params=reference)
        scored = {"reference": actor.likelihood(rollout).logprobs}
        return dataclasses.replace(rollout, extra_logprobs=scored)

    def credit(rollout):
        sign = 2 * rollout.rewards - 1  # says which is which; the loss reads the order
        return as_batch(rollout, sign[:, None], rollout.extra_logprobs), {}

    def loss(policy, batch):
        new = policy(batch)
        gain = preference.log_ratio(new.logprobs, batch.extra["reference"], batch.mask)
        chosen, rejected = gain.reshape(-1, 2).T
        both = batch.mask.any(axis=1).reshape(-1, 2).all(axis=1)
        mean = reductions.row_mean(pair_loss(chosen, rejected), both)
        right = (chosen > rejected).astype(jnp.float32)
        return mean, {
            "actor/entropy": reductions.token_mean(new.entropy, batch.mask),
            "rewards/margins": reductions.row_mean(chosen - rejected, both),
            "rewards/accuracies": reductions.row_mean(right, both),
        }

    return Recipe(preference_pairs, score, credit, loss)
