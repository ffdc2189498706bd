"""Views that move, recolour or cover parts of a picture.

As in `views`, which has those that add noise or take away everywhere: on normalised
patches, padding as it was, a picture's draw by its prompt and its number. Sizes stay,
so that tokens and positions do; what a picture has no pixel for is black.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from vrl_jax import views
from vrl_jax.types import Images
from vrl_jax.views import CLIP_MEAN, CLIP_STD, RGB

GREY = (0.299, 0.587, 0.114)
"""The luma of red, green and blue: ITU-R BT.601, as Pillow and torchvision have it."""


def flip(
    key: Key[Array, ""],
    images: Images,
    *,
    share: float = 0.5,
    mean: RGB = CLIP_MEAN,
    std: RGB = CLIP_STD,
) -> Images:
    """Each picture mirrored left to right, and upside down, each with `share`.

    One of DUPL's views, https://arxiv.org/abs/2510.01444, which gives no probabilities.
    """

    def source(row_key: Key[Array, ""], pixels: Array, size: Array) -> Array:
        turned = jax.random.bernoulli(row_key, share, (2,))
        return jnp.where(turned, size - 1 - pixels, pixels)

    return _moved(key, images, source, mean, std)


def rotate(
    key: Key[Array, ""],
    images: Images,
    *,
    degrees: float = 15.0,
    mean: RGB = CLIP_MEAN,
    std: RGB = CLIP_STD,
) -> Images:
    """Each picture turned about its centre by U(-degrees, degrees), bilinear.

    Of DUPL, https://arxiv.org/abs/2510.01444, without an angle, and of NoisyRollout,
    https://arxiv.org/abs/2504.13055, whose code lets the picture grow.
    """

    def source(row_key: Key[Array, ""], pixels: Array, size: Array) -> Array:
        angle = jax.random.uniform(row_key, (), minval=-degrees, maxval=degrees)
        angle = jnp.deg2rad(angle)
        turn = jnp.array(
            [[jnp.cos(angle), -jnp.sin(angle)], [jnp.sin(angle), jnp.cos(angle)]]
        )
        centre = (size - 1) / 2
        return (pixels - centre) @ turn.T + centre

    return _moved(key, images, source, mean, std)


def colour_jitter(
    key: Key[Array, ""],
    images: Images,
    *,
    brightness: float = 0.4,
    contrast: float = 0.4,
    saturation: float = 0.4,
    mean: RGB = CLIP_MEAN,
    std: RGB = CLIP_STD,
) -> Images:
    """b x, then c x + (1 - c) mean grey, then s x + (1 - s) grey, each in [0, 1].

    b, c, s from U(1 - strength, 1 + strength) for each picture: torchvision's
    ColorJitter in this order and without hue. Of DUPL, https://arxiv.org/abs/2510.01444,
    which gives no strengths: 0.4 is ours.
    """
    pixels = _pixels(images, mean, std)
    strengths = jnp.array([brightness, contrast, saturation])

    def draw(picture_key: Key[Array, ""]) -> Array:
        return 1 + strengths * jax.random.uniform(picture_key, (3,), minval=-1)

    drawn = jax.vmap(jax.vmap(draw))(_picture_keys(key, images))
    b, c, s = jnp.moveaxis(drawn, -1, 0)[..., None, None, None]

    def grey(x: Array) -> Array:
        return jnp.tensordot(jnp.array(GREY), x, (0, 2))[:, :, None]

    x = jnp.clip(b * pixels, 0, 1)
    same = _same_picture(images)
    shown = jnp.where(images.frames[..., None] > 0, grey(x)[:, :, 0].mean(-1), 0)
    level = same @ shown / jnp.maximum(same.sum(-1), 1)[..., None]
    x = jnp.clip(c * x + (1 - c) * level[:, :, None, :, None], 0, 1)
    x = jnp.clip(s * x + (1 - s) * grey(x), 0, 1)
    return _normalised(images, x, mean, std)


def cut_out(
    key: Key[Array, ""],
    images: Images,
    *,
    share: float = 0.5,
    mean: RGB = CLIP_MEAN,
    std: RGB = CLIP_STD,
) -> Images:
    """A random rectangle of each picture black, `share` of its sides, rounded down.

    The crop_fill of NoisyRollout's code, https://github.com/NUS-TRAIL/NoisyRollout.
    """
    size, pixels = _sizes(images), _places(images)
    hole = jnp.floor(size * share)

    def corner(picture_key: Key[Array, ""], slack: Array) -> Array:
        return jnp.floor(jax.random.uniform(picture_key, (2,)) * (slack + 1))

    start = jax.vmap(jax.vmap(corner))(_picture_keys(key, images), size - hole)
    inside = _within(pixels, start, start + hole)
    return _painted(images, inside, jnp.zeros(3), mean, std)


def fill_boxes(
    images: Images,
    boxes: Float[Array, "P K 4"],
    pictures: Int[Array, "P K"],
    *,
    mean: RGB = CLIP_MEAN,
    std: RGB = CLIP_STD,
) -> Images:
    """The pixels of each box replaced by their mean: the evidence is gone, not black.

    A box is (x1, y1, x2, y2) in pixels of the picture as the tower sees it, x1 <= x <
    x2, on picture `pictures` (from 1; 0 is no box) of its prompt. Of overlapping boxes
    the later one is on top, each with the mean of what was there at first. CGPO (ACM MM
    2026), https://github.com/zsxm1998/awesome-perception-aware-rlvr.
    """
    pixels, places = _pixels(images, mean, std), _places(images)
    seen = images

    for box, picture in zip(
        jnp.moveaxis(boxes, 1, 0), jnp.moveaxis(pictures, 1, 0), strict=True
    ):
        low, high = box[:, None, [1, 0]], box[:, None, [3, 2]]
        mine = (images.frames == picture[:, None]) & (images.frames > 0)
        inside = _within(places, low, high) & mine[..., None]
        count = jnp.maximum(inside.sum((1, 2)), 1)
        values = jnp.where(inside[:, :, None, None], pixels, 0)
        colour = values.sum((1, 4))[:, :, 0] / count[:, None]
        seen = _painted(seen, inside, colour[:, None], mean, std)
    return seen


def _moved(
    key: Key[Array, ""], images: Images, source: Callable, mean: RGB, std: RGB
) -> Images:
    """Each pixel from where `source(key, pixels, size)` says, linear between pixels."""
    _, side = views.patch_shape(images)
    size, places = _sizes(images), _places(images).astype(jnp.float32)
    moved = jax.vmap(jax.vmap(source))
    wanted = moved(_picture_keys(key, images), places, size[:, :, None])
    wanted = jnp.round(wanted * 1024) / 1024  # whole pixels stay whole
    values = _pixels(images, mean, std)
    corner = jnp.floor(wanted)
    total = jnp.zeros_like(values)
    for step in ((0, 0), (0, 1), (1, 0), (1, 1)):
        place = corner + jnp.array(step)
        weight = jnp.prod(1 - jnp.abs(wanted - place), axis=-1)
        there = ((place >= 0) & (place < size[:, :, None])).all(-1)
        patch, pixel = place.astype(int) // side, place.astype(int) % side
        home = jax.vmap(_patch_at)(images.frames, images.coordinates, patch)
        at = pixel[..., 0] * side + pixel[..., 1]
        found = jax.vmap(lambda v, h, a: v[h, :, :, a])(values, home, at)
        found = jnp.moveaxis(found, 2, 4)  # [P N channel frame pixel]
        total += (
            jnp.where((there & (weight > 0))[:, :, None, None], found, 0)
            * (weight[:, :, None, None])
        )
    return _normalised(images, total, mean, std)


def _patch_at(
    frames: Int[Array, " N"],
    coordinates: Int[Array, "N 2"],
    wanted: Int[Array, "N S 2"],
) -> Int[Array, "N S"]:
    """Which patch of its own picture lies at `wanted`; any where none does."""
    reach = coordinates.max() + 1

    def number(frame: Array, place: Array) -> Array:
        return (frame * reach + place[..., 0]) * reach + place[..., 1]

    own = number(frames, coordinates)
    order = jnp.argsort(own)
    found = jnp.searchsorted(own, number(frames[:, None], wanted), sorter=order)
    return order[jnp.clip(found, 0, len(order) - 1)]


def _pixels(images: Images, mean: RGB, std: RGB) -> Float[Array, "P N 3 F S"]:
    """In [0, 1]: channel, frame, and the pixels of a patch row by row."""
    frames, side = views.patch_shape(images)
    shape = (*images.frames.shape, 3, frames, side**2)
    centre, scale = (jnp.reshape(jnp.array(x), (3, 1, 1)) for x in (mean, std))
    return images.patches.reshape(shape).astype(jnp.float32) * scale + centre


def _normalised(
    images: Images, pixels: Float[Array, "P N 3 F S"], mean: RGB, std: RGB
) -> Images:
    centre, scale = (jnp.reshape(jnp.array(x), (3, 1, 1)) for x in (mean, std))
    patches = ((pixels - centre) / scale).reshape(images.patches.shape)
    return views.replaced(images, images.frames > 0, patches)


def _painted(
    images: Images,
    chosen: Bool[Array, "P N S"],
    colour: Float[Array, "#P #N 3"] | Float[Array, " 3"],
    mean: RGB,
    std: RGB,
) -> Images:
    """The chosen pixels in one colour, the others to the bit as they were."""
    paint = (colour - jnp.array(mean)) / jnp.array(std)
    frames, side = views.patch_shape(images)
    shape = (*images.frames.shape, 3, frames, side**2)
    patches = jnp.where(
        chosen[:, :, None, None], paint[..., None, None], images.patches.reshape(shape)
    )
    patches = patches.reshape(images.patches.shape)
    return views.replaced(images, images.frames > 0, patches)


def _places(images: Images) -> Int[Array, "P N S 2"]:
    """(y, x) of each pixel of a patch in its picture."""
    _, side = views.patch_shape(images)
    y, x = jnp.divmod(jnp.arange(side**2), side)
    return images.coordinates[:, :, None] * side + jnp.stack([y, x], axis=-1)


def _within(
    places: Int[Array, "P N S 2"], low: Float[Array, " P #N 2"], high: Array
) -> Bool[Array, "P N S"]:
    return ((places >= low[:, :, None]) & (places < high[:, :, None])).all(-1)


def _same_picture(images: Images) -> Bool[Array, "P N N"]:
    same = images.frames[:, :, None] == images.frames[:, None, :]
    return same & (images.frames > 0)[:, None]


def _sizes(images: Images) -> Float[Array, "P N 2"]:
    """Height and width in pixels of the picture that a patch is of; 0 for padding."""
    _, side = views.patch_shape(images)
    same = _same_picture(images)[..., None]
    last = jnp.where(same, images.coordinates[:, None] + 1, 0).max(axis=2)
    return (side * last).astype(jnp.float32)


def _picture_keys(key: Key[Array, ""], images: Images) -> Key[Array, "P N"]:
    """One for each picture, at each of its patches."""
    each = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))
    return each(views.row_keys(key, images), images.frames)
