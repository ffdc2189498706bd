"""Gemma 3 on the host, as the engine's `FrontEnd`."""

import functools
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int

from vrl_jax.models.front_end import FrontEnd, load_image, on_white
from vrl_jax.models.gemma3.images import lay_out, resize_image
from vrl_jax.models.gemma3.spec import Gemma3Spec


def front_end(spec: Gemma3Spec) -> FrontEnd:
    """The functions with `spec` applied."""

    def written(count: int, spelled: Callable[[int], str]) -> str:
        start, image, end = map(
            spelled, (spec.start_token, spec.image_token, spec.end_token)
        )
        return f"\n\n{start}{image * count}{end}\n\n"

    return FrontEnd(
        spec=spec,
        load=functools.partial(load_image, convert=on_white),
        resize=functools.partial(resize_image, spec=spec),
        lay_out=functools.partial(lay_out, spec=spec),
        written=written,
        positions=counted,
        placeholder=spec.start_token,
        image_token=spec.image_token,
        unsampled=(spec.image_token, spec.start_token, spec.end_token),
        pixel_mean=spec.pixel_mean,
        pixel_std=spec.pixel_std,
        pixel_bounds=(spec.vision.image**2,) * 2,
        largest=spec.vision.patches,
        granularity=spec.vision.patches,
        group=spec.vision.group,
        patch_values=spec.vision.patch_values,
    )


def counted(
    tokens: Int[np.ndarray, " L"], grids: Sequence[tuple[int, int]] = ()
) -> Int[np.ndarray, "L 3"]:
    """0, 1, 2, ... on all three axes: tokens of a picture are numbered like text."""
    del grids
    return np.repeat(np.arange(len(tokens))[:, None], 3, axis=1)
