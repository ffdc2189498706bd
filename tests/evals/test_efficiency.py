"""Measures of cost by hand: four responses, three of them right."""

import math
import textwrap

import numpy as np
import pytest

from vrl_jax.evals import efficiency

RIGHT, TOKENS = np.array([1, 1, 0, 1.0]), np.array([400, 800, 1200, 2000.0])


def test_the_worked_numbers():
    assert efficiency.per_thousand_tokens(RIGHT, TOKENS) == pytest.approx(0.681818)
    assert efficiency.within(RIGHT, TOKENS, 1000) == 0.5
    assert efficiency.within(RIGHT, TOKENS, 2000) == 0.75
    assert efficiency.area_within(RIGHT, TOKENS, 2000) == pytest.approx(0.35)


def test_the_area_is_the_mean_over_budgets():
    budgets = np.arange(1, 3001) - 0.5
    mean = np.mean([efficiency.within(RIGHT, TOKENS, budget) for budget in budgets])
    assert efficiency.area_within(RIGHT, TOKENS, 3000) == pytest.approx(mean, abs=1e-6)


@pytest.mark.parametrize(("change", "wanted"), [(0.02, 0.51), (-0.02, 0.35)])
def test_the_worked_score_of_accuracy_and_length(change, wanted):
    """2000 to 1100 tokens."""
    found = efficiency.accuracy_efficiency(0.5 * (1 + change), 1100, 0.5, 2000)
    assert found == pytest.approx(wanted)


@pytest.mark.parametrize("base", [(0, 2000), (0.5, 0), (0.0, 0.0), (math.nan, 1)])
def test_a_base_of_nothing_has_no_shares(base):
    with pytest.raises(ValueError, match="must be above 0: got base_accuracy="):
        efficiency.accuracy_efficiency(0.5, 1100, *base)


def test_lines_are_read_as_documented():
    """Of the three lines one has no score."""
    lines = [
        {"correct": correct, "finished": True, "meta": {"tokens": tokens}}
        for correct, tokens in ((1.0, 400), (None, 9000), (0.0, 600))
    ]
    told = efficiency.__doc__.split("score:\n\n")[1]
    found = {"rows": lines}
    exec(textwrap.dedent(told), found)
    per_thousand = efficiency.per_thousand_tokens(found["correct"], found["lengths"])
    assert per_thousand == pytest.approx(1)
    parts = efficiency.parts(*(found[n] for n in ("correct", "finished", "lengths")))
    assert parts == {"finished": 1, "right_if_finished": 0.5, "tokens": 500}


def test_parts_multiply_to_what_was_right_in_the_end():
    """By hand: .5 / 1100; of three right ones the last was cut off."""
    told = efficiency.parts(RIGHT, np.array([1, 1, 1, 0]), TOKENS)
    assert told == {
        "finished": 0.75,
        "right_if_finished": pytest.approx(2 / 3),
        "tokens": 1100,
    }
    product = told["finished"] * told["right_if_finished"] / told["tokens"]
    ended = efficiency.per_thousand_tokens(np.array([1, 1, 0, 0]), TOKENS)
    assert product == pytest.approx(0.5 / 1100) == pytest.approx(ended / 1000)
    nothing = efficiency.parts(RIGHT, np.zeros(4), TOKENS)
    assert nothing["right_if_finished"] == 0


def test_lengths_are_compared_where_both_are_right():
    base = np.array([0, 1, 1, 1.0])
    longer = 2 * TOKENS
    assert efficiency.length_ratio(RIGHT, TOKENS, base, longer) == 0.5
    assert efficiency.length_ratio(1 - base, TOKENS, base, longer) is None


def test_what_comes_after_the_answer_counts_against_it():
    first = np.array([200, 800, 100, 500.0])
    found = efficiency.outcome_efficiency(RIGHT, first, TOKENS)
    assert found == pytest.approx((0.5 + 1 + 0 + 0.25) / 4)
    distinct = np.array([400, 400, 600, 500.0])
    found = efficiency.process_efficiency(distinct, TOKENS)
    assert found == pytest.approx((1 + 0.5 + 0.5 + 0.25) / 4)
