"""Measures of cost by hand: four responses, three of them right."""

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


def test_parts_multiply_to_the_whole():
    """What was cut off is not right."""
    told = efficiency.parts(RIGHT, np.array([1, 1, 1, 0]), TOKENS)
    assert told == {
        "finished": 0.75,
        "right_if_finished": pytest.approx(2 / 3),
        "tokens": 1100,
    }
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
