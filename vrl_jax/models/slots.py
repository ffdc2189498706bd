"""Keys and values while responses are written: what decoders of all families share.

Every layer has arrays of its own: one big array for all layers would be copied at each
step by a scan. A head's columns lie together as attention reads them; keys lie with
the columns last, so that both of its products run along memory.
"""

from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vrl_jax.models.attention import KVCache
from vrl_jax.models.layers import Rotary, rotary
from vrl_jax.models.policy import Params, SlotCache


class LayerCache(NamedTuple):
    """Keys and values of one layer."""

    keys: Float[Array, "B K D C"]
    values: Float[Array, "B K C D"]


def as_slots(prompt_cache: KVCache) -> SlotCache:
    """A prompt cache [layers P L K D] with its layers apart, heads before columns."""
    return of_layers(
        LayerCache(jnp.einsum("plkd->pkdl", keys), jnp.einsum("plkd->pkld", values))
        for keys, values in zip(*prompt_cache, strict=True)
    )


def as_prompts(cache: SlotCache) -> KVCache:
    """And back: what slots hold as a cache that others attend to."""
    keys = [jnp.einsum("pkdl->plkd", layer.keys) for layer in layers_of(cache)]
    values = [jnp.einsum("pkld->plkd", layer.values) for layer in layers_of(cache)]
    return KVCache(jnp.stack(keys), jnp.stack(values))


def of_layers(layers: Iterable[LayerCache]) -> SlotCache:
    """The layers as the engine moves them."""
    keys, values = zip(*layers, strict=True)
    return SlotCache(columns=values, turned=keys)


def layers_of(cache: SlotCache) -> list[LayerCache]:
    """And back."""
    return [LayerCache(*pair) for pair in zip(cache.turned, cache.columns, strict=True)]


def unstack(layers: Params, count: int) -> tuple[Params, ...]:
    """The weights of each layer."""
    return tuple(jax.tree.map(lambda x: x[i], layers) for i in range(count))  # noqa: B023


def rotary_of(angles: Float[Array, "B half"], column: Int[Array, ""]) -> Rotary:
    """Their cosines and sines, taken once for all layers.

    XLA on CPU would take them anew for each head of each layer, an eighth of a step of
    the tiny policy. It does not look into a branch, nor know that this one is always
    taken: columns count from 0.
    """
    return jax.lax.cond(column >= 0, rotary, lambda x: Rotary(x, x), angles)


def write(
    layer: LayerCache,
    column: Int[Array, ""],
    keys: Float[Array, "B K D"],
    values: Float[Array, "B K D"],
) -> LayerCache:
    """The same column of every slot, in place where the cache is donated."""

    def put(old: Array, new: Array, axis: int) -> Array:
        new = jnp.expand_dims(new, axis).astype(old.dtype)
        return jax.lax.dynamic_update_slice_in_dim(old, new, column, axis)

    return LayerCache(put(layer.keys, keys, 3), put(layer.values, values, 2))


def attend(
    queries: Float[Array, "B heads D"],
    layer: LayerCache,
    seen: Bool[Array, "B C"],
    *,
    scale: float,
) -> Float[Array, "B heads D"]:
    """softmax(scale q k^T) v over the columns seen, in float32, heads grouped.

    Each key head serves heads / K consecutive query heads.
    """
    pairs = layer.keys.shape[1]
    grouped = queries.reshape(queries.shape[0], pairs, -1, queries.shape[-1])
    logits = jnp.einsum(
        "bkrd,bkdc->bkrc", grouped, layer.keys, preferred_element_type=jnp.float32
    )
    logits = jnp.where(seen[:, None, None], logits * scale, -1e30)
    weights = jnp.exp(logits - logits.max(-1, keepdims=True))
    mixed = jnp.einsum(
        "bkrc,bkcd->bkrd",
        weights.astype(layer.values.dtype),
        layer.values,
        preferred_element_type=jnp.float32,
    )
    normed = mixed / weights.sum(-1, keepdims=True)
    return normed.reshape(queries.shape).astype(queries.dtype)
