"""Plain JAX, for any platform: logits of one block at a time, reduced at once.

A block is some tokens by some ids. On GPU a few hundred tokens by the whole vocabulary:
it needs no merging, and reducing long rows is what XLA's GPU code is good at. On TPU
few reads of the weight count; on a CPU little memory.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from . import tiles
from .state import PairState, State, empty, merge

# Tokens of a block; on GPU of all streams together, 0.3 GB for 152064 ids.
CPU, GPU, OTHER = 1024, 512, 4096


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
    streams, weight, *_ = inputs
    every = weight.shape[0]
    some = tiles.tile_rows(every, tiles.TILE)
    shapes = (CPU, some), (GPU // len(streams), every), (OTHER, some)
    cpu, gpu, other = (functools.partial(in_blocks, shape) for shape in shapes)
    return jax.lax.platform_dependent(
        *inputs, cpu=cpu, cuda=gpu, rocm=gpu, default=other
    )


def in_blocks(
    shape: tuple[int, int],
    streams: tuple[Float[Array, "N d"], ...],
    weight: Float[Array, "V d"],
    ids: Int[Array, " N"],
    temperature: Float[Array, " N"],
    allowed: Bool[Array, " V"],
) -> State | PairState:
    """The sums of one or two streams, `shape` tokens by ids at a time."""
    size, vocabulary = ids.shape[0], weight.shape[0]
    block, tile = min(shape[0], size), min(shape[1], vocabulary)

    def tokens(whole, start, rows):
        *some, chosen, divisor = (
            tiles.columns(start, rows, x) for x in (*streams, ids, temperature)
        )
        together, divisors = jnp.concatenate(some), jnp.tile(divisor, len(some))

        def columns(state, start, rows):
            part, keep = (tiles.columns(start, rows, x) for x in (weight, allowed))
            # One product for both streams: the weight is read once.
            z = tiles.logits(together, part, divisors, keep)
            hit = tiles.hits(chosen, start, rows)
            new = _sums(*jnp.split(z, len(some)), hit, keep)
            return merge(jax.tree.map(lambda *x: jnp.stack(x), state, new))

        part = tiles.over_tiles(columns, _none(some), vocabulary, tile)
        return jax.tree.map(functools.partial(tiles.put, start), part, whole)

    return tiles.over_tiles(tokens, _none(streams), size, block)


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
