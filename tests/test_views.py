import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vrl_jax import views
from vrl_jax.types import Images

PATCH, CHANNELS = 4, 3 * 2 * 4 * 4
FRAMES = np.array([[1] * 40 + [2] * 24 + [0] * 8, [1] * 16 + [0] * 56, [0] * 72])
# Pictures of 8 x 5, 6 x 4 and 4 x 4 patches, row by row; 0 on padding.
COORDINATES = np.zeros((3, 72, 2), np.int32)
COORDINATES[0, :40] = [(i // 5, i % 5) for i in range(40)]
COORDINATES[0, 40:64] = [(i // 4, i % 4) for i in range(24)]
COORDINATES[1, :16] = [(i // 4, i % 4) for i in range(16)]
KEY = jax.random.key(3)


def pictures(level=None):
    """Normalised patches of noise, or of one grey level; NaN on padding."""
    shape = (*FRAMES.shape, 3, 2, PATCH * PATCH)
    pixels = np.random.default_rng(0).uniform(0, 1, shape)
    # Both frames of a pair show the same picture.
    pixels[..., 1, :] = pixels[..., 0, :]
    if level is not None:
        pixels = np.full(shape, level)
    mean, std = (np.reshape(x, (3, 1, 1)) for x in (views.CLIP_MEAN, views.CLIP_STD))
    patches = ((pixels - mean) / std).reshape(*FRAMES.shape, CHANNELS)
    patches[FRAMES == 0] = np.nan
    return Images(
        patches=jnp.asarray(patches, jnp.float32),
        coordinates=jnp.asarray(COORDINATES),
        frames=jnp.asarray(FRAMES),
    )


VIEWS = [
    jax.jit(functools.partial(views.blacken_patches, KEY)),
    jax.jit(functools.partial(views.gaussian_noise, KEY)),
    jax.jit(views.solid_grey),
    jax.jit(functools.partial(views.blacken_cells, KEY, cell=3)),
    jax.jit(functools.partial(views.diffusion_noise, KEY, noise_std=0.3)),
    jax.jit(functools.partial(views.gaussian_blur, radius=2.0)),
    jax.jit(functools.partial(views.shuffle_patches, KEY)),
    jax.jit(functools.partial(views.crop, KEY)),
    jax.jit(views.drop_pictures),
]


def rgb(images):
    """Pixels in [0, 1] as [P N 3 2 y*x]."""
    mean, std = (np.reshape(x, (3, 1, 1)) for x in (views.CLIP_MEAN, views.CLIP_STD))
    return np.asarray(images.patches).reshape(*FRAMES.shape, 3, 2, -1) * std + mean


def one_frame(images):
    """Patches of a model whose pictures are not pairs of frames."""
    patches = images.patches.reshape(*FRAMES.shape, 3, 2, -1)[..., 0, :]
    return dataclasses.replace(images, patches=patches.reshape(*FRAMES.shape, -1))


@pytest.mark.parametrize("number", range(len(VIEWS)))
def test_one_frame_is_seen_as_each_of_two(number):
    seen = VIEWS[number](pictures())
    one = VIEWS[number](one_frame(pictures()))
    np.testing.assert_allclose(one.patches, one_frame(seen).patches, atol=1e-6)


def test_patches_of_another_shape_are_refused():
    """27 = 3 * 3 * 3 is one frame; 3 * 8 is neither s^2 nor 2 s^2."""
    images = dataclasses.replace(pictures(), patches=jnp.zeros((*FRAMES.shape, 24 * 3)))
    with pytest.raises(ValueError, match=r"3 s\^2 or 6 s\^2 values, got 72"):
        views.gaussian_noise(KEY, images)


def test_blacken_patches_blackens_whole_patches():
    before = pictures()
    after = views.blacken_patches(KEY, before)
    real = FRAMES > 0
    changed = (np.asarray(after.patches) != np.asarray(before.patches)) & real[
        ..., None
    ]
    blackened = changed.any(-1)
    np.testing.assert_allclose(rgb(after)[blackened], 0, atol=1e-6)
    kept = real & ~blackened
    np.testing.assert_array_equal(after.patches[kept], before.patches[kept])
    # (0 - 0.48145466) / 0.26862954: red of a black pixel, by hand.
    row = np.asarray(after.patches)[blackened][0]
    np.testing.assert_allclose(row[: 2 * PATCH * PATCH], -1.7922625, rtol=1e-6)
    assert 20 < blackened.sum() < 60  # of 80, half on average
    assert blackened[0].any() and blackened[1].any()
    assert (blackened[0, :16] != blackened[1, :16]).any()


@pytest.mark.parametrize(("share", "level"), [(0.0, 0.7), (1.0, 0.0)])
def test_blacken_patches_none_or_all(share, level):
    got = views.blacken_patches(KEY, pictures(0.7), share=share)
    np.testing.assert_allclose(rgb(got)[FRAMES > 0], level, atol=1e-6)


def test_blacken_patches_share_is_the_mean():
    images = Images(
        patches=jnp.ones((8, 2500, 6)),
        coordinates=jnp.zeros((8, 2500, 2), jnp.int32),
        frames=jnp.ones((8, 2500), jnp.int32),
    )
    for share in (0.2, 0.5):
        got = views.blacken_patches(KEY, images, share=share).patches[..., 0] != 1
        # 20000 draws: 5 standard deviations are 0.018 at most.
        assert abs(float(got.mean()) - share) < 0.018


def test_solid_grey_is_128():
    np.testing.assert_allclose(
        rgb(views.solid_grey(pictures()))[FRAMES > 0], 128 / 255, atol=1e-6
    )


def test_gaussian_noise_stays_in_range_and_agrees_in_a_pair():
    pixels = rgb(views.gaussian_noise(KEY, pictures()))[FRAMES > 0]
    assert pixels.min() > -1e-6 and pixels.max() < 1 + 1e-6
    np.testing.assert_allclose(pixels[:, :, 0], pixels[:, :, 1], atol=1e-6)
    small = rgb(views.gaussian_noise(KEY, pictures(0.5), noise_std=0.05))[FRAMES > 0]
    noise = small[:, :, 0] - 0.5
    assert abs(noise.mean()) < 0.005 and abs(noise.std() - 0.05) < 0.005


@pytest.mark.parametrize("view", VIEWS)
def test_views_leave_padding_alone_and_keep_everything_else(view):
    before = pictures()
    after = view(before)
    padding = FRAMES == 0
    np.testing.assert_array_equal(after.patches[padding], before.patches[padding])
    assert np.isfinite(after.patches[~padding]).all()
    for name in ("coordinates", "frames"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
    half = dataclasses.replace(before, patches=before.patches.astype(jnp.bfloat16))
    assert view(half).patches.dtype == jnp.bfloat16
    eager = view.__wrapped__(before)
    np.testing.assert_allclose(eager.patches, after.patches, atol=1e-6)


@pytest.mark.parametrize("view", VIEWS)
def test_views_depend_neither_on_the_bucket_nor_on_other_rows(view):
    images = pictures()
    expected = view(images).patches
    narrow = jax.tree.map(lambda x: x[:2, :64], images)  # of 3 rows of 72
    np.testing.assert_array_equal(view(narrow).patches, expected[:2, :64])


@pytest.mark.parametrize("view", [views.blacken_patches, views.gaussian_noise])
def test_views_replay_by_key(view):
    real = FRAMES > 0
    one, same, other = (
        np.asarray(view(jax.random.key(seed), pictures()).patches)[real]
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_repeated_prompts_get_a_mask_each():
    images = jax.tree.map(lambda x: jnp.repeat(x[:1], 4, axis=0), pictures())
    patches = np.asarray(views.blacken_patches(KEY, images).patches)[:, :64, 0]
    assert len(np.unique(patches, axis=0)) == 4


def one_picture(values, height, width):
    """A picture [height, width] in patches of PATCH pixels, shuffled, and padding."""
    rows, columns = height // PATCH, width // PATCH
    places = np.stack(np.meshgrid(range(rows), range(columns), indexing="ij"), -1)
    places = np.random.default_rng(0).permutation(places.reshape(-1, 2))
    cut = [
        values[y * PATCH : (y + 1) * PATCH, x * PATCH : (x + 1) * PATCH]
        for y, x in places
    ]
    patches = np.broadcast_to(
        np.stack(cut)[:, None], (len(cut), 6, PATCH, PATCH)
    ).reshape(1, len(cut), -1)
    padding = ((0, 0), (0, 3), (0, 0))
    return Images(
        patches=jnp.asarray(np.pad(patches, padding, constant_values=np.nan)),
        coordinates=jnp.asarray(np.pad(places, ((0, 3), (0, 0)))[None]),
        frames=jnp.asarray(np.pad(np.ones((1, len(cut)), int), ((0, 0), (0, 3)))),
    )


def whole(images, height, width):
    """The picture back from its patches: the first channel and frame."""
    picture = np.full((height, width), np.nan)
    for n in np.flatnonzero(np.asarray(images.frames)[0]):
        y, x = np.asarray(images.coordinates)[0, n] * PATCH
        patch = np.asarray(images.patches)[0, n].reshape(6, PATCH, PATCH)[0]
        picture[y : y + PATCH, x : x + PATCH] = patch
    return picture


def test_gaussian_blur_is_that_of_the_whole_picture():
    values = np.random.default_rng(1).normal(size=(12, 20)).astype(np.float32)

    def smooth(n):  # row-stochastic, by hand
        far = np.subtract.outer(np.arange(n), np.arange(n))
        weights = np.exp(-(far**2) / (2 * 1.5**2))
        return weights / weights.sum(1, keepdims=True)

    expected = smooth(12) @ values @ smooth(20).T
    got = views.gaussian_blur(one_picture(values, 12, 20), radius=1.5, reach=5)
    np.testing.assert_allclose(whole(got, 12, 20), expected, atol=1e-5)
    near = views.gaussian_blur(one_picture(values, 12, 20), radius=1.5)
    np.testing.assert_allclose(whole(near, 12, 20), expected, atol=2e-3)


@pytest.mark.parametrize("cell", [3, 4, 6])
def test_blacken_cells_follows_the_pixel_grid(cell):
    before = one_picture(np.ones((12, 20), np.float32), 12, 20)
    picture = whole(views.blacken_cells(KEY, before, cell=cell), 12, 20)
    rows, columns = -(-12 // cell), -(-20 // cell)
    cells = [
        picture[y * cell : (y + 1) * cell, x * cell : (x + 1) * cell]
        for y in range(rows)
        for x in range(columns)
    ]
    assert all(np.ptp(c) == 0 for c in cells)
    black = np.mean([c.max() != 1 for c in cells])
    assert 0.2 < black < 0.8


def test_shuffle_patches_keeps_what_is_there():
    before, after = pictures(), views.shuffle_patches(KEY, pictures())
    for row, frame in ((0, 1), (0, 2), (1, 1)):
        mine = FRAMES[row] == frame
        moved, still = (np.asarray(x.patches)[row, mine] for x in (after, before))
        assert (moved != still).any()
        np.testing.assert_array_equal(np.sort(moved, 0), np.sort(still, 0))


def test_crop_keeps_one_window():
    before = one_picture(np.ones((24, 40), np.float32), 24, 40)
    kept = whole(views.crop(KEY, before, share=0.25), 24, 40) == 1
    rows, columns = np.flatnonzero(kept.any(1)), np.flatnonzero(kept.any(0))
    assert (len(rows), len(columns)) == (12, 20)
    assert kept.sum() == 12 * 20


def test_diffusion_noise_by_hand():
    got = rgb(views.diffusion_noise(KEY, pictures(0.5), noise_std=0.1))[FRAMES > 0]
    assert abs(got.mean() - 0.5 * 0.99**0.5) < 0.002
    assert abs(got.std() - 0.1) < 0.003


def test_drop_pictures_says_nothing():
    assert not views.drop_pictures(pictures()).patches[FRAMES > 0].any()
