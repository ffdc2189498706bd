"""The backward pass that every backend shares: vocabulary-major, active rows only.

With log p_v = (z_v - m) - log s, delta_v = log p_v - log q_v, and the cotangents
c1 .. c5 of log p[id], entropy, log q[id], KL(p||q) and KL(q||p):

    dz_v  = c1 (1[v = id] - p_v) - c2 p_v (log p_v + entropy)
            + c4 p_v (delta_v - KL(p||q)) + c5 (p_v - q_v)
    dz'_v = c3 (1[v = id] - q_v) + c4 (q_v - p_v) - c5 q_v (delta_v + KL(q||p))

over the temperature; then dhidden = dz weight and dweight = dz^T hidden. The logits are
computed again, tile by tile: the sums of the forward pass are all that is kept. A tile
of dweight is complete when its tile is done and is rounded once.

A row whose cotangents are all 0 has dz = 0. Such rows are left out: the others are
gathered into blocks, and only as many blocks run as there are rows to fill them.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from . import tiles
from .state import HeadStats, PairState, PairStats, State, finish


class Blocks(NamedTuple):
    """What runs together: rows of a stream, and rows of the weight, at most.

    Rows are an eighth of all where that is less: few rows of a block are idle.
    """

    tokens: int
    ids: int


# A GPU needs larger products, at the price of 0.3 GB: with two streams the others take
# 1.4 times as long (benchmarks/head_blocks.py).
ONE, PAIR, GPU = Blocks(2048, 2816), Blocks(1024, 2048), Blocks(2048, 8192)


class Row(NamedTuple):
    """What the gradient of a token's logits depends on, besides the logits."""

    state: State | PairState
    stats: HeadStats | PairStats
    cotangents: HeadStats | PairStats
    ids: Int[Array, " N"]
    temperature: Float[Array, " N"]


def gradients(*inputs: Any) -> tuple[tuple[Array, ...], Array]:
    """`in_blocks` with the platform's blocks; `dtypes` is the last of its inputs."""
    *arrays, dtypes = inputs
    gpu, default = (
        functools.partial(in_blocks, blocks, dtypes)
        for blocks in (GPU, ONE if len(arrays[0]) == 1 else PAIR)
    )
    return jax.lax.platform_dependent(*arrays, cuda=gpu, rocm=gpu, default=default)


def in_blocks(
    blocks: Blocks,
    dtypes: tuple[tuple[jnp.dtype, ...], jnp.dtype],
    streams: tuple[Float[Array, "N d"], ...],
    weight: Float[Array, "V d"],
    ids: Int[Array, " N"],
    temperature: Float[Array, " N"],
    allowed: Bool[Array, " V"],
    state: State | PairState,
    cotangents: HeadStats | PairStats,
) -> tuple[tuple[Float[Array, "N d"], ...], Float[Array, "V d"]]:
    """Gradients of the streams and of the weight, in these `dtypes`."""
    stream_dtypes, dtype = dtypes
    size = ids.shape[0]
    block = min(blocks.tokens, -(-size // 8))
    active = jnp.stack(cotangents).any(axis=0)
    count = active.sum()
    padded = -(-size // block) * block
    order = jnp.flatnonzero(active, size=padded, fill_value=0)
    tokens = Row(state, finish(state), cotangents, ids, temperature)

    def tile(carry, start, width):
        totals, dweight = carry
        keep = tiles.columns(start, width, allowed)
        # What is not allowed may hold anything, and 0 times NaN is NaN.
        part = jnp.where(keep[:, None], tiles.columns(start, width, weight), 0)

        def one_block(number, carry):
            totals, dpart = carry
            place = number * block
            index = tiles.columns(place, block, order)
            live = place + jnp.arange(block) < count
            some = [jnp.where(live[:, None], tiles.pick(index, h), 0) for h in streams]
            row = jax.tree.map(lambda x: x[index], tokens)
            z = [tiles.logits(h, part, row.temperature, keep) for h in some]
            slopes = _slopes(z, tiles.hits(row.ids, start, width), row)
            for i, (dz, h) in enumerate(zip(slopes, some, strict=True)):
                dz = jnp.where(live[:, None] & keep, dz / row.temperature[:, None], 0)
                dz = dz.astype(h.dtype)
                dpart = dpart + tiles.dot("nv,nd->vd", dz, h)
                more = tiles.dot("nv,vd->nd", dz, part)
                totals = _add(totals, i, more, place)
            return totals, dpart

        full = -(-count // block)
        dpart = jnp.zeros(part.shape, totals[0].dtype)
        totals, dpart = jax.lax.fori_loop(0, full, one_block, (totals, dpart))
        return totals, tiles.put(start, dpart.astype(dtype), dweight)

    exact = jnp.promote_types(streams[0].dtype, jnp.float32)
    totals = tuple(jnp.zeros((padded, h.shape[1]), exact) for h in streams)
    size = weight.shape[0]
    rows = tiles.tile_rows(size, blocks.ids)
    dweight = jnp.zeros(weight.shape, dtype)
    totals, dweight = tiles.over_tiles(tile, (totals, dweight), size, rows)
    return tuple(
        _at_their_places(total, active, block, its)
        for total, its in zip(totals, stream_dtypes, strict=True)
    ), dweight


def _at_their_places(total, active, block, dtype):
    # The rows that were left out are 0. A block at a time: in one piece XLA would hold
    # the total twice.
    place = jnp.cumsum(active) - 1

    def some(out, start, rows):
        index, live = (tiles.columns(start, rows, x) for x in (place, active))
        found = jnp.where(live[:, None], total[index], 0)
        return tiles.put(start, found.astype(dtype), out)

    out = jnp.zeros((len(active), total.shape[1]), dtype)
    return tiles.over_tiles(some, out, len(active), block)


def _add(totals, i, more, place):
    # In place: the total is a carry of two loops.
    so_far = jax.lax.dynamic_slice_in_dim(totals[i], place, len(more))
    new = tiles.put(place, so_far + more, totals[i])
    return (*totals[:i], new, *totals[i + 1 :])


def _slopes(z, hit, row):
    """dz of each stream from its logits."""
    # z - m before - log s, not z - lse: p keeps its digits at any offset.
    logp = (z[0] - row.state.m[:, None]) - jnp.log(row.state.s)[:, None]
    p = jnp.exp(logp)
    c1, c2, *others = (c[:, None] for c in row.cotangents)
    dz = c1 * (hit - p) - c2 * p * (logp + row.stats.entropy[:, None])
    if not others:
        return (dz,)
    c3, c4, c5 = others
    logq = (z[1] - row.state.m2[:, None]) - jnp.log(row.state.s2)[:, None]
    q = jnp.exp(logq)
    delta = logp - logq
    kl, reverse_kl = row.stats.kl[:, None], row.stats.reverse_kl[:, None]
    dz = dz + c4 * p * (delta - kl) + c5 * (p - q)
    dz2 = c3 * (hit - q) + c4 * (q - p) - c5 * q * (delta + reverse_kl)
    return dz, dz2
