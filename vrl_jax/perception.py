"""How much each sampled token depends on the picture, and what to do with it.

Scores [B, T], then what they select (a mask, a weight from 0 to 1), then weights for
responses; `token_weights` has those of other papers. What names no other source is
VPPO: "Spotlight on Token Perception for Multimodal Reinforcement Learning",
https://arxiv.org/abs/2510.09285, and its released code,
https://github.com/huaixuheqing/VPPO-RL at a23c54b. The term of PAPO is
`divergences.low_var_kl` of the two log-probs.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key
from vrl_kernels.linear_head import js_divergence, linear_head_pair
from vrl_kernels.linear_head.state import PairStats

from vrl_jax import masked


def sampled_k3(
    old_logprobs: Float[Array, "B T"],
    perturbed_logprobs: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    max_log_ratio: float = 20.0,
    max_score: float = 10.0,
) -> Float[Array, "B T"]:
    """S = clamp(exp(d) - d - 1, 0, 10), d = clamp(perturbed - old, -20, 20).

    The score of VPPO's code: the sampled token's estimate of equation 3, which is
    `divergences.full_kl`. It grows linearly where the picture supports the token
    (d < 0), exponentially where it speaks against it, and is 10 from d = 2.61 on.
    0 off the mask.
    """
    # expm1: in float32, exp(d) - 1 would lose the scores of tokens that barely look.
    d = masked.clamp(perturbed_logprobs - old_logprobs, -max_log_ratio, max_log_ratio)
    return jnp.where(mask, masked.clamp(jnp.expm1(d) - d, 0.0, max_score), 0)


def probability_drop(
    old_logprobs: Float[Array, "B T"],
    perturbed_logprobs: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
) -> Float[Array, "B T"]:
    """exp(old) - exp(perturbed), of the sampled token; 0 off mask.

    The weakest of the three scores that VPPO compares.
    """
    return jnp.where(mask, jnp.exp(old_logprobs) - jnp.exp(perturbed_logprobs), 0)


def log_ratio(
    old_logprobs: Float[Array, "B T"],
    perturbed_logprobs: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
) -> Float[Array, "B T"]:
    """old - perturbed: above 0 where the picture supports the token; 0 off mask."""
    return jnp.where(mask, old_logprobs - perturbed_logprobs, 0)


def absolute_log_ratio(
    old_logprobs: Float[Array, "B T"],
    perturbed_logprobs: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
) -> Float[Array, "B T"]:
    """|old - perturbed|; 0 off mask. ToR, https://arxiv.org/abs/2603.25077."""
    return jnp.abs(log_ratio(old_logprobs, perturbed_logprobs, mask))


def view_kl(
    hidden: Float[Array, "N d"],
    other: Float[Array, "N d"],
    head: Float[Array, "V d"],
    *,
    temperature: Float[Array, " N"],
    allowed: Bool[Array, " V"],
) -> Float[Array, " N"]:
    """KL(p||q), p from the picture's final states, q from the perturbed one's.

    Equation 3 of VPPO's paper, whose code has `sampled_k3` instead. Over the whole
    vocabulary: `divergences.full_kl` without its logits.
    """
    return _pair(hidden, other, head, temperature, allowed).kl


def view_reverse_kl(
    hidden: Float[Array, "N d"],
    other: Float[Array, "N d"],
    head: Float[Array, "V d"],
    *,
    temperature: Float[Array, " N"],
    allowed: Bool[Array, " V"],
) -> Float[Array, " N"]:
    """KL(q||p), as `view_kl` otherwise."""
    return view_kl(other, hidden, head, temperature=temperature, allowed=allowed)


def view_symmetric_kl(
    hidden: Float[Array, "N d"],
    other: Float[Array, "N d"],
    head: Float[Array, "V d"],
    *,
    temperature: Float[Array, " N"],
    allowed: Bool[Array, " V"],
) -> Float[Array, " N"]:
    """(KL(p||q) + KL(q||p)) / 2 in one pass: DUPL's perceptual uncertainty.

    https://arxiv.org/abs/2510.01444, for `token_weights.dupl_bonus`.
    """
    both = _pair(hidden, other, head, temperature, allowed)
    return (both.kl + both.reverse_kl) / 2


def _pair(
    hidden: Float[Array, "N d"],
    other: Float[Array, "N d"],
    head: Float[Array, "V d"],
    temperature: Float[Array, " N"],
    allowed: Bool[Array, " V"],
) -> PairStats:
    ids = jnp.full(hidden.shape[:1], -1)  # no token in particular
    return linear_head_pair(
        hidden, other, head, ids, temperature=temperature, allowed=allowed
    )


def view_js(
    hidden: Float[Array, "N d"],
    other: Float[Array, "N d"],
    head: Float[Array, "V d"],
    *,
    temperature: Float[Array, " N"],
    allowed: Bool[Array, " V"],
) -> Float[Array, " N"]:
    """JS divergence of p and q, at most log 2: `divergences.full_jensen_shannon`."""
    return js_divergence(hidden, other, head, temperature=temperature, allowed=allowed)


def trajectory_dependency(
    scores: Float[Array, "B T"], mask: Bool[Array, "B T"]
) -> Float[Array, " B"]:
    """Mean score of a response's tokens; 0 for a response without tokens."""
    return masked.mean(scores, mask, axis=1)


def top_share(
    scores: Float[Array, "B T"], mask: Bool[Array, "B T"], share: float
) -> Bool[Array, "B T"]:
    """The ceil(share * T_i) highest-scored of the T_i tokens of each response.

    Token gradient filter of VPPO, algorithm 1. Of equal scores the earlier token is
    chosen. The count is exact: 0.3 of 50 is 15, where the released float32 rounding
    gives 16; for the paper's 0.4 both agree at every length up to 8192.
    """
    if not 0 <= share <= 1:
        raise ValueError(
            f"share must be a part of the tokens between 0 and 1, got {share}."
        )
    count = masked.ceil_share(share, mask.sum(axis=1, keepdims=True))
    return masked.top(scores, mask, count, axis=1)


def random_share(
    key: Key[Array, ""], mask: Bool[Array, "B T"], share: float
) -> Bool[Array, "B T"]:
    """As many tokens as `top_share` chooses, drawn at random: its control."""
    return top_share(jax.random.uniform(key, mask.shape), mask, share)


def every_token(
    scores: Float[Array, "B T"], mask: Bool[Array, "B T"]
) -> Bool[Array, "B T"]:
    """No selection, in the place of one."""
    return mask


def soft_share(
    scores: Float[Array, "B T"], mask: Bool[Array, "B T"], share: float
) -> Float[Array, "B T"]:
    """sigmoid(z - c), z the z-score in the response, c such that the mean is `share`.

    VPPO's ablation of the binary filter. The std is that of the population. A response
    of equal scores gets `share` throughout.
    """
    centered = jnp.where(mask, scores, 0) - masked.mean(scores, mask, axis=1)[:, None]
    deviation = jnp.sqrt(masked.mean(centered**2, mask, axis=1))[:, None]
    z = jnp.where(mask & (deviation > 0), centered, 0)
    z = z / jnp.where(deviation > 0, deviation, 1)

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) / 2
        above = masked.mean(jax.nn.sigmoid(z - middle), mask, axis=1)[:, None] > share
        return jnp.where(above, middle, low), jnp.where(above, high, middle)

    reach = jnp.abs(z).max(axis=1, keepdims=True) + 20  # sigmoid(-20) is 2e-9
    low, high = jax.lax.fori_loop(0, 60, halve, (-reach, reach))
    return jnp.where(mask, jax.nn.sigmoid(z - (low + high) / 2), 0)


def top_share_of_batch(
    scores: Float[Array, "B T"], mask: Bool[Array, "B T"], share: float
) -> Bool[Array, "B T"]:
    """The ceil(share * N) highest-scored of all N tokens, the earlier of equal ones."""
    return masked.top(scores, mask, masked.ceil_share(share, mask.sum()))


def top_share_of_group(
    scores: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    share: float,
    *,
    group_size: int,
) -> Bool[Array, "B T"]:
    """`top_share_of_batch` in each group: the responses to a prompt share one count."""
    rows = (-1, group_size * mask.shape[1])
    chosen = top_share(scores.reshape(rows), mask.reshape(rows), share)
    return chosen.reshape(mask.shape)


def above_quantile(
    scores: Float[Array, "B T"], mask: Bool[Array, "B T"], share: float
) -> Bool[Array, "B T"]:
    """scores >= their (1 - share)-quantile over all tokens, linear between neighbours.

    With the entropy and 0.2, the forking tokens of "Beyond the 80/20 Rule",
    https://arxiv.org/abs/2506.01939, as in TRL; divisors count all tokens.
    """
    return mask & (scores >= masked.quantile(scores, mask, 1 - share))


def equal_weights(
    dependency: Float[Array, " B"], valid: Bool[Array, " B"]
) -> Float[Array, " B"]:
    """1 for every response, in the place of a weight."""
    return jnp.ones_like(dependency)


def mean_one_weights(
    dependency: Float[Array, " B"], valid: Bool[Array, " B"], *, beta_min: float = 0.9
) -> Float[Array, " B"]:
    """alpha_i = beta_min + (1 - beta_min) n_i / mean(n), to multiply advantages by.

    n is `dependency` scaled to [0, 1] over all valid rows. Trajectory advantage
    shaping of VPPO, equation 5, whose beta_max is "dynamic": the code chooses it so
    that mean(alpha) = 1. The code takes minimum, maximum and mean from whatever one
    device holds, `per_shard_weights`; this takes them from the whole batch.

    Rows that are not valid (without response tokens) do not count and get 1. All get 1
    where fewer than 2 are valid, or where their range is at most 1e-6 (text only).
    """
    return per_shard_weights(
        dependency, valid, micro_batch_size=dependency.shape[0], beta_min=beta_min
    )


def per_shard_weights(
    dependency: Float[Array, " B"],
    valid: Bool[Array, " B"],
    *,
    micro_batch_size: int,
    beta_min: float = 0.9,
) -> Float[Array, " B"]:
    """`mean_one_weights` as released, when given the mini-batch shard of one device.

    Minimum and maximum over the shard, mean(n) over each run of `micro_batch_size`
    rows: the result depends on the number of devices and on gradient accumulation.
    """
    if dependency.shape[0] % micro_batch_size:
        raise ValueError(
            "a shard must hold whole micro-batches, got "
            f"{dependency.shape[0]} rows for micro_batch_size={micro_batch_size}."
        )
    share, spread = _min_max(dependency, valid)
    rows = (-1, micro_batch_size)
    average = masked.mean(share.reshape(rows), valid.reshape(rows), axis=1)
    scale = (1 - beta_min) / (jnp.repeat(average, micro_batch_size) + 1e-8)
    return jnp.where(spread & valid, beta_min + scale * share, 1)


def fixed_range_weights(
    dependency: Float[Array, " B"],
    valid: Bool[Array, " B"],
    *,
    beta_min: float = 0.9,
    beta_max: float = 1.1,
) -> Float[Array, " B"]:
    """alpha_i = beta_min + (beta_max - beta_min) n_i: VPPO, equation 5, to the letter.

    n and the exceptions as in `mean_one_weights`.
    """
    share, spread = _min_max(dependency, valid)
    return jnp.where(spread & valid, beta_min + (beta_max - beta_min) * share, 1)


def _min_max(
    dependency: Float[Array, " B"], valid: Bool[Array, " B"]
) -> tuple[Float[Array, " B"], Bool[Array, ""]]:
    """Valid rows scaled to [0, 1], 0 elsewhere; whether they differ at all."""
    low, high = masked.min(dependency, valid), masked.max(dependency, valid)
    spread = high - low > 1e-6
    share = (dependency - low) / jnp.where(spread, high - low, 1)
    return jnp.where(valid & spread, share, 0), spread
