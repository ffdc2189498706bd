"""The decoder: a prompt is read once, its responses attend to it.

Qwen2 with multimodal rotary positions: https://arxiv.org/abs/2407.10671 and section
2.1 of https://arxiv.org/abs/2409.12191. `G` responses share the keys and values of
their prompt; nothing is repeated in memory.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vrl_jax.models.policy import Params
from vrl_jax.models.qwen_vl.layers import linear, rms_norm, rotate, swiglu
from vrl_jax.models.qwen_vl.spec import QwenSpec, TextSpec
from vrl_jax.types import Prompts


class KVCache(NamedTuple):
    """Keys and values of all layers: [layers P L K D] or [layers P G T K D]."""

    keys: Float[Array, "layers ..."]
    values: Float[Array, "layers ..."]


def init_cache(
    spec: QwenSpec, P: int, G: int, T: int, dtype: jnp.dtype = jnp.float32
) -> KVCache:
    """Room for T tokens of each of P * G responses."""
    text = spec.text
    shape = (text.layers, P, G, T, text.kv_heads, text.head_dim)
    return KVCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


def head(params: Params, spec: QwenSpec) -> Float[Array, "V H"]:
    """The matrix that turns hidden states into logits."""
    return params["text"]["embedding" if spec.tied else "head"]


def prefill(
    params: Params,
    spec: QwenSpec,
    prompts: Prompts,
    features: Float[Array, "P M H"],
) -> tuple[Float[Array, "P L H"], KVCache]:
    """Reads prompts with image features in their slots; hidden after the last norm."""
    tokens = jnp.where(prompts.mask, prompts.tokens, 0)
    slots = jnp.where(prompts.mask, prompts.slots, 0)
    table = jnp.pad(features, ((0, 0), (1, 0), (0, 0)))  # slot 0: text
    spliced = jnp.take_along_axis(table, slots[..., None], axis=1)
    embedded = params["text"]["embedding"][tokens]
    x = jnp.where((slots > 0)[..., None], spliced.astype(embedded.dtype), embedded)
    # As the only response of a group, with no prompt before it.
    hidden, new = _decoder(
        params["text"],
        spec.text,
        x[:, None],
        prompts.positions[:, None],
        prompts.mask[:, None, None],
        (),
    )
    return hidden[:, 0], KVCache(new.keys[:, :, 0], new.values[:, :, 0])


def extend(
    params: Params,
    spec: QwenSpec,
    prompt_cache: KVCache,
    prompt_mask: Bool[Array, "P L"],
    cache: KVCache,
    offset: Int[Array, ""] | int,
    tokens: Int[Array, "P G S"],
    positions: Int[Array, "P G S 3"],
) -> tuple[Float[Array, "P G S H"], KVCache]:
    """Reads S more tokens of every response, in slots offset ... offset + S - 1.

    A token sees its prompt, and the slots of its response up to its own. S = T reads
    whole responses (`offset` is 0 then); S = 1 is a step of sampling.
    """
    before: list[tuple[KVCache, Array]] = [
        (prompt_cache, prompt_mask[:, None, None, :])
    ]
    slots = cache.keys.shape[3]
    if tokens.shape[2] < slots:  # else every slot is new
        before.append((cache, jnp.arange(slots) < offset))
    embedded = params["text"]["embedding"][tokens]
    hidden, new = _decoder(
        params["text"], spec.text, embedded, positions, jnp.array(True), before
    )
    start = (0, 0, 0, offset, 0, 0)
    written = [
        jax.lax.dynamic_update_slice(old, part.astype(old.dtype), start)
        for old, part in zip(cache, new, strict=True)
    ]
    return hidden, KVCache(*written)


def _decoder(
    params: Params,
    text: TextSpec,
    x: Float[Array, "P G S H"],
    positions: Int[Array, "P G S 3"],
    mask: Bool[Array, "..."],
    before: Sequence[tuple[KVCache, Bool[Array, "..."]]],
) -> tuple[Float[Array, "P G S H"], KVCache]:
    """All layers over S tokens that also see the caches `before` them.

    Masks broadcast to [P G S keys]. Returns the keys and values of the S tokens alone.
    """
    angles = _angles(positions, text)
    masks = [jnp.tri(x.shape[2], dtype=bool) & mask, *(mask for _, mask in before)]

    def layer(x: Array, scanned: tuple[Params, list[KVCache]]) -> tuple[Array, KVCache]:
        weights, caches = scanned
        normed = rms_norm(x, weights["norm1"], text.eps)
        queries, keys, values = (
            linear(weights[part], normed).reshape(*x.shape[:3], -1, text.head_dim)
            for part in ("query", "key", "value")
        )
        queries, keys = rotate(queries, angles), rotate(keys, angles)
        new = KVCache(keys, values)
        attended = _attend(queries, [new, *caches], masks)
        x = x + linear(weights["out"], attended.reshape(*x.shape[:3], -1))
        normed = rms_norm(x, weights["norm2"], text.eps)
        return x + swiglu(weights, normed), new

    x, new = jax.lax.scan(layer, x, (params["layers"], [cache for cache, _ in before]))
    return rms_norm(x, params["norm"], text.eps), new


def _angles(
    positions: Int[Array, "P G S 3"], text: TextSpec
) -> Float[Array, "P G S half"]:
    """theta^(-2k / head_dim) times the position of the axis that owns frequency k.

    The first sections of frequencies belong to time, then height, then width.
    """
    half = text.head_dim // 2
    frequencies = text.rope_theta ** (-jnp.arange(half) / half)
    owner = np.repeat(np.arange(3), text.rope_sections)
    return positions[..., owner].astype(jnp.float32) * frequencies


def _attend(
    queries: Float[Array, "P G S heads D"],
    caches: Sequence[KVCache],
    masks: Sequence[Bool[Array, "..."]],
) -> Float[Array, "P G S heads D"]:
    """softmax(q [k_1 k_2 ...]^T / sqrt(D)) [v_1 v_2 ...], in float32, heads grouped.

    Keys are [P keys K D] (shared by the G responses) or [P G keys K D]; each serves
    heads / K consecutive query heads.
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
            * queries.shape[-1] ** -0.5,
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
