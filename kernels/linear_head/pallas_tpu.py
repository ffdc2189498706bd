"""One pass over the vocabulary on a TPU, as a Pallas kernel; logits live in VMEM only.

A tile of logits is transposed, weight hidden^T [columns, rows]: tokens lie along the
lanes, the vocabulary along the sublanes. So the maximum and the sums of a token are
plain vector adds, its state is a row of the output block, which stays in VMEM while the
vocabulary goes by, and `[N]` results fill whole lanes in HBM, too.

    grid = (tiles of N: parallel, tiles of V: in order[, parts of d: in order])

Ragged ends need no copies: what lies beyond N only reaches columns that are never
written, beyond V it is not `allowed`; d is whole or split evenly.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Bool, Float, Int

from .state import MASKED, PairState, State

NAME = "linear_head"  # of the kernel, in profiles and dumps
LANES = 128
WHOLE = 4096  # the widest hidden state that a tile takes in one part
DTYPES = ("bfloat16", "float32")
# Maximum before any allowed column: above `MASKED`, so that e^(MASKED - m) is 0.
NOTHING = MASKED / 2


@dataclasses.dataclass(frozen=True)
class Tiles:
    """A tile of logits, and the part of d that one step contracts."""

    rows: int
    columns: int
    width: int


@dataclasses.dataclass(frozen=True)
class Chip:
    """VMEM that a kernel may use; (rows, columns) of a tile for 1 and 2 streams."""

    vmem: int
    one: tuple[int, int]
    two: tuple[int, int]


MIB = 2**20
# By `device_kind`; README.md says how they were found. A step computes `rows` x
# `columns` logits; rows that share a read of the weight keep it from being the limit.
CHIPS = {
    "TPU v5 lite": Chip(110 * MIB, one=(512, 512), two=(512, 512)),
    "TPU v5": Chip(56 * MIB, one=(512, 512), two=(512, 512)),
    "TPU v6 lite": Chip(110 * MIB, one=(1024, 512), two=(512, 1024)),
    "TPU7x": Chip(56 * MIB, one=(512, 1024), two=(512, 1024)),
}
SMALLEST = "TPU v5"  # what fits there fits everywhere: for lowering without a TPU


def states(
    hidden: Float[Array, "N d"],
    weight: Float[Array, "V d"],
    ids: Int[Array, " N"],
    temperature: Float[Array, " N"],
    allowed: Bool[Array, " V"],
    *,
    tiles: Tiles | None = None,
    interpret: bool | pltpu.InterpretParams = False,
) -> State:
    """Sums of one stream; see `backend`. `tiles` default to those of the device."""
    return _call((hidden,), weight, ids, temperature, allowed, tiles, interpret)


def pair_states(
    hidden: Float[Array, "N d"],
    other: Float[Array, "N d"],
    weight: Float[Array, "V d"],
    ids: Int[Array, " N"],
    temperature: Float[Array, " N"],
    allowed: Bool[Array, " V"],
    *,
    tiles: Tiles | None = None,
    interpret: bool | pltpu.InterpretParams = False,
) -> PairState:
    """Sums of two streams that share every tile of the weight; see `backend`."""
    streams = (hidden, other)
    return _call(streams, weight, ids, temperature, allowed, tiles, interpret)


def obstacle(
    streams: int, rows: int, width: int, vocabulary: int, dtype: str
) -> str | None:
    """Why these shapes cannot run on the present devices, None if they can."""
    device = jax.devices()[0]
    if device.platform != "tpu":
        return f"it needs a TPU, and the devices are {device.platform}"
    if device.device_kind not in CHIPS:
        return f"no tiles are known for {device.device_kind}, only for {list(CHIPS)}"
    if dtype not in DTYPES:
        return f"inputs must be one of {DTYPES}, got {dtype}"
    if choose_tiles(device.device_kind, streams, rows, width, vocabulary, dtype):
        return None
    return f"no tile of width {width} in {dtype} fits its VMEM"


def choose_tiles(
    kind: str, streams: int, rows: int, width: int, vocabulary: int, dtype: str
) -> Tiles | None:
    """The chip's tiles, no larger than the shape, halved until they fit its VMEM."""
    part = _part(width)
    if part is None:
        return None
    chip = CHIPS[kind]
    wanted = chip.one if streams == 1 else chip.two
    rows = min(wanted[0], _whole_lanes(rows))
    columns = min(wanted[1], _whole_lanes(vocabulary))
    while vmem_bytes(Tiles(rows, columns, part), streams, dtype) > chip.vmem:
        if max(rows, columns) == LANES:
            return None
        if columns >= rows:
            columns = _whole_lanes(columns // 2)
        else:
            rows = _whole_lanes(rows // 2)
    return Tiles(rows, columns, part)


def vmem_bytes(tiles: Tiles, streams: int, dtype: str) -> int:
    """Bound on the VMEM of one step: what the kernel asks the compiler for.

    Two buffers of every operand and, in float32, its three bfloat16 parts; and five of
    the logits: their partial sums over d, and what spills (3.7 of them at 512 x 512).
    """
    size = 2 * jnp.dtype(dtype).itemsize + (3 * 2 if dtype == "float32" else 0)
    operands = size * _whole_lanes(tiles.width) * (streams * tiles.rows + tiles.columns)
    logits = 4 * streams * tiles.rows * tiles.columns
    return operands + 5 * logits + 4 * MIB


def _part(width):
    """The largest even part of d that is at most `WHOLE` and made of whole lanes."""
    if width <= WHOLE:
        return width
    parts = (part for part in range(WHOLE, 0, -LANES) if width % part == 0)
    return next(parts, None)


def _whole_lanes(size):
    return pl.cdiv(size, LANES) * LANES


def _present_kind():
    device = jax.devices()[0]
    return device.device_kind if device.platform == "tpu" else SMALLEST


def _call(streams, weight, ids, temperature, allowed, tiles, interpret):
    kind = State if len(streams) == 1 else PairState
    (count, width), vocabulary = streams[0].shape, weight.shape[0]
    dtype = jnp.promote_types(streams[0].dtype, weight.dtype)
    if tiles is None:
        shape = (count, width, vocabulary)
        tiles = choose_tiles(_present_kind(), len(streams), *shape, dtype.name)
    assert tiles is not None, "obstacle() would have said so"
    grid = (
        pl.cdiv(count, tiles.rows),
        pl.cdiv(vocabulary, tiles.columns),
        width // tiles.width,
    )
    token = pl.BlockSpec((1, tiles.rows), lambda i, j, k: (0, i))
    stream = pl.BlockSpec((tiles.rows, tiles.width), lambda i, j, k: (i, k))
    logits = pltpu.VMEM((tiles.columns, tiles.rows), jnp.float32)
    kernel = pl.pallas_call(
        functools.partial(_kernel, kind=kind, dtype=dtype, parts=grid[2]),
        grid=grid,
        in_specs=[
            token,
            token,
            pl.BlockSpec((1, tiles.columns), lambda i, j, k: (0, j)),
            pl.BlockSpec((tiles.columns, tiles.width), lambda i, j, k: (j, k)),
            *[stream] * len(streams),
        ],
        out_specs=pl.BlockSpec((len(kind._fields), tiles.rows), lambda i, j, k: (0, i)),
        out_shape=jax.ShapeDtypeStruct((len(kind._fields), count), jnp.float32),
        scratch_shapes=[logits] * len(streams) if grid[2] > 1 else [],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary"),
            vmem_limit_bytes=vmem_bytes(tiles, len(streams), dtype.name),
        ),
        cost_estimate=_cost(grid, streams, weight),
        interpret=interpret,
        name=NAME,
    )
    beyond = grid[1] * tiles.columns - vocabulary
    # Ids beyond V must not find the padding of the last tile.
    known = jnp.where(ids < vocabulary, ids, -1)
    sums = kernel(
        known.astype(jnp.int32)[None],
        (1 / temperature)[None],
        jnp.pad(allowed.astype(jnp.float32), (0, beyond))[None],
        weight,
        *streams,
    )
    state = kind(*sums)
    maxima = {name: getattr(state, name) for name in _maxima(kind)}
    return state._replace(
        **{name: jnp.where(m == NOTHING, MASKED, m) for name, m in maxima.items()}
    )


def _maxima(kind):
    return ["m"] if kind is State else ["m", "m2"]


def _cost(grid, streams, weight):
    work = len(streams) * streams[0].shape[0] * weight.shape[0]
    again = grid[1] if grid[2] > 1 else 1  # the parts of d come by for every tile
    read = again * sum(h.nbytes for h in streams) + grid[0] * weight.nbytes
    return pl.CostEstimate(
        flops=2 * work * weight.shape[1], transcendentals=work, bytes_accessed=read
    )


def _kernel(ids, scale, allowed, weight, *refs, kind, dtype, parts):
    count = 1 if kind is State else 2
    streams, sums, partial = refs[:count], refs[count], refs[count + 1 :]
    tile, part = pl.program_id(1), pl.program_id(2)
    rows = {name: slice(n, n + 1) for n, name in enumerate(kind._fields)}

    @pl.when((tile == 0) & (part == 0))
    def _():
        sums[...] = jnp.zeros_like(sums)
        for name in _maxima(kind):
            sums[rows[name], :] = jnp.full(ids.shape, NOTHING, jnp.float32)

    def add(products):
        shape = allowed.shape[1], ids.shape[1]
        keep = _along_sublanes(allowed[...], shape[1])
        z = [jnp.where(keep, product * scale[...], MASKED) for product in products]
        column = jax.lax.broadcasted_iota(jnp.int32, shape, 0)
        hit = column == ids[...] - tile * shape[0]
        state = kind(**{name: sums[row, :] for name, row in rows.items()})
        new = _with_tile(state, *z, hit) if count == 1 else _with_pair(state, *z, hit)
        for name, row in rows.items():
            sums[row, :] = getattr(new, name)

    # Lazily: the compiler keeps this order, and masks one stream beside the next dot.
    products = (_product(weight[...], h[...], dtype) for h in streams)
    if parts == 1:
        return add(products)

    @pl.when(part == 0)
    def _():
        for z in partial:
            z[...] = jnp.zeros_like(z)

    for z, product in zip(partial, products, strict=True):
        z[...] += product

    @pl.when(part == parts - 1)
    def _():
        add(z[...] for z in partial)


def _product(weight, hidden, dtype):
    """weight hidden^T, with as many passes of the matrix unit as the dtype has bits."""
    return jax.lax.dot_general(
        weight.astype(dtype),
        hidden.astype(dtype),
        (((1,), (1,)), ((), ())),
        precision="highest" if dtype == jnp.float32 else "default",
        preferred_element_type=jnp.float32,
    )


def _along_sublanes(allowed, rows):
    """[1, columns] float32, which lies along the lanes, to [columns, rows] bool."""
    square = jnp.broadcast_to(allowed, (LANES, allowed.shape[1])).T
    return jnp.concatenate([square] * (rows // LANES), axis=1) > 0


def _total(x):
    return x.sum(axis=0, keepdims=True)


def _with_tile(state: State, z, hit) -> State:
    """The sums, each [1, rows], over the columns of z [columns, rows] as well."""
    m = jnp.maximum(state.m, z.max(axis=0, keepdims=True))
    a, c = state.m - m, z - m
    e, scale = jnp.exp(c), jnp.exp(a)
    return State(
        m,
        scale * state.s + _total(e),
        scale * (state.t + a * state.s) + _total(e * c),
        state.g + _total(jnp.where(hit, z, 0)),
    )


def _with_pair(state: PairState, z, z2, hit) -> PairState:
    """The same of both streams, and of what their logits are apart."""
    one = _with_tile(State(state.m, state.s, state.t, state.g), z, hit)
    zero = jnp.zeros_like(state.t)
    two = _with_tile(State(state.m2, state.s2, zero, state.g2), z2, hit)
    a, b = state.m - one.m, state.m2 - two.m
    c, c2 = z - one.m, z2 - two.m
    apart = c - c2
    u = jnp.exp(a) * (state.u + (a - b) * state.s) + _total(jnp.exp(c) * apart)
    r = jnp.exp(b) * (state.r + (b - a) * state.s2) - _total(jnp.exp(c2) * apart)
    return PairState(*one, m2=two.m, s2=two.s, g2=two.g, u=u, r=r)
