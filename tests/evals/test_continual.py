"""What is kept of tasks, and who answers: by hand."""

import math

import numpy as np
import pytest

from vrl_jax.evals.continual import backward_transfer, final_average, routing
from vrl_jax.evals.held_out import Answered
from vrl_jax.types import Episode, Sample, Turn

NAN = math.nan
SCORES = [[0.75, NAN, NAN], [0.1, 0.82, NAN], [0.70, 0.80, 0.90]]
"""The worked example of SEE's sheet; what no measure reads is ours."""


def test_the_worked_scores():
    np.testing.assert_allclose(final_average(SCORES), 0.8)
    # ((.70 - .75) + (.80 - .82)) / 2
    np.testing.assert_allclose(backward_transfer(SCORES), -0.035)


def test_after_the_first_task_nothing_can_be_forgotten():
    assert final_average([[0.5]]) == 0.5
    assert math.isnan(backward_transfer([[0.5]]))


@pytest.mark.parametrize("scores", [[0.5, 0.5], [[0.5, 0.5]], np.zeros((0, 0))])
@pytest.mark.parametrize("measure", [final_average, backward_transfer])
def test_scores_are_square(scores, measure):
    with pytest.raises(ValueError, match=r"a row for each stage .* got the shape"):
        measure(scores)


def answer(source, who, score):
    sample = Sample(source, source, "?", (), "")
    facts = {"probes": 2.0, **({f"answered/{who}": 1.0} if who else {})}
    episode = Episode(sample, "?", (Turn("", (1,)),), True, facts=facts)
    return [Answered(episode, {"overall": 2 * score, "accuracy": score})]


def owner(sample):
    return {"digits": "policy", "shapes": "shapes"}.get(sample.source)


def test_routing_by_hand():
    found = routing(
        [
            answer("digits", "policy", 0.0),  # right routing, wrong answer
            answer("digits", "shapes", 1.0),
            answer("shapes", "shapes", 1.0),
            answer("shapes", "general", 1.0),
            answer("shapes", None, 1.0),  # ended before an answer
            answer("weather", "general", 1.0),
            answer("weather", "general", 0.0),
            answer("weather", "policy", 1.0),
            answer("weather", None, 1.0),
        ],
        owner,
    )
    assert found == {
        "routing/accuracy": 2 / 5,
        "routing/rejection": 2 / 4,
        "routing/fallback_score": 1 / 2,
    }


def test_routing_of_nothing_is_not_a_number():
    assert all(map(math.isnan, routing([], owner).values()))
    found = routing([answer("digits", "policy", 1.0)], owner, fallback="policy")
    assert found["routing/accuracy"] == 1
    assert math.isnan(found["routing/rejection"])
    assert math.isnan(found["routing/fallback_score"])
