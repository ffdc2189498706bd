import logging
import math

import pytest

from vrl_jax.rewards.boxed import boxed_exact, boxed_math, math_style
from vrl_jax.rewards.combine import call_safely, per_response, weighted
from vrl_jax.rewards.math_verifier import Verdict
from vrl_jax.types import Episode, Sample, Turn


def group(answer, *texts):
    sample = Sample("row-7", "test", "?", (), answer)
    return [Episode(sample, "?", (Turn(text, ()),), finished=True) for text in texts]


EPISODES = group("3", "a", "bb")


def length(episode):
    return len(episode.text)


def test_per_response_scores_each_episode():
    assert per_response(length)(EPISODES) == [1, 2]


def test_weighted_adds_up_and_keeps_the_parts():
    detailed = per_response(lambda e: {"overall": 1.0, "seen": len(e.text)})
    reward = weighted({"size": (per_response(length), 0.5), "other": (detailed, 2.0)})
    assert reward(EPISODES) == [
        {"overall": 2.5, "size": 1.0, "other": 1.0, "other_seen": 1.0},
        {"overall": 3.0, "size": 2.0, "other": 1.0, "other_seen": 2.0},
    ]


def test_call_safely_names_every_score():
    assert call_safely(per_response(length), EPISODES) == [
        {"overall": 1.0, "errors": 0.0},
        {"overall": 2.0, "errors": 0.0},
    ]


def raises(episodes):
    raise KeyError("no such column")


@pytest.mark.parametrize(
    "reward",
    [
        raises,
        lambda episodes: [1.0],
        lambda episodes: [1.0, math.nan],
        lambda episodes: [{"accuracy": 1.0}, {"accuracy": 1.0}],
        lambda episodes: ["one", 2],
    ],
    ids=["raises", "too few", "nan", "no overall", "text"],
)
def test_call_safely_counts_and_logs_a_reward_that_fails(reward, caplog):
    with caplog.at_level(logging.ERROR):
        scores = call_safely(reward, EPISODES)
    assert scores == [{"overall": 0.0, "errors": 1.0}] * 2
    assert "row-7" in caplog.text and "Traceback" in caplog.text


def test_boxed_exact_reads_the_last_box():
    episodes = group(
        "9 left", r"\boxed{9  left}", r"\boxed{9 left} \boxed{8}", "9 left"
    )
    assert boxed_exact(episodes) == [1.0, 0.0, 0.0]


def test_boxed_math_accepts_equal_mathematics_and_equal_words_only(verifier):
    reward = boxed_math(verifier)
    half = group(r"\frac{1}{2}", r"\boxed{0.5}", r"\boxed{0.4}", "0.5")
    assert [score["overall"] for score in reward(half)] == [1, 0, 0]
    word = group("listen", r"\boxed{listen}", r"\boxed{silent}")
    assert [score["overall"] for score in reward(word)] == [1, 0]


def test_boxed_math_counts_what_it_could_not_check():
    class OutOfTime:
        def check(self, pairs):
            return [Verdict(False, "time-out") for _ in pairs]

    scores = boxed_math(OutOfTime())(group("3", r"\boxed{4}", r"\boxed{3}"))
    assert scores == [
        {"overall": 0.0, "unchecked": 1.0},
        {"overall": 1.0, "unchecked": 0.0},
    ]


def test_math_style_weighs_accuracy_and_format(verifier):
    scores = math_style(verifier)(
        group("7", r"<think>3 + 4</think> \boxed{7}", r"\boxed{7}", "<think>")
    )
    # 0.9 accuracy + 0.1 format: EasyR1's math reward
    assert [s["overall"] for s in scores] == pytest.approx([1.0, 0.9, 0.0])
    assert scores[1] == {
        "overall": 0.9,
        "accuracy": 1.0,
        "accuracy_unchecked": 0.0,
        "format": 0.0,
    }
