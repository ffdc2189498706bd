"""Which of two responses is better: losses on pairs, one number a pair.

A pair's rewards are those of the chosen and of the rejected response. The implicit
reward of a policy is `log_ratio`; a reward model's own scores serve as well.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vrl_jax import masked


def log_ratio(
    logprobs: Float[Array, "B T"],
    ref_logprobs: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
) -> Float[Array, " B"]:
    """h = sum_t(logprobs - ref_logprobs): beta h is what DPO takes for the reward.

    Summed, not averaged. With a mask of one step alone, after a prefix that both
    responses share, `dpo` of it is Step-DPO, https://arxiv.org/abs/2406.18629.
    """
    return masked.sum(logprobs - ref_logprobs, mask, axis=1)


def bradley_terry(
    chosen: Float[Array, " P"], rejected: Float[Array, " P"]
) -> Float[Array, " P"]:
    """-log sigmoid(chosen - rejected): the better one wins, of a reward model's scores.

    Bradley and Terry, 1952; InstructGPT, equation 1, https://arxiv.org/abs/2203.02155.
    """
    return -jax.nn.log_sigmoid(chosen - rejected)


def dpo(
    chosen: Float[Array, " P"], rejected: Float[Array, " P"], *, beta: float = 0.1
) -> Float[Array, " P"]:
    """-log sigmoid(beta (h_chosen - h_rejected)), of `log_ratio`s.

    DPO, equation 7, https://arxiv.org/abs/2305.18290.
    """
    return bradley_terry(beta * chosen, beta * rejected)


def dpo_with_likelihood(
    chosen: Float[Array, " P"],
    rejected: Float[Array, " P"],
    chosen_logprob: Float[Array, " P"],
    *,
    beta: float = 0.1,
    alpha: float = 1 / 1024,
) -> Float[Array, " P"]:
    """`dpo` - alpha log pi(chosen), of the summed log-prob.

    Keeps the chosen response from becoming rarer while the rejected one does so
    faster. STIC, https://arxiv.org/abs/2405.19716: 1 / 1024 averages over a nominal
    1024 tokens. Its code takes for the rejected tokens the most likely other ones;
    this is the paper's formula.
    """
    return dpo(chosen, rejected, beta=beta) - alpha * chosen_logprob


def ipo(
    chosen: Float[Array, " P"], rejected: Float[Array, " P"], *, tau: float = 0.1
) -> Float[Array, " P"]:
    """(h_chosen - h_rejected - 1 / (2 tau))^2: a margin to meet, not to grow for ever.

    IPO, equation 17, https://arxiv.org/abs/2310.12036, on summed log-ratios; TRL
    averages them over the tokens.
    """
    return (chosen - rejected - 1 / (2 * tau)) ** 2


def softmax_dpo(
    chosen: Float[Array, " P"],
    rejected: Float[Array, "P K"],
    valid: Bool[Array, "P K"],
    *,
    beta: float = 1.0,
) -> Float[Array, " P"]:
    """log(1 + sum_j exp(beta (h_rejected_j - h_chosen))): one against several.

    S-DPO, https://arxiv.org/abs/2406.09215; with beta 1 the reward model of CogFlow.
    Equal to `dpo` for one rejected response; 0 where none is valid.
    """
    lead = beta * (jnp.where(valid, rejected, 0) - chosen[:, None])
    lost = jnp.where(valid, lead, -jnp.inf)
    return jax.nn.logsumexp(jnp.pad(lost, ((0, 0), (1, 0))), axis=1)
