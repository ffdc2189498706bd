"""What two or three views of a picture say of each other: losses and interventions.

Beside those of `perception`, which weigh tokens: here the views are told apart by the
loss, by the states that they leave, or inside the attention.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vrl_jax import divergences, masked, objectives


def visual_deltas(
    logprobs: Float[Array, "B T"],
    masked_logprobs: Float[Array, "B T"],
    noised_logprobs: Float[Array, "B T"],
    *,
    necessity: float = 0.01,
    robustness: float = 0.01,
    entropy_penalty: float = 0.05,
) -> Float[Array, "B T"]:
    """-necessity k3(l, l_masked) + robustness k3(l, l_noised) - penalty (l_m + l_n).

    Added to the loss: be another policy without the picture, the same one with a noised
    picture. DVRP, equation 4, https://arxiv.org/abs/2601.06801, which sums KLs of whole
    distributions and has no code: k3 is the unofficial
    https://github.com/zsxm1998/awesome-perception-aware-rlvr, where both views are
    scored once, so that the penalty trains nothing.
    """
    needed = divergences.low_var_kl(logprobs, masked_logprobs)
    moved = divergences.low_var_kl(logprobs, noised_logprobs)
    penalty = objectives.sampled_entropy(masked_logprobs + noised_logprobs)
    return -necessity * needed + robustness * moved + entropy_penalty * penalty


def entropy_gain(
    entropy: Float[Array, "B T"],
    removed_entropy: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
) -> Float[Array, "B T"]:
    """H without the information - H with it: `perception.top_share` of it perceives.

    CPPO, https://arxiv.org/abs/2601.00501; the share was not found. 0 off the mask.
    """
    return jnp.where(mask, removed_entropy - entropy, 0)


def contrastive_perception(
    kept: Float[Array, "B T"],
    removed: Float[Array, "B T"],
    advantages: Float[Array, "B T"],
    chosen: Bool[Array, "B T"],
    *,
    temperature: float = 1.0,
) -> Float[Array, "B T"]:
    """-log(e^(k / temperature) / (e^(k / temperature) + e^(r / temperature))).

    InfoNCE with one negative: k is how alike the distribution over the next token is to
    that under a view that keeps the information, r to that under one that removes it.
    On `chosen` tokens of positive advantage, 0 elsewhere. CPPO,
    https://arxiv.org/abs/2601.00501, whose measure and temperature are not public:
    minus `perception.view_js` is one measure.
    """
    counted = chosen & (advantages > 0)
    lead = jnp.where(counted, removed - kept, 0) / temperature
    return jnp.where(counted, jax.nn.softplus(lead), 0)


def picture_similarity(
    states: Float[Array, "B T d"],
    pictures: Float[Array, "B M d"],
    shown: Bool[Array, "B M"],
) -> Float[Array, "B T"]:
    """mean_m cos(h_t, v_m) over the picture tokens `shown`; 0 without any.

    The perception prior of PEPO, https://arxiv.org/abs/2603.22847, of one layer: the
    paper averages over layers.
    """
    pictures = jnp.where(shown[..., None], pictures, 0)
    return (_unit(states) @ _centre(_unit(pictures), shown))[..., 0]


def mean_picture_similarity(
    states: Float[Array, "B T d"],
    pictures: Float[Array, "B M d"],
    shown: Bool[Array, "B M"],
) -> Float[Array, "B T"]:
    """cos(h_t, mean_m v_m): of VGPO, https://arxiv.org/abs/2604.09349.

    Of the states after the final norm. 0 where no picture token is `shown`.
    """
    return (_unit(states) @ _unit(_centre(pictures, shown), axis=1))[..., 0]


def counterfactual_attention(
    attention: Float[Array, "B H Q K"],
    values: Float[Array, "B H K d"],
    pictures: Bool[Array, "B K"],
    text: Bool[Array, "B Q"],
    *,
    spread: float = 2.0,
) -> Float[Array, "B H Q d"]:
    """sum_k a_qk v_k, with the mean value where a text looks hardest at a picture.

    That is where a text query's attention a_qk to a picture token exceeds mean + spread
    std of all these, over heads, queries and keys of a row, those of at most 1e-8 left
    out. The mean value is one number a head, over picture tokens and features. CFPO,
    https://arxiv.org/abs/2606.23206, as in https://github.com/Raven-July/CFPO, which
    takes the threshold for each picture; std with divisor n - 1.
    """
    possible = (text[:, :, None] & pictures[:, None, :])[:, None]
    counted = possible & (attention > 1e-8)
    bound = jax.vmap(lambda a, c: masked.mean(a, c) + spread * masked.std(a, c))(
        attention, counted
    )
    looked = counted & (attention > bound[:, None, None, None])
    features = jnp.where(pictures[:, None, :, None], values, 0)
    count = jnp.maximum(pictures.sum(axis=1), 1) * values.shape[-1]
    middle = features.sum(axis=(2, 3), keepdims=True) / count[:, None, None, None]
    moved = jnp.where(looked, attention, 0) @ (middle - features)
    return attention @ values + moved


def _unit(x: Float[Array, "..."], axis: int = -1) -> Float[Array, "..."]:
    """Of length 1; 0 stays 0, also in the gradient."""
    squares = (x**2).sum(axis, keepdims=True)
    return x * jax.lax.rsqrt(jnp.where(squares > 0, squares, 1))


def _centre(
    pictures: Float[Array, "B M d"], shown: Bool[Array, "B M"]
) -> Float[Array, "B d 1"]:
    """The mean of the picture tokens, as a column."""
    return masked.mean(pictures, shown[..., None], axis=1)[..., None]
