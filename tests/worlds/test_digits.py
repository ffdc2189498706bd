import io

import numpy as np
import pytest
from PIL import Image

from vrl_jax.rewards.parse import last_boxed
from vrl_jax.worlds import digits

TASKS = (digits.sums, digits.largest)


@pytest.mark.parametrize("task", TASKS)
def test_task_is_deterministic_and_grows_by_appending(task):
    first = task(8, split="train", seed=3)
    assert task(12, split="train", seed=3)[:8] == first
    assert task(8, split="train", seed=4)[0].images != first[0].images


@pytest.mark.parametrize("task", TASKS)
def test_facts_agree_with_the_scans_and_the_answer(task):
    labels = digits.scans().digit
    for sample in task(60, split="train", seed=0):
        facts = sample.annotations
        assert [labels[scan] for scan in facts["scans"]] == facts["digits"]
        assert last_boxed(facts["demonstration"]) == sample.answer
        assert sample.question.count("<image>") == len(sample.images) == 1
        assert len(facts["boxes"]) == len(facts["facts"]) == len(facts["digits"])


def test_sums_adds_the_digits():
    for sample in digits.sums(60, split="test", seed=0):
        assert int(sample.answer) == sum(sample.annotations["digits"])


def test_largest_names_the_digit_and_its_place():
    places = ("left", "middle", "right")
    for sample in digits.largest(60, split="test", seed=0):
        shown = sample.annotations["digits"]
        value, place = sample.answer.split()
        assert int(value) == max(shown) == shown[places.index(place)]
        assert shown.count(max(shown)) == 1


def test_boxes_frame_the_enlarged_scans():
    sample = digits.sums(1, split="train", seed=1, noise=0)[0]
    picture = Image.open(io.BytesIO(sample.images[0]))
    assert picture.size == (56, 28)
    for box, scan in zip(
        sample.annotations["boxes"], sample.annotations["scans"], strict=True
    ):
        grey = np.asarray(picture.crop(box).convert("L").resize((8, 8)), float)
        ink = digits.scans().ink[scan]
        assert np.corrcoef(255 - grey.ravel(), ink.ravel())[0, 1] > 0.95


def test_splits_share_no_scan_and_hold_out_a_fifth_of_each_digit():
    held_out, labels = digits.scans().held_out, digits.scans().digit
    used = {
        split: {
            scan
            for sample in digits.sums(400, split=split, seed=0)
            for scan in sample.annotations["scans"]
        }
        for split in ("train", "test")
    }
    assert not used["train"] & used["test"]
    assert all(held_out[list(used["test"])])
    for digit in range(10):
        assert held_out[labels == digit].mean() == pytest.approx(0.2, abs=0.01)
    # No scan occurs twice among the 1797, so no picture is shared either.
    assert len({scan.tobytes() for scan in digits.scans().ink}) == len(labels) == 1797
