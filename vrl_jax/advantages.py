"""From the rewards of a group of responses to one advantage a response.

A group is `group_size` consecutive rewards: the responses to one prompt.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float


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
    # Equal rewards such as 0.1 have a mean one rounding away from them, which a
    # later division by a std of the same size would blow up.
    differs = jnp.ptp(groups, axis=1, keepdims=True) > 0
    centered = groups - groups.mean(axis=1, keepdims=True)
    return jnp.where(differs, centered, 0).reshape(-1)


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
    spread = by_group(rewards, group_size=group_size).std(axis=1, ddof=ddof)
    centered = group_centered(rewards, group_size=group_size)
    return centered / (jnp.repeat(spread, group_size) + eps)
