"""Per-token losses of policies, and of their critics, to be minimised.

Nothing here averages: `reductions` does. Log-ratios are clamped to +-20 before `exp`,
as verl and EasyR1 do, so that a ratio is never infinite and 0 * inf never NaN. A
token beyond the clamp, or one whose log-probs are NaN, gets gradient 0.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from vrl_jax import masked


def importance_ratio(
    logprobs: Float[Array, "B T"], old_logprobs: Float[Array, "B T"]
) -> Float[Array, "B T"]:
    """r = exp(clamp(logprobs - old_logprobs, -20, 20))."""
    return jnp.exp(masked.clamp(logprobs - old_logprobs, -20.0, 20.0))


def sequence_ratio(
    logprobs: Float[Array, "B T"],
    old_logprobs: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
) -> Float[Array, "B T"]:
    """s = exp(mean_t(logprobs - old_logprobs)), the same for each token of a response.

    The ratio of GSPO, equation 7, https://arxiv.org/abs/2507.18071, to be `clipped`
    with the paper's 3e-4 and 4e-4 and averaged by `reductions.sequence_mean`. Summed
    over tokens instead, `constant_length(max_length=1)`, it is LUSPO,
    https://arxiv.org/abs/2602.05261. The log is clamped to +-20; verl's bound is +10.
    """
    log_ratio = jnp.where(mask, logprobs - old_logprobs, 0)
    return _of_response(masked.mean(log_ratio, mask, axis=1), mask)


def sequence_token_ratio(
    logprobs: Float[Array, "B T"],
    old_logprobs: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
) -> Float[Array, "B T"]:
    """sg(s) exp(logprobs - sg(logprobs)): the value of s, the gradient of each token.

    GSPO-token, equation 14, https://arxiv.org/abs/2507.18071, and verl's only form. In
    a response of constant advantage value and gradient are those of `sequence_ratio`.
    """
    ratio = sequence_ratio(logprobs, old_logprobs, mask)
    own = jnp.where(mask, logprobs, 0)
    return jax.lax.stop_gradient(ratio) * jnp.exp(own - jax.lax.stop_gradient(own))


def response_ratio(
    logprobs: Float[Array, "B T"],
    old_logprobs: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
) -> Float[Array, "B T"]:
    """exp(sum_t(logprobs - old_logprobs)), the same for each token of a response.

    The response as one action, not normalised by its length: RLOO,
    https://arxiv.org/abs/2402.14740, as in TRL (verl has token ratios), and the weights
    of whole responses between sampler and learner.
    """
    log_ratio = jnp.where(mask, logprobs - old_logprobs, 0)
    return _of_response(masked.sum(log_ratio, mask, axis=1), mask)


def geometric_ratio(
    logprobs: Float[Array, "B T"],
    old_logprobs: Float[Array, "B T"],
    advantages: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    clip: float = 0.4,
) -> Float[Array, "B T"]:
    """exp(mean_t of d clipped on the side where A gains), one for each response.

    d = logprobs - old_logprobs; min(d, clip) where A > 0, max(d, -clip) where A < 0.
    The loss is -A times it, `weighted`, averaged by `reductions.sequence_mean`. GMPO,
    https://arxiv.org/abs/2507.20673: a geometric mean is not led by one large ratio.
    """
    d = masked.clamp(logprobs - old_logprobs, -20.0, 20.0)
    bounded = jnp.where(advantages < 0, jnp.maximum(d, -clip), jnp.minimum(d, clip))
    return _of_response(masked.mean(bounded, mask, axis=1), mask)


def _of_response(log_ratio: Float[Array, " B"], mask: Bool[Array, "B T"]) -> Array:
    """exp, for each token; 1 off the mask."""
    ratio = jnp.exp(masked.clamp(log_ratio, -20.0, 20.0))
    return jnp.where(mask, ratio[:, None], 1)


def clipped(
    ratio: Float[Array, "B T"],
    advantages: Float[Array, "B T"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> Float[Array, "B T"]:
    """-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), for a ratio of any kind.

    PPO, equation 7, https://arxiv.org/abs/1707.06347.
    """
    bounded = jnp.clip(ratio, 1 - clip_low, 1 + clip_high)
    return -jnp.minimum(ratio * advantages, bounded * advantages)


def weighted(
    ratio: Float[Array, "B T"], advantages: Float[Array, "B T"]
) -> Float[Array, "B T"]:
    """-r A: what `clipped` is without the clip."""
    return -ratio * advantages


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
    return clipped(ratio, advantages, clip_low=clip_low, clip_high=clip_high)


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


def two_sided_surrogate(
    logprobs: Float[Array, "B T"],
    old_logprobs: Float[Array, "B T"],
    advantages: Float[Array, "B T"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    delta: float = 3.0,
) -> Float[Array, "B T"]:
    """-min(min(r, delta) A, clip(r, 1 - clip_low, 1 + clip_high) A).

    TRL's `delta`, from INTELLECT-2, https://arxiv.org/abs/2505.07291. For delta above
    1 + clip_high it is `dual_clipped_surrogate` written on the ratio.
    """
    ratio = importance_ratio(logprobs, old_logprobs)
    bounded = jnp.clip(ratio, 1 - clip_low, 1 + clip_high)
    capped = jnp.minimum(ratio, delta)
    return -jnp.minimum(capped * advantages, bounded * advantages)


def policy_gradient(
    logprobs: Float[Array, "B T"], advantages: Float[Array, "B T"]
) -> Float[Array, "B T"]:
    """-A logprobs: REINFORCE, without ratio or clip.

    With a token mean that of ReMax, https://arxiv.org/abs/2310.10505, and of GPG,
    https://arxiv.org/abs/2504.02546.
    """
    return -advantages * masked.finite(logprobs)


def cispo(
    logprobs: Float[Array, "B T"],
    old_logprobs: Float[Array, "B T"],
    advantages: Float[Array, "B T"],
    *,
    max_weight: float = 5.0,
) -> Float[Array, "B T"]:
    """-sg(min(r, max_weight)) A logprobs: the weight is clipped, no gradient is lost.

    CISPO, MiniMax-M1, https://arxiv.org/abs/2506.13585, which has no lower
    bound and does not publish the upper one: 5 is ScaleRL's,
    https://arxiv.org/abs/2510.13786, and TRL's (its epsilon_high IS the bound). verl
    and EasyR1 clip elsewhere, `cispo_near_one`.
    """
    ratio = importance_ratio(logprobs, old_logprobs)
    weight = jax.lax.stop_gradient(jnp.minimum(ratio, max_weight))
    return policy_gradient(logprobs, weight * advantages)


def cispo_near_one(
    logprobs: Float[Array, "B T"],
    old_logprobs: Float[Array, "B T"],
    advantages: Float[Array, "B T"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
) -> Float[Array, "B T"]:
    """-sg(clip(r, 1 - clip_low, 1 + clip_high)) A logprobs: `cispo` as in verl, EasyR1.

    The same number in a configuration means another bound there.
    """
    ratio = importance_ratio(logprobs, old_logprobs)
    weight = jax.lax.stop_gradient(jnp.clip(ratio, 1 - clip_low, 1 + clip_high))
    return policy_gradient(logprobs, weight * advantages)


def sapo(
    logprobs: Float[Array, "B T"],
    old_logprobs: Float[Array, "B T"],
    advantages: Float[Array, "B T"],
    *,
    tau_positive: float = 1.0,
    tau_negative: float = 1.05,
) -> Float[Array, "B T"]:
    """-A sigmoid(tau (r - 1)) 4 / tau, tau by the sign of A: a soft clip.

    At r = 1 the gradient is PPO's; it fades on both sides, faster for bad tokens.
    SAPO, https://arxiv.org/abs/2511.20347, averaged by `reductions.sequence_mean`.
    """
    tau = jnp.where(advantages > 0, tau_positive, tau_negative)
    ratio = importance_ratio(logprobs, old_logprobs)
    return -advantages * jax.nn.sigmoid(tau * (ratio - 1)) * 4 / tau


def vespo(
    logprobs: Float[Array, "B T"],
    old_logprobs: Float[Array, "B T"],
    advantages: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    positive: tuple[float, float] = (2.0, 3.0),
    negative: tuple[float, float] = (3.0, 2.0),
) -> Float[Array, "B T"]:
    """-sg(phi) A logprobs, phi = exp(lambda + k ln w - lambda w).

    w is `response_ratio`, (k, lambda) is `positive` where A >= 0. VESPO,
    https://arxiv.org/abs/2602.10693, with the defaults of TRL.
    """
    k, rate = (
        jnp.where(advantages >= 0, *pair)
        for pair in zip(positive, negative, strict=True)
    )
    weight = response_ratio(logprobs, old_logprobs, mask)
    phi = jnp.exp(rate + k * jnp.log(weight) - rate * weight)
    return policy_gradient(logprobs, jax.lax.stop_gradient(phi) * advantages)


def clipped_value_loss(
    values: Float[Array, "B T"],
    old_values: Float[Array, "B T"],
    returns: Float[Array, "B T"],
    *,
    clip: float = 0.5,
) -> Float[Array, "B T"]:
    """max((V - R)^2, (clip(V, V_old - clip, V_old + clip) - R)^2) / 2, per token.

    No gradient where V has left the band around V_old in the direction of R. Not in
    PPO's paper, https://arxiv.org/abs/1707.06347, whose loss is (V - R)^2, but in its
    released code and those after it. In verl `compute_value_loss`, clip 0.5; TRL has
    0.2, and both halve it. A band has the unit of the returns.
    """
    plain, bounded = _value_losses(values, old_values, returns, clip)
    return jnp.maximum(plain, bounded)


def value_clip_fraction(
    values: Float[Array, "B T"],
    old_values: Float[Array, "B T"],
    returns: Float[Array, "B T"],
    *,
    clip: float = 0.5,
) -> Float[Array, "B T"]:
    """1 where `clipped_value_loss` takes the bounded value, 0 elsewhere."""
    plain, bounded = _value_losses(values, old_values, returns, clip)
    return (bounded > plain).astype(values.dtype)


def expectile_loss(
    values: Float[Array, "..."],
    targets: Float[Array, "..."],
    *,
    expectile: float = 0.9,
) -> Float[Array, "..."]:
    """|expectile - 1(u < 0)| u^2, u = targets - values.

    Of targets that scatter the value comes near the best, the more so the nearer the
    expectile is to 1; 0.5 is half of the square. IQL, equation 5,
    https://arxiv.org/abs/2110.06169.
    """
    error = masked.finite(targets - values)
    return jnp.where(error < 0, 1 - expectile, expectile) * jnp.square(error)


def _value_losses(
    values: Float[Array, "B T"],
    old_values: Float[Array, "B T"],
    returns: Float[Array, "B T"],
    clip: float,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """(V - R)^2 / 2 of V, and of V within the band."""
    bounded = jnp.clip(values, old_values - clip, old_values + clip)
    errors = (masked.finite(v - returns) for v in (values, bounded))
    return tuple(0.5 * jnp.square(error) for error in errors)


def shaped_likelihood(
    logprobs: Float[Array, "B T"],
    advantages: Float[Array, "B T"],
    *,
    gamma: float = 0.1,
) -> Float[Array, "B T"]:
    """-A p / (p + gamma), p = exp(logprobs): for tokens that somebody else wrote.

    The expert's own probability is taken as 1, so that its tokenizer need not match.
    The gradient is -A gamma p / (p + gamma)^2: largest at p = gamma, where the policy
    would rarely say what the expert did. LUFFY, https://arxiv.org/abs/2504.14945.
    """
    # p / (p + gamma), with neither overflow nor a gradient from poisoned padding.
    shaped = jax.nn.sigmoid(masked.finite(logprobs) - jnp.log(gamma))
    return -advantages * shaped


def clip_cov(
    key: Key[Array, ""],
    logprobs: Float[Array, "B T"],
    old_logprobs: Float[Array, "B T"],
    advantages: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    share: float = 2e-4,
    low: float = 1.0,
    high: float = 5.0,
) -> Float[Array, "B T"]:
    """`clipped_surrogate`, and 0 on random tokens of high covariance.

    Of the unclipped tokens with low < `covariance` < high, max(floor(share N), 1) are
    drawn, N the valid tokens of this batch. Clip-Cov, https://arxiv.org/abs/2505.22617:
    such tokens are what lowers the entropy. verl counts and draws per micro-batch.
    """
    bounds = {"clip_low": clip_low, "clip_high": clip_high}
    ratio = importance_ratio(logprobs, old_logprobs)
    per_token = clipped(ratio, advantages, **bounds)
    already = sum(clip_fractions(ratio, advantages, **bounds)) > 0
    cov = covariance(logprobs, advantages, mask)
    candidates = mask & ~already & (cov > low) & (cov < high)
    drawn = _largest(jax.random.uniform(key, mask.shape), candidates, share, mask)
    return jnp.where(drawn, 0, per_token)


def kl_cov(
    logprobs: Float[Array, "B T"],
    old_logprobs: Float[Array, "B T"],
    advantages: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    share: float = 2e-4,
    coefficient: float = 1.0,
) -> Float[Array, "B T"]:
    """-r A, plus coefficient |logprobs - old_logprobs| on the highest covariances.

    max(floor(share N), 1) tokens by `covariance` are held back; nothing is clipped.
    KL-Cov, https://arxiv.org/abs/2505.22617. verl's function has coefficient 1, its
    configuration 0.1.
    """
    ratio = importance_ratio(logprobs, old_logprobs)
    chosen = _largest(covariance(logprobs, advantages, mask), mask, share, mask)
    gap = jnp.abs(jnp.where(chosen, logprobs - old_logprobs, 0))
    return weighted(ratio, advantages) + coefficient * gap


def covariance(
    logprobs: Float[Array, "B T"],
    advantages: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
) -> Float[Array, "B T"]:
    """(A - mean A)(logprobs - mean logprobs) over the valid tokens; no gradient.

    Its mean is, to first order, how fast the entropy falls:
    https://arxiv.org/abs/2505.22617.
    """
    own = jax.lax.stop_gradient(logprobs)
    centered = (jnp.where(mask, x, 0) - masked.mean(x, mask) for x in (advantages, own))
    return jnp.where(mask, math.prod(centered), 0)


def _largest(
    x: Float[Array, "B T"],
    candidates: Bool[Array, "B T"],
    share: float,
    mask: Bool[Array, "B T"],
) -> Bool[Array, "B T"]:
    """The max(floor(share N), 1) candidates of largest x."""
    count = jnp.maximum(masked.floor_share(share, mask.sum()), 1)
    return masked.top(x, candidates, count)


def sampled_entropy(logprobs: Float[Array, "B T"]) -> Float[Array, "B T"]:
    """-logprobs: what the sampled tokens say of the entropy.

    Added to a loss with a positive factor it lowers the entropy; this is the entropy
    penalty of VPPO, https://arxiv.org/abs/2510.09285, with factor 0.06. It is a
    surrogate: exactly on-policy its expected gradient is 0, as E[grad log pi] = 0.
    The exact entropy is `Likelihood.entropy`.
    """
    return -logprobs


def clip_fractions(
    ratio: Float[Array, "B T"],
    advantages: Float[Array, "B T"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """1 where the lower, 1 where the upper bound of `clipped` stops the gradient.

    (A < 0 and r < 1 - clip_low), (A > 0 and r > 1 + clip_high). Their
    `reductions.token_mean` are the logged clip fractions.
    """
    low = (advantages < 0) & (ratio < 1 - clip_low)
    high = (advantages > 0) & (ratio > 1 + clip_high)
    return low.astype(ratio.dtype), high.astype(ratio.dtype)
