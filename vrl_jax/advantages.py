"""From the rewards of a group of responses to one advantage a response.

A group is `group_size` consecutive rewards: the responses to one prompt. A reward that
could not be had is NaN: it takes no part in its group's statistics, and its response
has advantage 0.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from vrl_jax import masked


def by_group(x: Float[Array, " B"], *, group_size: int) -> Float[Array, "P G"]:
    """One row a prompt."""
    if group_size < 2 or x.shape[0] % group_size:
        raise ValueError(
            "rewards must hold whole groups of at least 2 responses, got "
            f"{x.shape[0]} rewards for group_size={group_size}. Sample every prompt "
            "group_size times and keep or drop its responses together."
        )
    return x.reshape(-1, group_size)


def group_centered(
    rewards: Float[Array, " B"], *, group_size: int
) -> Float[Array, " B"]:
    """R_i - mean_group(R).

    Dr. GRPO, section 3.2, https://arxiv.org/abs/2503.20783.
    """
    groups = by_group(rewards, group_size=group_size)
    known = ~jnp.isnan(groups)
    # Equal rewards such as 0.1 have a mean one rounding away from them, which a
    # later division by a std of the same size would blow up.
    differs = masked.max(groups, known, 1) > masked.min(groups, known, 1)
    centered = groups - masked.mean(groups, known, 1)[:, None]
    return jnp.where(known & differs[:, None], centered, 0).reshape(-1)


def group_zscore(
    rewards: Float[Array, " B"], *, group_size: int, eps: float = 1e-6
) -> Float[Array, " B"]:
    """(R_i - mean_group(R)) / (std_group(R) + eps), std with divisor G - 1.

    GRPO, section 4.1.2, https://arxiv.org/abs/2402.03300. The paper leaves divisor and
    eps open: the unbiased std and 1e-6 are those of verl and EasyR1; TRL has 1e-4.
    Exactly 0 in a group of equal rewards.
    """
    return _zscore(rewards, group_size, eps, ddof=1)


def group_zscore_population(
    rewards: Float[Array, " B"], *, group_size: int, eps: float = 1e-6
) -> Float[Array, " B"]:
    """`group_zscore` with divisor G in the std, larger by sqrt(G / (G - 1))."""
    return _zscore(rewards, group_size, eps, ddof=0)


def _zscore(
    rewards: Float[Array, " B"], group_size: int, eps: float, ddof: int
) -> Float[Array, " B"]:
    centered = group_centered(rewards, group_size=group_size)
    known = by_group(~jnp.isnan(rewards), group_size=group_size).sum(axis=1)
    squares = jnp.square(by_group(centered, group_size=group_size)).sum(axis=1)
    spread = jnp.sqrt(squares / jnp.maximum(known - ddof, 1))
    return centered / (jnp.repeat(spread, group_size) + eps)
