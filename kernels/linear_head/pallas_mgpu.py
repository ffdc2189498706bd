"""Hopper: one warp-specialised Mosaic GPU kernel, for one stream and for two.

A block multiplies two sets of 128 rows by a run of vocabulary tiles. With two streams
the sets are the same tokens of `hidden` and of `other`; with one they are 256 tokens of
`hidden`. Either way a tile of the weight meets 256 rows:

    producer warpgroup    TMA brings rows [2, 128, 64] and weight [128, 64] into a ring
                          of slots, 48 KB each, and never waits for the end of a tile
    consumer warpgroup i  wgmma of rows 64 i .. 64 i + 63 of both sets into two float32
                          accumulators [64, 128] in registers; after d / 64 steps they
                          are reduced into the sums of `state`, which wait in shared
                          memory meanwhile

Beyond the end of an array TMA brings zeros, so that no array has to be whole blocks;
but its swizzle wants whole tiles of 8 x 64, and an array that is not is copied into one
that is. Columns beyond the vocabulary, like those that are not allowed, are selected
out before any arithmetic. The runs of a row are merged outside of the kernel.

Needs jax 0.11 to run; importing it does not. Interpreted on a CPU (`make test-new`),
run and timed on an H200 (`make test-hopper`, `experiments/bench_head.py`): at the head
of Qwen2.5-VL 7B it takes 1.09 times as long as the bare product by cuBLAS.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Bool, Float, Int

from .state import MASKED, PairState, State, merge

ROWS = 64  # of an accumulator: what one wgmma of a warpgroup takes
COLUMNS = 128  # of an accumulator: two of them are 128 registers of every thread
DEPTH = 64  # of a step: 128 bytes, the widest swizzle
SLOTS = 4
CONSUMERS = 2
BLOCK = CONSUMERS * ROWS
WORD = 32  # columns that are reduced at a time; one integer says which are allowed
# Below the maximum of no columns: exp of the difference is 0.
OUT = 2 * MASKED

CORES = 132  # of an H100 SXM or H200; elsewhere the balance is worse, the result same
CACHE = 25e6  # bytes, half of the L2 cache: what the rows in flight may take


def obstacle(
    streams: int, rows: int, width: int, vocabulary: int, dtype: str
) -> str | None:
    """Why the kernel cannot run on the present devices, or None."""
    del streams, rows, width, vocabulary
    if jax.__version_info__ < (0, 11):
        return f"Mosaic GPU needs jax 0.11 or newer for it, this is {jax.__version__}."
    if dtype not in ("bfloat16", "float16"):
        return f"wgmma takes bfloat16 or float16 without rounding, not {dtype}."
    device = jax.devices()[0]
    if getattr(device, "compute_capability", None) != "9.0":
        return f"it needs a Hopper GPU (compute capability 9.0), this is {device}."
    return None


def states(
    hidden: Float[Array, "N d"],
    weight: Float[Array, "V d"],
    ids: Int[Array, " N"],
    temperature: Float[Array, " N"],
    allowed: Bool[Array, " V"],
) -> State:
    """See `backend`."""
    return _sums(State, hidden, hidden, weight, ids, temperature, allowed)


def pair_states(
    hidden: Float[Array, "N d"],
    other: Float[Array, "N d"],
    weight: Float[Array, "V d"],
    ids: Int[Array, " N"],
    temperature: Float[Array, " N"],
    allowed: Bool[Array, " V"],
) -> PairState:
    """See `backend`."""
    return _sums(PairState, hidden, other, weight, ids, temperature, allowed)


def run_length(row_blocks: int, tiles: int, width: int) -> int:
    """How many consecutive tiles one block takes: the fastest by a simple count.

    `CORES` blocks run at a time, those with the same rows side by side, and each reads
    its rows again for every tile. So that these come from the L2 cache, few rows and
    many runs are in flight; then the fewest tiles one after the other win, with a tenth
    of a tile for the start and the end of a block.
    """
    rows_in_flight = max(1, int(CACHE / (2 * BLOCK * 2 * width)))
    fewest = min(-(-CORES // rows_in_flight), tiles)

    def time(length):
        waves = -(-row_blocks * -(-tiles // length) // CORES)
        return waves * (length + 0.1)

    lengths = {-(-tiles // runs) for runs in range(fewest, min(tiles, CORES) + 1)}
    return min(sorted(lengths, reverse=True), key=time)


class _Refs(NamedTuple):
    """Arrays, then shared memory, then barriers of the ring."""

    first: Array  # [N, d], or the same as `second`
    second: Array
    weight: Array  # [V, d]
    ids: Array  # [whole blocks], -1 matches nothing
    scale: Array  # [whole blocks], 1 / temperature
    allowed: Array  # [tiles x 4], bits
    out: Array  # [fields, runs, blocks x 128]
    rows: Array  # [slots, 2, 128, 64]
    columns: Array  # [slots, 128, 64]
    sums: Array  # [consumers, fields, 64]
    full: Array  # [slots]
    empty: Array


def _sums(kind, first, second, weight, ids, temperature, allowed):
    rows, width = first.shape
    pair = kind is PairState
    per_block = BLOCK if pair else 2 * BLOCK
    blocks, tiles = pl.cdiv(rows, per_block), pl.cdiv(weight.shape[0], COLUMNS)
    length = run_length(blocks, tiles, width)
    runs, fields = pl.cdiv(tiles, length), len(_names(pair))

    ids = jnp.where((ids >= 0) & (ids < weight.shape[0]), ids, -1).astype(jnp.int32)
    more = (0, blocks * per_block - rows)
    bits = jnp.pad(allowed, (0, tiles * COLUMNS - allowed.shape[0])).reshape(-1, WORD)
    bits = (bits.astype(jnp.int32) << jnp.arange(WORD)).sum(axis=1, dtype=jnp.int32)

    tiling = plgpu.TilingTransform((8, DEPTH))
    swizzled = (tiling, plgpu.SwizzleTransform(DEPTH * first.dtype.itemsize))
    ring = functools.partial(plgpu.SMEM, dtype=first.dtype, transforms=swizzled)
    out = plgpu.kernel(
        functools.partial(_kernel, pair, tiles, length),
        out_type=jax.ShapeDtypeStruct((fields, runs, blocks * BLOCK), jnp.float32),
        scratch_types=[
            ring((SLOTS, 2, BLOCK, DEPTH)),
            ring((SLOTS, COLUMNS, DEPTH)),
            plgpu.SMEM((CONSUMERS, fields, ROWS), jnp.float32),
            plgpu.Barrier(num_arrivals=3, num_barriers=SLOTS),
            plgpu.Barrier(num_arrivals=CONSUMERS, num_barriers=SLOTS),
        ],
        grid=(blocks, runs),  # the last is the fastest: runs of a row side by side
        grid_names=("block", "run"),
        num_threads=CONSUMERS + 1,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(
            approx_math=True,  # exp to 2 units in the last place
            lowering_semantics=plgpu.LoweringSemantics.Lane,
        ),
    )(
        *map(_whole_tiles, (first, second, weight)),
        jnp.pad(ids, more, constant_values=-1),
        jnp.pad(1 / temperature, more, constant_values=1),
        bits,
    )
    if not pair:  # both sets of a block are rows of the one stream
        out = out.reshape(2, fields // 2, runs, blocks, BLOCK)
        out = out.transpose(1, 2, 3, 0, 4).reshape(fields // 2, runs, -1)
    return merge(kind(*out[..., :rows]))


def _whole_tiles(x):
    rows, width = x.shape
    return jnp.pad(x, ((0, -rows % 8), (0, -width % DEPTH)))


def _names(pair):
    return PairState._fields if pair else State._fields * 2


def _kernel(pair, tiles, length, *refs):
    refs = _Refs(*refs)
    warpgroup = lax.axis_index("warpgroup")
    block, run = lax.axis_index("block"), lax.axis_index("run")
    starts = [block * BLOCK] * 2
    if not pair:
        starts = [block * 2 * BLOCK, block * 2 * BLOCK + BLOCK]
    first_tile = run * length
    count = jnp.minimum(length, tiles - first_tile)

    @pl.when(warpgroup == CONSUMERS)
    def _():
        plgpu.set_max_registers(40, action="decrease")
        _produce(refs, starts, first_tile, count)

    @pl.when(warpgroup < CONSUMERS)
    def _():
        plgpu.set_max_registers(232, action="increase")
        sums = refs.sums.at[warpgroup]
        _consume(refs, pair, warpgroup, starts, first_tile, count, sums)
        plgpu.commit_smem()
        mine = pl.ds(block * BLOCK + warpgroup * ROWS, ROWS)
        for i in range(len(_names(pair))):
            plgpu.copy_smem_to_gmem(sums.at[i], refs.out.at[i, run, mine])
        plgpu.wait_smem_to_gmem(0)


def _produce(refs, starts, first_tile, count):
    """Fill the ring with all steps of all tiles; see the last slots emptied, too."""
    steps = refs.weight.shape[1] // DEPTH

    @pl.loop(0, count * steps + SLOTS)
    def _(step):
        slot = lax.rem(step, SLOTS)
        tile = first_tile + lax.div(step, steps)
        depth = pl.ds(lax.rem(step, steps) * DEPTH, DEPTH)

        @pl.when(step >= SLOTS)
        def _():
            plgpu.barrier_wait(refs.empty.at[slot])

        def bring(source, start, target):
            source = source.at[pl.ds(start, target.shape[0]), depth]
            plgpu.copy_gmem_to_smem(source, target, refs.full.at[slot])

        @pl.when(step < count * steps)
        def _():
            bring(refs.first, starts[0], refs.rows.at[slot, 0])
            bring(refs.second, starts[1], refs.rows.at[slot, 1])
            bring(refs.weight, tile * COLUMNS, refs.columns.at[slot])


def _consume(refs, pair, warpgroup, starts, first_tile, count, sums):
    """Multiply what the ring brings; after each tile, take it into the sums."""
    names = _names(pair)
    by_row = plgpu.Layout.WGMMA.reduce(1)
    for i, name in enumerate(names):
        start = jnp.full(ROWS, MASKED if name in ("m", "m2") else 0, jnp.float32)
        sums[i] = plgpu.layout_cast(start, by_row)

    @pl.loop(0, count)
    def _(tile):
        accumulator = plgpu.ACC((ROWS, COLUMNS), jnp.float32)

        @functools.partial(pl.run_scoped, one=accumulator, two=accumulator)
        def _(one, two):
            _multiply(refs, warpgroup, tile, one, two)

            def logits(accumulator, start):
                rows = pl.ds(start + warpgroup * ROWS, ROWS)
                scale, ids = (
                    plgpu.load(x.at[rows], layout=by_row, optimized=False)
                    for x in (refs.scale, refs.ids)
                )
                here = first_tile + tile
                return _logits(accumulator[...], scale, ids, refs.allowed, here)

            def load(kind, offset=0):
                fields = range(offset, offset + len(kind._fields))
                return kind(*(plgpu.load(sums.at[i], layout=by_row) for i in fields))

            def store(new, offset=0):
                for i, value in enumerate(new):
                    sums[offset + i] = value

            # Loaded late: until then the logits need the registers.
            if pair:
                z, z2 = logits(one, starts[0]), logits(two, starts[1])
                store(_with_pair(load(PairState), z, z2))
            else:
                z = logits(one, starts[0])
                store(_with_tile(load(State), z))
                z = logits(two, starts[1])
                store(_with_tile(load(State, 4), z), 4)


def _multiply(refs, warpgroup, tile, one, two):
    """All steps of a tile, into the accumulators of both sets."""
    steps = refs.weight.shape[1] // DEPTH

    @pl.loop(0, steps)
    def _(step):
        slot = lax.rem(tile * steps + step, SLOTS)
        mine = pl.ds(warpgroup * ROWS, ROWS)
        columns = refs.columns.at[slot].transpose((1, 0))
        plgpu.barrier_wait(refs.full.at[slot])
        plgpu.wgmma(one, refs.rows.at[slot, 0, mine], columns)
        plgpu.wgmma(two, refs.rows.at[slot, 1, mine], columns)
        plgpu.wgmma_wait(0)
        plgpu.barrier_arrive(refs.empty.at[slot])


class _Logits(NamedTuple):
    words: list[Array]  # [64, 32] each, `OUT` where not allowed
    target: Array  # [64]: of the row's id, 0 if not here


def _logits(products, scale, ids, allowed, tile):
    column = plgpu.broadcasted_iota(
        jnp.int32, (ROWS, WORD), 1, layout=plgpu.Layout.WGMMA
    )
    words, targets = [], []
    for i in range(COLUMNS // WORD):
        bits = allowed[tile * (COLUMNS // WORD) + i]
        z = products[:, i * WORD : (i + 1) * WORD] * _wide(scale)
        z = jnp.where(((bits >> column) & 1) != 0, z, OUT)
        hit = column == _wide(ids - (tile * COLUMNS + i * WORD))
        words.append(z)
        targets.append(jnp.where(hit, z, 0).sum(axis=1))
    return _Logits(words, jnp.maximum(_added(targets), MASKED))


def _with_tile(old, logits):
    m, a, scale = _raised(old.m, logits)
    s, t = map(_added, zip(*(_tile_sums(m, z) for z in logits.words), strict=True))
    return State(
        m=m,
        s=scale * old.s + s,
        t=scale * (old.t + a * old.s) + t,
        g=old.g + logits.target,
    )


def _with_pair(old, logits, logits2):
    m, a, scale = _raised(old.m, logits)
    m2, b, scale2 = _raised(old.m2, logits2)
    words = zip(logits.words, logits2.words, strict=True)
    parts = [_pair_sums(m, z, m2, z2) for z, z2 in words]
    s, t, s2, u, r = map(_added, zip(*parts, strict=True))
    return PairState(
        m=m,
        s=scale * old.s + s,
        t=scale * (old.t + a * old.s) + t,
        g=old.g + logits.target,
        m2=m2,
        s2=scale2 * old.s2 + s2,
        g2=old.g2 + logits2.target,
        u=scale * (old.u + (a - b) * old.s) + u,
        r=scale2 * (old.r + (b - a) * old.s2) + r,
    )


def _raised(m, logits):
    """The new maximum, how far the old is below it, and e to that."""
    new = jnp.maximum(m, functools.reduce(jnp.maximum, logits.words).max(axis=1))
    return new, m - new, jnp.exp(m - new)


def _tile_sums(m, z):
    c = z - _wide(m)
    e = jnp.exp(c)
    return [x.sum(axis=1) for x in (e, e * c)]


def _pair_sums(m, z, m2, z2):
    c, c2 = z - _wide(m), z2 - _wide(m2)
    e, e2, apart = jnp.exp(c), jnp.exp(c2), c - c2
    return [x.sum(axis=1) for x in (e, e * c, e2, e * apart, -e2 * apart)]


def _added(parts):
    return functools.reduce(jnp.add, parts)


def _wide(rows):
    return lax.broadcast_in_dim(rows, (ROWS, WORD), [0])
