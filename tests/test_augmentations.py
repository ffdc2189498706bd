"""Whole pictures, put together from their patches, against NumPy and SciPy."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from vrl_jax import augmentations

from .test_views import (
    CHANNELS,
    COORDINATES,
    FRAMES,
    KEY,
    PATCH,
    one_frame,
    pictures,
    rgb,
)

BOXES = jnp.array([[[0, 0, 9, 5], [6, 3, 12, 30]], [[1, 2, 3, 4], [0, 0, 16, 16]]])
PLACED = (jnp.float32(BOXES), jnp.array([[1, 2], [0, 1]]))
RANDOM = {
    "flip": augmentations.flip,
    "rotate": functools.partial(augmentations.rotate, degrees=60.0),
    "colour_jitter": augmentations.colour_jitter,
    "cut_out": augmentations.cut_out,
}


def filled(key, images):
    rows = len(images.frames)
    return augmentations.fill_boxes(
        images,
        *(jnp.pad(x, ((0, 1), *[(0, 0)] * (x.ndim - 1)))[:rows] for x in PLACED),
    )


VIEWS = {name: jax.jit(view) for name, view in {**RANDOM, "boxes": filled}.items()}
every_view = pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)


def whole(images):
    """[H W 3] in [0, 1] of each picture, by (prompt, number)."""
    pixels = rgb(images)[..., 0, :].reshape(*FRAMES.shape, 3, PATCH, PATCH)
    found = {}
    for row, number in ((0, 1), (0, 2), (1, 1)):
        mine = FRAMES[row] == number
        height, width = PATCH * (COORDINATES[row][mine].max(0) + 1)
        picture = np.zeros((height, width, 3))
        for patch, (y, x) in zip(
            pixels[row][mine], COORDINATES[row][mine], strict=True
        ):
            here = np.s_[PATCH * y : PATCH * (y + 1), PATCH * x : PATCH * (x + 1)]
            picture[here] = patch.transpose(1, 2, 0)
        found[row, number] = picture
    return found


def picture_key(row, number):
    return jax.random.fold_in(jax.random.fold_in(KEY, row), number)


@every_view
def test_padding_stays_and_frames_and_rows_are_alike(view):
    before = pictures()
    after = view(KEY, before)
    padding = FRAMES == 0
    assert np.isnan(np.asarray(after.patches)[padding]).all()
    assert np.isfinite(np.asarray(after.patches)[~padding]).all()
    assert (np.asarray(after.patches) != np.asarray(before.patches))[~padding].any()
    seen = rgb(after)[~padding]
    np.testing.assert_allclose(seen[:, :, 0], seen[:, :, 1], atol=1e-6)
    assert seen.min() > -1e-5 and seen.max() < 1 + 1e-5
    one = view(KEY, one_frame(before))
    np.testing.assert_allclose(one.patches, one_frame(after).patches, atol=1e-6)
    shorter = jax.tree.map(lambda x: x[:1, :66], before)  # less padding, no other row
    np.testing.assert_allclose(
        view(KEY, shorter).patches, after.patches[:1, :66], atol=1e-6
    )


def test_flip_is_numpy_s():
    before, after = whole(pictures()), whole(augmentations.flip(KEY, pictures()))
    for place, picture in before.items():
        down, right = np.asarray(jax.random.bernoulli(picture_key(*place), 0.5, (2,)))
        wanted = picture[:: -1 if down else 1, :: -1 if right else 1]
        np.testing.assert_allclose(after[place], wanted, atol=1e-6)
    always = whole(augmentations.flip(KEY, pictures(), share=1.0))
    for place, picture in before.items():
        np.testing.assert_allclose(always[place], picture[::-1, ::-1], atol=1e-6)


def test_rotate_is_scipy_s():
    after = whole(VIEWS["rotate"](KEY, pictures()))
    for place, picture in whole(pictures()).items():
        angle = jax.random.uniform(picture_key(*place), (), minval=-60.0, maxval=60.0)
        angle = np.deg2rad(float(angle))
        turn = np.array(
            [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        )
        centre = (np.array(picture.shape[:2]) - 1) / 2
        wanted = np.stack(
            [
                ndimage.affine_transform(
                    np.pad(picture[..., c], 1),
                    turn,
                    centre + 1 - turn @ (centre + 1),
                    order=1,
                )[1:-1, 1:-1]
                for c in range(3)
            ],
            axis=-1,
        )
        np.testing.assert_allclose(after[place], wanted, atol=3e-3)  # of 1/1024 pixel
    still = augmentations.rotate(KEY, pictures(), degrees=0.0)
    np.testing.assert_allclose(still.patches, pictures().patches, atol=1e-5)


def test_colour_jitter_by_hand():
    after = whole(VIEWS["colour_jitter"](KEY, pictures()))
    for place, x in whole(pictures()).items():
        b, c, s = 1 + 0.4 * np.asarray(
            jax.random.uniform(picture_key(*place), (3,), minval=-1)
        )
        x = np.clip(b * x, 0, 1)
        x = np.clip(c * x + (1 - c) * (x @ augmentations.GREY).mean(), 0, 1)
        wanted = np.clip(s * x + (1 - s) * (x @ augmentations.GREY)[..., None], 0, 1)
        np.testing.assert_allclose(after[place], wanted, atol=1e-5)


def test_cut_out_is_a_rectangle_inside():
    before = pictures()
    after = augmentations.cut_out(KEY, before, share=0.3)
    for place, picture in whole(after).items():
        black = (np.abs(picture) < 1e-6).all(-1)
        rows, columns = np.flatnonzero(black.any(1)), np.flatnonzero(black.any(0))
        height, width = picture.shape[:2]
        assert len(rows) == int(0.3 * height) and len(columns) == int(0.3 * width)
        assert black[np.ix_(rows, columns)].all()
        assert black.sum() == len(rows) * len(columns), place
        assert (np.diff(rows) == 1).all() and (np.diff(columns) == 1).all()
    changed = np.asarray(after.patches) != np.asarray(before.patches)
    np.testing.assert_allclose(
        np.broadcast_to(rgb(after).reshape(*FRAMES.shape, CHANNELS), changed.shape)[
            changed & (FRAMES > 0)[..., None]
        ],
        0,
        atol=1e-6,
    )


def test_fill_boxes_by_hand():
    """The mean of each box, from the original; the later box on top; 0 is no box."""
    before, after = whole(pictures()), whole(filled(KEY, pictures()))
    wanted = {place: picture.copy() for place, picture in before.items()}
    wanted[0, 1][0:5, 0:9] = before[0, 1][0:5, 0:9].mean((0, 1))
    wanted[0, 2][3:30, 6:12] = before[0, 2][3:30, 6:12].mean((0, 1))  # cut at 24
    wanted[1, 1][:] = before[1, 1].mean((0, 1))
    for place in before:
        np.testing.assert_allclose(after[place], wanted[place], atol=1e-6)
    boxes = jnp.array([[[0, 0, 4, 4], [2, 0, 6, 2.0]]] * 3)
    over = augmentations.fill_boxes(pictures(), boxes, jnp.ones((3, 2), int))
    first = before[1, 1]
    found = whole(over)[1, 1]
    np.testing.assert_allclose(
        found[0:2, 2:6] - first[0:2, 2:6].mean((0, 1)), 0, atol=1e-6
    )
    np.testing.assert_allclose(
        found[2:4, 0:4] - first[0:4, 0:4].mean((0, 1)), 0, atol=1e-6
    )
    nowhere = dataclasses.replace(pictures(), frames=pictures().frames * 0)
    same = augmentations.fill_boxes(
        nowhere, *(jnp.zeros((3, 1, 4)), jnp.zeros((3, 1), int))
    )
    np.testing.assert_array_equal(same.patches, nowhere.patches)
