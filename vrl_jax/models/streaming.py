"""From files to devices: one tensor at a time, each device only its part.

A large stacked parameter is allocated on the devices and filled in place, layer by
layer, so that the host never holds more than one layer's tensor. A small one is put
together on the host.
"""

import functools
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding
from jaxtyping import Array, Int
from safetensors import safe_open

PIECE_BYTES = 64 * 2**20


class Stored(Protocol):
    """A tensor that can be read in parts: an array, or one that is still in a file."""

    shape: tuple[int, ...]

    def __getitem__(self, index: Any) -> np.ndarray:
        """The part at a tuple of slices, or at one."""


class FileTensor(NamedTuple):
    """A tensor of a safetensors file."""

    path: Path
    name: str
    shape: tuple[int, ...]

    def __getitem__(self, index: Any) -> np.ndarray:
        """Reads the part at slices of step 1, a piece of rows at a time."""
        spans = _spans(index, self.shape)
        rows, *others = spans
        row_bytes = 4 * math.prod(map(len, others))
        step = max(1, PIECE_BYTES // row_bytes)
        out = None
        for start in range(rows.start, rows.stop, step):
            stop = min(start + step, rows.stop)
            piece = self._read(
                (slice(start, stop), *(slice(s.start, s.stop) for s in others))
            )
            if out is None:
                out = np.empty([len(span) for span in spans], piece.dtype)
            out[start - rows.start : stop - rows.start] = piece
        return out

    def _read(self, index: tuple[slice, ...]) -> np.ndarray:
        # Opened for each piece: pages of a mapped file count as ours until it closes.
        with safe_open(self.path, framework="numpy") as file:
            return file.get_slice(self.name)[index]


class Turned(NamedTuple):
    """A stack of matrices, each transposed."""

    stored: Stored

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what is stored, the last two axes exchanged."""
        *stack, rows, columns = self.stored.shape
        return (*stack, columns, rows)

    def __getitem__(self, index: Any) -> np.ndarray:
        """Reads the part at slices of step 1."""
        *stack, rows, columns = _slices(index, self.shape)
        return np.swapaxes(self.stored[(*stack, columns, rows)], -1, -2)


class Piece(NamedTuple):
    """So many columns of what is stored."""

    stored: Stored
    start: int
    width: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what is stored, its last axis cut."""
        return (*self.stored.shape[:-1], self.width)

    def __getitem__(self, index: Any) -> np.ndarray:
        """Reads the part at slices of step 1."""
        *others, last = _slices(index, self.shape)
        moved = slice(last.start + self.start, last.stop + self.start)
        return self.stored[(*others, moved)]


def _spans(index: Any, shape: tuple[int, ...]) -> list[range]:
    """What an index of some or all axes takes of each."""
    given = index if isinstance(index, tuple) else (index,)
    given += (slice(None),) * (len(shape) - len(given))
    pairs = zip(given, shape, strict=True)
    return [range(*part.indices(size)) for part, size in pairs]


def _slices(index: Any, shape: tuple[int, ...]) -> list[slice]:
    return [slice(span.start, span.stop) for span in _spans(index, shape)]


class Layout(NamedTuple):
    """One layer's array in a checkpoint, and in the parameters.

    `plain`: as many axes here as there, in the same order or, if `transposed`, in the
    opposite one.
    """

    stored: tuple[int, ...]
    shape: tuple[int, ...]
    transposed: bool
    plain: bool


def place(
    parts: Iterable[Stored],
    shape: tuple[int, ...],
    dtype: jnp.dtype,
    sharding: Sharding,
    layout: Layout,
) -> Array:
    """One parameter on its devices; `parts` are its layers, or the one array it is."""
    stacked = len(shape) > len(layout.shape)
    if math.prod(shape) * jnp.dtype(dtype).itemsize <= PIECE_BYTES:
        layers = [_ours(part[:], layout, dtype) for part in parts]
        whole = np.stack(layers) if stacked else np.ascontiguousarray(layers[0])
        return jax.make_array_from_callback(shape, sharding, whole.__getitem__)
    stored_sharding = _stored_sharding(sharding, shape, layout)
    tensors = (
        jax.make_array_from_callback(layout.stored, stored_sharding, part.__getitem__)
        for part in parts
    )
    if not stacked:
        [tensor] = tensors
        if tensor.dtype == dtype and layout.stored == shape and not layout.transposed:
            return tensor
        return _converter(layout, dtype, sharding)(tensor)
    array = jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=sharding)()
    write = _writer(layout, sharding)
    for layer, tensor in enumerate(tensors):
        array = write(array, tensor, layer)
        # Else the host would read ahead, and hold many tensors.
        array.block_until_ready()
    return array


def _stored_sharding(
    sharding: Sharding, shape: tuple[int, ...], layout: Layout
) -> Sharding:
    """How one tensor of the checkpoint is best spread to end up as `sharding`."""
    if not isinstance(sharding, NamedSharding):
        return sharding
    axes = (*sharding.spec, *[None] * (len(shape) - len(sharding.spec)))
    axes = axes[len(shape) - len(layout.shape) :]
    if not layout.plain:  # small: every device reads all of it
        axes = ()
    elif layout.transposed:
        axes = axes[::-1]
    return NamedSharding(sharding.mesh, PartitionSpec(*axes))


def _ours(
    tensor: Array | np.ndarray, layout: Layout, dtype: jnp.dtype
) -> Array | np.ndarray:
    if layout.transposed:
        tensor = tensor.reshape(layout.stored[0], -1).T
    return tensor.reshape(layout.shape).astype(dtype)


# Cached: the same function for the same layout, so that jit compiles it once.
@functools.lru_cache(maxsize=256)
def _converter(layout: Layout, dtype: jnp.dtype, sharding: Sharding) -> Callable:
    convert = functools.partial(_ours, layout=layout, dtype=dtype)
    return jax.jit(convert, out_shardings=sharding)


@functools.lru_cache(maxsize=256)
def _writer(layout: Layout, sharding: Sharding) -> Callable:
    @functools.partial(jax.jit, donate_argnums=0, out_shardings=sharding)
    def write(array: Array, tensor: Array, layer: Int[Array, ""]) -> Array:
        # In place: the donated array's memory becomes the result's. Not `.at[].set`,
        # whose scatter converts a whole bfloat16 array on a CPU.
        new = _ours(tensor, layout, array.dtype)
        return jax.lax.dynamic_update_index_in_dim(array, new, layer, 0)

    return write
