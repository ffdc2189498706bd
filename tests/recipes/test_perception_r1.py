"""Perception-R1: facts that a judge finds in a response are paid for."""

import numpy as np
import pytest

from vrl_jax.recipes.perception_r1 import (
    facts_stated,
    perception_r1,
    perception_reward,
    seen,
)
from vrl_jax.rewards.boxed import boxed_exact
from vrl_jax.types import Episode, Sample, Turn

from ..fixtures import small

FACTS = ["AB is 10 long", "C is {right}", "D lies on AB", "E lies on BC"]


class Told:
    """A judge that replies what it was told to, and notes what it was asked."""

    def __init__(self, *replies):
        self.replies, self.asked = replies, []

    def verdicts(self, questions):
        self.asked += [question[0]["content"] for question in questions]
        read = map(facts_stated, self.replies)
        return [float("nan") if found is None else found for found in read]


def group(*texts, facts=FACTS):
    columns = {"visual_key_info": facts}
    sample = Sample("row", "here", "<image>?", (b"",), "4", columns)
    return [Episode(sample, "?", (Turn(text, (1,)),), True) for text in texts]


def tags(*verdicts):
    return "".join(f"<info{i}>{v}</info{i}>" for i, v in enumerate(verdicts, start=1))


def laid(answer):
    return f"<think>\na\n</think>\n<answer>\nso \\boxed{{{answer}}}\n</answer>"


def test_the_worked_group():
    """R = 1.7, 1.35, 0.625, -0.536585: 60 words, of 41 20-grams 30 distinct."""
    words = " ".join(f"word{i}" for i in range(30))
    texts = [laid(4), laid(4), laid(5), f"{words} {words}"]
    judge = Told(tags(1, 1, 1, 1), tags(1, 0, 0, 1), tags(1, 1, 1, 0), tags(0, 0, 0, 0))
    scores = perception_reward(boxed_exact, judge)(group(*texts))
    rewards = [score["overall"] for score in scores]
    np.testing.assert_allclose(rewards, [1.7, 1.35, 0.625, -0.536585], atol=1e-6)
    batch, _ = perception_r1(group_size=4).credit(small.scored(rewards))
    wanted = [0.926481, 0.572243, -0.161536, -1.337188]
    np.testing.assert_allclose(batch.advantages[:, 0], wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("reply", "share"),
    [
        (tags(1, 0), 0.5),
        ("<info1>0</info1> no: <info1>1</info1>", 1.0),  # the last of equal tags
        (tags(1, "maybe", 1), 2 / 3),
        (tags(3, -1), 0.5),  # clipped
        ("<info1>1</info1><info3>0</info3>", 1.0),  # up to the first gap
        ("yes", None),
        ("", None),
    ],
)
def test_verdicts_are_read(reply, share):
    found = facts_stated(reply)
    assert found is None if share is None else abs(found - share) < 2e-6


def test_the_judge_sees_facts_and_response_alone():
    judge = Told(tags(1, 1, 1, 1))
    assert seen(judge)(group("I see {everything}")) == pytest.approx([1.0], abs=1e-6)
    (question,) = judge.asked
    assert "<info2>C is {right}</info2>" in question
    assert question.endswith("Response:\nI see {everything}\nVerdicts:\n")


def test_a_row_without_facts_is_not_asked_about():
    judge = Told()
    (score,) = perception_reward(boxed_exact, judge)(group(laid(4), facts=[]))
    assert score["overall"] == 1.0 and "perception" not in score
    assert not judge.asked


def test_a_silent_judge_leaves_the_response_unscored():
    (score,) = perception_reward(boxed_exact, Told("?"))(group(laid(4)))
    assert np.isnan(score["overall"])


def test_facts_may_be_tagged_already():
    judge = Told(tags(1, 0))
    text = "<info1>a</info1>\n<info2>b</info2>"
    assert seen(judge)(group("", facts=text)) == pytest.approx([0.5], abs=1e-6)
    assert f"\nFacts:\n{text}\nResponse:" in judge.asked[0]
    with pytest.raises(ValueError, match=r"row needs .*visual_key_info"):
        seen(judge)(group("", facts="a, b"))


def test_newlines_are_part_of_the_layout():
    texts = [laid(4), laid(4).replace("\n</answer>", "</answer>"), laid(4) + "\n"]
    texts.append(laid(4).removesuffix("\n</answer>") + laid(4).partition("\n")[2])
    judge = Told(*[tags(0)] * 4)
    scores = perception_reward(boxed_exact, judge)(group(*texts))
    assert [score["format"] for score in scores] == [1.0, 0.0, 0.0, 1.0]
