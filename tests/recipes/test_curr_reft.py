"""Curr-ReFT: a reward for each stage, by the sheet's worked answers."""

import numpy as np
import pytest

from vrl_jax.recipes.curr_reft import binary, choice, curr_reft, open_ended
from vrl_jax.types import Episode, Sample, Turn

from ..fixtures import small


def group(answer, *answers, **columns):
    sample = Sample("row", "here", "<image>?", (b"",), answer, columns)
    texts = [f"<think>so</think>\n<answer>{text}</answer>" for text in answers]
    return [Episode(sample, "?", (Turn(text, (1,)),), True) for text in texts]


def accuracy(reward, answer, *answers, **columns):
    scores = reward(group(answer, *answers, **columns))
    for score in scores:
        assert score["overall"] == score["accuracy"] + score["format"]
    return [score["accuracy"] for score in scores]


def test_verdicts():
    given = ["Yes.", "it is true", "no", "no, that is not correct", "not true", "maybe"]
    assert accuracy(binary, "yes", *given) == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    assert accuracy(binary, "No", *given) == [0.0, 0.0, 1.0, 1.0, 1.0, 0.0]


def test_letters_are_a_set_and_a_part_is_something():
    given = ["A,C", "C and A", "A", "B", "A, B, C", "A,B", ""]
    wanted = [1.0, 1.0, 0.2, 0.0, 0.0, 0.0, 0.0]
    np.testing.assert_allclose(accuracy(choice, "A,C", *given), wanted)


def test_boxes_need_more_than_half(verifier):
    """IoU 0.666667 and 0.428571."""
    given = ['{"box": [30, 10, 130, 110]}', "{[50,10,150,110]}", "30 10 130 110"]
    reward = open_ended(verifier)
    scores = reward(group("[10, 10, 110, 110]", *given, task="detection"))
    assert [s["accuracy"] for s in scores] == [1.0, 0.0, 0.0]
    assert [s["format"] for s in scores] == [1.0, 1.0, 0.0]


def test_names_by_their_overlap(verifier):
    reward = open_ended(verifier)
    found = accuracy(reward, "dog,cat,car", "dog, car, bus", task="classify")
    np.testing.assert_allclose(found, [0.5])


def test_mathematics_letters_and_parts(verifier):
    reward = open_ended(verifier)
    given = [r"\frac{1}{2}", "0.5 cm", "2", ""]
    assert accuracy(reward, "0.5", *given, task="math") == [1.0, 1.0, 0.0, 0.0]
    assert accuracy(reward, "B", "(B) 4", "A", task="math") == [1.0, 0.0]


def test_words_by_their_embeddings(verifier):
    cosines = {"a": 0.96, "b": 0.92, "c": 0.9, "d": np.nan}
    reward = open_ended(verifier, similarity=lambda text, gold: cosines[text])
    found = accuracy(reward, "a dog", "a", "b", "c", task="coco_vqa")
    np.testing.assert_allclose(found, [1.0, 0.2, 0.0])
    (score,) = reward(group("a dog", "d", task="coco_vqa"))
    assert np.isnan(score["overall"])


def test_an_answer_block_may_be_cut_off():
    sample = group("yes", "")[0].sample
    cut = [Episode(sample, "?", (Turn("<answer>yes", (1,)),), False)]
    (score,) = binary(cut)
    assert (score["accuracy"], score["format"]) == (1.0, 0.0)


def test_rows_that_cannot_be_judged_are_named(verifier):
    reward = open_ended(verifier)
    for judge, columns, told in (
        (binary, {}, "needs yes or no"),
        (choice, {}, "needs letters A to E"),
        (reward, {"task": "detection"}, "needs a box"),
        (reward, {}, "needs the column 'task'"),
        (reward, {"task": "coco_vqa"}, "detection, classify, math; got"),
    ):
        with pytest.raises(ValueError, match=f"row {told}|one of {told}"):
            judge(group("what", "", **columns))
    for task in ("math", "classify"):
        with pytest.raises(ValueError, match="row needs an answer"):
            reward(group(" ", "banana", task=task))


def test_long_answers_are_read_in_time(verifier):
    """Braces that never close, 700 kB of them."""
    given = ["{" + "[1,2,3,4]" * 80_000, "{" * 700_000]
    scores = open_ended(verifier)(group("[1, 2, 3, 4]", *given, task="detection"))
    assert [score["format"] for score in scores] == [0.0, 0.0]


def test_advantages_of_the_worked_pair():
    batch, _ = curr_reft(group_size=2).credit(small.scored([2.0, 1.0]))
    wanted = [0.707007, -0.707007]
    np.testing.assert_allclose(batch.advantages[:, 0], wanted, atol=1e-6)
