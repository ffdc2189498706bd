"""Pictures to packed patches, on the host.

The size rule, pixel statistics and patch order are those of the released processors;
pictures are turned as their EXIF tag says and resized once, by Pillow's bicubic.
The layout is ours: every window of the tower owns a block of consecutive rows, so that
shapes never depend on the pictures and the device gathers nothing. A tower without
windows is one whose windows are single merged tokens: patches follow each other in
reading order, and nothing is padded.
"""

import math

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from vrl_jax.models import front_end
from vrl_jax.models.front_end import LaidOut
from vrl_jax.models.qwen_vl.spec import QwenSpec
from vrl_jax.types import ImageRef


def smart_resize(
    height: int, width: int, *, factor: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """The nearest size in multiples of `factor` with an area inside the bounds.

    Rounding is to even on ties; a picture that is too large shrinks by
    sqrt(area / max_pixels) and rounds down, one too small grows and rounds up.
    https://arxiv.org/abs/2409.12191, section 2.1 ("naive dynamic resolution").
    """
    if max(height, width) > 200 * min(height, width):
        raise ValueError(
            "A picture may be at most 200 times as long as wide, got "
            f"{height} x {width} pixels. Crop it."
        )
    new_height = max(factor, round(height / factor) * factor)
    new_width = max(factor, round(width / factor) * factor)
    if new_height * new_width > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        new_height = max(factor, math.floor(height / shrink / factor) * factor)
        new_width = max(factor, math.floor(width / shrink / factor) * factor)
    elif new_height * new_width < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        new_height = math.ceil(height * grow / factor) * factor
        new_width = math.ceil(width * grow / factor) * factor
    return new_height, new_width


def load_image(ref: ImageRef) -> Image.Image:
    """Decodes a picture; transparent parts show white: the released processors do."""
    return front_end.load_image(ref, front_end.on_white)


def resize_image(
    picture: Image.Image, spec: QwenSpec, *, min_pixels: int, max_pixels: int
) -> Image.Image:
    """Applies the size rule: done once, before anything else looks at the pixels."""
    height, width = smart_resize(
        picture.height,
        picture.width,
        factor=spec.vision.factor,
        min_pixels=min_pixels,
        max_pixels=max_pixels,
    )
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def merged_grid(height: int, width: int, spec: QwenSpec) -> tuple[int, int]:
    """Rows and columns of merged tokens of a picture that has its final size."""
    factor = spec.vision.factor
    if height % factor or width % factor or not height or not width:
        raise ValueError(
            f"Picture sizes must be multiples of {factor} pixels, got "
            f"{height} x {width}. Apply resize_image first."
        )
    return height // factor, width // factor


def packed_patches(height: int, width: int, spec: QwenSpec) -> int:
    """Rows that a picture of this (final) size takes of the budget, with padding."""
    rows, columns = merged_grid(height, width, spec)
    side = spec.vision.window_side
    windows = math.ceil(rows / side) * math.ceil(columns / side)
    return windows * spec.vision.window_patches


def patchify(picture: Image.Image, spec: QwenSpec) -> Float[np.ndarray, "tokens g C"]:
    """Normalised patches, merged token by merged token, row by row.

    A patch is flattened as (channel, frame, row, column); a picture is two equal
    frames.
    """
    rows, columns = merged_grid(picture.height, picture.width, spec)
    merge, patch = spec.vision.merge, spec.vision.patch
    mean, std = np.array([spec.family.pixel_mean, spec.family.pixel_std], np.float32)
    pixels = (np.asarray(picture, np.float32) / 255 - mean) / std
    tiles = pixels.reshape(rows, merge, patch, columns, merge, patch, 3)
    tiles = tiles.transpose(0, 3, 1, 4, 6, 2, 5)[..., None, :, :]
    twice = np.repeat(tiles, spec.vision.temporal, axis=-3)
    return twice.reshape(rows * columns, spec.vision.group, spec.vision.patch_values)


def largest_patches(spec: QwenSpec, max_pixels: int, *, aspect: int = 3) -> int:
    """Of a picture of at most this area, up to `aspect` times as long as wide."""
    edge = spec.vision.factor
    tokens = max_pixels // edge**2
    shorter = range(1, math.isqrt(tokens) + 1)
    sides = ((a * edge, min(tokens // a, aspect * a) * edge) for a in shorter)
    needs = (packed_patches(*pixels, spec) for pixels in sides)
    return max(needs, default=spec.vision.window_patches)


def lay_out(picture: Image.Image, spec: QwenSpec) -> LaidOut:
    """The patches of a picture that has its final size, window by window.

    Windows come in reading order, each with its merged tokens in reading order; a
    window that the picture's edge cuts is padded inside its block.
    """
    vision = spec.vision
    grid = merged_grid(picture.height, picture.width, spec)
    need = packed_patches(picture.height, picture.width, spec)
    group, index = vision.group, _window_order(*grid, vision.window_side)
    patches = np.zeros((need // group, group, vision.patch_values), np.float32)
    coordinates = np.zeros((need // group, group, 2), np.int32)
    real = np.zeros((need // group, group), bool)
    patches[index] = patchify(picture, spec)
    coordinates[index] = _coordinates(*grid, vision.merge)
    real[index] = True
    return LaidOut(
        patches.reshape(need, -1),
        coordinates.reshape(need, 2),
        real.reshape(need),
        index,
        grid,
    )


def _window_order(rows: int, columns: int, side: int) -> Int[np.ndarray, " tokens"]:
    """Where each merged token of a grid goes: its window's block, its rank inside."""
    row, column = (axis.ravel() for axis in np.indices((rows, columns)))
    window = row // side * math.ceil(columns / side) + column // side
    window_width = np.minimum(side, columns - column // side * side)
    return window * side**2 + row % side * window_width + column % side


def _coordinates(rows: int, columns: int, merge: int) -> Int[np.ndarray, "tokens g 2"]:
    """(row, column) in patches of each patch of each merged token."""
    corners = np.indices((rows, columns)).reshape(2, -1).T * merge
    inside = np.indices((merge, merge)).reshape(2, -1).T
    return corners[:, None] + inside
