"""Vocabulary tiles in plain JAX, for any platform.

Forward: one pass with an online maximum. Per token it keeps m (maximum so far),
S = sum exp(z - m), T = sum exp(z - m) (z - m) and g = z[id]; then

    logprobs = g - m - log S        entropy = log S - T / S

Backward: tiles again, from two residuals per token (logsumexp and entropy):

    dz_v = c1 (1[v = id] - p_v) - c2 p_v (log p_v + entropy)

with c1, c2 the cotangents of logprobs and entropy; dhidden accumulates in float32,
each tile of dweight is complete when its tile is done and is rounded once.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from .reference import MASKED, HeadStats

TILE = 4096  # rows of the weight: [N, TILE] float32 is the largest temporary


@jax.custom_vjp
def linear_head(
    hidden: Float[Array, "N d"],
    weight: Float[Array, "V d"],
    ids: Int[Array, " N"],
    temperature: Float[Array, " N"],
    allowed: Bool[Array, " V"],
) -> HeadStats:
    """See the package."""
    return _forward(hidden, weight, ids, temperature, allowed)[0]


def _tiles(weight: Array) -> tuple[int, int]:
    """Rows of a tile and number of tiles; the last one may overlap its neighbour."""
    rows = min(TILE, weight.shape[0])
    return rows, -(-weight.shape[0] // rows)


def _tile(hidden, weight, temperature, allowed, index):
    """Logits [N, rows] of one tile, its first id, its weight, and which ids count."""
    rows, _ = _tiles(weight)
    start = jnp.minimum(index * rows, weight.shape[0] - rows)
    part = jax.lax.dynamic_slice_in_dim(weight, start, rows)
    logits = jnp.einsum("nd,vd->nv", hidden, part, preferred_element_type=jnp.float32)
    # The last tile is shifted back to end with the vocabulary: ids that the tile
    # before has covered must not count twice.
    fresh = start + jnp.arange(rows) >= index * rows
    keep = fresh & jax.lax.dynamic_slice_in_dim(allowed, start, rows)
    return jnp.where(keep, logits / temperature[:, None], MASKED), start, part, keep


def _hits(ids, start, rows, index):
    columns = start + jnp.arange(rows)
    return (columns == ids[:, None]) & (columns >= index * rows)


def _forward(hidden, weight, ids, temperature, allowed):
    rows, count = _tiles(weight)

    def step(state, index):
        m, s, t, g = state
        logits, start, *_ = _tile(hidden, weight, temperature, allowed, index)
        m_new = jnp.maximum(m, logits.max(axis=1))
        shift = m - m_new
        centred = logits - m_new[:, None]
        weights = jnp.exp(centred)
        t = jnp.exp(shift) * (t + shift * s) + (weights * centred).sum(axis=1)
        s = jnp.exp(shift) * s + weights.sum(axis=1)
        hit = _hits(ids, start, rows, index)
        return (m_new, s, t, g + jnp.where(hit, logits, 0.0).sum(axis=1)), None

    zero = jnp.zeros(hidden.shape[0], jnp.float32)
    init = (zero + MASKED, zero, zero, zero)
    (m, s, t, g), _ = jax.lax.scan(step, init, jnp.arange(count))
    entropy = jnp.log(s) - t / s
    lse = m + jnp.log(s)
    # (g - m) - log s, not g - lse: the offset of the logits cancels exactly.
    stats = HeadStats((g - m) - jnp.log(s), entropy)
    return stats, (hidden, weight, ids, temperature, allowed, lse, entropy)


def _backward(residuals, cotangents):
    hidden, weight, ids, temperature, allowed, lse, entropy = residuals
    rows, count = _tiles(weight)
    c1, c2 = (c[:, None] for c in cotangents)

    def step(dhidden, index):
        logits, start, part, keep = _tile(hidden, weight, temperature, allowed, index)
        logp = logits - lse[:, None]
        p = jnp.exp(logp)
        dz = c1 * (_hits(ids, start, rows, index) - p)
        dz = dz - c2 * p * (logp + entropy[:, None])
        dz = jnp.where(keep, dz / temperature[:, None], 0).astype(hidden.dtype)
        dot = {"preferred_element_type": jnp.float32}
        dhidden = dhidden + jnp.einsum("nv,vd->nd", dz, part, **dot)
        dpart = jnp.einsum("nv,nd->vd", dz, hidden, **dot)
        return dhidden, dpart.astype(weight.dtype)

    dhidden, parts = jax.lax.scan(
        step, jnp.zeros(hidden.shape, jnp.float32), jnp.arange(count)
    )
    overlap = count * rows - weight.shape[0]
    whole = parts[:-1].reshape(-1, weight.shape[1])
    dweight = jnp.concatenate([whole, parts[-1][overlap:]])
    return dhidden.astype(hidden.dtype), dweight, None, None, None


linear_head.defvjp(_forward, _backward)
