"""Visual-RFT: the worked example of boxes, names and the rule for empty pictures."""

import json

import numpy as np
import pytest

from vrl_jax.recipes.visual_rft import (
    checked,
    classification,
    detection,
    grounding,
    visual_rft,
)
from vrl_jax.types import Episode, Sample, Turn

from ..fixtures import small

GOLD = [
    {"Position": [0, 0, 100, 100], "Confidence": 1.0},
    {"Position": [200, 200, 300, 300], "Confidence": 1.0},
]
FOUND = [
    {"Position": [0, 0, 100, 80], "Confidence": 0.9},
    {"Position": [0, 0, 100, 100], "Confidence": 0.6},
    {"Position": [200, 200, 300, 300], "Confidence": 0.3},
    {"Position": [0, 0, 100, 80], "Confidence": 0.5},
]


def group(answer, *texts):
    sample = Sample("row", "here", "<image>?", (b"",), answer)
    return [Episode(sample, "?", (Turn(text, (1,)),), True) for text in texts]


def tagged(answer):
    return f"<think>so</think>\n<answer>{answer}</answer>"


def test_boxes_of_the_worked_example():
    """Matches 0.8, 0 and 1.0 in order of confidence, by hand: 0.6 + 0.533333 + 1."""
    (score,) = checked(detection)(group(json.dumps(GOLD), tagged(json.dumps(FOUND))))
    np.testing.assert_allclose(score["accuracy_iou"], 1.8 / 3, rtol=1e-6)
    np.testing.assert_allclose(score["accuracy_conf"], 1.6 / 3, rtol=1e-6)
    np.testing.assert_allclose(score["overall"], 2.133333, atol=1e-6)


def test_missed_boxes_cost():
    """One box of IoU 0.8 for three objects: 0.8 / 3, the code's rule; paper 0.8."""
    gold = [*GOLD, {"Position": [500, 500, 600, 600], "Confidence": 1}]
    (score,) = detection(group(json.dumps(gold), tagged(json.dumps(FOUND[:1]))))
    np.testing.assert_allclose(score["iou"], 0.266667, atol=1e-6)
    np.testing.assert_allclose(score["conf"], 0.9, rtol=1e-6)


def test_a_picture_without_the_object_may_be_answered():
    wrong = json.dumps(FOUND[:1])
    texts = ["No Objects", " no objects\n", "[]", wrong, "", "none at all", "[{}]"]
    scores = detection(group("No Objects", *map(tagged, texts)))
    assert [score["overall"] for score in scores] == [2.0, 2.0, 2.0, 0, 0, 0, 0]
    (score,) = detection(group(json.dumps(GOLD), tagged("No Objects")))
    assert score["overall"] == 0.0


@pytest.mark.parametrize("text", ["[[1, 2, 3, 4]]", '["a"]', "7", "{", "[1, {}]"])
def test_what_is_no_list_of_objects_earns_the_layout_alone(text):
    (score,) = checked(detection)(group(json.dumps(GOLD), tagged(text)))
    assert score["overall"] == score["format"] == 1.0


def test_cut_answers_doubled_brackets_and_single_quotes_are_read():
    cut = "<answer>[{'Position': [0, 0, 100, 100], 'Confidence': 1}, {'Posi"
    doubled = tagged(f"[{json.dumps(GOLD)}]")
    first, second = detection(group(json.dumps(GOLD), cut, doubled))
    np.testing.assert_allclose(first["iou"], 0.5)
    np.testing.assert_allclose(second["overall"], 2.0)


def test_an_unreadable_row_is_unscored():
    for answer in ("a cat", '[{"foo": [0, 0, 1, 1]}]'):
        (score,) = detection(group(answer, tagged("No Objects")))
        assert np.isnan(score["overall"])
    assert np.isnan(grounding(group("a cat", tagged("(1,2),(3,4)")))).all()


def test_the_most_confident_boxes_count():
    boxes = [{"Position": [i, 0, i + 1, 1], "Confidence": 0.1} for i in range(100)]
    boxes.append({**GOLD[0], "Confidence": 0.9})
    (score,) = detection(group(json.dumps(GOLD[:1]), tagged(json.dumps(boxes))))
    np.testing.assert_allclose(score["iou"], 1 / 64)
    with pytest.raises(ValueError, match="row has 101 boxes"):
        detection(group(json.dumps(boxes), ""))


def test_names_may_hold_one_another():
    texts = ["boeing 737", "737", "", "Airbus"]
    found = classification(group("Boeing_737", *map(tagged, texts), "737"))
    assert found == [1.0, 1.0, 0.0, 0.0, 0.0]


def test_grounding_is_giou_plus_one():
    """The sheet's 1.311304 and 0.125; equal boxes 2; a swapped one is no box."""
    near = tagged("(200,200),(600,600)")
    (found,) = grounding(group("(100,100),(500,500)", near))
    np.testing.assert_allclose(found, 1.311304, atol=1e-6)
    texts = ["(300,300),(400,400)", "(0,0),(100,100)", "(100,100),(0,0)", "here"]
    found = grounding(group("(0,0),(100,100)", *map(tagged, texts)))
    np.testing.assert_allclose(found, [0.125, 2.0, 0.0, 0.0], atol=1e-6)


def test_advantages_of_the_worked_group():
    batch, _ = visual_rft(group_size=4).credit(small.scored([2.133333, 1.0, 0.0, 3.0]))
    np.testing.assert_allclose(
        batch.advantages[:, 0],
        [0.458053, -0.407158, -1.170580, 1.119685],
        atol=2e-6,
    )
