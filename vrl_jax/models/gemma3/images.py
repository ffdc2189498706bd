"""Pictures to patches, on the host.

Every picture is stretched to one square size by Pillow's bilinear filter; the released
processor's pan-and-scan crops, which are off by default, are not made. A layout holds
the patches of a token together, so that the tower's average is over consecutive rows.
"""

import numpy as np
from jaxtyping import Float
from PIL import Image

from vrl_jax.models.front_end import LaidOut
from vrl_jax.models.gemma3.spec import CHANNELS, Gemma3Spec


def resize_image(picture: Image.Image, spec: Gemma3Spec) -> Image.Image:
    """The one size that there is."""
    return picture.resize((spec.vision.image,) * 2, Image.Resampling.BILINEAR)


def patchify(picture: Image.Image, spec: Gemma3Spec) -> Float[np.ndarray, "tokens g C"]:
    """Normalised patches, token by token, row by row; (channel, row, column) inside."""
    vision, size = spec.vision, spec.vision.image
    if picture.size != (size, size):
        raise ValueError(
            f"Pictures must have {size} x {size} pixels, got {picture.height} x "
            f"{picture.width}. Apply resize_image first."
        )
    mean, std = np.array([spec.pixel_mean, spec.pixel_std], np.float32)
    pixels = (np.asarray(picture, np.float32) / 255 - mean) / std
    tokens, pool = vision.token_side, vision.side // vision.token_side
    tiles = pixels.reshape(
        tokens, pool, vision.patch, tokens, pool, vision.patch, CHANNELS
    )
    tiles = tiles.transpose(0, 3, 1, 4, 6, 2, 5)
    return tiles.reshape(vision.tokens, vision.group, vision.patch_values)


def lay_out(picture: Image.Image, spec: Gemma3Spec) -> LaidOut:
    """The patches of a picture of the one size; nothing is padded."""
    vision = spec.vision
    tokens, pool = vision.token_side, vision.side // vision.token_side
    corners = np.indices((tokens, tokens)).reshape(2, -1).T * pool
    inside = np.indices((pool, pool)).reshape(2, -1).T
    return LaidOut(
        patches=patchify(picture, spec).reshape(vision.patches, -1),
        coordinates=(corners[:, None] + inside).reshape(-1, 2),
        real=np.ones(vision.patches, bool),
        merged_index=np.arange(vision.tokens),
        grid=(tokens, tokens),
    )
