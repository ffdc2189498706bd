"""Pictures to packed patches, on the host.

The size rule, pixel statistics and patch order are those of the released processors;
pictures are turned as their EXIF tag says and resized once, by Pillow's bicubic.
Packing is ours: every window of the tower owns a block of consecutive rows, so that
shapes never depend on the pictures and the device gathers nothing. A tower without
windows is one whose windows are single merged tokens: pictures follow each other in
reading order, and nothing is padded but the end.
"""

import io
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from PIL import Image, ImageOps, UnidentifiedImageError

from vrl_jax.models.qwen_vl.spec import QwenSpec
from vrl_jax.types import ImageRef


class PackedImages(NamedTuple):
    """The pictures of one prompt, as in `Images` without the prompt axis.

    `merged_index[i][j]` is the place of picture i's merged token j (row by row, as the
    prompt's placeholders run) among the merged tokens of the layout.
    """

    patches: Float[np.ndarray, "N C"]
    coordinates: Int[np.ndarray, "N 2"]
    frames: Int[np.ndarray, " N"]
    merged_index: tuple[Int[np.ndarray, " tokens"], ...]


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
    """Decodes a picture and turns it as its EXIF tag says, in RGB.

    What is transparent shows white paper, as in the released processors.
    """
    shown = f"{len(ref)} bytes" if isinstance(ref, bytes) else repr(ref)
    try:
        with Image.open(io.BytesIO(ref) if isinstance(ref, bytes) else ref) as picture:
            return _opaque(ImageOps.exif_transpose(picture))
    except FileNotFoundError:
        raise ValueError(f"There is no picture at {shown}. Check the path.") from None
    except (
        UnidentifiedImageError,
        Image.DecompressionBombError,
        OSError,
        SyntaxError,  # what Pillow raises for a broken PNG chunk
        ValueError,
    ) as error:
        raise ValueError(
            f"A picture ({shown}) cannot be decoded: {error}. Replace it or drop its "
            "row."
        ) from error


def _opaque(picture: Image.Image) -> Image.Image:
    if "A" not in picture.getbands() and picture.info.get("transparency") is None:
        return picture.convert("RGB")
    paper = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(paper, picture.convert("RGBA")).convert("RGB")


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


def pack_images(
    pictures: Sequence[Image.Image], spec: QwenSpec, *, budget: int
) -> PackedImages:
    """The pictures of one prompt in `budget` rows, window by window.

    Windows come in reading order, each with its merged tokens in reading order; a
    window that the picture's edge cuts is padded inside its block.
    """
    vision = spec.vision
    if budget % vision.window_patches:
        raise ValueError(
            "The patch budget must hold whole windows of "
            f"{vision.window_patches}, got {budget}. Without windows these are merged "
            "tokens."
        )
    need = sum(packed_patches(p.height, p.width, spec) for p in pictures)
    if need > budget:
        raise ValueError(
            f"{len(pictures)} pictures need {need} patches, the budget is {budget}. "
            "Raise the budget or lower max_pixels."
        )
    group = vision.group
    patches = np.zeros((budget // group, group, vision.patch_values), np.float32)
    coordinates = np.zeros((budget // group, group, 2), np.int32)
    frames = np.zeros((budget // group, group), np.int32)
    merged_index, start = [], 0
    for number, picture in enumerate(pictures, start=1):
        grid = merged_grid(picture.height, picture.width, spec)
        index = start + _window_order(*grid, vision.window_side)
        patches[index] = patchify(picture, spec)
        coordinates[index] = _coordinates(*grid, vision.merge)
        frames[index] = number
        merged_index.append(index)
        start += packed_patches(picture.height, picture.width, spec) // group
    return PackedImages(
        patches.reshape(budget, -1),
        coordinates.reshape(budget, 2),
        frames.reshape(budget),
        tuple(merged_index),
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
