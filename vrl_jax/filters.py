"""Which groups of responses are worth a gradient. NaN, unscored, does not count."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

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
    groups = by_group(scores, group_size=group_size)
    average = masked.mean(groups, ~jnp.isnan(groups), 1)
    return (low < average) & (average < high)


def zero_variance_groups(
    scores: Float[Array, " B"], *, group_size: int
) -> Bool[Array, " P"]:
    """Groups whose scores are all equal, hence without any advantage."""
    groups = by_group(scores, group_size=group_size)
    known = ~jnp.isnan(groups)
    return masked.max(groups, known, 1) <= masked.min(groups, known, 1)
