"""Q-Insight: the worked ratings, degradations and layouts of its three tasks."""

import numpy as np
import pytest

from vrl_jax.recipes.q_insight import q_insight, quality_reward
from vrl_jax.types import Episode, Sample, Turn

from ..fixtures import small


def group(answer, columns, *texts):
    sample = Sample("row", "here", "<image>?", (b"",), answer, columns)
    return [Episode(sample, "?", (Turn(text, (1,)),), True) for text in texts]


def laid(answer):
    return f"<think>\na\n</think>\n<answer>\n{answer}\n</answer>"


def scores(answer, columns, *texts):
    return quality_reward(group(answer, columns, *texts))


def test_ratings_are_near_enough_within_an_open_band():
    """By the sheet, gold 3.00: 3.35 is out, also in floats."""
    given = ["3.10", "3.349", "3.35", "2.66", "3.1.2"]
    texts = [laid(f'{{"rating": {rating}}}') for rating in given]
    found = scores("3.00", {"task": "score"}, *texts, laid("{}"))
    assert [s["accuracy"] for s in found] == [1.0, 1.0, 0.0, 1.0, 0.0, 0.0]
    assert [s["format"] for s in found] == [1.0] * 6


def test_layout_is_paid_beside_the_rating():
    right, loose = '{"rating": 3.1}', '<answer>{"rating": 3.1}</answer>'
    found = scores("3", {"task": "score"}, laid(right), loose, laid("{}"), "3.1")
    assert [s["overall"] for s in found] == [2.0, 1.0, 1.0, 0.0]


def test_degradations_of_the_worked_group():
    """R = 2, 1.25, 1, 0."""
    columns = {
        "task": "degradation",
        "distortion_class": "blur",
        "severity": "moderate",
    }
    told = '{{"distortion_class": "{}", "severity": "{}"}}'
    given = [("blur", "moderate"), ("blur", "slight"), ("noise", "moderate")]
    texts = [laid(told.format(*pair)) for pair in given]
    found = scores("", columns, *texts, "blur, moderate")
    assert [s["overall"] for s in found] == [2.0, 1.25, 1.0, 0.0]
    nothing = {**columns, "distortion_class": "null", "severity": "null"}
    null = laid('{"distortion_class": null, "severity": null}')
    assert scores("", nothing, null)[0]["overall"] == 2.0
    nothing = {**columns, "distortion_class": None, "severity": None}
    assert scores("", nothing, null)[0]["overall"] == 2.0


def test_comparisons_are_one_of_three_texts():
    texts = [laid("Image A"), laid("Image B"), "<answer>Image A</answer>", "Image A"]
    found = scores("Image A", {"task": "comparison"}, *texts)
    assert [s["overall"] for s in found] == [2.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize("columns", [{}, {"task": "rating"}, {"task": ["score"]}])
def test_a_row_says_its_task(columns):
    with pytest.raises(ValueError, match=r"row needs .*score, degradation, comparison"):
        scores("3", columns, "")


@pytest.mark.parametrize("answer", ["", "nan", "good"])
def test_a_rating_is_a_number(answer):
    with pytest.raises(ValueError, match="row needs its rating"):
        scores(answer, {"task": "score"}, "")


def test_advantages_of_the_worked_groups():
    recipe = q_insight(group_size=4)
    rewards = [2.0, 1.0, 1.0, 0.0, 2.0, 1.25, 1.0, 0.0]
    batch, _ = recipe.credit(small.scored(rewards))
    wanted = [1.224595, 0, 0, -1.224595, 1.134837, 0.226967, -0.075656, -1.286149]
    np.testing.assert_allclose(batch.advantages[:, 0], wanted, atol=2e-6)
