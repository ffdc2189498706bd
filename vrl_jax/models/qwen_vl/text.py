"""The decoder: a prompt is read once, its responses attend to it.

Qwen2 (https://arxiv.org/abs/2407.10671) or Qwen3 (https://arxiv.org/abs/2505.09388)
with multimodal rotary positions: section 2.1 of https://arxiv.org/abs/2409.12191. `G`
responses share the keys and values of their prompt; nothing is repeated in memory.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vrl_jax.models import slots as slot_caches
from vrl_jax.models.attention import KVCache, attend, in_slots
from vrl_jax.models.experts import mixture
from vrl_jax.models.layers import (
    Rotary,
    as_heads,
    embed,
    linear,
    rms_norm,
    rotary,
    rotate,
    swiglu,
)
from vrl_jax.models.policy import Params, SlotCache
from vrl_jax.models.qwen_vl.spec import QwenSpec
from vrl_jax.models.qwen_vl.vision import Features
from vrl_jax.models.remat import Remat, everything
from vrl_jax.models.sharding import by_row
from vrl_jax.types import Prompts


def head(params: Params, spec: QwenSpec) -> Float[Array, "V H"]:
    """The matrix that turns hidden states into logits."""
    return params["text"]["embedding" if spec.tied else "head"]


def prefill(
    params: Params,
    spec: QwenSpec,
    prompts: Prompts,
    features: Features,
    *,
    remat: Remat = everything,
) -> tuple[Float[Array, "P L H"], KVCache]:
    """Reads prompts with image features in their slots; hidden after the last norm.

    Level k of the features is added in the slots after layer k.
    """
    return _prompts(params, spec, prompts, features, (), remat)


def resume(
    params: Params,
    spec: QwenSpec,
    cache: SlotCache,
    mask: Bool[Array, "P C"],
    prompts: Prompts,
    features: Features | None,
    *,
    remat: Remat = everything,
) -> tuple[Float[Array, "P L H"], KVCache]:
    """`prefill` of what follows the tokens that the cache holds where `mask` is."""
    before = [(slot_caches.as_prompts(cache), mask[:, None, None])]
    return _prompts(params, spec, prompts, features, before, remat)


def _prompts(
    params: Params,
    spec: QwenSpec,
    prompts: Prompts,
    features: Features | None,
    before: Sequence[tuple[KVCache, Bool[Array, "..."]]],
    remat: Remat,
) -> tuple[Float[Array, "P L H"], KVCache]:
    """Each as the only response of a group, behind what is `before` it."""
    tokens = jnp.where(prompts.mask, prompts.tokens, 0)
    x = embed(params["text"]["embedding"], tokens)[:, None]
    after_layer = _nothing
    if features is not None:
        slots = jnp.where(prompts.mask, prompts.slots, 0)
        x, after_layer = _spliced(x, slots[:, None], features)
    hidden, new = _decoder(
        params["text"],
        spec,
        x,
        prompts.positions[:, None],
        prompts.mask[:, None, None],
        before,
        after_layer,
        remat,
    )
    return hidden[:, 0], KVCache(new.keys[:, :, 0], new.values[:, :, 0])


def extend(
    params: Params,
    spec: QwenSpec,
    prompt_cache: KVCache,
    prompt_mask: Bool[Array, "P L"],
    tokens: Int[Array, "P G T"],
    positions: Int[Array, "P G T 3"],
    shown: tuple[Int[Array, "P G T"], Features] | None = None,
    *,
    remat: Remat = everything,
) -> Float[Array, "P G T H"]:
    """Reads whole responses: a token sees its prompt, and its response up to itself.

    `shown` are slots as in `Prompts`, and the features of the pictures that stand in
    the responses themselves.
    """
    x, after_layer = embed(params["text"]["embedding"], tokens), _nothing
    if shown is not None:
        x, after_layer = _spliced(x, *shown)
    before = [(prompt_cache, prompt_mask[:, None, None, :])]
    hidden, _ = _decoder(
        params["text"], spec, x, positions, jnp.array(True), before, after_layer, remat
    )
    return hidden


def unstack(params: Params, spec: QwenSpec) -> Params:
    """The decoder's weights with its layers apart; the head is read by itself."""
    text = {name: part for name, part in params["text"].items() if name != "head"}
    return {**text, "layers": slot_caches.unstack(text["layers"], spec.text.layers)}


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
    x = embed(weights["embedding"], tokens)
    turns = slot_caches.rotary_of(_angles(positions, spec), column)
    now = []
    for layer, before in zip(
        weights["layers"], slot_caches.layers_of(cache), strict=True
    ):
        normed = rms_norm(layer["norm1"], x, spec.text.eps)
        queries, keys, values = _projected(layer, spec, normed, turns)
        now.append(slot_caches.write(before, column, keys, values))
        scale = spec.text.head_dim**-0.5
        attended = slot_caches.attend(queries, now[-1], index >= 0, scale=scale)
        x = _rest_of_layer(layer, spec, x, attended)
    hidden = rms_norm(weights["norm"], x, spec.text.eps)
    return hidden, slot_caches.of_layers(now)


def _spliced(
    embedded: Float[Array, "P G S H"], slots: Int[Array, "P G S"], features: Features
) -> tuple[Float[Array, "P G S H"], Callable[[Int[Array, ""], Array], Array]]:
    """Features in the place of embeddings, and what is added after layers."""

    def placed(values: Float[Array, "K M H"]) -> Float[Array, "P G S H"]:
        return in_slots(values, slots, embedded.dtype)

    levels = features.levels.shape[1]

    def add_level(number: Int[Array, ""], x: Array) -> Array:
        return jax.lax.cond(
            number < levels,
            lambda: x + placed(features.levels[:, number]),
            lambda: x,
        )

    x = jnp.where((slots > 0)[..., None], placed(features.main), embedded)
    return x, add_level if levels else _nothing


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
    after_layer: Callable[[Int[Array, ""], Array], Array],
    remat: Remat,
) -> tuple[Float[Array, "P G S H"], KVCache]:
    """All layers over S tokens that also see the caches `before` them.

    Masks broadcast to [P G S keys]. Returns the keys and values of the S tokens alone.
    """
    text = spec.text
    turns = rotary(_angles(positions, spec))
    masks = [jnp.tri(x.shape[2], dtype=bool) & mask, *(mask for _, mask in before)]

    def layer(x: Array, scanned: tuple) -> tuple[Array, KVCache]:
        number, weights, caches = scanned
        normed = rms_norm(weights["norm1"], x, text.eps)
        queries, *new = _projected(weights, spec, normed, turns)
        new = KVCache(*new)
        attended = attend(queries, [new, *caches], masks, scale=text.head_dim**-0.5)
        return after_layer(number, _rest_of_layer(weights, spec, x, attended)), new

    caches = [cache for cache, _ in before]
    scanned = jnp.arange(text.layers), params["layers"], caches
    x, new = jax.lax.scan(remat(layer), x, scanned)
    return rms_norm(params["norm"], x, text.eps), new


def _projected(
    weights: Params,
    spec: QwenSpec,
    normed: Float[Array, "*B H"],
    turns: Rotary,
) -> tuple[Array, Array, Array]:
    """Queries, keys and values of every head, turned to their positions."""

    def heads(part: str, axis: str) -> Array:
        return as_heads(linear(weights[part], normed), axis, spec.text.head_dim)

    def turned(part: str, axis: str) -> Array:
        states = heads(part, axis)
        if spec.family.qk_norm:
            states = rms_norm(weights[f"{part}_norm"], states, spec.text.eps)
        return rotate(states, turns)

    return (
        turned("query", "heads"),
        turned("key", "kv_heads"),
        heads("value", "kv_heads"),
    )


def _rest_of_layer(
    weights: Params,
    spec: QwenSpec,
    x: Float[Array, "*B H"],
    attended: Float[Array, "*B heads D"],
) -> Float[Array, "*B H"]:
    """What a layer does once its heads have looked."""
    x = x + linear(weights["out"], attended.reshape(*x.shape[:-1], -1))
    normed = rms_norm(weights["norm2"], x, spec.text.eps)
    if spec.text.experts:
        return by_row(x + mixture(weights["experts"], normed, chosen=spec.text.chosen))
    return by_row(x + swiglu(weights, normed))


def _angles(positions: Int[Array, "*B 3"], spec: QwenSpec) -> Float[Array, "*B half"]:
    """theta^(-2k / head_dim) times the position of the axis that owns frequency k."""
    half = spec.text.head_dim // 2
    frequencies = spec.text.rope_theta ** (-jnp.arange(half) / half)
    owner = spec.family.sections(spec.text.rope_sections)
    return positions[..., owner].astype(jnp.float32) * frequencies
