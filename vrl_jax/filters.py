"""Which groups, responses and tokens are worth a gradient.

NaN, an unscored response, does not count.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from vrl_jax import masked
from vrl_jax.advantages import by_group


def mixed_groups(
    scores: Float[Array, " B"],
    *,
    group_size: int,
    low: float = 0.01,
    high: float = 0.99,
) -> Bool[Array, " P"]:
    """low < mean_group(score) < high: neither hopeless nor solved.

    Dynamic sampling of DAPO, section 3.2, https://arxiv.org/abs/2503.14476, with
    EasyR1's bounds. The paper counts correct responses; verl keeps the groups
    that are not `zero_variance_groups`.
    """
    average = _group_mean(scores, group_size=group_size)
    return (low < average) & (average < high)


def zero_variance_groups(
    scores: Float[Array, " B"], *, group_size: int
) -> Bool[Array, " P"]:
    """Groups whose scores are all equal, hence without any advantage."""
    groups = by_group(scores, group_size=group_size)
    known = ~jnp.isnan(groups)
    return masked.max(groups, known, 1) <= masked.min(groups, known, 1)


def hard_gate(
    scores: Float[Array, " B"], *, group_size: int, threshold: float = 0.0
) -> Bool[Array, " P"]:
    """mean_group(score) > threshold: whoever never saw it need not reason about it.

    PEARL, https://arxiv.org/abs/2511.18437, of the perception scores; its code has 0.01
    and lets a whole batch pass with probability 0.3. Its soft filter of the groups is
    `mixed_groups` of the one score or of the other.
    """
    return mixed_groups(scores, group_size=group_size, low=threshold, high=jnp.inf)


def soft_gate(
    scores: Float[Array, " B"], *, group_size: int, floor: float = 0.5
) -> Float[Array, " B"]:
    """max(mean_group(score), floor), to multiply the advantages of a group by.

    PEARL, https://arxiv.org/abs/2511.18437, as in its code and as its abstract argues;
    what a note of the paper prints is `capped_gate`.
    """
    average = _group_mean(scores, group_size=group_size)
    return jnp.repeat(jnp.maximum(average, floor), group_size)


def capped_gate(
    scores: Float[Array, " B"], *, group_size: int, ceiling: float = 0.5
) -> Float[Array, " B"]:
    """min(mean_group(score), ceiling): `soft_gate` as printed, flat above it."""
    average = _group_mean(scores, group_size=group_size)
    return jnp.repeat(jnp.minimum(average, ceiling), group_size)


def _group_mean(scores: Float[Array, " B"], *, group_size: int) -> Float[Array, " P"]:
    groups = by_group(scores, group_size=group_size)
    return masked.mean(groups, ~jnp.isnan(groups), 1)


def finished_responses(
    mask: Bool[Array, "B T"], finished: Bool[Array, " B"]
) -> Bool[Array, "B T"]:
    """The tokens of responses that ended by themselves.

    Over-long filtering of DAPO, section 3.4, https://arxiv.org/abs/2503.14476, and the
    mask_truncated_completions of TRL. The alternative is a reward, `rewards.length`.
    """
    return mask & finished[:, None]


def advantage_band(
    advantages: Float[Array, " B"],
    *,
    low: float | Float[Array, ""] = 0.03,
    high: float | Float[Array, ""] = jnp.inf,
) -> Bool[Array, " B"]:
    """low <= |A_i| <= high: responses that say something.

    The effective set of PAD, ReVisual-R1, https://arxiv.org/abs/2506.04207. Its
    configuration has high = 0.97, which drops the only right answers of a group when
    advantages are divided by their std; the code's interval is open.
    """
    size = jnp.abs(advantages)
    return (low <= size) & (size <= high)


def priority_resampling(
    key: Key[Array, ""],
    advantages: Float[Array, " B"],
    valid: Bool[Array, " B"],
    *,
    count: int,
    temperature: float | Float[Array, ""] = 0.3,
) -> tuple[Int[Array, " count"], Bool[Array, " count"]]:
    """Rows drawn by exp(|A| / temperature) without replacement, and which are real.

    PAD, ReVisual-R1, https://arxiv.org/abs/2506.04207, as printed; the paper lowers the
    temperature from 1 to 0.3. With fewer than `count` valid rows the last are filler.
    """
    score = jnp.abs(advantages) / temperature
    noise = jax.random.gumbel(key, score.shape, score.dtype)  # Gumbel top-k
    best, rows = jax.lax.top_k(jnp.where(valid, score + noise, -jnp.inf), count)
    return rows, best > -jnp.inf


def priority_resampling_released(
    key: Key[Array, ""],
    advantages: Float[Array, " B"],
    valid: Bool[Array, " B"],
    *,
    count: int,
    power: float = 1.5,
) -> Int[Array, " count"]:
    """Rows drawn by (|A| + 1e-8)^power WITH replacement: PAD as in its code.

    There `count` is 1.5 times the batch. All rows count where none is valid.
    """
    valid = valid | ~valid.any()
    weights = jnp.where(valid, (jnp.abs(advantages) + 1e-8) ** power, 0)
    return jax.random.choice(key, valid.size, (count,), p=weights / weights.sum())
