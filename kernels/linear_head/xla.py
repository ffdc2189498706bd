"""Plain JAX, for any platform: logits of one tile at a time, reduced at once.

On GPU a tile is a few hundred tokens by the whole vocabulary, elsewhere all tokens by a
few thousand ids. The first needs no merging and keeps the logits of a token together,
which is what XLA's row reductions for GPU are good at; the second reads the weight
once.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from . import tiles
from .state import PairState, State, empty, merge

CHUNK = 512  # rows of logits on GPU, of both streams together: 0.3 GB at V = 152064


def obstacle(
    streams: int, rows: int, width: int, vocabulary: int, dtype: jnp.dtype
) -> str | None:
    """None: every platform and every shape."""
    del streams, rows, width, vocabulary, dtype


def states(
    hidden: Float[Array, "N d"],
    weight: Float[Array, "V d"],
    ids: Int[Array, " N"],
    temperature: Float[Array, " N"],
    allowed: Bool[Array, " V"],
) -> State:
    """See `backend`."""
    return _by_platform((hidden,), weight, ids, temperature, allowed)


def pair_states(
    hidden: Float[Array, "N d"],
    other: Float[Array, "N d"],
    weight: Float[Array, "V d"],
    ids: Int[Array, " N"],
    temperature: Float[Array, " N"],
    allowed: Bool[Array, " V"],
) -> PairState:
    """See `backend`."""
    return _by_platform((hidden, other), weight, ids, temperature, allowed)


def _by_platform(*inputs):
    chunks = {"cuda": _token_chunks, "rocm": _token_chunks}
    return jax.lax.platform_dependent(*inputs, default=_vocabulary_tiles, **chunks)


def _vocabulary_tiles(streams, weight, ids, temperature, allowed):
    size = weight.shape[0]

    def step(sums, start, rows):
        part, keep = (tiles.columns(start, rows, x) for x in (weight, allowed))
        z = [tiles.logits(h, part, temperature, keep) for h in streams]
        new = _sums(*z, tiles.hits(ids, start, rows), keep)
        return merge(jax.tree.map(lambda *x: jnp.stack(x), sums, new))

    return tiles.over_tiles(step, _none(streams), size, min(tiles.TILE, size))


def _token_chunks(streams, weight, ids, temperature, allowed):
    size = ids.shape[0]

    def step(whole, start, rows):
        *some, chosen, divisor = (
            tiles.columns(start, rows, x) for x in (*streams, ids, temperature)
        )
        # One product for both streams: the weight is read once.
        z = tiles.logits(
            jnp.concatenate(some), weight, jnp.tile(divisor, len(some)), allowed
        )
        hit = tiles.hits(chosen, 0, weight.shape[0])
        part = _sums(*jnp.split(z, len(some)), hit, allowed)
        return jax.tree.map(
            lambda x, y: jax.lax.dynamic_update_slice_in_dim(x, y, start, 0),
            whole,
            part,
        )

    rows = min(CHUNK // len(streams), size)
    return tiles.over_tiles(step, _none(streams), size, rows)


def _none(streams):
    kind = State if len(streams) == 1 else PairState
    dtype = jnp.promote_types(streams[0].dtype, jnp.float32)
    return empty(kind, streams[0].shape[0], dtype)


def _sums(z, *rest):
    """The sums of one tile from its logits: (z, hit, keep) or (z, z2, hit, keep)."""
    *others, hit, keep = rest
    m, c, e = _centred(z, keep)
    g = jnp.where(hit, z, 0).sum(axis=1)
    one = State(m, e.sum(axis=1), (e * c).sum(axis=1), g)
    if not others:
        return one
    (z2,) = others
    m2, c2, e2 = _centred(z2, keep)
    apart = c - c2
    return PairState(
        *one,
        m2=m2,
        s2=e2.sum(axis=1),
        g2=jnp.where(hit, z2, 0).sum(axis=1),
        u=(e * apart).sum(axis=1),
        r=-(e2 * apart).sum(axis=1),
    )


def _centred(z, keep):
    m = z.max(axis=1)
    c = jnp.where(keep, z - m[:, None], 0)
    return m, c, jnp.where(keep, jnp.exp(c), 0)
