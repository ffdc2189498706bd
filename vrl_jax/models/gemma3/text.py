"""The decoder: a prompt is read once, its responses attend to it.

Gemma 3, section 2 of https://arxiv.org/abs/2503.19786. Local layers see a window of the
last tokens, global ones all; in both the tokens of a picture also see those of it that
follow. A layer differs in its mask and its angles alone, so layers are scanned over.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vrl_jax.models.attention import KVCache, attend, empty_cache, in_slots, written
from vrl_jax.models.gemma3.layers import geglu, rms_norm
from vrl_jax.models.gemma3.spec import Gemma3Spec
from vrl_jax.models.layers import linear, rotate
from vrl_jax.models.policy import Params
from vrl_jax.types import Prompts


class Masks(NamedTuple):
    """Which keys a query sees, in global layers and in local ones."""

    everywhere: Bool[Array, "..."]
    nearby: Bool[Array, "..."]


def init_cache(
    spec: Gemma3Spec, P: int, G: int, T: int, dtype: jnp.dtype = jnp.float32
) -> KVCache:
    """Room for T tokens of each of P * G responses, in local layers too."""
    text = spec.text
    return empty_cache(text.layers, text.kv_heads, text.head_dim, P, G, T, dtype)


def head(params: Params, spec: Gemma3Spec) -> Float[Array, "V H"]:
    """The embedding."""
    del spec
    return params["text"]["embedding"]


def prefill(
    params: Params,
    spec: Gemma3Spec,
    prompts: Prompts,
    features: Float[Array, "K M H"],
) -> tuple[Float[Array, "P L H"], KVCache]:
    """Reads prompts with image features in their slots; hidden after the last norm.

    Unlike an embedding, a feature is not scaled.
    """
    tokens = jnp.where(prompts.mask, prompts.tokens, 0)
    slots = jnp.where(prompts.mask, prompts.slots, 0)
    embedded = _embedded(params, tokens)
    pictures = in_slots(features, slots, embedded.dtype)
    x = jnp.where((slots > 0)[..., None], pictures, embedded)
    # As the only response of a group, with no prompt before it.
    hidden, new = _decoder(
        params["text"],
        spec,
        x[:, None],
        prompts.positions[:, None, :, 0],
        [prompt_masks(slots > 0, prompts.mask, spec.text.window)],
        [],
    )
    return hidden[:, 0], KVCache(new.keys[:, :, 0], new.values[:, :, 0])


def prompt_masks(
    pictured: Bool[Array, "P L"], mask: Bool[Array, "P L"], window: int
) -> Masks:
    """Of prompts: [P 1 L L], by query and key.

    Token q sees k where k <= q, or where both are of one picture, a run of `pictured`
    tokens. In local layers besides k > q - window: a large picture's last tokens do not
    see its first ones.
    """
    starts = pictured & ~jnp.pad(pictured, ((0, 0), (1, 0)))[:, :-1]
    picture = jnp.where(pictured, jnp.cumsum(starts, axis=1), 0)
    same = (picture[:, :, None] == picture[:, None, :]) & pictured[:, :, None]
    number = jnp.arange(mask.shape[1])
    away = number[:, None] - number
    seen = ((away >= 0) | same) & mask[:, None, :]
    return Masks(seen[:, None], (seen & (away < window))[:, None])


def extend(
    params: Params,
    spec: Gemma3Spec,
    prompt_cache: KVCache,
    prompt_mask: Bool[Array, "P L"],
    cache: KVCache,
    offset: Int[Array, ""] | int,
    tokens: Int[Array, "P G S"],
    positions: Int[Array, "P G S 3"],
) -> tuple[Float[Array, "P G S H"], KVCache]:
    """Reads S more tokens of every response, in slots offset ... offset + S - 1.

    A token sees its prompt, and the slots of its response up to its own; in local
    layers those that are less than a window away. S = T reads whole responses
    (`offset` is 0 then); S = 1 is a step of sampling.
    """
    window, slots = spec.text.window, cache.keys.shape[3]
    positions = positions[..., 0]
    number = jnp.arange(tokens.shape[2])
    away = number[:, None] - number
    masks, caches = [Masks(away >= 0, (away >= 0) & (away < window))], [prompt_cache]
    # A prompt's token lies at its position.
    near = positions[..., None] - jnp.arange(prompt_mask.shape[1]) < window
    real = prompt_mask[:, None, None, :]
    masks.append(Masks(real, real & near))
    if tokens.shape[2] < slots:  # else every slot is new
        away = (offset + number)[:, None] - jnp.arange(slots)
        before = jnp.arange(slots) < offset
        masks.append(Masks(before, before & (away < window)))
        caches.append(cache)
    embedded = _embedded(params, tokens)
    hidden, new = _decoder(params["text"], spec, embedded, positions, masks, caches)
    return hidden, written(cache, new, offset)


def _embedded(params: Params, tokens: Int[Array, "..."]) -> Float[Array, "... H"]:
    """sqrt(H) times the embedding, the factor in its precision."""
    table = params["text"]["embedding"]
    return table[tokens] * jnp.asarray(math.sqrt(table.shape[1]), table.dtype)


def _decoder(
    params: Params,
    spec: Gemma3Spec,
    x: Float[Array, "P G S H"],
    positions: Int[Array, "P G S"],
    masks: Sequence[Masks],
    caches: Sequence[KVCache],
) -> tuple[Float[Array, "P G S H"], KVCache]:
    """All layers over S tokens that also see the `caches` before them.

    The first mask is that of the S tokens, then one for each cache; they broadcast to
    [P G S keys]. Returns the keys and values of the S tokens alone.
    """
    text = spec.text
    around = _angles(positions, text.global_theta, text.global_factor, text.head_dim)
    nearby = _angles(positions, text.local_theta, 1.0, text.head_dim)

    def layer(x: Array, scanned: tuple) -> tuple[Array, KVCache]:
        is_global, weights, caches = scanned
        angles = jnp.where(is_global, around, nearby)
        chosen = [jnp.where(is_global, *kinds) for kinds in masks]

        def normed(part: str, states: Array) -> Array:
            return rms_norm(weights[part], states, text.eps)

        def heads(part: str) -> Array:
            states = linear(weights[part], normed("norm1", x))
            return states.reshape(*x.shape[:3], -1, text.head_dim)

        queries = rotate(normed("query_norm", heads("query")), angles)
        keys = rotate(normed("key_norm", heads("key")), angles)
        new = KVCache(keys, heads("value"))
        attended = attend(
            queries, [new, *caches], chosen, scale=text.query_scalar**-0.5
        )
        attended = linear(weights["out"], attended.reshape(*x.shape[:3], -1))
        between = x + normed("after1", attended)
        written_out = geglu(weights, normed("norm2", between))
        return between + normed("after2", written_out), new

    is_global = np.isin(np.arange(text.layers), text.global_layers)
    x, new = jax.lax.scan(layer, x, (is_global, params["layers"], list(caches)))
    return rms_norm(params["norm"], x, text.eps), new


def _angles(
    positions: Int[Array, "P G S"], theta: float, factor: float, head_dim: int
) -> Float[Array, "P G S half"]:
    """theta^(-2k / head_dim) times position / factor."""
    half = head_dim // 2
    frequencies = theta ** (-jnp.arange(half) / half) / factor
    return positions[..., None].astype(jnp.float32) * frequencies
