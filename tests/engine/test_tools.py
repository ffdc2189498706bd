"""Tools: what is cut where, and what a model is told of a bad call."""

import io
import json
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageOps

from vrl_jax.engine import tools
from vrl_jax.engine.tools import PICTURE_TOOLS, Call, ToolError, calls, crop_box
from vrl_jax.models.front_end import load_image, on_white


def call(**call):
    return f"<tool_call>{json.dumps(call)}</tool_call>"


def picture(height, width, seed=0):
    pixels = np.random.RandomState(seed).randint(0, 256, (height, width, 3), np.uint8)
    return tools.as_png(Image.fromarray(pixels))


# The worked example of agents_and_tools for verl, on 800 x 600: the first as given, the
# second [0, 3, 40, 31]. The others by hand.
@pytest.mark.parametrize(
    ("box", "cut"),
    [
        ([100, 100, 200, 180], (100, 100, 200, 180)),
        ([10, 10, 30, 24], (0, 3, 40, 31)),
        ([790, 590, 900, 700], (772, 572, 800, 600)),  # clamped to 10 x 10, grown
        ([-50, -50, 50, 60], (0, 0, 50, 60)),
        ([100.4, 100.4, 199.6, 179.6], (100, 100, 200, 180)),
    ],
)
def test_crop_box_follows_verl(box, cut):
    assert crop_box(box, 800, 600) == cut


@pytest.mark.parametrize(
    "box",
    [[200, 100, 100, 180], [900, 700, 950, 720], [0, 0, 800, 5], [3, 3, 3, 3]],
)
def test_boxes_without_area_or_too_long_are_refused(box):
    with pytest.raises(ToolError, match=r"no area|as long as wide"):
        crop_box(box, 800, 600)


def test_calls_are_read_and_what_cannot_be_is_an_error_in_its_place():
    good = call(name="crop", arguments={"bbox_2d": [1, 2, 3, 4]})
    text = f"First {good} then <tool_call>{{name: crop}}</tool_call> {call(name=3)}"
    first, second, third = calls(text)
    assert first == Call("crop", {"bbox_2d": [1, 2, 3, 4]})
    assert "not valid JSON" in str(second)
    assert '{"name": "...", "arguments": {...}}' in str(third)
    assert calls("no call") == []
    assert "not closed" in str(calls("<tool_call>{")[0])


def run(name, arguments, images=None, **more):
    images = [picture(60, 80)] if images is None else images
    return tools.run(
        Call(name, arguments), {**PICTURE_TOOLS, **more}, images, seconds=2
    )


@pytest.mark.parametrize(
    ("name", "arguments", "size"),
    [
        ("crop", {"bbox_2d": [10, 10, 60, 50]}, (50, 40)),
        ("zoom", {"bbox_2d": [10, 10, 60, 50], "factor": 3}, (150, 120)),
        ("rotate", {"angle": 90}, (60, 80)),
        ("flip", {"axis": "vertical"}, (80, 60)),
        ("denoise", {"size": 5}, (80, 60)),
        ("contrast", {"factor": 2.0}, (80, 60)),
        ("mark", {"bbox_2d": [10, 10, 60, 50]}, (80, 60)),
    ],
)
def test_every_tool_returns_a_picture_of_its_size(name, arguments, size):
    seen = run(name, arguments)
    assert not seen.error and seen.text == "<image>"
    found = load_image(seen.images[0], on_white)
    assert found.size == size
    assert seen == run(name, arguments)  # the same bytes each time


def test_what_the_tools_do_to_pixels():
    before = np.asarray(load_image(picture(60, 80), on_white))

    def after(name, **arguments):
        return np.asarray(load_image(run(name, arguments).images[0], on_white))

    cut = after("crop", bbox_2d=[10, 20, 60, 50])
    np.testing.assert_array_equal(cut, before[20:50, 10:60])
    np.testing.assert_array_equal(after("flip", axis="horizontal"), before[:, ::-1])
    np.testing.assert_array_equal(after("rotate", angle=90), np.rot90(before))
    smooth = after("denoise")
    centre = np.median(before[9:12, 19:22].reshape(9, 3), axis=0)
    np.testing.assert_array_equal(smooth[10, 20], centre)
    assert after("contrast", factor=0).std() == 0
    marked = after("mark", bbox_2d=[10, 20, 60, 50])
    assert (marked[20, 10:60] == [255, 0, 0]).all() and (
        marked[35, 30] == before[35, 30]
    ).all()


def test_earlier_pictures_are_counted_from_one():
    images = [picture(60, 80), picture(40, 40, seed=1)]
    box = {"bbox_2d": [0, 0, 40, 40]}
    first, second = (run("crop", {**box, "target_image": n}, images) for n in (1, 2))
    assert first == run("crop", box, images) != second
    assert (
        "there are 2 pictures" in run("crop", {**box, "target_image": 3}, images).text
    )


def broken(pictures):
    raise RuntimeError("inside")


def hanging(pictures):
    time.sleep(30)


@pytest.mark.parametrize(
    ("name", "arguments", "error", "said"),
    [
        ("crop", {"bbox_2d": [1, 2, 3]}, "refused", "must be 4 numbers"),
        ("crop", {"bbox_2d": [0, 0, float("nan"), 9]}, "refused", "must be 4 numbers"),
        ("crop", {"box": [1, 2, 3, 4]}, "arguments", "cannot take them"),
        ("zoom", {"bbox_2d": [0, 0, 50, 50], "factor": 99}, "refused", "from 1 to 8"),
        ("rotate", {"angle": "left"}, "refused", "from -360 to 360"),
        ("teleport", {}, "unknown", "no tool 'teleport'; there is broken, contrast"),
        ("broken", {}, "failed", "RuntimeError"),
        ("hanging", {}, "timeout", "longer than 2 s"),
    ],
)
def test_a_bad_call_is_told_and_named(name, arguments, error, said):
    start = time.monotonic()
    seen = run(name, arguments, broken=broken, hanging=hanging)
    assert seen.error == error and said in seen.text and not seen.images
    assert seen.text.startswith("Error: ")
    assert time.monotonic() - start < 20


def test_what_a_tool_makes_is_bounded():
    """4000 x 3000 pixels, four times as large each way, would take minutes."""
    blank = tools.as_png(Image.new("RGB", (4000, 3000)))
    box = [0, 0, 4000, 3000]
    seen = run("zoom", {"bbox_2d": box, "factor": 4}, [blank])
    assert seen.error == "refused" and "16000 x 12000 pixels is too large" in seen.text

    def huge(pictures):
        return Image.new("1", (8000, 8000))

    assert run("huge", {}, huge=huge).error == "refused"


def test_encoding_counts_as_the_tools_time(monkeypatch):
    images = [picture(60, 80)]
    monkeypatch.setattr(tools, "as_png", hanging)
    start = time.monotonic()
    assert run("flip", {"axis": "vertical"}, images).error == "timeout"
    assert time.monotonic() - start < 20


def test_a_tool_of_ones_own_may_answer_in_text():
    def count(pictures, *, what):
        return f"{len(pictures)} {what}"

    assert run("count", {"what": "shapes"}, count=count).text == "1 shapes"


def test_a_picture_is_decoded_once_and_each_has_a_copy(monkeypatch):
    """Of what one tool draws on it another sees nothing, nor of the threads between."""
    loads, load = [], tools.load_image
    monkeypatch.setattr(
        tools, "load_image", lambda *given: loads.append(given) or load(*given)
    )
    png = picture(56, 28, seed=12345)

    def blacken(pictures):
        pictures[0].paste((0, 0, 0), (0, 0, *pictures[0].size))
        return pictures[0]

    available = {"blacken": blacken, **tools.PICTURE_TOOLS}
    with ThreadPoolExecutor(4) as threads:
        blackened = [
            threads.submit(tools.run, tools.Call("blacken", {}), available, [png])
            for _ in range(8)
        ]
    assert len({one.result().images for one in blackened}) == 1 == len(loads)
    flipped = tools.run(
        tools.Call("flip", {"axis": "vertical"}), available, [png]
    ).images[0]
    wanted = ImageOps.flip(Image.open(io.BytesIO(png)))
    assert Image.open(io.BytesIO(flipped)).tobytes() == wanted.tobytes()
