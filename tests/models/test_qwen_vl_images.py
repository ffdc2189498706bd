"""Size rule, patch order, windows and positions.

Golden numbers: transformers 4.57.6 and 5.23.0 on CPU, which agree on all of them.
"""

import io

import numpy as np
import pytest
from PIL import Image

from vrl_jax.models.qwen_vl.images import (
    largest_patches,
    load_image,
    merged_grid,
    packed_patches,
    patchify,
    resize_image,
    smart_resize,
)
from vrl_jax.models.qwen_vl.positions import image_prompt_positions
from vrl_jax.models.qwen_vl.released import QWEN2_5_VL_3B, QWEN2_VL_2B, QWEN3_VL_2B

from .cases import pack_images, picture, small_spec

HUB = (28, 3136, 12_845_056)


@pytest.mark.parametrize(
    ("rule", "size", "expected"),
    [
        (HUB, (480, 640), (476, 644)),
        (HUB, (100, 170), (112, 168)),
        (HUB, (1080, 1920), (1092, 1932)),
        (HUB, (4000, 3000), (4004, 2996)),
        (HUB, (28, 28), (56, 56)),
        (HUB, (300, 42), (308, 56)),  # 42 / 28 = 1.5, a tie, goes to the even 2
        ((28, 262_144, 4_194_304), (100, 170), (420, 672)),
        ((28, 262_144, 4_194_304), (4000, 3000), (2352, 1764)),
        ((28, 262_144, 4_194_304), (28, 28), (532, 532)),
        ((28, 3136, 401_408), (1080, 1920), (448, 840)),
        ((32, 65_536, 16_777_216), (480, 640), (480, 640)),
        ((32, 65_536, 16_777_216), (100, 170), (224, 352)),
        ((32, 65_536, 16_777_216), (1080, 1920), (1088, 1920)),
        ((32, 65_536, 16_777_216), (4000, 3000), (4000, 3008)),
        ((32, 65_536, 16_777_216), (28, 28), (256, 256)),
        ((32, 65_536, 1_048_576), (1080, 1920), (768, 1344)),
    ],
)
def test_smart_resize_golden(rule, size, expected):
    factor, least, most = rule
    got = smart_resize(*size, factor=factor, min_pixels=least, max_pixels=most)
    assert got == expected


def test_smart_resize_refuses_extreme_shapes():
    assert smart_resize(1, 200, factor=28, min_pixels=1, max_pixels=10**6) == (28, 196)
    with pytest.raises(ValueError, match=r"at most 200 times .* 1 x 201"):
        smart_resize(1, 201, factor=28, min_pixels=1, max_pixels=10**6)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled(kind):
    """v / 257: 0, 1, 128 and 255 of 8 bits."""
    file = io.BytesIO()
    grey = np.array([[0, 257, 32_896, 65_535]], np.uint16)
    Image.fromarray(grey).save(file, kind)
    pixels = np.asarray(load_image(file.getvalue()))
    assert pixels[0].tolist() == [[v] * 3 for v in (0, 1, 128, 255)]


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_pixels_of_unknown_range_are_refused(dtype):
    file = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), dtype)).save(file, "TIFF")
    with pytest.raises(ValueError, match="cannot be decoded: its pixels are numbers"):
        load_image(file.getvalue())


def test_patch_order_is_by_merged_block():
    """The order of a 4 x 4 grid, as given by the reference processor."""
    packed = pack_images([picture(0, 56, 56)], QWEN2_5_VL_3B, budget=64)
    order = packed.coordinates[packed.frames > 0].tolist()
    assert "".join(f"{row}{column} " for row, column in order) == (
        "00 01 10 11 02 03 12 13 20 21 30 31 22 23 32 33 "
    )


def test_patchify_flattens_channel_frame_row_column():
    shown = picture(1, 16, 8)
    patches = patchify(shown, small_spec())  # patches of 4 pixels, 2 x 1 merged tokens
    mean, std = 0.4578275, 0.26130258  # green
    pixel = np.asarray(shown)[8 + 4 + 3, 4 + 2, 1]  # lower token, its last patch
    values = patches.reshape(2, 4, 3, 2, 4, 4)[1, 3, 1, :, 3, 2]
    np.testing.assert_allclose(values, (pixel / 255 - mean) / std, rtol=1e-5)


@pytest.mark.parametrize(
    ("grids", "order", "cumulative"),
    [
        (
            [(10, 14)],
            "0 1 2 3 7 8 9 10 14 15 16 17 21 22 23 24 4 5 6 11 12 13 18 19 20 25 26 27 "
            "28 29 30 31 32 33 34",
            [64, 112, 128, 140],
        ),
        ([(4, 6)], "0 1 2 3 4 5", [24]),
        ([(8, 8)], " ".join(map(str, range(16))), [64]),
        (
            [(6, 10)],
            "0 1 2 3 5 6 7 8 10 11 12 13 4 9 14",
            [48, 60],
        ),
        ([(4, 6), (10, 4)], " ".join(map(str, range(16))), [24, 56, 64]),
    ],
)
def test_windows_golden(grids, order, cumulative):
    """The reference's permutation, read from where each merged token lies."""
    pictures = [picture(0, 14 * h, 14 * w) for h, w in grids]
    packed = pack_images(pictures, QWEN2_5_VL_3B, budget=512)
    places = np.concatenate(packed.merged_index)
    assert np.argsort(places).tolist() == [int(i) for i in order.split()]
    sizes = (packed.frames.reshape(-1, 64) > 0).sum(-1)
    assert np.cumsum(sizes[sizes > 0]).tolist() == cumulative
    assert (np.diff((sizes > 0).astype(int)) <= 0).all()  # no window left empty


def test_lay_out_puts_each_patch_where_merged_index_says():
    spec = small_spec()
    pictures = [picture(0, 40, 72), picture(1, 8, 16)]
    packed = pack_images(pictures, spec, budget=8 * 64)
    merged = packed.patches.reshape(-1, 4, spec.vision.patch_values)
    for number, shown in enumerate(pictures, start=1):
        index = packed.merged_index[number - 1]
        np.testing.assert_array_equal(merged[index], patchify(shown, spec))
        assert (packed.frames.reshape(-1, 4)[index] == number).all()
        rows, columns = merged_grid(shown.height, shown.width, spec)
        corners = packed.coordinates.reshape(-1, 4, 2)[index, 0]
        expected = 2 * np.stack(np.divmod(np.arange(rows * columns), columns), -1)
        np.testing.assert_array_equal(corners, expected)
    assert (packed.frames > 0).sum() == sum(p.height * p.width for p in pictures) / 16


def test_packed_patches_counts_whole_windows():
    # 5 x 7 merged tokens are 2 x 2 windows of 64 patches.
    assert packed_patches(140, 196, QWEN2_5_VL_3B) == 256
    assert packed_patches(112, 112, QWEN2_5_VL_3B) == 64
    with pytest.raises(ValueError, match="multiples of 28 pixels, got 100 x 112"):
        packed_patches(100, 112, QWEN2_5_VL_3B)


@pytest.mark.parametrize(
    "spec", [QWEN2_5_VL_3B, QWEN3_VL_2B], ids=lambda s: s.model_type
)
def test_no_picture_within_the_bound_takes_more_than_the_largest(spec):
    """Random ones, up to three times as long as wide; one of 5 x 6 tokens as many."""
    random, edge = np.random.RandomState(0), spec.vision.factor
    bound, needs = 30 * edge**2, []
    for shorter in random.randint(edge, 14 * edge, 300):
        longer = round(shorter * random.uniform(1, 2.9))
        shown = Image.new("L", (longer, shorter))
        shown = resize_image(shown, spec, min_pixels=edge**2, max_pixels=bound)
        needs.append(packed_patches(shown.height, shown.width, spec))
    assert max(needs) <= largest_patches(spec, bound)
    assert packed_patches(5 * edge, 6 * edge, spec) == largest_patches(spec, bound)


def test_pack_states_need_and_budget():
    pictures = [picture(0, 112, 140)] * 2
    with pytest.raises(ValueError, match=r"2 pictures need 256 patches.* is 192"):
        pack_images(pictures, QWEN2_5_VL_3B, budget=192)


def test_a_tower_without_windows_packs_pictures_row_by_row():
    assert packed_patches(160, 224, QWEN3_VL_2B) == 140  # no padding between pictures
    pictures = [picture(0, 96, 64), picture(1, 32, 32)]
    packed = pack_images(pictures, QWEN3_VL_2B, budget=36)
    assert [index.tolist() for index in packed.merged_index] == [[*range(6)], [6]]
    assert packed.frames.tolist() == [1] * 24 + [2] * 4 + [0] * 8


def test_pixels_have_the_statistics_of_their_family():
    black = Image.new("RGB", (32, 32))
    assert (patchify(black, QWEN3_VL_2B) == -1).all()  # (0 - 0.5) / 0.5
    red = patchify(Image.new("RGB", (28, 28)), QWEN2_VL_2B)[0, 0, 0]
    assert red == pytest.approx(-0.48145466 / 0.26862954)


def test_pack_of_no_picture_is_padding():
    packed = pack_images([], small_spec(), budget=64)
    assert not packed.frames.any() and packed.merged_index == ()


def _encode(shown: Image.Image, kind: str = "PNG", **settings) -> bytes:
    buffer = io.BytesIO()
    shown.save(buffer, kind, **settings)
    return buffer.getvalue()


def test_load_image_turns_by_exif_and_drops_alpha(tmp_path):
    shown = picture(0, 6, 9)
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate 90 clockwise to view", EXIF 2.3, tag Orientation
    turned = load_image(_encode(shown, exif=exif.tobytes()))
    np.testing.assert_array_equal(turned, np.rot90(np.asarray(shown), -1))
    clear = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    assert load_image(_encode(clear)).getpixel((0, 0)) == (255, 255, 255)
    path = tmp_path / "grey.png"
    path.write_bytes(_encode(Image.new("L", (2, 2), 7)))
    assert load_image(str(path)).getpixel((1, 1)) == (7, 7, 7)


@pytest.mark.parametrize(
    ("ref", "said"),
    [
        ("nowhere/missing.png", "no picture at 'nowhere/missing.png'"),
        (b"not a picture", "13 bytes.*cannot be decoded"),
        (_encode(picture(0, 60, 60))[:300], "300 bytes.*cannot be decoded"),
        (_encode(picture(0, 60, 60), "JPEG")[:300], "300 bytes.*cannot be decoded"),
        (b"", "0 bytes.*cannot be decoded"),
    ],
)
def test_load_image_says_what_is_wrong(ref, said):
    with pytest.raises(ValueError, match=said):
        load_image(ref)


def test_resize_image_gives_a_size_that_packs():
    resized = resize_image(
        picture(0, 37, 91), small_spec(), min_pixels=64, max_pixels=2000
    )
    assert resized.size == (64, 24)  # 37 x 91 shrinks by sqrt(3367 / 2000) = 1.2975
    assert merged_grid(24, 64, small_spec()) == (3, 8)


def test_positions_golden():
    tokens = [1, 2, 120, 9, 9, 9, 9, 9, 9, 121, 3, 4]
    positions, following = image_prompt_positions(tokens, [(2, 3)], 9)
    assert positions.T.tolist() == [
        [0, 1, 2, 3, 3, 3, 3, 3, 3, 6, 7, 8],
        [0, 1, 2, 3, 3, 3, 4, 4, 4, 6, 7, 8],
        [0, 1, 2, 3, 4, 5, 3, 4, 5, 6, 7, 8],
    ]
    assert following - len(tokens) == -3


def test_positions_of_several_pictures_and_of_text():
    # By hand: text 0; picture (1, 2) at 1, then 3; picture (3, 1) at 4, then 7.
    tokens = [1, 9, 9, 1, 9, 9, 9, 1]
    positions, following = image_prompt_positions(tokens, [(1, 2), (3, 1)], 9)
    assert positions[:, 0].tolist() == [0, 1, 1, 3, 4, 4, 4, 7]
    assert positions[:, 1].tolist() == [0, 1, 1, 3, 4, 5, 6, 7]
    assert positions[:, 2].tolist() == [0, 1, 2, 3, 4, 4, 4, 7]
    assert following == 8
    positions, following = image_prompt_positions([5, 6], [], 9)
    assert positions.tolist() == [[0, 0, 0], [1, 1, 1]] and following == 2


def test_positions_refuse_pictures_that_do_not_match():
    with pytest.raises(ValueError, match=r"has 2 image placeholders.* need 4"):
        image_prompt_positions([9, 9, 1], [(2, 2)], 9)
    with pytest.raises(ValueError, match=r"follow each other.*token 0"):
        image_prompt_positions([9, 9, 1, 9, 9], [(2, 2)], 9)
