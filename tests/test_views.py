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
        coordinates=jnp.zeros((*FRAMES.shape, 2), jnp.int32),
        frames=jnp.asarray(FRAMES),
    )


VIEWS = [
    jax.jit(functools.partial(views.blacken_patches, KEY)),
    jax.jit(functools.partial(views.gaussian_noise, KEY)),
    jax.jit(views.solid_grey),
]


def rgb(images):
    """Pixels in [0, 1] as [P N 3 2 y*x]."""
    mean, std = (np.reshape(x, (3, 1, 1)) for x in (views.CLIP_MEAN, views.CLIP_STD))
    return np.asarray(images.patches).reshape(*FRAMES.shape, 3, 2, -1) * std + mean


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
