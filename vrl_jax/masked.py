"""Statistics over the entries where a boolean mask is True.

Whatever lies elsewhere, NaN included, touches neither value nor gradient. Read as
`masked.mean(x, mask)`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Axis = int | tuple[int, ...] | None


def sum(
    x: Float[Array, "..."], mask: Bool[Array, "..."], axis: Axis = None
) -> Float[Array, "..."]:
    """sum(x[mask]); 0 where nothing is valid."""
    return jnp.where(mask, x, 0).sum(axis)


def mean(
    x: Float[Array, "..."], mask: Bool[Array, "..."], axis: Axis = None
) -> Float[Array, "..."]:
    """sum(x[mask]) / count; 0 where nothing is valid."""
    return sum(x, mask, axis) / jnp.maximum(mask.sum(axis), 1)


def min(
    x: Float[Array, "..."], mask: Bool[Array, "..."], axis: Axis = None
) -> Float[Array, "..."]:
    """min(x[mask]); +inf where nothing is valid."""
    return jnp.where(mask, x, jnp.inf).min(axis)


def max(
    x: Float[Array, "..."], mask: Bool[Array, "..."], axis: Axis = None
) -> Float[Array, "..."]:
    """max(x[mask]); -inf where nothing is valid."""
    return jnp.where(mask, x, -jnp.inf).max(axis)


def clamp(x: Float[Array, "..."], low: float, high: float) -> Float[Array, "..."]:
    """min(max(x, low), high), with gradient exactly 0 from the bounds outwards.

    `jnp.clip` multiplies the incoming gradient by 0 out there, which leaves NaN
    where it is NaN or infinite (poisoned padding, an overflowed `exp`). This selects.
    """
    return jax.lax.clamp(jnp.asarray(low, x.dtype), x, jnp.asarray(high, x.dtype))
