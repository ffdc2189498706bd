"""Odd pictures as files, and both processors' patches of them."""

import io

import numpy as np
from PIL import Image, ImageOps
from transformers.models.gemma3.image_processing_pil_gemma3 import (
    Gemma3ImageProcessorPil,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
    Qwen2VLImageProcessorPil,
)

from vrl_jax.models.families import Spec
from vrl_jax.models.gemma3.front_end import front_end as gemma3_front_end
from vrl_jax.models.gemma3.spec import Gemma3Spec
from vrl_jax.models.qwen_vl.images import (
    load_image,
    merged_grid,
    patchify,
    resize_image,
)
from vrl_jax.models.qwen_vl.spec import QwenSpec

from ..models.cases import picture


def _encoded(shown: Image.Image, kind: str = "PNG", **settings) -> bytes:
    buffer = io.BytesIO()
    shown.save(buffer, kind, **settings)
    return buffer.getvalue()


def odd_pictures(seed: int) -> dict[str, bytes]:
    """Modes, formats and shapes that loaders get wrong; sizes are drawn."""
    random = np.random.RandomState(seed)
    height, width = (int(size) for size in random.randint(30, 140, 2))
    exif = Image.Exif()
    exif[0x0112] = int(random.randint(2, 9))  # any of the seven turns and mirrors
    shown, other = picture(seed, height, width), picture(seed + 1, height, width)
    alpha = shown.copy()
    alpha.putalpha(other.convert("L"))
    palette = shown.quantize(16)
    return {
        "odd": _encoded(shown),
        "jpeg": _encoded(shown, "JPEG"),
        "grey": _encoded(shown.convert("L")),
        "grey_alpha": _encoded(alpha.convert("LA")),
        "one_bit": _encoded(shown.convert("1")),
        "rgba": _encoded(alpha),
        "palette": _encoded(palette),
        "palette_transparent": _encoded(palette, transparency=3),
        "cmyk": _encoded(shown.convert("CMYK"), "JPEG"),
        "turned": _encoded(shown, "JPEG", exif=exif.tobytes()),
        "one_pixel_high": _encoded(picture(seed + 2, 1, int(random.randint(2, 90)))),
        "one_pixel": _encoded(picture(seed + 3, 1, 1)),
        "large": _encoded(picture(seed + 4, 300, 400 + height)),
    }


def patch_error(data: bytes, spec: Spec, processor) -> float:
    """The largest difference of the two processors' patches, once sizes agree."""
    loaded = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    theirs = processor(images=[loaded], return_tensors="np")
    compared = _gemma3_patches if isinstance(spec, Gemma3Spec) else _qwen_patches
    ours, wanted = compared(data, spec, processor, theirs)
    return float(np.abs(ours - wanted).max())


def _qwen_patches(data: bytes, spec: QwenSpec, processor, theirs) -> tuple:
    bounds = {
        "min_pixels": processor.size["shortest_edge"],
        "max_pixels": processor.size["longest_edge"],
    }
    ours = resize_image(load_image(data), spec, **bounds)
    sides = merged_grid(*ours.size[::-1], spec)
    grid = (1, *(side * spec.vision.merge for side in sides))
    assert tuple(theirs["image_grid_thw"][0]) == grid
    rows = patchify(ours, spec).reshape(-1, spec.vision.patch_values)
    return rows, theirs["pixel_values"]


def _gemma3_patches(data: bytes, spec: Gemma3Spec, processor, theirs) -> tuple:
    """Theirs is a whole picture: ours, patch by patch, where its coordinates say."""
    del processor
    front_end, patch = gemma3_front_end(spec), spec.vision.patch
    laid_out = front_end.lay_out(front_end.resize(front_end.load(data)))
    shown = np.zeros((3, spec.vision.image, spec.vision.image), np.float32)
    for values, (row, column) in zip(
        laid_out.patches, laid_out.coordinates * patch, strict=True
    ):
        square = values.reshape(3, patch, patch)
        shown[:, row : row + patch, column : column + patch] = square
    [wanted] = theirs["pixel_values"]
    return shown, wanted


def their_processor(folder: str, spec: Spec):
    """Theirs, with the settings of a model folder."""
    if isinstance(spec, Gemma3Spec):
        return Gemma3ImageProcessorPil.from_pretrained(folder)
    return Qwen2VLImageProcessorPil.from_pretrained(folder)


def pixel_bounds(spec: Spec) -> tuple[int, int] | None:
    """Small ones, of a family whose pictures have sizes of their own."""
    return None if isinstance(spec, Gemma3Spec) else (56 * 56, 200 * 200)
