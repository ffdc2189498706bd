"""The vision tower: packed patches in, features of each merged token out.

Patches lie window by window (`images.lay_out`) and pictures whole in blocks, so window
attention is a reshape, and full attention one into blocks with an equality mask on the
picture's number; nothing is gathered.
Qwen2-VL, section 2.1 of https://arxiv.org/abs/2409.12191; windows, section 2.1.1 of
https://arxiv.org/abs/2502.13923; learned positions and deepstack, section 2 of
https://arxiv.org/abs/2511.21631.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vrl_jax.models.attention import attend_within
from vrl_jax.models.layers import Rotary, as_heads, linear, rotary, rotate
from vrl_jax.models.policy import Params
from vrl_jax.models.qwen_vl.layers import exact_gelu_mlp
from vrl_jax.models.qwen_vl.spec import QwenSpec, VisionSpec
from vrl_jax.models.remat import Remat, everything
from vrl_jax.models.sharding import by_row
from vrl_jax.types import Images


class Features(NamedTuple):
    """What stands at a merged token: `main` enters the decoder in its place.

    Level k of `levels` is added there after decoder layer k (deepstack).
    """

    main: Float[Array, "P M H"]
    levels: Float[Array, "P K M H"]


def encode_images(
    params: Params, spec: QwenSpec, images: Images, *, remat: Remat = everything
) -> Features:
    """Features of the merged tokens in packed order; 0 where there is only padding."""
    vision, family, tower = spec.vision, spec.family, params["vision"]
    if not images.frames.size:  # a batch of text alone
        packs, width = images.frames.shape[0], spec.text.width
        return Features(
            jnp.zeros((packs, 0, width)),
            jnp.zeros((packs, len(vision.deepstack), 0, width)),
        )
    real = images.frames > 0
    dtype = tower["patch_embed"]["kernel"].dtype
    # Padding may hold anything; what enters the tower from it is 0.
    patches = jnp.where(real[..., None], images.patches, 0).astype(dtype)
    hidden = linear(tower["patch_embed"], patches)
    if vision.table_side:
        hidden = hidden + _learned_positions(tower["positions"], images, vision)
    turns = rotary(_angles(images.coordinates, vision))

    def block(carry: tuple[Array, Array], layer: tuple[Params, Array, Array]) -> tuple:
        hidden, taken = carry
        weights, full, level = layer
        normed = family.vision_norm(weights["norm1"], hidden, vision.eps)
        attended = _attention(weights, normed, turns, images, full, vision)
        hidden = hidden + linear(weights["out"], attended)
        normed = family.vision_norm(weights["norm2"], hidden, vision.eps)
        hidden = by_row(hidden + family.vision_mlp(weights, normed))
        if vision.deepstack:
            taken = jax.lax.cond(
                level >= 0, lambda: taken.at[level].set(hidden), lambda: taken
            )
        return (hidden, taken), None

    number = np.arange(vision.depth)
    full = np.isin(number, vision.full_blocks)
    level = np.array([[*vision.deepstack, i].index(i) for i in number])
    level = np.where(level < len(vision.deepstack), level, -1)
    taken = jnp.zeros((len(vision.deepstack), *hidden.shape), hidden.dtype)
    (hidden, taken), _ = jax.lax.scan(
        remat(block), (hidden, taken), (tower["blocks"], full, level)
    )

    def joined(x: Float[Array, "P N D"]) -> Float[Array, "P M gD"]:
        return x.reshape(x.shape[0], -1, vision.group * vision.width)

    def merged(merger: Params, x: Float[Array, "P M gD"]) -> Float[Array, "P M H"]:
        return jnp.where(real[:, :: vision.group, None], exact_gelu_mlp(merger, x), 0)

    def level_of(merger: Params, x: Float[Array, "P N D"]) -> Float[Array, "P M H"]:
        return merged(merger, family.vision_norm(merger["norm"], joined(x), vision.eps))

    merger = tower["merger"]
    main = merged(
        merger, joined(family.vision_norm(merger["norm"], hidden, vision.eps))
    )
    if not vision.deepstack:
        return Features(
            main, jnp.zeros((main.shape[0], 0, *main.shape[1:]), main.dtype)
        )
    return Features(main, jax.vmap(level_of, out_axes=1)(tower["deepstack"], taken))


def _learned_positions(
    table: Float[Array, "S2 D"], images: Images, vision: VisionSpec
) -> Float[Array, "P N D"]:
    """The table, read between its rows."""
    rows, weights = interpolation(
        images.coordinates, images.frames, vision.table_side, vision.group
    )
    return jnp.einsum("pnk,pnkd->pnd", weights.astype(table.dtype), table[rows])


def interpolation(
    coordinates: Int[Array, "P N 2"], frames: Int[Array, "P N"], side: int, group: int
) -> tuple[Int[Array, "P N 4"], Float[Array, "P N 4"]]:
    """Rows of a side x side table, and their weights, at the place of each patch.

    Bilinear with aligned corners: patch i of h lies at i (side - 1) / (h - 1). The
    size h x w of a picture is one more than its largest coordinates; integers keep
    the weights exact.
    """
    real = (frames > 0)[..., None]
    coordinates = jnp.where(real, coordinates, 0)
    # A picture has at least one merged token, so numbers end at N / group.
    pictures = frames.shape[1] // group + 1
    last = jax.vmap(lambda c, f: jax.ops.segment_max(c, f, pictures)[f])(
        coordinates, frames
    )
    last = jnp.maximum(last, 1)  # a single row or column lies at 0
    below, rest = jnp.divmod(coordinates * (side - 1), last)
    share = rest / last
    corners = jnp.stack([below, jnp.minimum(below + 1, side - 1)], axis=-1)
    shares = jnp.stack([1 - share, share], axis=-1)
    rows = corners[:, :, 0, :, None] * side + corners[:, :, 1, None, :]
    weights = shares[:, :, 0, :, None] * shares[:, :, 1, None, :]
    return rows.reshape(*frames.shape, 4), weights.reshape(*frames.shape, 4)


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
    turns: Rotary,
    images: Images,
    full: Bool[Array, ""],
    vision: VisionSpec,
) -> Float[Array, "P N D"]:
    """Each patch attends to its picture where `full`, else to its window.

    Without windows, to its picture, which lies in one block of `images.block` patches.
    """
    kernel, bias = weights["qkv"]["kernel"], weights["qkv"]["bias"]
    rows = x.reshape(-1, vision.width)
    qkv = jnp.einsum("nd,dce->cne", rows, kernel) + bias[:, None]
    queries, keys, values = (
        as_heads(part.reshape(x.shape), "vision_heads", vision.head_dim) for part in qkv
    )
    queries, keys = rotate(queries, turns), rotate(keys, turns)

    # The branch not taken would otherwise leave its attention weights, N^2 of them,
    # in every block's residuals.
    @functools.partial(jax.checkpoint, static_argnums=0)
    def within(rows: int, q: Array, k: Array, v: Array) -> Array:
        tiles = images.frames.reshape(-1, rows)
        tiled = (a.reshape(*tiles.shape, *a.shape[2:]) for a in (q, k, v))
        return attend_within(*tiled, tiles).reshape(q.shape)

    within_picture = functools.partial(within, images.block or x.shape[1])
    within_window = functools.partial(within, vision.window_patches)
    if vision.window:
        attended = jax.lax.cond(
            full, within_picture, within_window, queries, keys, values
        )
    else:
        attended = within_picture(queries, keys, values)
    return attended.reshape(x.shape)
