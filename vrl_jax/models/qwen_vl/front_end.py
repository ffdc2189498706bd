"""Qwen-VL on the host, as the engine's `FrontEnd`."""

import functools
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int
from PIL import Image

from vrl_jax.models.front_end import FrontEnd
from vrl_jax.models.qwen_vl.images import (
    largest_patches,
    lay_out,
    load_image,
    resize_image,
)
from vrl_jax.models.qwen_vl.positions import image_prompt_positions
from vrl_jax.models.qwen_vl.spec import QwenSpec


def front_end(
    spec: QwenSpec, *, min_pixels: int = 56 * 56, max_pixels: int = 1280 * 28 * 28
) -> FrontEnd:
    """The functions with `spec` applied.

    `min_pixels` and `max_pixels` bound the area of one picture after resizing.
    """

    def resize(picture: Image.Image) -> Image.Image:
        return resize_image(picture, spec, min_pixels=min_pixels, max_pixels=max_pixels)

    def written(count: int, spelled: Callable[[int], str]) -> str:
        return spelled(spec.image_token) * count

    def positions(
        tokens: Int[np.ndarray, " L"], grids: Sequence[tuple[int, int]]
    ) -> Int[np.ndarray, "L 3"]:
        return image_prompt_positions(tokens, grids, spec.image_token)[0]

    return FrontEnd(
        spec=spec,
        load=load_image,
        resize=resize,
        lay_out=functools.partial(lay_out, spec=spec),
        written=written,
        positions=positions,
        placeholder=spec.image_token,
        image_token=spec.image_token,
        unsampled=(
            spec.image_token,
            spec.video_token,
            spec.vision_start_token,
            spec.vision_end_token,
        ),
        pixel_mean=spec.family.pixel_mean,
        pixel_std=spec.family.pixel_std,
        pixel_bounds=(min_pixels, max_pixels),
        largest=largest_patches(spec, max_pixels),
        granularity=spec.vision.window_patches,
        group=spec.vision.group,
        patch_values=spec.vision.patch_values,
    )
