"""SATORI-R1: caption, boxes and answer of one response, each by its rule."""

import dataclasses

import numpy as np
import pytest

from vrl_jax.recipes.satori import located, looks_first, satori, satori_reward
from vrl_jax.types import Episode, ImageSize, Sample, Turn

from ..fixtures import small

ROW = {
    "image_caption": "a dog runs on the grass",
    "bboxs": [[0, 0, 10, 20]],
    "possible_answers": ["yes"],
}
SAME = ImageSize(100, 100, 100, 100)


def episode(text, size=SAME, **columns):
    sample = Sample("row", "here", "<image>?", (b"",), "", {**ROW, **columns})
    return Episode(sample, "?", (Turn(text, (1,)),), True, (size,))


def laid(answer, boxes="[[0, 0, 10, 10], [5, 0, 15, 10]]", extra=""):
    return (
        f"<caption>a dog runs on grass</caption><bbox>{boxes}</bbox>{extra}"
        f"<answer>{answer}</answer>"
    )


def test_the_worked_response():
    """.744010 caption, .4 boxes, and the case of an answer counts."""
    right, wrong = satori_reward([episode(laid("yes")), episode(laid("Yes"))])
    np.testing.assert_allclose(right["caption"], 0.744010, atol=1e-6)
    np.testing.assert_allclose(right["bbox"], 0.4, atol=1e-6)
    np.testing.assert_allclose(right["overall"], 3.144010, atol=1e-6)
    np.testing.assert_allclose(wrong["overall"], 2.144010, atol=1e-6)


def test_boxes_are_in_pixels_that_the_model_sees():
    """800 x 600 is seen as 728 x 532: [91, 133, 182, 266] is [100, 150, 200, 300]."""
    size = ImageSize(600, 800, 532, 728)
    gold = [[100, 150, 200, 300]]
    text = laid("yes", "[[91, 133, 182, 266]]")
    np.testing.assert_allclose(located(episode(text, size, bboxs=gold)), 1, rtol=1e-5)


@pytest.mark.parametrize(
    ("boxes", "iou"),
    [
        ("[0, 0, 10, 20]", 1.0),
        ("[[0, 0, 10, 10], [0, 10, 10, 20]]", 1.0),
        ("[[0, 0, 1000, 1000]]", 0.02),  # ends at the picture's edge
        ("[[10, 20, 0, 0]]", 0.0),
        ("[[0, 0, 10, 20], [20, 20, 10, 10]]", 1.0),  # a swapped one has no area
        ("[[0, 0, 10]]", 0.0),
        ("[[0, 0, 10, 20], [1, 2]]", 0.0),
        ('[{"bbox": [0, 0, 10, 20]}]', 0.0),
        ("here", 0.0),
        ("", 0.0),
    ],
)
def test_unions_of_boxes(boxes, iou):
    np.testing.assert_allclose(located(episode(laid("yes", boxes))), iou, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("image_caption", None),
        ("bboxs", None),
        ("bboxs", "[[0, 0, 1, 1]]"),
        ("bboxs", [[0, 0, 1]]),
        ("bboxs", [[0, 0, 1, 1]] * 40),
        ("possible_answers", "yes"),
    ],
)
def test_a_row_that_lacks_something_is_named(name, given):
    with pytest.raises(ValueError, match=f"row needs .*'{name}'"):
        satori_reward([episode(laid("yes"), **{name: given})])


def test_a_row_without_a_picture_is_named():
    alone = dataclasses.replace(episode(laid("yes")), image_sizes=())
    with pytest.raises(ValueError, match="sample row has no picture"):
        satori_reward([alone])


def test_advantages_divide_by_a_little_more():
    """R = 4, 3, 2, 1: mean 2.5, std (n - 1) 1.290994, + 1e-4, by hand."""
    batch, _ = satori(group_size=4).credit(small.scored([4.0, 3.0, 2.0, 1.0]))
    wanted = [1.161805, 0.387268, -0.387268, -1.161805]
    np.testing.assert_allclose(batch.advantages[:, 0], wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (laid("yes"), True),
        (f"\n{laid('yes')} ", True),
        (laid("yes", extra="<think>so</think>"), True),
        (laid("yes", "[0, 0, 10, 20]"), False),
        (laid("yes") + "!", False),
        ("<answer>yes</answer>" + laid("yes"), False),
        ("<bbox>[[]]</bbox><caption>a</caption><answer>yes</answer>", False),
    ],
)
def test_layout(text, kept):
    assert looks_first(text) == kept
