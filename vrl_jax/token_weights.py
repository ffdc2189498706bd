"""Published weights of tokens and responses by how much they look.

Of CGPO, PGPO, PEPO, ToR, DUPL, VGPO and VEPO, from what `perception` scores and
selects.
They multiply advantages or losses.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vrl_jax import masked
from vrl_jax.perception import top_share, top_share_of_batch


def median_weights(
    dependency: Float[Array, " B"],
    valid: Bool[Array, " B"],
    *,
    strength: float = 0.1,
    median: Callable[[Array, Array], Float[Array, ""]] = masked.median,
) -> Float[Array, " B"]:
    """1 + strength tanh((dependency - median) / MAD): bounded, whatever the outliers.

    CGPO (ACM MM 2026), its weight of a response, as described in
    https://github.com/zsxm1998/awesome-perception-aware-rlvr. PyTorch's median is
    `masked.lower_median`. Rows that are not valid get 1, as do all where MAD is 0.
    """
    centre = median(dependency, valid)
    distance = jnp.where(valid, dependency - centre, 0)
    mad = median(jnp.abs(distance), valid)
    spread = valid & (mad > 0)
    scaled = jnp.where(spread, distance / jnp.where(mad > 0, mad, 1), 0)
    return 1 + strength * jnp.tanh(scaled)


def cgpo_weights(
    entropy: Float[Array, "B T"],
    dependency: Float[Array, "B T"],
    inside: Bool[Array, "B T"],
    weights: Float[Array, " B"],
    mask: Bool[Array, "B T"],
    *,
    share: float = 0.3,
) -> Float[Array, "B T"]:
    """alpha_i where a token perceives, 1 where it is unsure alone, 0 elsewhere.

    CGPO, its weight of a token, with alpha from `median_weights`. A token perceives in
    the top share by dependency, or `inside` the numbers of a box that the response
    names, which take nothing of the share; it is unsure in the top share by entropy.
    Both shares are of the whole batch. Its view is `augmentations.fill_boxes`.
    """
    perceives = top_share_of_batch(dependency, mask, share) | (inside & mask)
    reasons = top_share_of_batch(entropy, mask, share)
    return jnp.where(perceives, weights[:, None], reasons.astype(weights.dtype))


def pgpo_weights(
    scores: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    tau: float = 0.4,
    beta: float = 2.0,
) -> Float[Array, "B T"]:
    """n_i w / sum_t w, w = I / tau below tau, 1 + beta (I - tau) / (1 - tau) above.

    I = min-max of log(1 + score) in the response, of `sampled_k3` without the view of
    the picture. PGPO, https://arxiv.org/abs/2604.01840; a development branch has tau as
    a quantile, a floor of 0.1 and no re-scaling. A response whose weights are all 0
    gets 1: the paper is silent.
    """
    scores = jnp.where(mask, scores, 0)
    share = masked.min_max(jnp.log1p(scores), mask, axis=1)
    weights = jnp.where(share < tau, share / tau, 1 + beta * (share - tau) / (1 - tau))
    return _mean_one(weights, mask)


def pepo_weights(
    similarity: Float[Array, "B T"],
    entropy: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    alpha: float = 0.05,
    temperature: float = 1.8,
) -> Float[Array, "B T"]:
    """n_i softmax_t(v g / temperature), g = `pepo_gate`.

    v is `contrast.picture_similarity`, the mean over layers.
    The advantage is multiplied by (1 - lambda) + lambda w, lambda from 0 to 1 over
    training. PEPO, https://arxiv.org/abs/2603.22847; the temperature is only in its
    script, the rest as in https://github.com/zsxm1998/awesome-perception-aware-rlvr.
    """
    gate = pepo_gate(similarity, entropy, mask, alpha=alpha)
    logits = jnp.where(mask, similarity, 0) * gate / temperature
    raised = jnp.exp(logits - logits.max(axis=1, keepdims=True))
    return _mean_one(raised, mask)


def pepo_gate(
    similarity: Float[Array, "B T"],
    entropy: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    alpha: float = 0.05,
) -> Float[Array, "B T"]:
    """1 + alpha tanh(u - mean u), u = minmax(v) + minmax(H) in the response."""
    u = masked.min_max(similarity, mask, axis=1) + masked.min_max(entropy, mask, axis=1)
    gate = 1 + alpha * jnp.tanh(u - masked.mean(u, mask, axis=1)[:, None])
    return jnp.where(mask, gate, 0)


def tor_weights(
    entropy: Float[Array, "B T"],
    dependency: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    share: float = 0.3,
    reasoning: float = 1.0,
    perception: float = 0.5,
) -> Float[Array, "B T"]:
    """`reasoning` in the top share by entropy, else `perception` by dependency, else 0.

    Both shares are of the whole batch; the entropy is `divergences.nucleus_entropy`,
    dependency is `absolute_log_ratio` without the picture, divisors count all tokens.
    ToR, https://arxiv.org/abs/2603.25077.
    """
    reasons = top_share_of_batch(entropy, mask, share)
    perceives = top_share_of_batch(dependency, mask, share)
    return jnp.where(reasons, reasoning, jnp.where(perceives, perception, 0.0))


def dupl_bonus(
    advantages: Float[Array, "B T"],
    uncertainty: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    alpha: float = 1.0,
    beta: float = 2.0,
) -> Float[Array, "B T"]:
    """min(|A| / beta, alpha sg(u)), to add to the advantage: explore where unsure.

    u is `view_symmetric_kl` (alpha 1), on the perturbed branch alone, and the entropy
    (alpha 0.4) on both. Its views are in `augmentations`. DUPL,
    https://arxiv.org/abs/2510.01444.
    """
    bonus = jnp.minimum(jnp.abs(advantages) / beta, alpha * uncertainty)
    return jax.lax.stop_gradient(jnp.where(mask, bonus, 0))


def vgpo_token_weights(
    similarity: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    share: float = 0.2,
    growth: float = 0.3,
) -> Float[Array, "B T"]:
    """minmax_t of rho, times 1 + growth t / (T_i - 1) at the tail's top tokens.

    rho = similarity - min(0, batch minimum), of `contrast.mean_picture_similarity`; the
    top ceil(share n) of the n tokens in the last half of a response are raised. VGPO,
    https://arxiv.org/abs/2604.09349; the paper has (similarity + 1) / 2 for rho, and
    leaves open whether the share is of the tail.
    """
    lowest = jnp.minimum(masked.min(similarity, mask), 0)
    rho = jnp.where(mask, similarity - lowest, 0)
    length = mask.sum(axis=1, keepdims=True)
    place = jnp.cumsum(mask, axis=1) - 1
    tail = mask & (2 * place >= length)
    chosen = top_share(rho, tail, share)
    raised = rho * jnp.where(chosen, 1 + growth * place / jnp.maximum(length - 1, 1), 1)
    return masked.min_max(raised, mask, axis=1)


def vgpo_factors(
    weights: Float[Array, "B T"], mask: Bool[Array, "B T"], *, group_size: int
) -> Float[Array, "B T"]:
    """f_inter f_intra, to multiply advantages by; `weights` from `vgpo_token_weights`.

    f_intra = clip(1 + w - mean_t w, 0.1, 2) and, with s the min-max of sum_t w in the
    group, f_inter = clip(1 + s - mean s, 0.9, 2). VGPO, https://arxiv.org/abs/2604.09349.
    Its code takes eight neighbours of a micro-batch for a group.
    """
    within = 1 + weights - masked.mean(weights, mask, axis=1)[:, None]
    sums = masked.sum(weights, mask, axis=1).reshape(-1, group_size)
    share = masked.min_max(sums, jnp.ones(sums.shape, bool), axis=1)
    between = 1 + share - share.mean(axis=1, keepdims=True)
    between = jnp.clip(between, 0.9, 2).reshape(-1, 1)
    return jnp.where(mask, between * jnp.clip(within, 0.1, 2), 0)


def vepo_scores(
    divergence: Float[Array, "B T"],
    entropy_gap: Float[Array, "B T"],
    entropy: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    weight: float = 0.7,
) -> Float[Array, "B T"]:
    """(1 - (1 - weight JS)(1 - (1 - weight) |dH|)) H, each min-max in its response.

    JS and the entropy gap are between the clean and a noised view; `top_share` 0.2 of
    this trains, averaged over the selected tokens. VEPO,
    https://arxiv.org/abs/2606.03937, names a soft noisy-or; where the weight enters is
    our reading.
    """
    parts = (divergence, entropy_gap, entropy)
    js, gap, unsure = (masked.min_max(x, mask, axis=1) for x in parts)
    return (1 - (1 - weight * js) * (1 - (1 - weight) * gap)) * unsure


def _mean_one(
    weights: Float[Array, "B T"], mask: Bool[Array, "B T"]
) -> Float[Array, "B T"]:
    """Weights divided by their mean in the response; 1 where they are all 0."""
    average = masked.mean(weights, mask, axis=1)[:, None]
    scaled = jnp.where(average > 0, weights / jnp.where(average > 0, average, 1), 1)
    return jnp.where(mask, scaled, 0)
