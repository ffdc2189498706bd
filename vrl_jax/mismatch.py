"""The sampler is not quite the learner: weights and filters for what it wrote.

The engine that samples computes in other kernels and precisions, so that its
log-probs differ from those of the learner at the same weights. rho = learner over
sampler, from `objectives.importance_ratio(old_logprobs, sampler_logprobs)` per token
or `objectives.response_ratio(old_logprobs, sampler_logprobs, mask)` per response.
A weight multiplies the per-token loss after clipping and before a KL term; it carries
no gradient. The rules are those of TRL, https://github.com/huggingface/trl at f2cd577,
and verl, https://github.com/volcengine/verl at b178a3c.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vrl_jax import masked


def truncated(
    ratio: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    low: float = 0.0,
    high: float = 2.0,
) -> Float[Array, "B T"]:
    """clip(rho, low, high); 0 off the mask.

    Truncated importance sampling. The threshold 2 is verl's, per token or per
    response; TRL's is 3.
    """
    return _constant(jnp.clip(ratio, low, high), mask)


def rejected(
    ratio: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    low: float = 0.0,
    high: float = 3.0,
) -> Float[Array, "B T"]:
    """rho where low <= rho <= high, 0 elsewhere: what differs too much is left out.

    TRL's token_mask and, with the ratio of the response, its default sequence_mask,
    with its bound 3. What is left out still counts in the divisor; to leave it out of
    that too, as verl does, shrink the mask: `agreeing_tokens`, `agreeing_responses`.
    """
    inside = (ratio >= low) & (ratio <= high)
    return _constant(jnp.where(inside, ratio, 0), mask)


def mean_one(
    weights: Float[Array, "B T"], mask: Bool[Array, "B T"]
) -> Float[Array, "B T"]:
    """weights / mean(weights) over the valid tokens: verl's batch normalisation.

    Of weights per token; weights of responses are normalised by
    `mean_one_of_responses`.
    """
    return _normalised(weights, masked.mean(weights, mask), mask)


def mean_one_of_responses(
    weights: Float[Array, "B T"], mask: Bool[Array, "B T"]
) -> Float[Array, "B T"]:
    """weights / mean_i(w_i), where each response counts once, whatever its length.

    w_i is the mean over the tokens of a response, which share one weight: verl's batch
    normalisation with rollout_is="sequence". Rows without tokens do not count.
    """
    of_rows = masked.mean(weights, mask, axis=1)
    return _normalised(weights, masked.mean(of_rows, mask.any(axis=1)), mask)


def agreeing_tokens(
    ratio: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    low: float = 0.5,
    high: float = 2.0,
) -> Bool[Array, "B T"]:
    """The valid tokens with low <= ratio <= high.

    verl's rollout_rs by k1, which has a bound on either side: "0.667_1.5" are low and
    high. It bounds the sampler over the learner, the inverse of rho: give it
    importance_ratio(sampler_logprobs, old_logprobs) for token_k1. With
    `objectives.sequence_ratio` or `response_ratio` of the two, whole responses agree
    or do not: seq_mean_k1, seq_sum_k1.
    """
    return mask & (ratio >= low) & (ratio <= high)


def agreeing_responses(
    divergence: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    threshold: float = 0.1,
    statistic: Callable[..., Float[Array, " B"]] = masked.mean,
) -> Bool[Array, "B T"]:
    """The tokens of responses whose mean divergence is at most `threshold`.

    verl's seq_mean_k3 takes divergences.k3(sampler_logprobs, old_logprobs), and k2
    likewise; masked.sum or masked.max as `statistic` makes it seq_sum or seq_max. k1
    has either sign and two bounds: `agreeing_tokens`.
    """
    return mask & (statistic(divergence, mask, axis=1) <= threshold)[:, None]


def on_policy_responses(
    logprobs: Float[Array, "B T"],
    sampler_logprobs: Float[Array, "B T"],
    advantages: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    threshold: float,
) -> Bool[Array, "B T"]:
    """All responses but the bad ones that the policy has left behind.

    Dropped where A < 0 and mean_t(sampler_logprobs - logprobs) > threshold: pushing
    such a response down further only does damage. Off-policy sequence masking of
    DeepSeek-V3.2, https://arxiv.org/abs/2512.02556, as in TRL.
    """
    gap = masked.mean(sampler_logprobs - logprobs, mask, axis=1)
    bad = masked.mean(advantages, mask, axis=1) < 0
    return mask & ~(bad & (gap > threshold))[:, None]


def _normalised(
    weights: Float[Array, "B T"], average: Float[Array, ""], mask: Bool[Array, "B T"]
) -> Float[Array, "B T"]:
    return _constant(weights / jnp.where(average > 0, average, 1), mask)


def _constant(
    weights: Float[Array, "B T"], mask: Bool[Array, "B T"]
) -> Float[Array, "B T"]:
    return jax.lax.stop_gradient(jnp.where(mask, weights, 0))
