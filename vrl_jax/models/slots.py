"""Keys and values while responses are written: what decoders of all families share.

Every layer has arrays of its own, [B K C D]: one big array for all layers would be
copied at each step by a scan, and the heads' columns lie together as attention reads
them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vrl_jax.models.attention import KVCache
from vrl_jax.models.policy import Params, SlotCache


class LayerCache(NamedTuple):
    """Keys and values of one layer."""

    keys: Float[Array, "B K C D"]
    values: Float[Array, "B K C D"]


def as_slots(prompt_cache: KVCache) -> SlotCache:
    """A prompt cache [layers P L K D] with its layers apart, heads before columns."""
    turned = (jnp.einsum("nplkd->npkld", x) for x in prompt_cache)
    return SlotCache(tuple(LayerCache(*pair) for pair in zip(*turned, strict=True)))


def unstack(layers: Params, count: int) -> tuple[Params, ...]:
    """The weights of each layer."""
    return tuple(jax.tree.map(lambda x: x[i], layers) for i in range(count))  # noqa: B023


def write(
    layer: LayerCache,
    column: Int[Array, ""],
    keys: Float[Array, "B K D"],
    values: Float[Array, "B K D"],
) -> LayerCache:
    """The same column of every slot, in place where the cache is donated."""
    start = (0, 0, column, 0)
    return LayerCache(
        *(
            jax.lax.dynamic_update_slice(old, new[:, :, None].astype(old.dtype), start)
            for old, new in zip(layer, (keys, values), strict=True)
        )
    )


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
        "bkrd,bkcd->bkrc", grouped, layer.keys, preferred_element_type=jnp.float32
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
