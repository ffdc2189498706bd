"""VACoT: the sheet's worked groups, and an episode that calls a tool."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from vrl_jax.engine.desk import OutOfRoom
from vrl_jax.programs.tool_turns import tool_turns
from vrl_jax.recipes.vacot import (
    augmentation_reward,
    brief,
    necessary,
    vacot,
    whenever_right,
)
from vrl_jax.types import Episode, Turn

from ..fixtures import small
from ..fixtures.talk import said, talk

SAMPLE = small.samples()[0]
# (right, pictures from tools, tokens)
HARD = [(1, 0, 100), (0, 0, 120), (0, 0, 90), (1, 1, 300), (1, 3, 900), (0, 2, 700)]
EASY = [(1, 0, 100), (1, 0, 120), (1, 1, 400), (1, 2, 700)]


def episode(right, pictures, tokens, *, calls=None):
    calls = pictures if calls is None else calls
    facts = {"calls": calls, "calls/valid": pictures, "images": pictures}
    turn = Turn(str(right), tuple(range(tokens)))
    return Episode(SAMPLE, "?", (turn,), True, facts=facts)


def read(episodes):
    return [float(e.text) for e in episodes]


def paid(group):
    episodes = [episode(*one) for one in group]
    return [score["overall"] for score in augmentation_reward(read)(episodes)]


@pytest.mark.parametrize(
    ("group", "rewards", "given"),
    [
        (
            HARD,
            [1.1, 0.1, 0.1, 1.421875, 1.265625, 0.1],
            [0.6494, -0.9014, -0.9014, 1.1486, 0.9063, -0.9014],
        ),
        (EASY, [1.1, 1.1, 1.0625, 0.984375], [0.7023, 0.7023, 0.0143, -1.4189]),
    ],
)
def test_the_worked_groups(group, rewards, given):
    found = paid(group)
    np.testing.assert_allclose(found, rewards, atol=1e-6)
    credit = vacot(group_size=len(group)).credit
    advantages = credit(small.scored(found))[0].advantages[:, 0]
    np.testing.assert_allclose(advantages, given, atol=1e-4)


def test_without_a_plain_answer_every_right_call_has_the_bonus():
    assert paid([(1, 1, 10), (1, 2, 10), (0, 1, 10)]) == pytest.approx([1.6, 1.6, 0.1])


def test_a_call_that_could_not_be_run_costs_the_format():
    reward = augmentation_reward(read)
    whole, torn = reward([episode(1, 1, 10), episode(1, 1, 10, calls=2)])
    assert (whole["format"], torn["format"]) == (1, 0)
    assert whole["overall"] - torn["overall"] == pytest.approx(0.1)


def test_the_unscored_take_no_part_in_the_group():
    """Two plain answers, one of them not judged: what is known was not enough."""
    episodes = [episode(float("nan"), 0, 10), episode(0, 0, 10), episode(1, 1, 10)]
    unscored, _, helped = augmentation_reward(read)(episodes)
    assert math.isnan(unscored["overall"])
    assert helped["overall"] == pytest.approx(1.6)


def test_an_episode_that_broke_off_is_unscored():
    torn = Episode(SAMPLE, "?", (Turn("1", (1,)),), True)
    broken, plain = augmentation_reward(read)([torn, episode(1, 0, 10)])
    assert math.isnan(broken["overall"]) and plain["overall"] == pytest.approx(1.1)


@pytest.mark.parametrize(
    ("rule", "wanted"),
    [(whenever_right, [0, 0.5 - 0.1, 0]), (brief, [0, -0.1, -0.2])],
)
def test_simpler_rules(rule, wanted):
    correct, calls = jnp.array([True, True, False]), jnp.array([0, 1, 2])
    found = rule(correct, calls, jnp.array([100.0, 640.0, 2000.0]))
    np.testing.assert_allclose(found, wanted, atol=1e-6)


CALL = '<tool_call>{"name": "rotate", "arguments": {"angle": 90}}</tool_call>'


def test_a_picture_counts_once_it_was_looked_at():
    """Of the program itself: a call, then an answer; a call with the last words."""
    for replies, pictures, overall in (
        ([CALL, "1"], 1, 1.6),
        (["1"], 0, 1.1),
        ([CALL, f"1{CALL}"], 1, 1.6),
        ([f"1{CALL}"], 0, 1.1),
        ([f"1{CALL}", OutOfRoom()], 0, 1.1),
    ):
        texts = [said(r) if isinstance(r, str) else r for r in replies]
        turns = sum(isinstance(r, str) for r in replies)
        program = tool_turns(SAMPLE, turns=turns + (turns < len(replies)))
        _, outcome = talk(program, texts)
        assert outcome.facts["images"] == pictures
        done = Episode(SAMPLE, "?", tuple(outcome.turns), True, facts=outcome.facts)
        (score,) = augmentation_reward(lambda episodes: [1.0])([done])
        assert score["overall"] == pytest.approx(overall), replies


def test_groups_are_apart():
    correct = jnp.array([[True, True], [False, True]])
    calls = jnp.array([[0, 1], [0, 1]])
    found = necessary(correct, calls, jnp.zeros((2, 2)))
    np.testing.assert_allclose(found, [[0, 0], [0, 0.5]])
