"""What the forms in plain JAX share: tiles of the vocabulary and their logits."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from .state import MASKED

TILE = 2816  # rows of the weight that one matrix product sees, at most
Carry = TypeVar("Carry")


def over_tiles(step: Callable, carry: Carry, size: int, tile: int) -> Carry:
    """carry = step(carry, start, rows) over consecutive ranges that cover `size`.

    All have `tile` rows but the last, which ends with `size`: nothing is covered twice,
    and nothing is padded.
    """
    count, rest = divmod(size, tile)
    carry, _ = jax.lax.scan(
        lambda carry, index: (step(carry, index * tile, tile), None),
        carry,
        jnp.arange(count),
    )
    return step(carry, count * tile, rest) if rest else carry


def tile_rows(vocabulary: int) -> int:
    """The rows of a tile: of the numbers near `TILE`, the one that leaves least over.

    What is left over is compiled, and has its memory, beside the loop.
    """
    if vocabulary <= TILE:
        return vocabulary
    near = range(TILE, 7 * TILE // 10, -128)
    return min(near, key=lambda rows: vocabulary % rows)


def dot(equation: str, one: Array, other: Array) -> Array:
    """einsum that accumulates in float32, of exact products.

    A product of two bfloat16 numbers is exact in float32. Accelerators would round
    float32 inputs before they multiply unless told not to.
    """
    dtype = jnp.promote_types(jnp.promote_types(one.dtype, other.dtype), jnp.float32)
    precision = None if one.dtype == other.dtype == jnp.bfloat16 else "highest"
    return jnp.einsum(
        equation, one, other, precision=precision, preferred_element_type=dtype
    )


def logits(
    hidden: Float[Array, "N d"],
    weight: Float[Array, "V d"],
    temperature: Float[Array, " N"],
    allowed: Bool[Array, " V"],
) -> Float[Array, "N V"]:
    """<hidden, weight_v> / temperature, `MASKED` where v is not allowed."""
    z = dot("nd,vd->nv", hidden, weight) / temperature[:, None]
    return jnp.where(allowed, z, MASKED)


def columns(start: Int[Array, ""] | int, rows: int, x: Array) -> Array:
    """x[start : start + rows], the start known only when it runs."""
    x, start = _together(x, start)
    return _float(jax.lax.dynamic_slice_in_dim(_bits(x), start, rows), x.dtype)


def pick(index: Int[Array, " R"], x: Array) -> Array:
    """x[index]."""
    x, index = _together(x, index)
    return _float(_bits(x)[index], x.dtype)


def put(start: Int[Array, ""] | int, rows: Array, x: Array) -> Array:
    """x with `rows` at start, in place where x is the carry of a loop."""
    return jax.lax.dynamic_update_slice_in_dim(x, rows, start, 0)


# XLA for CPU slices and gathers bfloat16 by way of float32, and does so ahead of a loop
# if it can: a slice of the weight would make it hold all of the weight twice. It leaves
# integers of the same bits alone, and the barrier keeps their making in the loop.
def _together(*inputs):
    return jax.lax.optimization_barrier(inputs)


def _bits(x):
    return x.view(jnp.uint16) if x.dtype == jnp.bfloat16 else x


def _float(x, dtype):
    return x.view(dtype) if x.dtype == jnp.uint16 else x


def hits(ids: Int[Array, " N"], start: Int[Array, ""] | int, rows: int) -> Array:
    """Where the columns of a tile are the rows' ids, [N, rows]; no gather."""
    return start + jnp.arange(rows) == ids[:, None]
