"""Attention: of tokens to caches that a group shares, and of a picture to itself."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class KVCache(NamedTuple):
    """Keys and values of all layers: [layers P L K D] or [layers P G T K D]."""

    keys: Float[Array, "layers ..."]
    values: Float[Array, "layers ..."]


def empty_cache(
    layers: int, kv_heads: int, head_dim: int, P: int, G: int, T: int, dtype: jnp.dtype
) -> KVCache:
    """Room for T tokens of each of P * G responses."""
    shape = (layers, P, G, T, kv_heads, head_dim)
    return KVCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


def written(cache: KVCache, new: KVCache, offset: Int[Array, ""] | int) -> KVCache:
    """The cache with the new tokens in slots offset, offset + 1, ..."""
    start = (0, 0, 0, offset, 0, 0)
    parts = [
        jax.lax.dynamic_update_slice(old, part.astype(old.dtype), start)
        for old, part in zip(cache, new, strict=True)
    ]
    return KVCache(*parts)


def in_slots(
    features: Float[Array, "P M H"], slots: Int[Array, "P L"], dtype: jnp.dtype
) -> Float[Array, "P L H"]:
    """Feature m where a slot is m + 1; 0 where it is 0, text."""
    table = jnp.pad(features, ((0, 0), (1, 0), (0, 0)))
    spliced = jnp.take_along_axis(table, slots[..., None], axis=1)
    return spliced.astype(dtype)


def attend(
    queries: Float[Array, "P G S heads D"],
    caches: Sequence[KVCache],
    masks: Sequence[Bool[Array, "..."]],
    *,
    scale: float,
) -> Float[Array, "P G S heads D"]:
    """softmax(scale q [k_1 k_2 ...]^T) [v_1 v_2 ...], in float32, heads grouped.

    Keys are [P keys K D] (shared by the G responses) or [P G keys K D]; each serves
    heads / K consecutive query heads. Masks broadcast to [P G S keys].
    """
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
    queries: Float[Array, "B S heads D"],
    keys: Float[Array, "B S heads D"],
    values: Float[Array, "B S heads D"],
    frames: Int[Array, "B S"],
) -> Float[Array, "B S heads D"]:
    """softmax(q k^T / sqrt(D)) v over keys of the same picture, softmax in float32."""
    logits = jnp.einsum(
        "bqhd,bkhd->bhqk", queries, keys, preferred_element_type=jnp.float32
    )
    same = (frames[:, :, None] == frames[:, None, :]) & (frames > 0)[:, None, :]
    # A finite floor: padding has no key at all, and its softmax must not be NaN.
    logits = jnp.where(same[:, None], logits * queries.shape[-1] ** -0.5, -1e30)
    weights = jax.nn.softmax(logits, axis=-1).astype(values.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, values)
