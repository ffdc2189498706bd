"""JS divergence of two streams: a second pass, since it needs p and q together.

    JS = (KL(p||a) + KL(q||a)) / 2,  a = (p + q) / 2

From the maxima and sums of the first pass (`state`) log p and log q are known for one
tile at a time, and so is log a.
"""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from . import tiles
from .state import PairState


def divergence(
    hidden: Float[Array, "N d"],
    other: Float[Array, "N d"],
    weight: Float[Array, "V d"],
    temperature: Float[Array, " N"],
    allowed: Bool[Array, " V"],
    state: PairState,
) -> Float[Array, " N"]:
    """The sum over `weight`'s ids, p and q normalised by `state`."""

    def step(total, start, rows):
        part, keep = (tiles.columns(start, rows, x) for x in (weight, allowed))
        z, z2 = (tiles.logits(h, part, temperature, keep) for h in (hidden, other))
        logp = (z - state.m[:, None]) - jnp.log(state.s)[:, None]
        logq = (z2 - state.m2[:, None]) - jnp.log(state.s2)[:, None]
        return total + jnp.where(keep, _integrand(logp, logq), 0).sum(axis=1)

    size = weight.shape[0]
    rows = tiles.tile_rows(size, tiles.TILE)
    return tiles.over_tiles(step, jnp.zeros_like(state.s), size, rows)


def _integrand(logp, logq):
    """(p log(p / a) + q log(q / a)) / 2, exactly 0 where p = q.

    log(a / p) = log((1 + q / p) / 2) = log1p((q / p - 1) / 2): accurate near 0.
    """
    delta = logq - logp
    top = jnp.maximum(delta, 0)
    # log((1 + e^delta) / 2), and the same from q's side: it grows by delta there.
    from_p = top + jnp.log1p(jnp.expm1(-jnp.abs(delta)) / 2)
    from_q = from_p - delta
    return -(jnp.exp(logp) * from_p + jnp.exp(logq) * from_q) / 2
