"""The bugs that the check is for, each in a reward of a few lines."""

import math

import pytest

from vrl_jax.evals.reward_check import (
    TEMPLATES,
    check_reward,
    derangement,
)
from vrl_jax.rewards import answers
from vrl_jax.rewards.boxed import boxed_exact, math_style
from vrl_jax.rewards.boxes import first_iou
from vrl_jax.rewards.combine import per_response
from vrl_jax.rewards.final_answer import answer_reward, r1v_style
from vrl_jax.rewards.grounding import box_reward
from vrl_jax.rewards.parse import boxed_or_none_text
from vrl_jax.types import Sample

from ..fixtures.small import png


def rows(*given, **changes):
    return [
        Sample(f"row-{number}", "test", "?", answer=answer, **{"images": (), **changes})
        for number, answer in enumerate(given)
    ]


def ids(findings):
    return [finding.id for finding in findings]


def test_a_sound_reward_is_not_suspicious():
    found = check_reward(boxed_exact, rows("3", "4", "4", "five"))
    assert not found.suspicious
    assert (found.full, found.gold_mean, found.shuffled_mean) == (1, 1, 0)
    assert (found.rows, found.shuffled) == (4, 4)
    assert found.template == r"\boxed{{answer}}"
    assert "nothing suspicious" in found.summary()


def test_the_template_that_pays_most_is_found(verifier):
    """EasyR1's two rewards ask for other responses, and pay those alone in full."""
    samples = rows("3", "12", r"\frac{1}{2}")
    found = check_reward(math_style(verifier), samples)
    assert found.template == r"<think> thoughts </think> \boxed{{answer}}"
    assert found.templates[r"\boxed{{answer}}"] == pytest.approx(0.9)
    assert set(found.templates) == set(TEMPLATES)
    assert found.full == pytest.approx(1) and not found.suspicious
    found = check_reward(r1v_style(verifier), samples)
    assert found.template == "<think> thoughts </think> <answer> {answer} </answer>"
    assert not found.suspicious


def test_gold_that_does_not_parse_is_below_full_marks(verifier):
    """math-verify reads no bare words: https://github.com/huggingface/Math-Verify."""

    def verified(episodes):
        pairs = [(e.text, e.sample.answer) for e in episodes]
        return [float(verdict.equal) for verdict in verifier.check(pairs)]

    found = check_reward(verified, rows("3", "left", "4"))
    assert found.suspicious and ids(found.gold_below) == ["row-1"]
    assert "row-1: 0 for" in found.summary()


def test_answers_that_are_the_same_to_a_reward_are_full_marks_for_another_row(verifier):
    """math-verify reads a word as a product of letters: anagrams agree."""

    def verified(episodes):
        pairs = [(e.text, rf"\boxed{{{e.sample.answer}}}") for e in episodes]
        return [float(verdict.equal) for verdict in verifier.check(pairs)]

    found = check_reward(verified, rows("silent", "listen"))
    assert found.suspicious and ids(found.shuffled_full) == ["row-0", "row-1"]
    assert found.gold_mean == found.shuffled_mean == 1
    assert not found.gold_below


def test_none_equal_to_none_is_full_marks_for_nothing():
    """mathruler's text "None" for no box, and a row whose answer is None."""
    reward = per_response(lambda e: boxed_or_none_text(e.text) == e.sample.answer)
    found = check_reward(reward, rows("3", "None"))
    assert ids(found.nothing_full) == ["row-1", "row-1"]
    assert {f.response for f in found.nothing_full} == {"", "I do not know."}


def test_an_inverted_score_pays_other_rows():
    """The reversed ANLS of public code: distance instead of similarity."""
    inverted = answer_reward(lambda p, g: 1 - answers.exact(p, g))
    found = check_reward(inverted, rows("3", "44"))
    assert found.gold_mean == 0 and found.shuffled_mean == 1
    assert found.suspicious and len(found.shuffled_full) == 2
    assert "gold scores no more than answers of other rows" in found.summary()


def test_unit_boxes_in_inclusive_pixels_never_pay():
    def vlm_r1(p, g):  # IoU with + 1 on every side
        return (p.boxes[0, 0] > 1) * first_iou(p, g)

    samples = rows(
        "[0.1, 0.1, 0.5, 0.5]", "[0.6, 0.6, 0.9, 0.9]", images=(png(0, 28, 28),)
    )
    assert check_reward(box_reward(vlm_r1), samples).suspicious
    found = check_reward(box_reward(first_iou), samples)
    assert not found.suspicious and found.gold_mean == pytest.approx(1)


def test_a_reward_that_raises_is_named_with_its_error():
    def broken(episodes):
        return [float(e.sample.answer) for e in episodes]

    found = check_reward(broken, rows("3", "four"))
    assert found.suspicious
    [finding] = [f for f in found.gold_below if f.id == "row-1"]
    assert math.isnan(finding.score) and "could not convert" in finding.problem
    assert "row-1: unscored" in found.summary()


def test_a_constant_reward_is_suspicious_whatever_full_marks_are():
    constant = per_response(lambda e: 0.1)
    assert check_reward(constant, rows("3", "4")).suspicious
    found = check_reward(constant, rows("3", "4"), full=1.0)
    assert found.suspicious and len(found.gold_below) == 2 and not found.shuffled_full


def test_json_has_no_nan():
    found = check_reward(per_response(lambda e: None), rows("3", "4")).as_json()
    assert found["gold_mean"] is None and found["suspicious"] is True
    assert found["gold_below"][0]["score"] is None


def test_a_response_must_hold_the_answer():
    with pytest.raises(ValueError, match=r"must hold \{answer\}"):
        check_reward(boxed_exact, rows("3"), template="\\boxed{}")


@pytest.mark.parametrize(
    "given",
    [["a", "b"], ["a", "a", "b", "b"], [*"aaaabbbcc"], [*"abc"] * 7, ["a", "A ", "b"]],
)
def test_derangement_never_gives_the_same_answer(given):
    others = derangement(given)
    plain = [answer.strip().lower() for answer in given]
    assert all(plain[i] != plain[other] for i, other in enumerate(others))
    if max(map(plain.count, plain)) <= len(plain) / 2:
        assert sorted(others) == list(range(len(given)))


def test_derangement_of_one_answer_is_none():
    assert derangement(["a", "a"]) == [None, None]
    found = check_reward(boxed_exact, rows("a", "a"))
    assert found.shuffled == 0 and not found.suspicious
    assert "share the only answer" in found.summary()
