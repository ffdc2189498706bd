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

from vrl_jax.models import slots
from vrl_jax.models.attention import KVCache, attend, in_slots
from vrl_jax.models.gemma3.layers import geglu, rms_norm
from vrl_jax.models.gemma3.spec import Gemma3Spec
from vrl_jax.models.layers import Rotary, as_heads, embed, linear, rotary, rotate
from vrl_jax.models.policy import Params, SlotCache
from vrl_jax.models.remat import Remat, everything
from vrl_jax.models.sharding import by_row
from vrl_jax.types import Prompts


class Masks(NamedTuple):
    """Which keys a query sees, in global layers and in local ones."""

    everywhere: Bool[Array, "..."]
    nearby: Bool[Array, "..."]


def head(params: Params, spec: Gemma3Spec) -> Float[Array, "V H"]:
    """The embedding."""
    del spec
    return params["text"]["embedding"]


def prefill(
    params: Params,
    spec: Gemma3Spec,
    prompts: Prompts,
    features: Float[Array, "K M H"],
    *,
    remat: Remat = everything,
) -> tuple[Float[Array, "P L H"], KVCache]:
    """Reads prompts with image features in their slots; hidden after the last norm.

    Unlike an embedding, a feature is not scaled.
    """
    return _prompts(params, spec, prompts, features, [], [], remat)


def resume(
    params: Params,
    spec: Gemma3Spec,
    cache: SlotCache,
    mask: Bool[Array, "P C"],
    prompts: Prompts,
    features: Float[Array, "K M H"] | None,
    *,
    remat: Remat = everything,
) -> tuple[Float[Array, "P L H"], KVCache]:
    """`prefill` of what follows the tokens that the cache holds where `mask` is."""
    masks = _before(mask, prompts.positions[:, None, :, 0], spec.text.window)
    before = slots.as_prompts(cache)
    return _prompts(params, spec, prompts, features, [masks], [before], remat)


def _prompts(
    params: Params,
    spec: Gemma3Spec,
    prompts: Prompts,
    features: Float[Array, "K M H"] | None,
    masks: Sequence[Masks],
    before: Sequence[KVCache],
    remat: Remat,
) -> tuple[Float[Array, "P L H"], KVCache]:
    """Each as the only response of a group, behind what is `before` it."""
    tokens = jnp.where(prompts.mask, prompts.tokens, 0)
    places = jnp.where(prompts.mask, prompts.slots, 0)
    x = _embedded(params, tokens)
    if features is not None:
        pictures = in_slots(features, places, x.dtype)
        x = jnp.where((places > 0)[..., None], pictures, x)
    hidden, new = _decoder(
        params["text"],
        spec,
        x[:, None],
        prompts.positions[:, None, :, 0],
        [prompt_masks(places > 0, prompts.mask, spec.text.window), *masks],
        before,
        remat,
    )
    return hidden[:, 0], KVCache(new.keys[:, :, 0], new.values[:, :, 0])


def _before(
    mask: Bool[Array, "P L"], positions: Int[Array, "P G T"], window: int
) -> Masks:
    """Of tokens at `positions`, to a cache whose tokens lie at theirs."""
    near = positions[..., None] - jnp.arange(mask.shape[1]) < window
    real = mask[:, None, None, :]
    return Masks(real, real & near)


def prompt_masks(
    pictured: Bool[Array, "P L"], mask: Bool[Array, "P L"], window: int
) -> Masks:
    """Of prompts: [P 1 L L], by query and key.

    Token q sees k where k <= q, or where both are of one picture, a run of `pictured`
    tokens. In local layers besides k > q - window: a large picture's last tokens do not
    see its first ones.
    """
    same = one_picture(pictured)
    number = jnp.arange(mask.shape[1])
    away = number[:, None] - number
    seen = ((away >= 0) | same) & mask[:, None, :]
    return Masks(seen[:, None], (seen & (away < window))[:, None])


def one_picture(pictured: Bool[Array, "*B L"]) -> Bool[Array, "*B L L"]:
    """Which two tokens are of the same run of `pictured` ones."""
    before = jnp.roll(pictured, 1, axis=-1).at[..., 0].set(False)
    picture = jnp.where(pictured, jnp.cumsum(pictured & ~before, axis=-1), 0)
    same = picture[..., :, None] == picture[..., None, :]
    return same & pictured[..., :, None]


def extend(
    params: Params,
    spec: Gemma3Spec,
    prompt_cache: KVCache,
    prompt_mask: Bool[Array, "P L"],
    tokens: Int[Array, "P G T"],
    positions: Int[Array, "P G T 3"],
    shown: tuple[Int[Array, "P G T"], Float[Array, "K M H"]] | None = None,
    *,
    remat: Remat = everything,
) -> Float[Array, "P G T H"]:
    """Reads whole responses: a token sees its prompt, and its response up to itself.

    In local layers those that are less than a window away. `shown` are slots as in
    `Prompts`, and the features of the pictures in the responses.
    """
    window, positions = spec.text.window, positions[..., 0]
    number = jnp.arange(tokens.shape[2])
    x, same = _embedded(params, tokens), jnp.array(False)
    if shown is not None:
        places, features = shown
        pictures = in_slots(features, places, x.dtype)
        x = jnp.where((places > 0)[..., None], pictures, x)
        same = one_picture(places > 0)
    away = number[:, None] - number
    seen = (away >= 0) | same
    before = _before(prompt_mask, positions, window)
    masks = [Masks(seen, seen & (away < window)), before]
    hidden, _ = _decoder(
        params["text"], spec, x, positions, masks, [prompt_cache], remat
    )
    return hidden


def unstack(params: Params, spec: Gemma3Spec) -> Params:
    """The decoder's weights with its layers apart."""
    text = params["text"]
    return {"text": {**text, "layers": slots.unstack(text["layers"], spec.text.layers)}}


def decode(
    weights: Params,
    spec: Gemma3Spec,
    cache: SlotCache,
    column: Int[Array, ""],
    index: Int[Array, "B C"],
    tokens: Int[Array, " B"],
    positions: Int[Array, "B 3"],
) -> tuple[Float[Array, "B H"], SlotCache]:
    """Reads one token in every slot, and keeps its keys and values in `column`.

    What `extend` computes of one token. A sequence's token stands at its position.
    """
    text = spec.text
    x, here = _embedded(weights, tokens), positions[:, 0]
    around, nearby = (
        slots.rotary_of(angles, column) for angles in _both_angles(here, spec)
    )
    everywhere = index >= 0
    window = everywhere & (here[:, None] - index < text.window)
    before, now = slots.layers_of(cache), []
    for number, layer in enumerate(weights["text"]["layers"]):
        is_global = number in text.global_layers
        queries, keys, values = _projected(
            layer, spec, x, around if is_global else nearby
        )
        now.append(slots.write(before[number], column, keys, values))
        seen = everywhere if is_global else window
        scale = text.query_scalar**-0.5
        attended = slots.attend(queries, now[-1], seen, scale=scale)
        x = _rest_of_layer(layer, spec, x, attended)
    return rms_norm(weights["text"]["norm"], x, text.eps), slots.of_layers(now)


def _embedded(params: Params, tokens: Int[Array, "..."]) -> Float[Array, "... H"]:
    """sqrt(H) times the embedding, the factor in its precision."""
    table = params["text"]["embedding"]
    return embed(table, tokens) * jnp.asarray(math.sqrt(table.shape[1]), table.dtype)


def _decoder(
    params: Params,
    spec: Gemma3Spec,
    x: Float[Array, "P G S H"],
    positions: Int[Array, "P G S"],
    masks: Sequence[Masks],
    caches: Sequence[KVCache],
    remat: Remat,
) -> tuple[Float[Array, "P G S H"], KVCache]:
    """All layers over S tokens that also see the `caches` before them.

    The first mask is that of the S tokens, then one for each cache; they broadcast to
    [P G S keys]. Returns the keys and values of the S tokens alone.
    """
    text = spec.text
    around, nearby = map(rotary, _both_angles(positions, spec))

    def layer(x: Array, scanned: tuple) -> tuple[Array, KVCache]:
        is_global, weights, caches = scanned
        turns = Rotary(
            *(jnp.where(is_global, *pair) for pair in zip(around, nearby, strict=True))
        )
        chosen = [jnp.where(is_global, *kinds) for kinds in masks]
        queries, *new = _projected(weights, spec, x, turns)
        new = KVCache(*new)
        attended = attend(
            queries, [new, *caches], chosen, scale=text.query_scalar**-0.5
        )
        return _rest_of_layer(weights, spec, x, attended), new

    is_global = np.isin(np.arange(text.layers), text.global_layers)
    x, new = jax.lax.scan(remat(layer), x, (is_global, params["layers"], list(caches)))
    return rms_norm(params["norm"], x, text.eps), new


def _projected(
    weights: Params,
    spec: Gemma3Spec,
    x: Float[Array, "*B H"],
    turns: Rotary,
) -> tuple[Array, Array, Array]:
    """Queries, keys and values of every head, turned to their positions."""
    eps = spec.text.eps
    before = rms_norm(weights["norm1"], x, eps)

    def heads(part: str, axis: str) -> Array:
        return as_heads(linear(weights[part], before), axis, spec.text.head_dim)

    queries, keys = heads("query", "heads"), heads("key", "kv_heads")
    queries = rotate(rms_norm(weights["query_norm"], queries, eps), turns)
    keys = rotate(rms_norm(weights["key_norm"], keys, eps), turns)
    return queries, keys, heads("value", "kv_heads")


def _rest_of_layer(
    weights: Params,
    spec: Gemma3Spec,
    x: Float[Array, "*B H"],
    attended: Float[Array, "*B heads D"],
) -> Float[Array, "*B H"]:
    """What a layer does once its heads have looked."""
    eps = spec.text.eps
    attended = linear(weights["out"], attended.reshape(*x.shape[:-1], -1))
    between = x + rms_norm(weights["after1"], attended, eps)
    written_out = geglu(weights, rms_norm(weights["norm2"], between, eps))
    return by_row(between + rms_norm(weights["after2"], written_out, eps))


def _both_angles(
    positions: Int[Array, "*B"], spec: Gemma3Spec
) -> tuple[Float[Array, "*B half"], Float[Array, "*B half"]]:
    """Those of global and of local layers."""
    text = spec.text
    return (
        _angles(positions, text.global_theta, text.global_factor, text.head_dim),
        _angles(positions, text.local_theta, 1.0, text.head_dim),
    )


def _angles(
    positions: Int[Array, "*B"], theta: float, factor: float, head_dim: int
) -> Float[Array, "*B half"]:
    """theta^(-2k / head_dim) times position / factor."""
    half = head_dim // 2
    frequencies = theta ** (-jnp.arange(half) / half) / factor
    return positions[..., None].astype(jnp.float32) * frequencies
