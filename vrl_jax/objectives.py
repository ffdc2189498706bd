"""Per-token policy losses, to be minimised.

Nothing here averages: `reductions` does. Log-ratios are clamped to +-20 before `exp`,
as verl and EasyR1 do, so that a ratio is never infinite and 0 * inf never NaN. A
token beyond the clamp, or one whose log-probs are NaN, gets gradient 0.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from vrl_jax import masked


def importance_ratio(
    logprobs: Float[Array, "B T"], old_logprobs: Float[Array, "B T"]
) -> Float[Array, "B T"]:
    """r = exp(clamp(logprobs - old_logprobs, -20, 20))."""
    return jnp.exp(masked.clamp(logprobs - old_logprobs, -20.0, 20.0))


def clipped_surrogate(
    logprobs: Float[Array, "B T"],
    old_logprobs: Float[Array, "B T"],
    advantages: Float[Array, "B T"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> Float[Array, "B T"]:
    """-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), per token.

    r = exp(logprobs - old_logprobs). PPO, equation 7,
    https://arxiv.org/abs/1707.06347; unequal bounds from DAPO, section 3.1,
    https://arxiv.org/abs/2503.14476.
    """
    ratio = importance_ratio(logprobs, old_logprobs)
    clipped = jnp.clip(ratio, 1 - clip_low, 1 + clip_high)
    return -jnp.minimum(ratio * advantages, clipped * advantages)


def dual_clipped_surrogate(
    logprobs: Float[Array, "B T"],
    old_logprobs: Float[Array, "B T"],
    advantages: Float[Array, "B T"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual: float = 3.0,
) -> Float[Array, "B T"]:
    """min(`clipped_surrogate`, -dual A) where A < 0; `clipped_surrogate` elsewhere.

    Bounds the loss of a bad token that has become much more likely (r > dual > 1),
    and stops its gradient. Dual-clip PPO, https://arxiv.org/abs/1912.09729; on by
    default, with 3, in verl and EasyR1.
    """
    per_token = clipped_surrogate(
        logprobs, old_logprobs, advantages, clip_low=clip_low, clip_high=clip_high
    )
    bounded = jnp.minimum(per_token, -dual * advantages)
    return jnp.where(advantages < 0, bounded, per_token)


def sampled_entropy(logprobs: Float[Array, "B T"]) -> Float[Array, "B T"]:
    """-logprobs: what the sampled tokens say of the entropy.

    Added to a loss with a positive factor it lowers the entropy; this is the entropy
    penalty of VPPO, https://arxiv.org/abs/2510.09285, with factor 0.06. It is a
    surrogate: exactly on-policy its expected gradient is 0, as E[grad log pi] = 0.
    The exact entropy is `Likelihood.entropy`.
    """
    return -logprobs


def clip_fractions(
    logprobs: Float[Array, "B T"],
    old_logprobs: Float[Array, "B T"],
    advantages: Float[Array, "B T"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """1 where the lower, 1 where the upper bound stops the gradient.

    (A < 0 and r < 1 - clip_low), (A > 0 and r > 1 + clip_high). Their
    `reductions.token_mean` are the logged clip fractions.
    """
    ratio = importance_ratio(logprobs, old_logprobs)
    low = (advantages < 0) & (ratio < 1 - clip_low)
    high = (advantages > 0) & (ratio > 1 + clip_high)
    return low.astype(ratio.dtype), high.astype(ratio.dtype)
