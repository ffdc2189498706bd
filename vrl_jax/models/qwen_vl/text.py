"""The decoder: a prompt is read once, its responses attend to it.

Qwen2 (https://arxiv.org/abs/2407.10671) or Qwen3 (https://arxiv.org/abs/2505.09388)
with multimodal rotary positions: section 2.1 of https://arxiv.org/abs/2409.12191. `G`
responses share the keys and values of their prompt; nothing is repeated in memory.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vrl_jax.models import slots
from vrl_jax.models.policy import Params, SlotCache
from vrl_jax.models.qwen_vl.layers import linear, rms_norm, rotate, swiglu
from vrl_jax.models.qwen_vl.spec import QwenSpec
from vrl_jax.models.qwen_vl.vision import Features
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
    features: Features,
) -> tuple[Float[Array, "P L H"], KVCache]:
    """Reads prompts with image features in their slots; hidden after the last norm.

    Level k of the features is added in the slots after layer k.
    """
    tokens = jnp.where(prompts.mask, prompts.tokens, 0)
    places = jnp.where(prompts.mask, prompts.slots, 0)
    embedded = params["text"]["embedding"][tokens]
    levels = features.levels.shape[1]

    def in_slots(features: Float[Array, "P M H"]) -> Float[Array, "P L H"]:
        table = jnp.pad(features, ((0, 0), (1, 0), (0, 0)))  # slot 0: text
        spliced = jnp.take_along_axis(table, places[..., None], axis=1)
        return spliced.astype(embedded.dtype)

    def add_level(number: Int[Array, ""], x: Array) -> Array:
        return jax.lax.cond(
            number < levels,
            lambda: x + in_slots(features.levels[:, number])[:, None],
            lambda: x,
        )

    x = jnp.where((places > 0)[..., None], in_slots(features.main), embedded)
    # As the only response of a group, with no prompt before it.
    hidden, new = _decoder(
        params["text"],
        spec,
        x[:, None],
        prompts.positions[:, None],
        prompts.mask[:, None, None],
        (),
        add_level if levels else _nothing,
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
    room = cache.keys.shape[3]
    if tokens.shape[2] < room:  # else every slot is new
        before.append((cache, jnp.arange(room) < offset))
    embedded = params["text"]["embedding"][tokens]
    hidden, new = _decoder(
        params["text"], spec, embedded, positions, jnp.array(True), before
    )
    start = (0, 0, 0, offset, 0, 0)
    written = [
        jax.lax.dynamic_update_slice(old, part.astype(old.dtype), start)
        for old, part in zip(cache, new, strict=True)
    ]
    return hidden, KVCache(*written)


def as_slots(prompt_cache: KVCache) -> SlotCache:
    """The prompts' keys and values as decoding reads them."""
    return slots.as_slots(prompt_cache.keys, prompt_cache.values)


def unstack(params: Params, spec: QwenSpec) -> Params:
    """The decoder's weights with its layers apart."""
    text = params["text"]
    return {**text, "layers": slots.unstack(text["layers"], spec.text.layers)}


def decode(
    weights: Params,
    spec: QwenSpec,
    cache: SlotCache,
    column: Int[Array, ""],
    index: Int[Array, "B C"],
    tokens: Int[Array, " B"],
    positions: Int[Array, "B 3"],
) -> tuple[Float[Array, "B H"], SlotCache]:
    """Reads one token in every slot, and keeps its keys and values in `column`.

    What `extend` computes of one token, over caches that are written in place.
    """
    x = weights["embedding"][tokens]
    angles = _angles(positions, spec)
    written = []
    for layer, before in zip(weights["layers"], cache.columns, strict=True):
        normed = rms_norm(layer["norm1"], x, spec.text.eps)
        queries, keys, values = _projected(layer, spec, normed, angles)
        now = slots.write(before, column, keys, values)
        scale = spec.text.head_dim**-0.5
        attended = slots.attend(queries, now, index >= 0, scale=scale)
        x = _rest_of_layer(layer, spec, x, attended)
        written.append(now)
    hidden = rms_norm(weights["norm"], x, spec.text.eps)
    return hidden, SlotCache(tuple(written))


def _nothing(number: Int[Array, ""], x: Array) -> Array:
    """What happens after a layer where there is no deepstack."""
    del number
    return x


def _decoder(
    params: Params,
    spec: QwenSpec,
    x: Float[Array, "P G S H"],
    positions: Int[Array, "P G S 3"],
    mask: Bool[Array, "..."],
    before: Sequence[tuple[KVCache, Bool[Array, "..."]]],
    after_layer: Callable[[Int[Array, ""], Array], Array] = _nothing,
) -> tuple[Float[Array, "P G S H"], KVCache]:
    """All layers over S tokens that also see the caches `before` them.

    Masks broadcast to [P G S keys]. Returns the keys and values of the S tokens alone.
    """
    text = spec.text
    angles = _angles(positions, spec)
    masks = [jnp.tri(x.shape[2], dtype=bool) & mask, *(mask for _, mask in before)]

    def layer(x: Array, scanned: tuple) -> tuple[Array, KVCache]:
        number, weights, caches = scanned
        normed = rms_norm(weights["norm1"], x, text.eps)
        queries, *new = _projected(weights, spec, normed, angles)
        new = KVCache(*new)
        attended = _attend(queries, [new, *caches], masks)
        return after_layer(number, _rest_of_layer(weights, spec, x, attended)), new

    caches = [cache for cache, _ in before]
    scanned = jnp.arange(text.layers), params["layers"], caches
    x, new = jax.lax.scan(layer, x, scanned)
    return rms_norm(params["norm"], x, text.eps), new


def _projected(
    weights: Params,
    spec: QwenSpec,
    normed: Float[Array, "*B H"],
    angles: Float[Array, "*B half"],
) -> tuple[Array, Array, Array]:
    """Queries, keys and values of every head, turned to their positions."""

    def heads(part: str) -> Array:
        states = linear(weights[part], normed)
        return states.reshape(*normed.shape[:-1], -1, spec.text.head_dim)

    def turned(part: str) -> Array:
        states = heads(part)
        if spec.family.qk_norm:
            states = rms_norm(weights[f"{part}_norm"], states, spec.text.eps)
        return rotate(states, angles)

    return turned("query"), turned("key"), heads("value")


def _rest_of_layer(
    weights: Params,
    spec: QwenSpec,
    x: Float[Array, "*B H"],
    attended: Float[Array, "*B heads D"],
) -> Float[Array, "*B H"]:
    """What a layer does once its heads have looked."""
    x = x + linear(weights["out"], attended.reshape(*x.shape[:-1], -1))
    return x + swiglu(weights, rms_norm(weights["norm2"], x, spec.text.eps))


def _angles(positions: Int[Array, "*B 3"], spec: QwenSpec) -> Float[Array, "*B half"]:
    """theta^(-2k / head_dim) times the position of the axis that owns frequency k."""
    half = spec.text.head_dim // 2
    frequencies = spec.text.rope_theta ** (-jnp.arange(half) / half)
    owner = spec.family.sections(spec.text.rope_sections)
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
