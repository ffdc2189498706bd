"""The decoder: a prompt is read once, its responses attend to it.

Qwen2 (https://arxiv.org/abs/2407.10671) or Qwen3 (https://arxiv.org/abs/2505.09388)
with multimodal rotary positions: section 2.1 of https://arxiv.org/abs/2409.12191. `G`
responses share the keys and values of their prompt; nothing is repeated in memory.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vrl_jax.models.attention import KVCache, attend, empty_cache, in_slots, written
from vrl_jax.models.layers import linear, rms_norm, rotate, swiglu
from vrl_jax.models.policy import Params
from vrl_jax.models.qwen_vl.spec import QwenSpec
from vrl_jax.models.qwen_vl.vision import Features
from vrl_jax.types import Prompts


def init_cache(
    spec: QwenSpec, P: int, G: int, T: int, dtype: jnp.dtype = jnp.float32
) -> KVCache:
    """Room for T tokens of each of P * G responses."""
    text = spec.text
    return empty_cache(text.layers, text.kv_heads, text.head_dim, P, G, T, dtype)


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
    slots = jnp.where(prompts.mask, prompts.slots, 0)
    embedded = params["text"]["embedding"][tokens]
    levels = features.levels.shape[1]

    def placed(features: Float[Array, "K M H"]) -> Float[Array, "P L H"]:
        return in_slots(features, slots, embedded.dtype)

    def add_level(number: Int[Array, ""], x: Array) -> Array:
        return jax.lax.cond(
            number < levels,
            lambda: x + placed(features.levels[:, number])[:, None],
            lambda: x,
        )

    x = jnp.where((slots > 0)[..., None], placed(features.main), embedded)
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
    slots = cache.keys.shape[3]
    if tokens.shape[2] < slots:  # else every slot is new
        before.append((cache, jnp.arange(slots) < offset))
    embedded = params["text"]["embedding"][tokens]
    hidden, new = _decoder(
        params["text"], spec, embedded, positions, jnp.array(True), before
    )
    return hidden, written(cache, new, offset)


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

    def heads(weights: Params, part: str, normed: Array) -> Array:
        return linear(weights[part], normed).reshape(*x.shape[:3], -1, text.head_dim)

    def turned(weights: Params, part: str, normed: Array) -> Array:
        states = heads(weights, part, normed)
        if spec.family.qk_norm:
            states = rms_norm(weights[f"{part}_norm"], states, text.eps)
        return rotate(states, angles)

    def layer(x: Array, scanned: tuple) -> tuple[Array, KVCache]:
        number, weights, caches = scanned
        normed = rms_norm(weights["norm1"], x, text.eps)
        queries = turned(weights, "query", normed)
        new = KVCache(turned(weights, "key", normed), heads(weights, "value", normed))
        attended = attend(queries, [new, *caches], masks, scale=text.head_dim**-0.5)
        x = x + linear(weights["out"], attended.reshape(*x.shape[:3], -1))
        x = x + swiglu(weights, rms_norm(weights["norm2"], x, text.eps))
        return after_layer(number, x), new

    caches = [cache for cache, _ in before]
    scanned = jnp.arange(text.layers), params["layers"], caches
    x, new = jax.lax.scan(layer, x, scanned)
    return rms_norm(params["norm"], x, text.eps), new


def _angles(
    positions: Int[Array, "P G S 3"], spec: QwenSpec
) -> Float[Array, "P G S half"]:
    """theta^(-2k / head_dim) times the position of the axis that owns frequency k."""
    half = spec.text.head_dim // 2
    frequencies = spec.text.rope_theta ** (-jnp.arange(half) / half)
    owner = spec.family.sections(spec.text.rope_sections)
    return positions[..., owner].astype(jnp.float32) * frequencies
