import dataclasses
import logging
import math

import pytest

from vrl_jax.rewards.boxed import boxed_exact, boxed_math, math_style
from vrl_jax.rewards.combine import (
    as_parts,
    call_safely,
    from_step,
    geometric_mean,
    log_tamed,
    paid_if,
    per_group,
    per_response,
    product,
    response_length,
    weighted,
)
from vrl_jax.rewards.length import kimi
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


def fixed(*scores):
    return lambda episodes: list(scores)


def overall(reward):
    return [as_parts(score)["overall"] for score in reward(EPISODES)]


def test_a_reward_from_a_step_on_pays_nothing_before_it():
    late = from_step(fixed(2, {"overall": 3, "seen": 1}), start=10)
    for step, paid in ((9, (0, 0)), (10, (2, 3))):
        first, second = late([dataclasses.replace(e, step=step) for e in EPISODES])
        assert (first["overall"], second) == (paid[0], {"overall": paid[1], "seen": 1})
    first, second = from_step(fixed(None, math.nan), start=10)(EPISODES)
    assert first is None and math.isnan(second["overall"])


def test_weighted_leaves_out_what_does_not_apply():
    reward = weighted({"a": (fixed(1, None), 1.0), "b": (fixed(None, None), 2.0)})
    first, second = reward(EPISODES)
    assert first == {"overall": 1.0, "a": 1.0}
    assert math.isnan(second["overall"])


def test_weighted_by_zero_only_logs():
    reward = weighted({"a": (fixed(1, 2), 1.0), "b": (fixed(math.nan, 3), 0.0)})
    assert overall(reward) == [1.0, 2.0]
    assert reward(EPISODES)[1]["b"] == 3.0


def test_unscored_parts_leave_the_response_unscored():
    parts = {"a": fixed(math.nan, 0.5), "b": fixed(0.0, 0.5)}
    for reward in (
        product(parts),
        geometric_mean(parts),
        weighted({name: (part, 1.0) for name, part in parts.items()}),
        paid_if(parts["a"], parts["b"], above=0.4),
        log_tamed(parts["a"]),
        per_group(lambda *columns: columns[0], *parts.values()),
    ):
        unknown, known = overall(reward)
        assert math.isnan(unknown) and math.isfinite(known)


def test_products_and_means_by_hand():
    parts = {"a": fixed(4.0, -1.0), "b": fixed(0.25, 5.0), "c": fixed(8.0, None)}
    assert overall(product(parts)) == [8.0, -5.0]
    assert overall(geometric_mean(parts)) == pytest.approx([2.0, 0.0])
    assert overall(log_tamed(fixed(0.9, 0.0))) == pytest.approx([0.641854, 0.0])


def test_paid_if_right():
    reward = paid_if(fixed(1.0, 0.5), fixed(0.7, 0.7))
    assert reward(EPISODES) == [
        {"overall": 0.7, "condition": 1.0, "reward": 0.7},
        {"overall": 0.0, "condition": 0.5, "reward": 0.7},
    ]


def test_per_group_gives_a_rule_its_columns():
    four = group("3", "a", "b", "c", "d")
    lengths = lambda episodes: [400, 800, 1200, 2000]
    right = lambda episodes: [1, 1, math.nan, 1]
    scores = per_group(kimi, lengths, right)(four)
    assert scores[:2] == [0.5, 0.25] and math.isnan(scores[2]) and scores[3] == -0.5


def test_response_length_counts_the_policy_s_tokens():
    turns = (Turn("a", (1, 2)), Turn("b", (3,), chosen=False), Turn("c", (4,)))
    episode = Episode(EPISODES[0].sample, "?", turns, finished=True)
    assert response_length(episode) == 3


def test_call_safely_names_every_score():
    assert call_safely(per_response(length), EPISODES) == [
        {"overall": 1.0, "unscored": 0.0, "errors": 0.0},
        {"overall": 2.0, "unscored": 0.0, "errors": 0.0},
    ]


def test_call_safely_marks_what_could_not_be_had():
    for nothing in (None, math.nan, {"overall": None}):
        first, second = call_safely(lambda _, x=nothing: [x, 2], EPISODES)
        assert math.isnan(first["overall"]) and first["unscored"] == 1.0
        assert second == {"overall": 2.0, "unscored": 0.0, "errors": 0.0}


def raises(episodes):
    raise KeyError("no such column")


@pytest.mark.parametrize(
    "reward",
    [
        raises,
        lambda episodes: [1.0],
        lambda episodes: [1.0, math.inf],
        lambda episodes: [{"accuracy": 1.0}, {"accuracy": 1.0}],
        lambda episodes: ["one", 2],
    ],
    ids=["raises", "too few", "infinite", "no overall", "text"],
)
def test_call_safely_counts_and_logs_a_reward_that_fails(reward, caplog):
    with caplog.at_level(logging.ERROR):
        scores = call_safely(reward, EPISODES)
    assert all(math.isnan(score["overall"]) for score in scores)
    assert all(score["errors"] == score["unscored"] == 1.0 for score in scores)
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

    texts = (r"\boxed{8/2}", r"\boxed{3}", r"\boxed{4}")
    assert boxed_math(OutOfTime())(group("3", *texts)) == [
        {"overall": 0.0, "unchecked": 1.0},
        {"overall": 1.0, "unchecked": 0.0},
        {"overall": 0.0, "unchecked": 0.0},  # whole numbers need no checking
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
