"""Other views of the same pictures: what the policy would see if it looked less.

Each acts on patches as the vision tower gets them: normalised, a row flattened as
(channel, frame, y, x), of one frame or a pair. Padding rows stay as they are, so a
prompt without pictures is its own view. Row p draws from `fold_in(key, p)` and a patch
by its place, so that neither a larger patch budget nor further rows change what is
drawn. A view sees a prompt a row; `each_prompt` shows it those of packs, each with its
own key. Patch blackening, noise, blur and grey are VPPO's,
https://arxiv.org/abs/2510.09285, which perturbs 8-bit pixels before the last resize,
where these act on normalised patches after it.
"""

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from vrl_jax.types import Images

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Of red, green and blue in [0, 1]: https://github.com/openai/CLIP, Qwen2(.5)-VL."""

RGB = tuple[float, float, float]


@functools.lru_cache
def with_statistics(view: Callable, mean: RGB, std: RGB) -> Callable:
    """`view` for a model that normalises pixels by `mean` and `std`.

    Black and grey are other numbers there. A view that takes no statistics paints
    nothing and stays as it is. Cached: the same arguments give the same function, so
    that jit finds what it compiled.
    """
    if not {"mean", "std"} <= inspect.signature(view).parameters.keys():
        return view
    return functools.partial(view, mean=mean, std=std)


def each_prompt(view: Callable, keys: Key[Array, " P"], images: Images) -> Images:
    """The pictures of each prompt under a draw of the view by the prompt's own key.

    The view sees one prompt at a time, with its pictures at the front, whatever pack
    they are in: neither the pack nor its other prompts change what is drawn. A view
    changes patches alone. It is applied to a pack once for each prompt.
    """
    packs, rows = images.frames.shape

    def pack(keys: Key[Array, " k"], images: Images) -> Float[Array, "N C"]:
        owner, number, place = images.origins.T
        number = jnp.where(images.frames > 0, number, 0)

        def prompt(patches: Array, scanned: tuple[Array, Array]) -> tuple[Array, None]:
            mine = owner == scanned[0]
            home = jnp.where(mine, place, rows)
            home = jnp.zeros(rows, int).at[home].set(jnp.arange(rows), mode="drop")
            alone = Images(
                images.patches[home],
                images.coordinates[home],
                jnp.where(jnp.arange(rows) < mine.sum(), number[home], 0),
            )
            seen = view(scanned[1], jax.tree.map(lambda x: x[None], alone))
            shown = mine & (images.frames > 0)
            return jnp.where(shown[:, None], seen.patches[0, place], patches), None

        each = jnp.arange(len(keys)), keys
        return jax.lax.scan(prompt, images.patches, each)[0]

    patches = jax.vmap(pack)(keys.reshape(packs, -1), images)
    return dataclasses.replace(images, patches=patches)


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
        row_keys(key, images)
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
    return _add_noise(key, images, 1.0, noise_std, mean, std)


def blacken_cells(
    key: Key[Array, ""],
    images: Images,
    *,
    share: float = 0.5,
    cell: int = 14,
    mean: RGB = CLIP_MEAN,
    std: RGB = CLIP_STD,
) -> Images:
    """Square cells of `cell` pixels black, independently with probability `share`.

    The grid starts at the upper left corner of each picture, whatever the patches are:
    VPPO's and PAPO's cells of 14 pixels on the 16-pixel patches of Qwen3-VL. With cells
    as large as a patch it is `blacken_patches` in law.
    """
    frames, side = patch_shape(images)
    reach = (side + cell - 2) // cell + 1  # cells that a patch may touch on one axis
    first = images.coordinates * side // cell

    def drawn(row_key: Key[Array, ""], frame: Array, corner: Array) -> Array:
        """One draw for each cell that the patch touches."""

        def draw(down: Array, right: Array) -> Array:
            place = row_key
            for number in (frame, corner[0] + down, corner[1] + right):
                place = jax.random.fold_in(place, number)
            return jax.random.bernoulli(place, share)

        steps = jnp.arange(reach)
        return jax.vmap(lambda y: jax.vmap(lambda x: draw(y, x))(steps))(steps)

    each = jax.vmap(jax.vmap(drawn, (None, 0, 0)))
    black = each(row_keys(key, images), images.frames, first)
    pixels = images.coordinates[..., None] * side + jnp.arange(side)
    y, x = jnp.moveaxis(pixels // cell - first[..., None], 2, 0)
    rows = jnp.take_along_axis(black, y[..., None], axis=2)
    chosen = jnp.take_along_axis(rows, x[:, :, None, :], axis=3)
    colour = (0 - jnp.asarray(mean)) / jnp.asarray(std)
    shape = (*chosen.shape[:2], 3, frames, side, side)
    painted = jnp.where(
        chosen[:, :, None, None],
        colour[:, None, None, None],
        images.patches.reshape(shape),
    )
    return replaced(images, images.frames > 0, painted.reshape(images.patches.shape))


def diffusion_noise(
    key: Key[Array, ""],
    images: Images,
    *,
    noise_std: float | Float[Array, ""],
    mean: RGB = CLIP_MEAN,
    std: RGB = CLIP_STD,
) -> Images:
    """clip(sqrt(1 - s^2) x + s N(0, 1), 0, 1), s = `noise_std`, on pixels in [0, 1].

    s = `schedules.diffusion_noise_std(k)`: k steps of forward diffusion, NoisyRollout,
    https://arxiv.org/abs/2504.13055.
    """
    kept = (1 - noise_std**2) ** 0.5
    return _add_noise(key, images, kept, noise_std, mean, std)


def gaussian_blur(
    images: Images, *, radius: float = 6.0, reach: int | None = None
) -> Images:
    """Each picture convolved with a Gaussian of std `radius` pixels.

    Across patches, within a picture; at its border the weights inside are rescaled.
    `reach` is how many patches away a pixel still counts: by default three stds. 6 is
    VPPO's radius. Pillow repeats the border pixel, and approximates by box filters.
    """
    frames, side = patch_shape(images)
    reach = -int(-3 * radius // side) if reach is None else reach
    shape = (*images.frames.shape, 3 * frames, side, side)
    x = images.patches.reshape(shape).astype(jnp.float32)
    for axis in (0, 1):
        x = jax.vmap(
            lambda x, frames, places, axis=axis: _blur_axis(
                x, frames, places, axis, radius, reach
            )
        )(x, images.frames, images.coordinates)
    return replaced(images, images.frames > 0, x.reshape(images.patches.shape))


def drop_pictures(images: Images) -> Images:
    """Every value 0, the mean colour: the pictures say nothing, the prompt stays.

    Tokens and positions stay as they are. A prompt without the picture's tokens is
    another prompt: encode a sample that has none.
    """
    return replaced(images, images.frames > 0, jnp.zeros_like(images.patches))


def shuffle_patches(key: Key[Array, ""], images: Images) -> Images:
    """The patches of each picture in random order: what is there, but not where."""
    n = images.frames.shape[1]

    def order(row_key: Key[Array, ""], frames: Array) -> Array:
        drawn = jax.random.uniform(row_key, (n,))
        home = jnp.argsort(frames, stable=True)
        moved = jnp.lexsort((drawn, frames))
        return jnp.zeros(n, int).at[home].set(moved)

    rows = jax.vmap(order)(row_keys(key, images), images.frames)
    moved = jnp.take_along_axis(images.patches, rows[..., None], axis=1)
    return replaced(images, images.frames > 0, moved)


def crop(
    key: Key[Array, ""],
    images: Images,
    *,
    share: float = 0.5,
    mean: RGB = CLIP_MEAN,
    std: RGB = CLIP_STD,
) -> Images:
    """A random window of `share` of each picture's area; black around it.

    The window is of whole patches, rounded up, and shaped as the picture. Its size and
    place stay: resizing what is left would give another number of tokens.
    """
    same = images.frames[:, :, None] == images.frames[:, None, :]
    far = jnp.where(same[..., None], images.coordinates[:, None], 0).max(axis=2)
    size = far + 1  # of a patch's own picture, in patches
    window = jnp.ceil(size * share**0.5).astype(int)

    def start(row_key: Key[Array, ""], frame: Array, slack: Array) -> Array:
        drawn = jax.random.uniform(jax.random.fold_in(row_key, frame), (2,))
        return jnp.floor(drawn * (slack + 1)).astype(int)

    corner = jax.vmap(jax.vmap(start, (None, 0, 0)))(
        row_keys(key, images), images.frames, size - window
    )
    offset = images.coordinates - corner
    inside = ((offset >= 0) & (offset < window)).all(axis=-1)
    return _paint(images, ~inside, 0.0, mean, std)


def patch_shape(images: Images) -> tuple[int, int]:
    """Frames of a patch and pixels along its side; values are 3 s^2 or 6 s^2."""
    values = images.patches.shape[-1]
    for frames in (1, 2):
        side = math.isqrt(values // (3 * frames))
        if 3 * frames * side**2 == values:
            return frames, side
    raise ValueError(
        "A patch is three channels of one or two square frames: 3 s^2 or 6 s^2 values, "
        f"got {values}."
    )


def _blur_axis(
    x: Float[Array, "N K S S"],
    frames: Int[Array, " N"],
    places: Int[Array, "N 2"],
    axis: int,
    radius: float,
    reach: int,
) -> Float[Array, "N K S S"]:
    """One prompt's patches, blurred along rows (0) or columns (1)."""
    side = x.shape[-1]
    pixels = jnp.arange(side)
    total, weight = jnp.zeros_like(x), jnp.zeros((x.shape[0], side), x.dtype)
    for away in range(-reach, reach + 1):
        wanted = places.at[:, axis].add(away)
        same = (frames[:, None] == frames) & (frames > 0)
        same &= (wanted[:, None] == places).all(axis=-1)
        there, neighbour = same.any(axis=1), jnp.argmax(same, axis=1)
        distance = pixels[:, None] - (pixels + away * side)
        kernel = jnp.exp(-(distance**2) / (2 * radius**2))
        # Selected before it is multiplied: padding may hold anything.
        values = jnp.where(there[:, None, None, None], x[neighbour], 0)
        pattern = "pq,ncqx->ncpx" if axis == 0 else "pq,ncyq->ncyp"
        total += jnp.einsum(pattern, kernel, values)
        weight += there[:, None] * kernel.sum(axis=1)
    weight = jnp.where(weight > 0, weight, 1)
    return total / (weight[:, None, :, None] if axis == 0 else weight[:, None, None])


def _add_noise(
    key: Key[Array, ""],
    images: Images,
    kept: float | Float[Array, ""],
    noise_std: float | Float[Array, ""],
    mean: RGB,
    std: RGB,
) -> Images:
    """clip(kept x + noise_std N(0, 1), 0, 1), the same on the frames of a pair."""
    prompts, n, _ = images.patches.shape
    frames, side = patch_shape(images)
    shape = (n, 3, 1, side**2)
    noise = jax.vmap(lambda k: jax.random.normal(k, shape))(row_keys(key, images))
    centre, scale = (jnp.reshape(jnp.asarray(x), (3, 1, 1)) for x in (mean, std))
    pixels = images.patches.reshape(prompts, n, 3, frames, -1) * scale + centre
    noisy = (jnp.clip(kept * pixels + noise_std * noise, 0, 1) - centre) / scale
    return replaced(images, images.frames > 0, noisy.reshape(images.patches.shape))


def row_keys(key: Key[Array, ""], images: Images) -> Key[Array, " P"]:
    """One for each prompt, whatever the others are."""
    rows = jnp.arange(images.frames.shape[0])
    return jax.vmap(jax.random.fold_in, (None, 0))(key, rows)


def _paint(
    images: Images, chosen: Bool[Array, "P N"], level: float, mean: RGB, std: RGB
) -> Images:
    colour = (level - jnp.asarray(mean)) / jnp.asarray(std)
    return replaced(images, chosen, jnp.repeat(colour, images.patches.shape[-1] // 3))


def replaced(
    images: Images, chosen: Bool[Array, "P N"], patches: Float[Array, "..."]
) -> Images:
    """The chosen patches, of those that are no padding, are these."""
    where = (chosen & (images.frames > 0))[..., None]
    patches = jnp.where(where, patches.astype(images.patches.dtype), images.patches)
    return dataclasses.replace(images, patches=patches)
