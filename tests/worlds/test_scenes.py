"""Large pictures with a label: what stands on it is lost in the small, not where."""

import io

import numpy as np
from PIL import Image

from vrl_jax.recipes.ergo import closer, shrunk
from vrl_jax.worlds import digits, scenes, tasks


def opened(png):
    return Image.open(io.BytesIO(png)).convert("RGB")


def test_scenes_are_deterministic_and_grow_by_appending():
    first = scenes.labels(4, split="train", seed=3)
    assert scenes.labels(6, split="train", seed=3)[:4] == first
    assert scenes.labels(4, split="train", seed=4)[0].images != first[0].images


def test_a_label_lies_in_its_box_and_says_the_answer():
    for sample in scenes.labels(30, split="test", seed=0):
        facts, picture = sample.annotations, opened(sample.images[0])
        assert picture.size == (252, 252)
        ((left, top, right, bottom),) = facts["boxes"]
        assert (right - left, bottom - top) == (28, 14)
        assert (left % 84, top % 84) == (28, 35)  # the middle of a cell
        assert sample.answer == "".join(map(str, facts["digits"]))
        for place, scan in enumerate(facts["scans"]):
            assert digits.scans().held_out[scan]
            assert digits.scans().digit[scan] == facts["digits"][place]
            there = (left + 14 * place, top, left + 14 * (place + 1), bottom)
            grey = np.asarray(picture.crop(there).convert("L").resize((8, 8)), float)
            ink = digits.scans().ink[scan]
            assert np.corrcoef(255 - grey.ravel(), ink.ravel())[0, 1] > 0.95


def test_labels_lie_in_every_cell():
    found = {
        tuple(edge // 84 for edge in sample.annotations["boxes"][0][:2])
        for sample in scenes.labels(200, split="train", seed=0)
    }
    assert len(found) == 9


def test_the_demonstrated_region_shows_the_label_in_full():
    """In 9 tokens a digit is under 5 pixels wide; in the crop it has all of its own."""
    for sample in map(tasks.label_in_region, scenes.labels(20, split="train", seed=0)):
        pointed, said, read = sample.annotations["demonstration"]
        assert opened(shrunk(sample.images[0], 9, 28)).size == (84, 84)
        look = closer(sample.images[0], pointed, 9, 28)
        assert look.found and look.share == 1 / 9
        ((left, top, right, bottom),) = sample.annotations["boxes"]
        inside = opened(look.picture).crop((28, 35, 56, 49))
        whole = opened(sample.images[0]).crop((left, top, right, bottom))
        np.testing.assert_array_equal(inside, whole)
        assert said == read == f"<answer>{sample.answer}</answer>"
