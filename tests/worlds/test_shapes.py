import collections
import io
import itertools

import numpy as np
import pytest
from PIL import Image

from vrl_jax.rewards.parse import last_boxed
from vrl_jax.worlds import shapes

APART = (shapes.count, shapes.colour, shapes.position, shapes.comparison)
TASKS = (*APART, shapes.crowd)


def names(sample):
    return [
        (thing["colour"], thing["shape"]) for thing in sample.annotations["objects"]
    ]


@pytest.mark.parametrize("task", TASKS)
def test_task_is_deterministic_and_grows_by_appending(task):
    first = task(5, split="train", seed=3)
    assert task(8, split="train", seed=3)[:5] == first
    assert task(5, split="train", seed=4)[0].images != first[0].images


@pytest.mark.parametrize("task", APART)
def test_pictures_show_their_objects_and_nothing_else(task):
    for sample in task(20, split="train", seed=0, noise=0):
        picture = np.asarray(Image.open(io.BytesIO(sample.images[0])))
        painted = (picture != shapes.PAPER).any(-1)
        for thing in sample.annotations["objects"]:
            x0, y0, x1, y1 = thing["box"]
            inside = painted[y0:y1, x0:x1].copy()
            # the box is tight, and the thing has its colour
            assert inside[[0, -1]].any(1).all() and inside[:, [0, -1]].any(0).all()
            colours = picture[y0:y1, x0:x1][inside]
            assert (colours == shapes.COLOURS[thing["colour"]]).all()
            share = {"square": (1, 1), "circle": (0.7, 0.85), "triangle": (0.4, 0.6)}
            low, high = share[thing["shape"]]
            assert low <= inside.mean() <= high
            painted[y0:y1, x0:x1] = False
        assert not painted.any()
        assert last_boxed(sample.annotations["demonstration"]) == sample.answer


@pytest.mark.parametrize("task", [shapes.count, shapes.crowd])
def test_count_counts(task):
    for sample in task(40, split="train", seed=0):
        wanted = tuple(sample.question.removesuffix("s?").split()[-2:])
        assert int(sample.answer) == names(sample).count(wanted)


def test_things_of_a_crowd_hide_no_more_than_a_strip_of_each_other():
    """Of 84 pixels sides are 10 to 14: a third of the shortest is 3."""
    met = 0
    for sample in shapes.crowd(40, split="train", seed=0):
        for a, b in itertools.combinations(sample.annotations["boxes"], 2):
            wide, high = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
            assert min(wide, high) <= 3
            met += min(wide, high) > 0
        assert 6 <= len(names(sample)) <= 12
    assert met > 40  # more than one pair a picture


def test_colour_asks_for_the_only_thing_of_its_shape():
    for sample in shapes.colour(40, split="train", seed=0):
        shape = sample.question.removesuffix("?").split()[-1]
        found = [colour for colour, other in names(sample) if other == shape]
        assert found == [sample.answer]
        assert len(names(sample)) > 1


def test_position_is_where_the_centre_is():
    axes = {"left": (0, -1), "right": (0, 1), "above": (1, -1), "below": (1, 1)}
    for sample in shapes.position(40, split="train", seed=0):
        words = sample.question.removesuffix("?").replace(",", "").split()
        subject, other = tuple(words[3:5]), tuple(words[-2:])
        centre = {
            name: np.reshape(box, (2, 2)).mean(0)
            for name, box in zip(
                names(sample), sample.annotations["boxes"], strict=True
            )
        }
        shift = centre[subject] - centre[other]
        axis, sign = axes[sample.answer]
        assert shift[axis] * sign >= 2 * abs(shift[1 - axis])


def test_comparison_compares():
    for sample in shapes.comparison(40, split="train", seed=0):
        words = sample.question.replace(",", "").split()
        first, second = (
            sum(shape + "s" == word for _, shape in names(sample))
            for word in (words[1], words[3])
        )
        relation = {True: "more", False: "fewer"}[first > second]
        assert sample.answer == ("equal" if first == second else relation)


@pytest.mark.parametrize("task", TASKS)
def test_answers_are_balanced(task):
    answers = collections.Counter(s.answer for s in task(240, split="train", seed=0))
    assert max(answers.values()) < 1.6 * min(answers.values())


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_splits_share_no_picture(noise):
    # 40 + 40 pictures a task; the rule itself is on pixels, so any seed will do.
    pictures = {
        split: {
            picture
            for task in TASKS
            for sample in task(40, split=split, seed=0, noise=noise)
            for picture in sample.images
        }
        for split in ("train", "test")
    }
    assert not pictures["train"] & pictures["test"]
    if not noise:
        for split, encoded in pictures.items():
            for picture in encoded:
                pixels = np.asarray(Image.open(io.BytesIO(picture)))
                assert shapes.split_of(pixels) == split
