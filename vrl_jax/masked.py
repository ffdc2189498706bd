"""Statistics over the entries where a boolean mask is True.

Whatever lies elsewhere, NaN included, touches neither value nor gradient. Read as
`masked.mean(x, mask)`.
"""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

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


def std(
    x: Float[Array, "..."], mask: Bool[Array, "..."], *, ddof: int = 1
) -> Float[Array, ""]:
    """sqrt(sum((x - mean)^2) / (count - ddof)) over x[mask]; 0 where undefined."""
    squares = sum((jnp.where(mask, x, 0) - mean(x, mask)) ** 2, mask)
    variance = squares / jnp.maximum(mask.sum() - ddof, 1)
    # The root of 0 would have an infinite gradient.
    return jnp.where(variance > 0, jnp.sqrt(jnp.where(variance > 0, variance, 1)), 0)


def correlation(
    x: Float[Array, "..."], y: Float[Array, "..."], mask: Bool[Array, "..."]
) -> Float[Array, ""]:
    """Pearson's, of x[mask] with y[mask]; 0 where either does not vary."""
    dx, dy = (jnp.where(mask, v, 0) - mean(v, mask) for v in (x, y))
    scale = std(x, mask, ddof=0) * std(y, mask, ddof=0)
    return jnp.where(scale > 0, mean(dx * dy, mask) / jnp.where(scale > 0, scale, 1), 0)


def quantile(
    x: Float[Array, "..."], mask: Bool[Array, "..."], q: float
) -> Float[Array, ""]:
    """The q-quantile of x[mask], linear between neighbours; NaN where nothing is."""
    return jnp.nanquantile(jnp.where(mask, x, jnp.nan), q)


def median(x: Float[Array, "..."], mask: Bool[Array, "..."]) -> Float[Array, ""]:
    """The middle of x[mask], or the mean of the two middle ones."""
    return quantile(x, mask, 0.5)


def lower_median(x: Float[Array, "..."], mask: Bool[Array, "..."]) -> Float[Array, ""]:
    """The middle of x[mask], or the smaller of the two: `torch.median`."""
    return jnp.nanquantile(jnp.where(mask, x, jnp.nan), 0.5, method="lower")


def min_max(
    x: Float[Array, "..."], mask: Bool[Array, "..."], axis: Axis = None
) -> Float[Array, "..."]:
    """(x - min) / (max - min) over x[mask]; 0 off the mask and where all are equal."""
    low = jnp.expand_dims(min(x, mask, axis), axis if axis is not None else ())
    high = jnp.expand_dims(max(x, mask, axis), axis if axis is not None else ())
    valid = mask & (high > low)
    span = jnp.where(valid, high - low, 1)
    return jnp.where(valid, jnp.where(valid, x - low, 0) / span, 0)


def floor_share(share: float, count: Int[Array, "..."]) -> Int[Array, "..."]:
    """floor(share * count), exact: `share` is read as the fraction that was meant.

    In float32 ceil(0.3 * 50) is 16, since 0.3 is stored a little too large. That
    fraction is the nearest p / q with p q up to about 2^30: nothing overflows.
    """
    share = float(share)
    most = int(2**15 / math.sqrt(abs(share) + 2**-30))
    part = Fraction(share).limit_denominator(most)
    whole, rest = count // part.denominator, count % part.denominator
    return whole * part.numerator + rest * part.numerator // part.denominator


def ceil_share(share: float, count: Int[Array, "..."]) -> Int[Array, "..."]:
    """ceil(share * count), as exact as `floor_share`."""
    return -floor_share(-share, count)


def finite(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x, with gradient 0 where it is NaN or infinite: padding may be poisoned."""
    limit = float(jnp.finfo(x.dtype).max)
    return clamp(x, -limit, limit)


def top(
    x: Float[Array, "..."],
    mask: Bool[Array, "..."],
    count: Int[Array, "..."],
    axis: int | None = None,
) -> Bool[Array, "..."]:
    """The `count` largest of x[mask]; of equal ones the earlier. Along `axis`, or all.

    A mask of x's shape; fewer than `count` where fewer are valid.
    """
    values, valid = (x, mask) if axis is not None else (x.ravel(), mask.ravel())
    along = -1 if axis is None else axis
    order = jnp.lexsort((-values, ~valid), axis=along)
    rank = jnp.argsort(order, axis=along)
    return (valid & (rank < count)).reshape(x.shape)


def starts(mask: Bool[Array, "B T"]) -> Bool[Array, "B T"]:
    """The first of each stretch of the mask: where a turn begins."""
    return mask & ~jnp.pad(mask, ((0, 0), (1, 0)))[:, :-1]


def ends(mask: Bool[Array, "B T"]) -> Bool[Array, "B T"]:
    """The last of each stretch of the mask: where a turn ends."""
    return mask & ~jnp.pad(mask, ((0, 0), (0, 1)))[:, 1:]


def numbered(mask: Bool[Array, "B T"]) -> Int[Array, "B T"]:
    """Of which stretch of its row an entry is, from 0; off the mask, of the last."""
    return jnp.maximum(jnp.cumsum(starts(mask), axis=1) - 1, 0)
