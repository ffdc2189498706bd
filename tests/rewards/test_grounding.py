"""A response in the frame that was asked for, gold in that of the file."""

import dataclasses
import json
import math

import pytest

from vrl_jax.rewards import boxes, grounding
from vrl_jax.types import Episode, ImageSize, Sample, Turn

SIZE = ImageSize(600, 800, 532, 728)  # 800 x 600, seen as 728 x 532


def group(answer, *texts, sizes=(SIZE,)):
    sample = Sample("row", "test", "?", (), answer)
    return [
        Episode(sample, "?", (Turn(f"<answer>{t}</answer>", ()),), True, sizes)
        for t in texts
    ]


@pytest.mark.parametrize(
    ("frame", "box"),
    [
        # SATORI-R1's worked example: [91, 133, 182, 266] becomes [100, 150, 200, 300].
        (grounding.resized, "[91, 133, 182, 266]"),
        (grounding.original, "[100, 150, 200, 300]"),
        (grounding.thousandths, "[125, 250, 250, 500]"),
        (grounding.unit, "[0.125, 0.25, 0.25, 0.5]"),
    ],
)
def test_a_box_counts_in_its_own_frame_only(frame, box):
    reward = grounding.box_reward(boxes.first_iou, frame=frame)
    gold = "[100, 150, 200, 300]"
    # By hand: half of the gold box has IoU 1 / 2.
    half = "[100, 150, 150, 300]" if frame is grounding.original else box
    right, other, none = reward(group(gold, box, half, "nothing"))
    assert right == pytest.approx(1, abs=1e-5)
    assert other == pytest.approx(0.5 if half != box else 1, abs=1e-5)
    assert none == 0
    others = {grounding.original, grounding.resized, grounding.thousandths} - {frame}
    for wrong in others:
        [score] = grounding.box_reward(boxes.first_iou, frame=wrong)(group(gold, box))
        assert score < 0.9


def test_gold_may_have_a_frame_of_its_own_and_labels():
    gold = '[{"bbox_2d": [0, 0, 500, 500], "label": "a"}]'
    reward = grounding.box_reward(
        boxes.label_first_score, gold_frame=grounding.thousandths
    )
    texts = [
        '[{"bbox_2d": [0, 0, 400, 300], "label": "a"}]',
        '[{"bbox_2d": [0, 0, 400, 300], "label": "b"}]',
    ]
    assert reward(group(gold, *texts)) == pytest.approx([1, 0], abs=1e-5)


def test_more_boxes_than_there_is_room_for_do_not_raise():
    many = str([[0, 0, 10, 10]] * 200)
    reward = grounding.box_reward(boxes.hungarian_f1, most=8)
    # By hand: 1 hit of 8 predicted and 1 gold box: 2 / 9.
    assert reward(group("[0, 0, 10, 10]", many)) == pytest.approx([2 / 9])


def at(step, episodes):
    return [dataclasses.replace(e, step=step, total_steps=100) for e in episodes]


def test_the_iou_that_counts_grows_with_the_steps():
    """IoU 0.9 and 0.96 against 0.85 up to a tenth, 0.95 up to a quarter, then 0.99."""
    texts = ["[0, 0, 90, 100]", "[0, 0, 96, 100]", "[0, 0, 100, 100]", "none"]
    episodes = group("[0, 0, 100, 100]", *texts)
    for step, paid in ((5, [0.9, 0.96, 1]), (20, [0, 0.96, 1]), (50, [0, 0, 1])):
        found = grounding.scheduled_iou()(at(step, episodes))
        assert found == pytest.approx([*paid, 0], abs=1e-5)


def test_the_whole_picture_is_no_box_for_the_guarded():
    """The gold box is 0.9 of 800 x 600, the whole picture has IoU 0.9 with it."""
    texts = ["[0, 0, 800, 600]", "[0, 0, 720, 600]", "none"]
    episodes = group("[0, 0, 720, 600]", *texts)
    found = grounding.guarded_iou()(episodes)
    assert found == pytest.approx([0, 1, 0])
    whole = group("[0, 0, 720, 600]", "[0, 0, 1, 1]")
    assert grounding.guarded_iou(frame=grounding.unit)(whole) == [0]


def test_gold_without_a_box_leaves_the_group_unscored():
    for reward in (
        grounding.box_reward(boxes.first_iou),
        grounding.scheduled_iou(),
        grounding.guarded_iou(),
        grounding.click_reward(),
    ):
        assert all(map(math.isnan, reward(group("no box", "[1, 2, 3, 4]", "x"))))


def test_a_row_without_a_picture_is_named():
    reward = grounding.box_reward(boxes.first_iou)
    with pytest.raises(ValueError, match="sample row has no picture"):
        reward(group("[1, 2, 3, 4]", "[1, 2, 3, 4]", sizes=()))


def test_click_counts_inside_the_box_and_a_box_as_its_centre():
    reward = grounding.click_reward(frame=grounding.thousandths)
    texts = ["(250, 500)", "(260, 300)", "[125, 250, 250, 500]", "none"]
    assert reward(group("[100, 150, 200, 300]", *texts)) == [1, 0, 1, 0]


def test_average_precision_is_a_mean_over_the_labels_of_the_answer():
    """Of three labels one is found, one is called by another's name, one is missed."""
    names, corners = "abc", ((0, 0, 10, 10), (20, 0, 30, 10), (40, 0, 50, 10))
    gold = [{"bbox_2d": c, "label": n} for n, c in zip(names, corners, strict=True)]
    given = [gold[0], {**gold[1], "label": "d"}, {**gold[0], "label": "e"}]
    found = grounding.precision_reward()(
        group(json.dumps(gold), json.dumps(given), json.dumps(gold))
    )
    assert found == pytest.approx([1 / 3, 1])


def test_near_click_of_gui_r1():
    """By hand: 140 pixels of the picture as it came, less than and not as much as."""
    reward = grounding.near_click_reward(frame=grounding.thousandths)
    # 800 pixels wide: (125, 0) in thousandths is 100, (300, 0) is 240.
    points = ["[125, 0]", "(298, 0)", "(300, 0)", "none", "[125, 220]"]
    assert reward(group("[100, 0]", *points)) == [1, 1, 0, 0, 1]
    box = "[100, 0, 200, 60]"
    assert reward(group(box, "(125, 50)", "(150, 50)", "(150, 100)")) == [0, 1, 0]
    assert all(math.isnan(score) for score in reward(group("nothing", "(1, 2)")))
