"""How far the policy is from another one.

From the sampled tokens alone, d = logprobs - other_logprobs (Schulman,
http://joschu.net/blog/kl-approx.html); or, for small vocabularies and as a reference
for fused kernels, from dense logits.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vrl_jax import masked


def k1(
    logprobs: Float[Array, "B T"], other_logprobs: Float[Array, "B T"]
) -> Float[Array, "B T"]:
    """d: unbiased for KL(pi || other), of either sign.

    Gradient 1, whatever the other policy says: no use as a loss.
    """
    return logprobs - other_logprobs


def absolute(
    logprobs: Float[Array, "B T"], other_logprobs: Float[Array, "B T"]
) -> Float[Array, "B T"]:
    """|d|: verl's and EasyR1's "abs", no estimate of a KL.

    Gradient sign(d), whatever the distance; 0 where d is.
    """
    return jnp.abs(masked.finite(logprobs - other_logprobs))


def k2(
    logprobs: Float[Array, "B T"], other_logprobs: Float[Array, "B T"]
) -> Float[Array, "B T"]:
    """d^2 / 2. Gradient d: in expectation that of KL(pi || other)."""
    return masked.finite(logprobs - other_logprobs) ** 2 / 2


def k3(
    logprobs: Float[Array, "B T"], other_logprobs: Float[Array, "B T"]
) -> Float[Array, "B T"]:
    """exp(-d) + d - 1: unbiased for KL(pi || other), never negative.

    Gradient 1 - exp(-d): in expectation that of the reverse, KL(other || pi).
    GRPO, equation 4, https://arxiv.org/abs/2402.03300. Times
    `objectives.importance_ratio` it is unbiased off-policy as well: TRL's
    use_bias_correction_kl, DeepSeek-V3.2, https://arxiv.org/abs/2512.02556.
    """
    return _k3(masked.finite(other_logprobs - logprobs))


def low_var_kl(
    logprobs: Float[Array, "B T"], other_logprobs: Float[Array, "B T"]
) -> Float[Array, "B T"]:
    """clamp(k3, -10, 10) of d clamped to [-20, 20], as verl and EasyR1 have it.

    Gradient that of `k3`, and 0 where a clamp holds. TRL's has no clamps:
    https://github.com/volcengine/verl at b178a3c, https://github.com/huggingface/trl.
    """
    minus_d = masked.clamp(other_logprobs - logprobs, -20.0, 20.0)
    return masked.clamp(_k3(minus_d), -10.0, 10.0)


def straight_through(
    value: Float[Array, "*S"], surrogate: Float[Array, "*S"]
) -> Float[Array, "*S"]:
    """`value` forwards, the gradient of `surrogate` backwards.

    straight_through(k3, k2) reports the better estimate and follows the gradient of
    KL(pi || other): "k3+" in verl's documentation, which its code at b178a3c refuses.
    """
    return surrogate + jax.lax.stop_gradient(value - surrogate)


def _k3(minus_d: Float[Array, "B T"]) -> Float[Array, "B T"]:
    # expm1: near 0, exp(-d) - 1 would lose in float32 what the d^2 / 2 consists of.
    return jnp.expm1(minus_d) - minus_d


def full_entropy(logits: Float[Array, "*N V"]) -> Float[Array, "*N"]:
    """H(p) = -sum_v p_v log p_v, with p = softmax(logits)."""
    logp = jax.nn.log_softmax(logits)
    return -_expectation(logp, logp)


def nucleus_entropy(
    logits: Float[Array, "*N V"], *, top_p: float = 0.95
) -> Float[Array, "*N"]:
    """H of the most likely tokens whose sum reaches `top_p`, at least one, rescaled.

    What ToR ranks reasoning tokens by, equation 5, https://arxiv.org/abs/2603.25077. Of
    equally likely tokens at the border as many as are needed count.
    """
    logp = jnp.sort(jax.nn.log_softmax(logits), axis=-1, descending=True)
    odds = jnp.exp(logp)
    before = jnp.cumsum(odds, axis=-1) - odds
    return full_entropy(jnp.where(before < top_p, logp, -jnp.inf))


def full_kl(
    logits: Float[Array, "*N V"], other_logits: Float[Array, "*N V"]
) -> Float[Array, "*N"]:
    """KL(p || q) = sum_v p_v (log p_v - log q_v).

    p = softmax(logits), q = softmax(other_logits); swap them for the reverse. With the
    picture in p and without it in q, this is the visual dependency of VPPO, equation 3,
    https://arxiv.org/abs/2510.09285.
    """
    logp = jax.nn.log_softmax(logits)
    return _expectation(logp, logp - jax.nn.log_softmax(other_logits))


def full_jensen_shannon(
    logits: Float[Array, "*N V"], other_logits: Float[Array, "*N V"]
) -> Float[Array, "*N"]:
    """(KL(p || m) + KL(q || m)) / 2, with m = (p + q) / 2; at most log 2."""
    logp, logq = jax.nn.log_softmax(logits), jax.nn.log_softmax(other_logits)
    both = jnp.exp(logp) + jnp.exp(logq)
    # Before the log, whose gradient would be infinite at a token forbidden to both.
    middle = jnp.log(jnp.where(both > 0, both, 1) / 2)
    return (_expectation(logp, logp - middle) + _expectation(logq, logq - middle)) / 2


def _expectation(
    logp: Float[Array, "*N V"], values: Float[Array, "*N V"]
) -> Float[Array, "*N"]:
    """sum_v p_v x_v, where a forbidden token (logit -inf) adds 0 and not NaN."""
    possible = logp > -jnp.inf
    return (jnp.exp(logp) * jnp.where(possible, values, 0)).sum(-1)
