"""V-Triune: each row's own verifier, and an IoU that tightens with the run."""

import dataclasses
import json

import numpy as np
import pytest

from vrl_jax.recipes.v_triune import averaged, tightening, verified
from vrl_jax.types import Episode, ImageSize, Sample, Turn

GOLD = [
    {"bbox_2d": [0, 0, 100, 100], "label": "Car"},
    {"bbox_2d": [200, 200, 300, 300], "label": "dog"},
]
FOUND = [
    {"bbox_2d": [0, 0, 100, 95], "label": "car"},
    {"bbox_2d": [200, 200, 300, 290], "label": "dog"},
    {"bbox_2d": [400, 400, 450, 450], "label": "car"},
]
LOOSE = {"det_reward_ratio": {"iou_max_label_first": 1.0, "iou_completeness": 0.3}}


@pytest.fixture(scope="module")
def reward(verifier):
    return verified(verifier)


SQUARE = ImageSize(500, 500, 500, 500)


def group(answer, row, *texts, step=0, size=SQUARE):
    sample = Sample("row", "here", "<image>?", (b"",), answer, {"reward_model": row})
    return [
        Episode(sample, "?", (Turn(text, (1,)),), True, (size,), step, 100)
        for text in texts
    ]


def boxes(found):
    return f"<answer>{json.dumps(found)}</answer>"


def detected(parm=None, **more):
    return {"verifier": "detection", "verifier_parm": parm, **more}


@pytest.mark.parametrize(
    ("step", "total"), [(5, 0.580455), (20, 0.340455), (60, 0.090909)]
)
def test_the_worked_run(reward, step, total):
    given = group(json.dumps(GOLD), detected(LOOSE), boxes(FOUND), step=step)
    (score,) = reward(given)
    np.testing.assert_allclose(score["overall"], total, atol=1e-6)
    assert score["format"] == 1.0


def test_exact_boxes_earn_all_of_it_by_every_score(reward):
    names = ("iou_max_label_first", "iou_max_iou_first", "map", "map50", "map75")
    every = {"det_reward_ratio": dict.fromkeys(names, 0.5)}
    given = group(json.dumps(GOLD), detected(every), boxes(GOLD), "none", step=90)
    right, wrong = reward(given)
    np.testing.assert_allclose(right["overall"], 1.0, rtol=1e-6)
    assert wrong["overall"] == 0.0


@pytest.mark.parametrize(
    ("name", "precision"), [("map50", 1.0), ("map75", 0.5), ("map", 0.75)]
)
def test_precisions_by_hand(reward, name, precision):
    """IoU 0.95 and 0.7: found at 10 and at 5 of 10 thresholds; one box too many, 0.6.

    The false one comes last, and costs no precision.
    """
    found = [{**FOUND[0]}, {"bbox_2d": [200, 200, 300, 270], "label": "dog"}, FOUND[2]]
    found[0]["bbox_2d"] = [0, 0, 100, 96]
    weights = {name: 1.0, "other": 1.0, "iou_max_iou_first": 2.0}
    row = detected({"det_reward_ratio": weights})
    (score,) = reward(group(json.dumps(GOLD), row, boxes(found)))
    np.testing.assert_allclose(score["accuracy"], 0.6 * precision, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "accuracy"),
    [("iou_max_label_first", 0.6 * 0.95), ("iou_max_iou_first", 0.0)],
)
def test_which_pair_is_first(reward, name, accuracy):
    """A car; said to be an exact dog, and a car of IoU 0.95."""
    said = [{"bbox_2d": [0, 0, 100, 100], "label": "dog"}, FOUND[0]]
    row = detected({"det_reward_ratio": {name: 1.0}})
    (score,) = reward(group(json.dumps(GOLD[:1]), row, boxes(said)))
    np.testing.assert_allclose(score["accuracy"], accuracy, rtol=1e-6)


def test_repeats_count_once_on_both_sides(reward):
    (score,) = reward(group(json.dumps(GOLD * 2), detected(), boxes(GOLD * 2)))
    np.testing.assert_allclose(score["overall"], 1.0, rtol=1e-6)


def test_weights_are_the_rows(reward):
    row = detected(accuracy_ratio=0.8, format_ratio=0.2)
    (score,) = reward(group(json.dumps(GOLD), row, boxes(FOUND[2:])))
    np.testing.assert_allclose(score["overall"], 0.2)
    row = detected(accuracy_ratio=None, format_ratio=None)
    (score,) = reward(group(json.dumps(GOLD), row, boxes(FOUND[2:])))
    np.testing.assert_allclose(score["overall"], 0.1 / 1.1)


def test_boxes_may_be_in_pixels_and_rows_in_thousandths(reward):
    """The model sees 200 x 400 (height, width): x 2.5, y 5."""
    seen = [{"bbox_2d": [40, 20, 80, 40], "label": "car"}]
    gold = json.dumps([{"bbox_2d": [100, 100, 200, 200], "label": "car"}])
    size = ImageSize(400, 800, 200, 400)
    for normalized, accuracy in ((True, 1.0), (False, 0.0)):
        row = detected({"det_verifier_normalized": normalized})
        (score,) = reward(group(gold, row, boxes(seen), size=size))
        np.testing.assert_allclose(score["accuracy"], accuracy)


def test_mathematics_and_its_tags(reward):
    laid = "<think>\nso\n</think>\n<answer>\n\\boxed{1/2}\n</answer>"
    texts = [laid, r"\boxed{0.5}", r"\boxed{2}"]
    scores = reward(group("0.5", {"verifier": "mathverify"}, *texts))
    assert [score["accuracy"] for score in scores] == [1.0, 1.0, 0.0]
    wanted = [1.0, 1 / 1.1, 0.0]
    np.testing.assert_allclose([score["overall"] for score in scores], wanted)


def test_thresholds():
    bounds = [tightening(step, 100)[0] for step in (0, 10, 11, 25, 26)]
    np.testing.assert_allclose(bounds, [0.85, 0.85, 0.95, 0.95, 0.99], rtol=1e-6)
    assert len(averaged(1, 2)) == 11 and averaged(1, 2)[-1] == 0.99


@pytest.mark.parametrize(
    ("row", "answer", "told"),
    [
        (None, "1", "row needs the column 'reward_model'"),
        ({}, "1", "row needs a verifier"),
        ({"verifier": ["detection"]}, "1", "one of mathverify, detection"),
        (detected(), "a car", "row needs 1 to 64 boxes"),
        (detected(), "[[0, 0, 1, 1]]", "row needs 1 to 64 boxes"),
        (detected("{}"), json.dumps(GOLD), "row needs a mapping verifier_parm"),
        (detected({"det_reward_ratio": {"iou": 1}}), json.dumps(GOLD), "weighs, up"),
        (detected({"det_reward_ratio": "map"}), json.dumps(GOLD), "weighs, up"),
        (
            detected(accuracy_ratio=0, format_ratio=0),
            "1",
            "row needs an accuracy_ratio",
        ),
        (detected(accuracy_ratio="1"), "1", "row needs an accuracy_ratio"),
    ],
)
def test_a_row_that_cannot_be_judged_is_named(reward, row, answer, told):
    with pytest.raises(ValueError, match=told):
        reward(group(answer, row, ""))


def test_a_picture_is_needed_for_pixels(reward):
    row = detected({"det_verifier_normalized": True})
    (episode,) = group(json.dumps(GOLD), row, boxes(GOLD))
    with pytest.raises(ValueError, match="row has no picture"):
        reward([dataclasses.replace(episode, image_sizes=())])
