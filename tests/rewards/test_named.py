"""Names of rewards that users know, by the rules they know them by."""

import json

import pytest

from vrl_jax.recipes.visual_rft import detection
from vrl_jax.rewards import named
from vrl_jax.types import Episode, ImageSize, Sample, Turn

SIZE = ImageSize(600, 800, 532, 728)  # 800 x 600, seen as 728 x 532


def group(answer, *texts):
    sample = Sample("row", "test", "?", (b"",), answer)
    return [Episode(sample, "?", (Turn(text, (1,)),), True, (SIZE,)) for text in texts]


def scores(name, answer, *texts, **frames):
    with named.named_reward(name, **frames) as reward:
        found = reward(group(answer, *texts))
    return [s["overall"] if isinstance(s, dict) else s for s in found]


def tagged(found):
    return f"<answer>{json.dumps(found)}</answer>"


def test_detection_is_that_of_visual_rft():
    """Equal boxes count once: IoU 0.8 of two gold boxes is 0.4, confidence 0.9."""
    gold = [{"Position": [0, 0, 10, 10]}, {"Position": [50, 50, 60, 60]}]
    twice = [{"Position": [0, 0, 10, 8], "Confidence": 0.9}] * 2
    answer, text = json.dumps(gold), tagged(twice)
    found = scores("detection", answer, text, frame="original")
    assert found == pytest.approx([1.3])
    assert detection(group(answer, text))[0]["overall"] == pytest.approx(1.3)
    # Hungarian F1 of the same, two predictions for two golds, has a name of its own.
    assert scores("box_f1", answer, text, frame="original") == pytest.approx([0.5])


def test_detection_has_frames():
    """[80, 0, 160, 60] of 800 x 600 is [100, 0, 200, 100] in thousandths."""
    gold = json.dumps([{"Position": [80, 0, 160, 60]}])
    texts = [tagged([{"Position": [100, 0, 200, 100], "Confidence": 1}]), "none"]
    frames = {"frame": "norm1000", "gold_frame": "original"}
    assert scores("detection", gold, *texts, **frames) == pytest.approx([2, 0])


@pytest.mark.parametrize(
    ("name", "answer", "texts", "expected"),
    [
        ("letters", "A, C", ["Answer: C and A", "Answer: A"], [1, 0]),
        ("chartqa", "0.5", ["Answer: 50%", "Answer: 0.52", "Answer: 0.6"], [1, 1, 0]),
        ("dapo", "42", ["So.\nAnswer: 42", "Answer: 41", "42"], [1, -1, -1]),
        ("r1v_accuracy", "4", ["<answer>4</answer>", "<answer>5</answer>"], [1, 0]),
        ("vlm_r1", "4", ["<answer>4</answer>", "<answer>5</answer>"], [1, 0]),
    ],
)
def test_rules_of_projects_and_benchmarks(name, answer, texts, expected):
    assert scores(name, answer, *texts) == expected


def test_near_click_takes_frames():
    """140 pixels of 800 are 175 thousandths."""
    points = ["[270, 0]", "[280, 0]"]
    frames = {"frame": "norm1000", "gold_frame": "norm1000"}
    assert scores("near_click", "[100, 0]", *points, **frames) == [1, 0]


def test_ocr_edit_is_the_indel_ratio():
    """8 of 13 characters, where 1 - distance / length is 4 / 7."""
    found = scores("ocr_edit", "sitting", "<answer>kitten</answer>")
    assert found == pytest.approx([8 / 13])


def test_average_precision_of_vlm_r1():
    """IoU 0.8 is found at 0.5 to 0.8, seven of ten thresholds."""
    gold = json.dumps([{"bbox_2d": [0, 0, 100, 100], "label": "car"}])
    box = {"bbox_2d": [0, 0, 100, 81], "label": "car"}
    texts = [tagged([box]), tagged([{**box, "label": "dog"}]), "none"]
    assert scores("map", gold, *texts, frame="original") == pytest.approx([0.7, 0, 0])
    ap50 = scores("od_ap50", gold, *texts, frame="original")
    assert ap50 == pytest.approx([1, 0, 0])


def test_boxes_by_threshold_guard_and_schedule():
    """In an evaluation the schedule is at its beginning, 0.85."""
    texts = ["[0, 0, 80, 100]", "[0, 0, 800, 600]", "[0, 0, 90, 100]"]
    found = {
        name: scores(name, "[0, 0, 100, 100]", *texts, frame="original")
        for name in ("iou", "iou50", "iou_guarded", "iou_schedule")
    }
    assert found["iou"] == pytest.approx([0.8, 1 / 48, 0.9])
    assert found["iou50"] == [1, 0, 1]
    assert found["iou_guarded"] == pytest.approx([0.8, 0, 0.9])
    assert found["iou_schedule"] == pytest.approx([0, 0, 0.9])


def test_accuracy_reads_a_tag_where_there_is_no_box():
    texts = ["<answer>1/2</answer>", r"\boxed{0.5}", "<answer>2</answer>", "0.5"]
    assert scores("accuracy", "0.5", *texts) == [1, 1, 0, 0]


def test_form_alone_is_paid_without_an_answer():
    whole = "<think>so</think> <answer>7</answer>"
    assert scores("format", "3", whole, "7") == [1, 0]
    # Seven words, two 6-grams of them; of eight equal words one of three differs.
    texts = ["a b c d e f g", "a a a a a a a a"]
    assert scores("repetition", "3", *texts) == pytest.approx([0, -2 / 3])


@pytest.mark.parametrize("name", ["length", "soft_overlong", "judge"])
def test_what_a_name_cannot_say_needs_a_file(name):
    with (
        pytest.raises(ValueError, match=f"'{name}' needs more than its name.*path.py"),
        named.named_reward(name),
    ):
        pass
