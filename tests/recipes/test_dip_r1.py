"""DIP-R1: what the group disagrees on is worth a look, and every box is counted."""

import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vrl_jax.recipes.dip_r1 import dip_r1, inspected, thinks_looks_answers
from vrl_jax.rewards import groups
from vrl_jax.rewards.combine import call_safely
from vrl_jax.rewards.grounding import resized, thousandths
from vrl_jax.types import Episode, ImageSize, Likelihood, Sample, Turn

from ..fixtures import small

GOLD = [[0, 0, 100, 100], [200, 0, 300, 100], [400, 0, 500, 100]]
LARGE = ImageSize(1000, 1000, 1000, 1000)
REWARD = inspected(most=8)


def group(*texts, gold=GOLD, size=LARGE, **columns):
    answer = gold if isinstance(gold, str) else json.dumps(gold)
    sample = Sample("row", "here", "<image>?", (b"",), answer, columns)
    return [Episode(sample, "?", (Turn(t, (1,)),), True, (size,)) for t in texts]


def said(answer, look=()):
    look, answer = json.dumps([*look]), json.dumps([*answer])
    return f"<think>so</think>\n<look>{look}</look>\n<answer>{answer}</answer>"


def column(scores, name):
    return [score[name] for score in scores]


def worked_group():
    """The sheet's: IoU with three gold boxes, boxes that hit nothing, looks."""
    shares = [[0.9, 0.8, 0], [0.85, 0, 0.6], [0.9, 0.7, 0], [0.88, 0, 0]]
    false = [[[0, 500 + 20 * n, 9, 509 + 20 * n] for n in range(k)] for k in (1, 0, 2)]
    looks = [[1], [1, 2], [0], []]
    texts = []
    for row, extra, seen in zip(shares, [*false, []], looks, strict=True):
        hits = [
            [x0, y0, x0 + 100 * u, y1]
            for (x0, y0, _, y1), u in zip(GOLD, row, strict=True)
            if u
        ]
        texts.append(said(hits + extra, [GOLD[j] for j in seen]))
    texts[-1] = "so " + texts[-1]  # out of layout
    return group(*texts)


def test_the_worked_group():
    """All numbers are the sheet's; u and v by hand, as in `test_groups`."""
    scores = REWARD(worked_group())
    assert column(scores, "format") == [1, 1, 1, 0]
    looked = [0.676259, 0.998004, 0.001996, 0]
    np.testing.assert_allclose(column(scores, "look"), looked, atol=2e-5)
    found = [0.666667, 0.833333, 0.583333, 0.666667]
    np.testing.assert_allclose(column(scores, "accuracy"), found, atol=1e-6)
    totals = [2.342926, 2.831337, 1.585329, 0.666667]
    np.testing.assert_allclose(column(scores, "overall"), totals, atol=2e-5)
    assert column(scores, "left_out") == [0] * 4
    batch, _ = dip_r1(group_size=4).credit(small.scored(column(scores, "overall")))
    wanted = [0.5149, 1.0321, -0.2872, -1.2598]
    np.testing.assert_allclose(batch.advantages[:, 0], wanted, atol=1e-4)


def test_recall_may_weigh_more():
    scores = inspected(precision_weight=0.3, most=8)(worked_group())
    wanted = [0.666667, 0.766667, 0.616667, 0.533333]
    np.testing.assert_allclose(column(scores, "accuracy"), wanted, atol=1e-6)


def test_a_group_that_agrees_is_paid_for_looking_nowhere():
    """1; half for a look, of which half is left at 75 % of the picture, none at 100."""
    looks = [], GOLD[:1], [[0, 0, 1000, 750]], [[0, 0, 1000, 1000]]
    scores = REWARD(group(*(said(GOLD, look) for look in looks)))
    np.testing.assert_allclose(column(scores, "look"), [1, 0.5, 0.25, 0], atol=1e-6)
    assert column(scores, "accuracy") == [1] * 4


SMALL = ImageSize(640, 640, 640, 640)
SPREAD = (  # a quarter of a picture is found by one of two, and half of it looked at
    said([[0, 0, 320, 320]], [[0, 0, 320, 160]]),
    said([], [[0, 0, 640, 640]]),
)


def test_the_look_may_be_paid_where_answers_spread():
    scores = inspected(groups.spread_look, most=8)(group(*SPREAD, size=SMALL))
    np.testing.assert_allclose(column(scores, "look"), [0.5 - 0.125, 0], atol=1e-6)
    assert column(scores, "accuracy") == [0, 0]


@pytest.mark.parametrize("blank", ["", " "])
def test_without_gold_accuracy_does_not_apply(blank):
    reward = inspected(look_without_gold=groups.spread_look, most=8)
    scores = call_safely(reward, group(*SPREAD, gold=blank, size=SMALL))
    assert not any("accuracy" in score for score in scores)
    np.testing.assert_allclose(column(scores, "look"), [0.5 - 0.125, 0], atol=1e-6)
    np.testing.assert_allclose(column(scores, "overall"), [1.375, 1], atol=1e-6)
    # Rows that have gold are paid as ever, and so are those with nothing to find.
    assert reward(worked_group()) == REWARD(worked_group())
    assert reward(group(*SPREAD, gold=[])) == REWARD(group(*SPREAD, gold=[]))


def test_without_gold_and_a_look_for_it_the_row_is_named():
    with pytest.raises(ValueError, match=r"row needs .* `look_without_gold`"):
        REWARD(group(*SPREAD, gold=""))


@pytest.mark.parametrize(
    ("frame", "box", "most_of_it"),
    [
        (resized, [91, 133, 182, 266], [0, 0, 728, 399]),
        (thousandths, [125, 250, 250, 500], [0, 0, 1000, 750]),
    ],
)
def test_frames(frame, box, most_of_it):
    """800 x 600 is seen as 728 x 532; by hand, both are [100, 150, 200, 300] of it.

    A look at three quarters of the picture is worth half.
    """
    size = ImageSize(600, 800, 532, 728)
    texts = said([box], [box]), said([], [most_of_it])
    told = group(*texts, gold=[[100, 150, 200, 300]], size=size)
    scores = inspected(frame=frame, most=8)(told)
    assert column(scores, "accuracy") == [1, 0]
    np.testing.assert_allclose(column(scores, "look"), [1, 0.5], atol=1e-6)


def test_gold_in_thousandths():
    size = ImageSize(600, 800, 532, 728)
    told = group(said([[91, 133, 182, 266]]), gold=[[125, 250, 250, 500]], size=size)
    (score,) = inspected(gold_frame=thousandths, most=8)(told)
    assert score["accuracy"] == 1


def test_answers_in_ignored_regions_are_neither_right_nor_wrong():
    crowd, lost = [600, 0, 900, 100], [650, 0, 700, 50]
    beside = [0, 500, 9, 509]
    texts = said([*GOLD, lost]), said([*GOLD, beside])
    ignoring = REWARD(group(*texts, ignore_boxes=[crowd]))
    np.testing.assert_allclose(column(ignoring, "accuracy"), [1, 0.5 * 0.75 + 0.5])
    for columns in ({}, {"ignore_boxes": None}, {"ignore_boxes": []}):
        scores = REWARD(group(*texts, **columns))
        np.testing.assert_allclose(column(scores, "accuracy"), [0.875] * 2)


def test_ignored_answers_are_no_disagreement():
    """Who finds the third box, and who does not, is told by no answer that counts."""
    texts = said(GOLD), said(GOLD[:2])
    assert column(REWARD(group(*texts)), "look") == [0, 0]
    scores = REWARD(group(*texts, ignore_boxes=[[390, 0, 510, 110]]))
    assert column(scores, "look") == [1, 1]


def test_ignored_regions_are_in_the_frame_of_gold():
    """By hand: [125, 250, 250, 500] of 800 x 600 is [91, 133, 182, 266] as seen."""
    size, region = ImageSize(600, 800, 532, 728), [125, 250, 250, 500]
    told = group(said([[91, 133, 182, 266]]), gold=[], size=size, ignore_boxes=[region])
    (score,) = inspected(gold_frame=thousandths, most=8)(told)
    assert score["accuracy"] == 1  # nothing is there, and nothing was found


def test_an_empty_picture_may_be_answered():
    scores = REWARD(group(said([]), said(GOLD), said([], GOLD[:1]), gold=[]))
    assert column(scores, "accuracy") == [1, 0, 1]
    assert column(scores, "look") == [1, 1, 0.5]


def test_objects_are_boxes_too():
    named = [{"bbox_2d": box, "label": "dog"} for box in GOLD]
    (score,) = REWARD(group(said(named), gold=named))
    assert score["overall"] == 3


SILENT = ("garbage", "<think>so</think><look>[]</look>", "<answer>[]")


@pytest.mark.parametrize(
    ("text", "right"),
    [
        *((text, 0) for text in SILENT),
        ("<answer></answer>", 0),
        ("<answer>none</answer>", 0),
        ("<answer>{}</answer>", 0),
        ('<answer>["none"]</answer>', 0),
        ("<answer>[]</answer>", 1),
        ("<answer> [ ]\n</answer>", 1),
        ("<answer>```json\n[]\n```</answer>", 1),
        (f"<answer>{GOLD}</answer>", 0),
    ],
)
def test_nothing_to_find_is_found_by_who_says_so(text, right):
    (score,) = REWARD(group(text, gold=[]))
    assert score["accuracy"] == right


@pytest.mark.parametrize("silent", [*SILENT, "<answer>none</answer>"])
def test_who_does_not_answer_differs_from_nobody(silent):
    """One agrees with itself; beside one who says [], what it found is unsure."""
    found = said(GOLD[:1], GOLD[:1])
    assert column(REWARD(group(found, silent)), "look")[0] == 0.5
    assert column(REWARD(group(found, said([]))), "look")[0] == 1


def test_boxes_in_a_fence_are_read():
    fenced = said(GOLD).replace("<answer>", "<answer>```json\n")
    fenced = fenced.replace("</answer>", "\n```</answer>")
    assert REWARD(group(fenced))[0]["overall"] == 3


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        # layout, look, accuracy
        ("", (0, 0, 0)),
        ("here", (0, 0, 0)),
        (json.dumps(GOLD), (0, 0, 0)),
        ("<think>so</think><answer>[]</answer>", (0, 0, 0)),
        ("<look>[[0, 0, 9, 9]]</look>", (0, 0.5, 0)),
        ("<look>[[0, 0, 9, 9]]", (0, 0, 0)),
        ("<think>a</think><look>b</look><answer>c</answer>", (1, 0, 0)),
        (said(["a", None, [1], [9, 9, 0, 0], [1e300, 0, 1, 1]]), (1, 1, 0)),
        (said([[0, 0, "100", 100]], [[]]), (1, 0, 0)),
        (said([[[[]]]], [{"bbox_2d": 4}]), (1, 0, 0)),
        (said(GOLD).removesuffix("</answer>"), (0, 1, 0)),
    ],
)
def test_what_cannot_be_read(text, parts):
    """Alone, and so in agreement: the look [] earns 1, one that says nothing 0."""
    (score,) = REWARD(group(text))
    names = ("format", "look", "accuracy")
    assert tuple(score[name] for name in names) == parts
    assert score["overall"] == sum(parts)


def test_boxes_beyond_the_room_are_counted():
    few = inspected(most=3)
    texts = said(GOLD), said([*GOLD, [1, 1, 2, 2]], [[0, 0, 9, 9]] * 5)
    scores = few(group(*texts))
    assert column(scores, "left_out") == [0, 3]
    assert column(scores, "accuracy") == [1, 1]
    with pytest.raises(ValueError, match="row has 4 boxes as its answer, and 3"):
        few(group(*texts, gold=[*GOLD, [1, 1, 2, 2]]))
    with pytest.raises(ValueError, match=r"row has 4 boxes in .* 'ignore_boxes'"):
        few(group(*texts, ignore_boxes=[[1, 1, 2, 2]] * 4))


@pytest.mark.parametrize(
    "gold", ["a dog", "7", "{}", "[0, 0, 1, 1]", "[[0, 0, 1]]", "[[5, 5, 1, 1]]"]
)
def test_a_row_whose_answer_is_no_list_of_boxes_is_named(gold):
    with pytest.raises(ValueError, match=r"row needs a list of boxes .* as its answer"):
        REWARD(group(said([]), gold=gold))


@pytest.mark.parametrize("given", ["[[0, 0, 1, 1]]", [[0, 0, 1]], [4], {"a": 1}])
def test_a_row_whose_ignored_regions_are_no_boxes_is_named(given):
    with pytest.raises(ValueError, match=r"row needs .*'ignore_boxes'"):
        REWARD(group(said([]), ignore_boxes=given))


def test_a_row_without_a_picture_is_named():
    alone = [dataclasses.replace(one, image_sizes=()) for one in group(said([]))]
    with pytest.raises(ValueError, match="sample row has no picture"):
        REWARD(alone)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (said(GOLD, GOLD), True),
        (f"\n{said([])} ", True),
        (said([]) + "!", False),
        (said([]) + said([]), False),
        ("<look>[]</look><think>so</think><answer>[]</answer>", False),
        ("<think><look>[]</look></think><answer>[]</answer>", False),
    ],
)
def test_layout(text, kept):
    assert thinks_looks_answers(text) == kept


def test_every_token_counts_once():
    """By hand: A = +-1 / sqrt(2); of 1 token and 3 tokens, (3 - 1) / 4 of that."""
    recipe = dip_r1(group_size=2)
    rollout = dataclasses.replace(
        small.scored([1.0, 0.0]),
        mask=jnp.array([[True, False, False], [True] * 3]),
        old_logprobs=jnp.zeros((2, 3)),
    )
    batch, _ = recipe.credit(rollout)
    still = Likelihood(jnp.zeros((2, 3)), jnp.zeros((2, 3)))
    (total, weight), _ = recipe.loss(lambda _: still, batch)
    np.testing.assert_allclose(total / weight, 0.353553, atol=1e-5)


def test_played_groups_are_scored_and_rows_without_pictures_counted():
    rows = [
        dataclasses.replace(row, answer="[[0, 0, 9, 9]]") for row in small.samples()
    ]
    actor = dataclasses.replace(small.chain_actor(), reward=REWARD)
    recipe = dip_r1(group_size=small.GROUP)
    rollout = recipe.act(actor, itertools.repeat(rows), jax.random.key(0))
    shown = np.repeat([bool(row.images) for row in rows], small.GROUP)
    assert {"format", "look", "accuracy", "left_out"} <= rollout.reward_parts.keys()
    # Nothing that this policy writes has a block.
    np.testing.assert_array_equal(rollout.rewards, np.where(shown, 0, np.nan))
    np.testing.assert_array_equal(rollout.reward_parts["errors"], ~shown)
