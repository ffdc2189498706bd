"""DPO: of two given responses, prefer the better one. Nothing is sampled.

Direct Preference Optimization, Rafailov et al., 2023,
https://arxiv.org/abs/2305.18290. Log-ratios are summed over a response, not averaged.

    act     y_1 = the chosen, y_2 = the rejected response of the sample
    score   log pi_ref(y_i | image, q)
    credit  nothing
    loss    -log sigmoid(0.1 (h_1 - h_2)), h_i = sum_t log(pi / pi_ref), mean over pairs
"""

from collections.abc import Callable

from jaxtyping import Array, Float

from vrl_jax import preference
from vrl_jax.models.policy import Params
from vrl_jax.programs.demonstrations import preference_pairs
from vrl_jax.training.iteration import Recipe
from vrl_jax.training.pair_recipe import pair_recipe

PairLoss = Callable[[Float[Array, " P"], Float[Array, " P"]], Float[Array, " P"]]


def dpo(
    *, reference: Params | None = None, pair_loss: PairLoss = preference.dpo
) -> Recipe:
    """`reference` stays what it is; None takes the policy before each iteration.

    `pair_loss` may be `preference.ipo`, or either with another constant.
    """
    return pair_recipe(
        preference_pairs,
        pair_loss=lambda chosen, rejected: pair_loss(chosen.gain, rejected.gain),
        reference=reference,
    )
