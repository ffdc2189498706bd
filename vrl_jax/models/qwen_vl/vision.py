"""The vision tower: packed patches in, one feature for each merged token out.

Patches lie window by window (`images.pack_images`), so window attention is a reshape
and full attention an equality mask on the picture's number; nothing is gathered.
Sections 2.1.1 and figure 1 of https://arxiv.org/abs/2502.13923.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vrl_jax.models.policy import Params
from vrl_jax.models.qwen_vl.layers import linear, rms_norm, rotate, swiglu
from vrl_jax.models.qwen_vl.spec import QwenSpec, VisionSpec
from vrl_jax.types import Images


def encode_images(
    params: Params, spec: QwenSpec, images: Images
) -> Float[Array, "P M H"]:
    """Features of the merged tokens in packed order; 0 where there is only padding."""
    vision, tower = spec.vision, params["vision"]
    real = images.frames > 0
    dtype = tower["patch_embed"]["kernel"].dtype
    # Padding may hold anything; what enters the tower from it is 0.
    patches = jnp.where(real[..., None], images.patches, 0).astype(dtype)
    hidden = linear(tower["patch_embed"], patches)
    angles = _angles(images.coordinates, vision)
    is_full = jnp.isin(jnp.arange(vision.depth), jnp.array(vision.full_blocks, int))

    def block(hidden: Array, layer: tuple[Params, Array]) -> tuple[Array, None]:
        weights, full = layer
        normed = rms_norm(hidden, weights["norm1"], vision.eps)
        attended = _attention(weights, normed, angles, images.frames, full, vision)
        hidden = hidden + linear(weights["out"], attended)
        normed = rms_norm(hidden, weights["norm2"], vision.eps)
        return hidden + swiglu(weights, normed), None

    hidden, _ = jax.lax.scan(block, hidden, (tower["blocks"], is_full))
    return _merge(tower["merger"], hidden, real, vision)


def _angles(
    coordinates: Int[Array, "P N 2"], vision: VisionSpec
) -> Float[Array, "P N half"]:
    """Row times each frequency, then column times each; 10000^(-4k / head_dim)."""
    quarter = vision.head_dim // 4
    frequencies = 10_000.0 ** (-jnp.arange(quarter) / quarter)
    angles = coordinates[..., None].astype(jnp.float32) * frequencies
    return angles.reshape(*coordinates.shape[:2], 2 * quarter)


def _attention(
    weights: Params,
    x: Float[Array, "P N D"],
    angles: Float[Array, "P N half"],
    frames: Int[Array, "P N"],
    full: Bool[Array, ""],
    vision: VisionSpec,
) -> Float[Array, "P N D"]:
    """Each patch attends to its picture where `full`, else to its window."""
    kernel, bias = weights["qkv"]["kernel"], weights["qkv"]["bias"]
    rows = x.reshape(-1, vision.width)
    qkv = jnp.einsum("nd,dce->cne", rows, kernel) + bias[:, None]
    heads = (*x.shape[:2], vision.heads, vision.head_dim)
    queries, keys, values = qkv.reshape(3, *heads)
    queries, keys = rotate(queries, angles), rotate(keys, angles)

    # The branch not taken would otherwise leave its attention weights, N^2 of them,
    # in every block's residuals.
    @jax.checkpoint
    def within_picture(q: Array, k: Array, v: Array) -> Array:
        return _attend(q, k, v, frames)

    @jax.checkpoint
    def within_window(q: Array, k: Array, v: Array) -> Array:
        windows = frames.reshape(-1, vision.window_patches)
        tiled = (a.reshape(*windows.shape, *a.shape[2:]) for a in (q, k, v))
        return _attend(*tiled, windows).reshape(q.shape)

    attended = jax.lax.cond(full, within_picture, within_window, queries, keys, values)
    return attended.reshape(x.shape)


def _attend(
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


def _merge(
    merger: Params,
    hidden: Float[Array, "P N D"],
    real: Bool[Array, "P N"],
    vision: VisionSpec,
) -> Float[Array, "P M H"]:
    """Two matrices with an exact GELU between, over the patches of a merged token."""
    normed = rms_norm(hidden, merger["norm"], vision.eps)
    joined = normed.reshape(normed.shape[0], -1, vision.group * vision.width)
    inner = jax.nn.gelu(linear(merger["up"], joined), approximate=False)
    return jnp.where(real[:, :: vision.group, None], linear(merger["down"], inner), 0)
