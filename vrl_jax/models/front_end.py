"""What a family must provide on the host, before anything is on the device.

`engine.processing` turns chat text and pictures into tables with these functions and
asks no model's name. `qwen_vl.front_end` is one set of them.
"""

import io
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from PIL import Image, ImageOps

from vrl_jax.types import ImageRef
from vrl_jax.views import RGB


class LaidOut(NamedTuple):
    """One picture in the layout of the tower: what `pack` puts behind each other.

    Padding that the layout needs inside a picture is not `real`. `merged_index[j]` is
    the place of merged token j (in the order of the prompt's image tokens) among the
    picture's n / group merged tokens; `grid` is their rows and columns in the picture.
    """

    patches: Float[np.ndarray, "n C"]
    coordinates: Int[np.ndarray, "n 2"]
    real: Bool[np.ndarray, " n"]
    merged_index: Int[np.ndarray, " tokens"]
    grid: tuple[int, int]


class PackedImages(NamedTuple):
    """Pictures as in `Images`, without the leading axis.

    `merged_index[i][j]` is the place of picture i's merged token j among the merged
    tokens of them all.
    """

    patches: Float[np.ndarray, "N C"]
    coordinates: Int[np.ndarray, "N 2"]
    frames: Int[np.ndarray, " N"]
    merged_index: tuple[Int[np.ndarray, " tokens"], ...]


class FrontEnd(NamedTuple):
    """Functions of the host; the family's spec is already applied.

    load(ref)                -> picture, decoded, in RGB
    resize(picture)          -> picture of the size that the tower sees
    lay_out(picture)         -> `LaidOut`
    written(count, spelled)  -> the text of a picture of `count` merged tokens in the
                                prompt; spelled(id) is a token's text
    positions(tokens, grids) -> [L 3] of a prompt's tokens; `grids` of its pictures

    The chat template writes token `placeholder` for a picture, and `written` replaces
    it; `image_token` stands there once for each merged token. `unsampled` ids would
    break the next forward pass. A picture of the largest area that the bounds allow
    takes at most `largest` patches, if it is no more than three times as long as wide;
    each takes a multiple of `granularity`, and so must a budget be; `group` patches are
    one merged token.
    """

    spec: Any
    load: Callable
    resize: Callable
    lay_out: Callable
    written: Callable
    positions: Callable
    placeholder: int
    image_token: int
    unsampled: tuple[int, ...]
    pixel_mean: RGB
    pixel_std: RGB
    pixel_bounds: tuple[int, int]
    largest: int
    granularity: int
    group: int
    patch_values: int


def pack(
    pictures: Sequence[LaidOut],
    *,
    budget: int,
    group: int,
    patch_values: int,
    starts: Sequence[int] | None = None,
) -> PackedImages:
    """The pictures in `budget` rows, from the given rows on; the rest is padding.

    They lie behind each other where no `starts` are given.
    """
    ends = np.cumsum([0, *(len(picture.patches) for picture in pictures)])
    starts = ends[:-1] if starts is None else starts
    need = int(ends[-1])
    if need > budget:
        raise ValueError(
            f"{len(pictures)} pictures need {need} patches, the budget is {budget}. "
            "Raise the budget or lower max_pixels."
        )
    patches = np.zeros((budget, patch_values), np.float32)
    coordinates = np.zeros((budget, 2), np.int32)
    frames = np.zeros(budget, np.int32)
    merged_index = []
    for number, (picture, start) in enumerate(zip(pictures, starts, strict=True), 1):
        rows = slice(start, start + len(picture.patches))
        patches[rows] = picture.patches
        coordinates[rows] = picture.coordinates
        frames[rows] = np.where(picture.real, number, 0)
        merged_index.append(start // group + picture.merged_index)
    return PackedImages(patches, coordinates, frames, tuple(merged_index))


def load_image(
    ref: ImageRef, convert: Callable[[Image.Image], Image.Image]
) -> Image.Image:
    """Decodes a picture, turns it as its EXIF tag says, and converts it to RGB."""
    shown = f"{len(ref)} bytes" if isinstance(ref, bytes) else repr(ref)
    try:
        with Image.open(io.BytesIO(ref) if isinstance(ref, bytes) else ref) as picture:
            return convert(eight_bits(ImageOps.exif_transpose(picture)))
    except FileNotFoundError:
        raise ValueError(f"There is no picture at {shown}. Check the path.") from None
    except Exception as error:  # Pillow's, of its plug-ins, of struct, ...
        raise ValueError(
            f"A picture ({shown}) cannot be decoded: {error}. Replace it or drop its "
            "row."
        ) from error


def eight_bits(picture: Image.Image) -> Image.Image:
    """16-bit grey scaled to 8 bits, where Pillow would cut; 65535 / 257 is 255.

    Raises `ValueError` for 32-bit numbers, whose black and white nobody knows.
    """
    if picture.mode.startswith("I;16"):
        return Image.fromarray(np.rint(np.asarray(picture) / 257).astype(np.uint8))
    if picture.mode[0] in "IF":
        raise ValueError(f"its pixels are numbers of mode {picture.mode}; save 8 bits")
    return picture


def on_white(picture: Image.Image) -> Image.Image:
    """In RGB; what is transparent shows white paper."""
    if "A" not in picture.getbands() and picture.info.get("transparency") is None:
        return picture.convert("RGB")
    paper = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(paper, picture.convert("RGBA")).convert("RGB")
