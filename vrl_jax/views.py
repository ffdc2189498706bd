"""Other views of the same pictures: what the policy would see if it looked less.

Each acts on patches as the vision tower gets them: normalised, a row flattened as
(channel, frame-in-pair, y, x). Padding rows stay as they are, so a prompt without
pictures is its own view. Row p draws from `fold_in(key, p)` and a patch by its place,
so that neither a larger patch budget nor further rows change what is drawn. For a
fresh draw per response, repeat the prompts first.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from vrl_jax.types import Images

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Of red, green and blue in [0, 1]: https://github.com/openai/CLIP, Qwen2(.5)-VL."""

RGB = tuple[float, float, float]


@functools.lru_cache
def with_statistics(view: Callable, mean: RGB, std: RGB) -> Callable:
    """`view` for a model that normalises pixels by `mean` and `std`.

    Black and grey are other numbers there. Cached: the same arguments give the same
    function, so that jit finds what it compiled.
    """
    return functools.partial(view, mean=mean, std=std)


def blacken_patches(
    key: Key[Array, ""],
    images: Images,
    *,
    share: float = 0.5,
    mean: RGB = CLIP_MEAN,
    std: RGB = CLIP_STD,
) -> Images:
    """Each patch black, (0 - mean) / std, independently with probability `share`.

    VPPO, https://arxiv.org/abs/2510.09285. Its code blackens cells of 14
    pixels before the last resize, so they can straddle patches; here a cell is a patch.
    """
    n = images.frames.shape[1]
    chosen = jax.vmap(lambda k: jax.random.bernoulli(k, share, (n,)))(
        _row_keys(key, images)
    )
    return _paint(images, chosen, 0.0, mean, std)


def solid_grey(images: Images, *, mean: RGB = CLIP_MEAN, std: RGB = CLIP_STD) -> Images:
    """Every pixel (128, 128, 128): nothing to see."""
    return _paint(images, images.frames > 0, 128 / 255, mean, std)


def gaussian_noise(
    key: Key[Array, ""],
    images: Images,
    *,
    noise_std: float = 189 / 255,
    mean: RGB = CLIP_MEAN,
    std: RGB = CLIP_STD,
) -> Images:
    """clip(x + noise_std * N(0, 1), 0, 1) on each channel of each pixel.

    The two frames of a pair show one picture and get the same noise. 189 of 255 is
    VPPO's, which also rounds to 8 bits; this does not.
    """
    prompts, n, values = images.patches.shape
    shape = (n, 3, 1, values // 6)
    noise = jax.vmap(lambda k: jax.random.normal(k, shape))(_row_keys(key, images))
    centre, scale = (jnp.reshape(jnp.asarray(x), (3, 1, 1)) for x in (mean, std))
    pixels = images.patches.reshape(prompts, n, 3, 2, -1) * scale + centre
    noisy = (jnp.clip(pixels + noise_std * noise, 0, 1) - centre) / scale
    return _replace(images, images.frames > 0, noisy.reshape(images.patches.shape))


def _row_keys(key: Key[Array, ""], images: Images) -> Key[Array, " P"]:
    rows = jnp.arange(images.frames.shape[0])
    return jax.vmap(jax.random.fold_in, (None, 0))(key, rows)


def _paint(
    images: Images, chosen: Bool[Array, "P N"], level: float, mean: RGB, std: RGB
) -> Images:
    colour = (level - jnp.asarray(mean)) / jnp.asarray(std)
    return _replace(images, chosen, jnp.repeat(colour, images.patches.shape[-1] // 3))


def _replace(
    images: Images, chosen: Bool[Array, "P N"], patches: Float[Array, "..."]
) -> Images:
    where = (chosen & (images.frames > 0))[..., None]
    patches = jnp.where(where, patches.astype(images.patches.dtype), images.patches)
    return dataclasses.replace(images, patches=patches)
