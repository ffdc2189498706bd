"""Attention: of tokens to caches that a group shares, and of a picture to itself."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

LOGITS = 2**28
"""Attention logits of a device at a time: 1 GiB in float32."""


class KVCache(NamedTuple):
    """Keys and values of all layers, [layers P L K D]; in a layer also [P G T K D]."""

    keys: Float[Array, "layers ..."]
    values: Float[Array, "layers ..."]


def in_slots(
    features: Float[Array, "K M H"], slots: Int[Array, "*P L"], dtype: jnp.dtype
) -> Float[Array, "*P L H"]:
    """Feature m of the prompt's pack where a slot is m + 1; 0 where it is 0, text."""
    table = jnp.pad(features, ((0, 0), (1, 0), (0, 0)))
    index = slots.reshape(table.shape[0], -1, 1)  # of the prompts of a pack
    spliced = jnp.take_along_axis(table, index, axis=1)
    return spliced.reshape(*slots.shape, -1).astype(dtype)


def attend(
    queries: Float[Array, "P G S heads D"],
    caches: Sequence[KVCache],
    masks: Sequence[Bool[Array, "..."]],
    *,
    scale: float,
) -> Float[Array, "P G S heads D"]:
    """softmax(scale q [k_1 k_2 ...]^T) [v_1 v_2 ...], in float32, heads grouped.

    Keys are [P keys K D] (shared by the G responses) or [P G keys K D]; each serves
    heads / K consecutive query heads. Masks broadcast to [P G S keys]. At most `LOGITS`
    logits a device at a time, or those of one query: some queries at a time.
    """
    prompts, group, length, heads, _ = queries.shape
    keys = sum(cache.keys.shape[-3] for cache in caches)
    # Masks that are the same for every query are not cut.
    rows = {
        number: (mask, mask.ndim - 2)
        for number, mask in enumerate(masks)
        if mask.ndim > 1 and mask.shape[-2] == length
    }

    def some(queries: Array, *parts: Array) -> Array:
        seen = dict(enumerate(masks)) | dict(zip(rows, parts, strict=True))
        return _attend(queries, caches, list(seen.values()), scale)

    logits = prompts * group * length * heads * keys
    return _some_queries(some, logits, (queries, 2), *rows.values())


def _some_queries(
    some: Callable, logits: int, *cut: tuple[Array, int]
) -> Float[Array, "..."]:
    """some(*arrays) over equal pieces of their queries, the axis beside each array.

    As many as keep a device within `LOGITS`, of `logits` that are spread over all.
    """
    mesh = jax.sharding.get_abstract_mesh()
    devices = 1 if mesh.empty else mesh.size
    (queries, along), *_ = cut
    count = queries.shape[along]
    pieces = min(-(-logits // devices // LOGITS), count)
    if pieces <= 1:
        return some(*(array for array, _ in cut))
    size = -(-count // pieces)

    def split(x: Array, axis: int) -> Array:
        wide = [(0, 0)] * x.ndim
        wide[axis] = (0, pieces * size - count)
        shape = (*x.shape[:axis], pieces, size, *x.shape[axis + 1 :])
        return jnp.moveaxis(jnp.pad(x, wide).reshape(shape), axis, 0)

    @jax.checkpoint
    def piece(parts: list[Array]) -> Array:
        return some(*parts)

    done = jnp.moveaxis(jax.lax.map(piece, [split(*part) for part in cut]), 0, along)
    done = done.reshape(*queries.shape[:along], -1, *queries.shape[along + 1 :])
    return jax.lax.slice_in_dim(done, 0, count, axis=along)


def _attend(
    queries: Float[Array, "P G S heads D"],
    caches: Sequence[KVCache],
    masks: Sequence[Bool[Array, "..."]],
    scale: float,
) -> Float[Array, "P G S heads D"]:
    pairs = caches[0].keys.shape[-2]
    grouped = queries.reshape(*queries.shape[:3], pairs, -1, queries.shape[-1])

    def letters(cache: KVCache) -> str:
        return "pgtkd" if cache.keys.ndim == 5 else "ptkd"

    # A finite floor: a padding token may see no key, and must not become NaN.
    logits = [
        jnp.where(
            _over_heads(mask),
            jnp.einsum(
                f"pgskrd,{letters(cache)}->pgkrst",
                grouped,
                cache.keys,
                preferred_element_type=jnp.float32,
            )
            * scale,
            -1e30,
        )
        for cache, mask in zip(caches, masks, strict=True)
    ]
    tops = [part.max(-1, keepdims=True) for part in logits]
    top = jax.lax.stop_gradient(functools.reduce(jnp.maximum, tops))
    weights = [jnp.exp(part - top) for part in logits]
    total = sum(part.sum(-1) for part in weights)
    mixed = sum(
        jnp.einsum(
            f"pgkrst,{letters(cache)}->pgskrd",
            part.astype(cache.values.dtype),
            cache.values,
            preferred_element_type=jnp.float32,
        )
        for part, cache in zip(weights, caches, strict=True)
    )
    normed = mixed / jnp.einsum("pgkrs->pgskr", total)[..., None]
    return normed.reshape(queries.shape).astype(queries.dtype)


def _over_heads(mask: Bool[Array, "..."]) -> Bool[Array, "..."]:
    """[P G S keys], or what broadcasts to it, as [P G 1 1 S keys]."""
    full = mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
    return full[:, :, None, None]


def attend_within(
    queries: Float[Array, "S N heads D"],
    keys: Float[Array, "S N heads D"],
    values: Float[Array, "S N heads D"],
    frames: Int[Array, "S N"],
) -> Float[Array, "S N heads D"]:
    """Each patch to those of its picture, in its tile of N rows; 0 in `frames` is none.

    At most `LOGITS` logits a device at a time, or those of one query of each tile.
    """
    tiles, rows, heads, _ = queries.shape

    def some(queries: Array, asking: Array) -> Array:
        return _attend_pictures(queries, keys, values, asking, frames)

    return _some_queries(some, tiles * heads * rows**2, (queries, 1), (frames, 1))


def _attend_pictures(
    queries: Float[Array, "B Q heads D"],
    keys: Float[Array, "B S heads D"],
    values: Float[Array, "B S heads D"],
    asking: Int[Array, "B Q"],
    frames: Int[Array, "B S"],
) -> Float[Array, "B Q heads D"]:
    """softmax(q k^T / sqrt(D)) v over keys of the same picture, softmax in float32."""
    logits = jnp.einsum(
        "bqhd,bkhd->bhqk", queries, keys, preferred_element_type=jnp.float32
    )
    same = (asking[:, :, None] == frames[:, None, :]) & (frames > 0)[:, None, :]
    # A finite floor: padding has no key at all, and its softmax must not be NaN.
    logits = jnp.where(same[:, None], logits * queries.shape[-1] ** -0.5, -1e30)
    weights = jax.nn.softmax(logits, axis=-1).astype(values.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, values)
