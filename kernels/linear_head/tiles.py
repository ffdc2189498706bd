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


def tile_rows(vocabulary: int, most: int) -> int:
    """The rows of a tile: of the numbers just below `most`, what leaves least over.

    What is left over is compiled, and has its memory, beside the loop.
    """
    if vocabulary <= most:
        return vocabulary
    near = range(most, 7 * most // 10, -128)
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
    return _taken(
        lambda x, start: jax.lax.dynamic_slice_in_dim(x, start, rows), x, start
    )


def pick(index: Int[Array, " R"], x: Array) -> Array:
    """x[index]."""
    return _taken(lambda x, index: x[index], x, index)


def put(start: Int[Array, ""] | int, rows: Array, x: Array) -> Array:
    """x with `rows` at start, in place where x is the carry of a loop."""
    return jax.lax.dynamic_update_slice_in_dim(x, rows, start, 0)


def _taken(take, x, where):
    # XLA for CPU slices and gathers bfloat16 by way of float32, and does so ahead of a
    # loop if it can: a slice of the weight would make it hold all of the weight twice.
    # It leaves integers of the same bits alone, and the barrier keeps their making in
    # the loop. On a TPU v5p the integers would be the copy.
    x, where = jax.lax.optimization_barrier((x, where))
    if x.dtype != jnp.bfloat16:
        return take(x, where)

    def of_integers(x, where):
        return take(x.view(jnp.uint16), where).view(x.dtype)

    return jax.lax.platform_dependent(x, where, cpu=of_integers, default=take)


def hits(ids: Int[Array, " N"], start: Int[Array, ""] | int, rows: int) -> Array:
    """Where the columns of a tile are the rows' ids, [N, rows]; no gather."""
    return start + jnp.arange(rows) == ids[:, None]
