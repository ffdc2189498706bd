import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vrl_jax import advantages, masked

# Recomputed with the released functions of EasyR1, verl and TRL: see meta in the file.
CASES = json.loads((Path(__file__).parent / "golden/objectives_cases.json").read_text())


@pytest.fixture(params=[1e-8, 2e-5], ids=["float64", "float32"])
def tolerance(request):
    with jax.enable_x64(request.param == 1e-8):
        yield request.param


@pytest.mark.parametrize(
    ("case", "function", "knobs"),
    [
        ("grpo_verl_easyr1", advantages.group_zscore, {}),
        ("grpo_trl", advantages.group_zscore, {"eps": 1e-4}),
        ("grpo_population_std", advantages.group_zscore_population, {}),
        ("dr_grpo", advantages.group_centered, {}),
    ],
)
def test_advantages_golden(case, function, knobs, tolerance):
    rewards = jnp.array(CASES["inputs"]["rewards"])
    expected = np.array(CASES["advantages"]["per_sequence"][case])
    got = function(rewards, group_size=4, **knobs)
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)
    jitted = jax.jit(lambda r: function(r, group_size=4, **knobs))(rewards)
    np.testing.assert_allclose(jitted, expected, rtol=tolerance, atol=tolerance)


FUNCTIONS = [
    advantages.group_zscore,
    advantages.group_zscore_population,
    advantages.group_centered,
]


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, -0.7, 1e8])
def test_equal_rewards_give_exactly_zero(function, reward):
    # In float32 the mean of three 0.1 is not 0.1.
    for group_size in (2, 3, 7):
        assert not function(jnp.full(group_size, reward), group_size=group_size).any()


@pytest.mark.parametrize("function", FUNCTIONS)
def test_permuting_groups_and_members_permutes_advantages(function):
    rng = np.random.default_rng(0)
    rewards = rng.integers(0, 3, (5, 4)).astype(np.float32)
    got = np.asarray(function(jnp.asarray(rewards.ravel()), group_size=4))
    shuffled = rewards[::-1, [2, 0, 3, 1]]
    again = np.asarray(function(jnp.asarray(shuffled.ravel()), group_size=4))
    expected = got.reshape(5, 4)[::-1, [2, 0, 3, 1]]
    np.testing.assert_allclose(again.reshape(5, 4), expected, atol=1e-6)
    np.testing.assert_allclose(got.reshape(5, 4).sum(1), 0, atol=1e-5)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(("count", "group_size"), [(7, 4), (4, 1), (4, 0), (4, -2)])
def test_partial_groups_raise(function, count, group_size):
    with pytest.raises(ValueError, match=f"got {count} rewards for group_size="):
        function(jnp.ones(count), group_size=group_size)


@pytest.mark.parametrize(
    "rule",
    [
        advantages.group_centered,
        advantages.group_zscore,
        advantages.group_zscore_population,
        advantages.leave_one_out,
        advantages.pass_at_k,
        functools.partial(advantages.length_weighted, lengths=jnp.full(12, 3)),
    ],
)
def test_unscored_responses_take_no_part(rule):
    nan = jnp.nan
    rewards = jnp.array([1.0, nan, 0, 2, nan, 0.1, nan, 0.1, nan, nan, nan, 0.3])
    got = jax.jit(rule, static_argnames="group_size")(rewards, group_size=4)
    if isinstance(rule, functools.partial):
        rule = functools.partial(rule, lengths=jnp.full(3, 3))
    alone = rule(jnp.array([1.0, 0, 2]), group_size=3)
    np.testing.assert_allclose(got[jnp.array([0, 2, 3])], alone, rtol=1e-6)
    assert got[1] == 0 and not got[4:].any()


def test_unscored_responses_do_not_enter_the_statistics_of_a_batch():
    nan = jnp.nan
    rewards = jnp.array([1.0, nan, 0, 2, nan, 0.1, nan, 0.1])
    centered = np.array([0, 0, -1, 1, 0, 0, 0, 0])  # by hand: mean 1, then level
    spread = np.std([1, 0, 2, 0.1, 0.1], ddof=1)
    got = advantages.batch_zscore(rewards, group_size=4, eps=0)
    np.testing.assert_allclose(got, centered / spread, rtol=1e-6)
    got = advantages.gpg(rewards, group_size=4)  # one of two groups has signal
    np.testing.assert_allclose(got, 2 * centered)
    got = advantages.gpg_released(rewards, group_size=4)  # 4 of 5 known are not 0
    np.testing.assert_allclose(got, 5 / 4 * centered)
    greedy = advantages.greedy_baseline(rewards, jnp.full(8, 0.5))
    np.testing.assert_allclose(greedy, [0.5, 0, -0.5, 1.5, 0, -0.4, 0, -0.4], rtol=1e-6)


def test_split_centered_by_hand():
    """LUFFY's worked example, [1, 0, 0 | expert 1]; then rewards that are missing."""
    nan = jnp.nan
    rewards = jnp.array([1.0, 0, 0, 1, 1, nan, 0, nan, nan, nan, nan, 1])
    own = jnp.arange(12) % 4 < 3
    got = advantages.split_centered(rewards, own, group_size=4)
    third = 1 / 3
    expected = [1 - third, -third, -third, 1 - third, 0.5, 0, -0.5, 0, 0, 0, 0, 0]
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-7)


def test_decoupled_by_hand():
    # z-scores 1, -1 and 1, -1 over sqrt(2); 0, 0 and -1, 1; a response without any.
    nan = jnp.nan
    rewards = jnp.array([[1.0, 0, 20, 10, nan, nan], [3.0, 3, 0, 1, 5, nan]])
    weights = jnp.array([1.0, 2.0])
    got = advantages.decoupled(rewards, weights, group_size=2, eps=1e-9)
    total = np.array([1, -1, 1 - 2, -1 + 2, 0]) / np.sqrt(2)
    expected = np.append((total - total.mean()) / total.std(ddof=1), 0)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_turns_are_the_stretches_of_the_mask():
    """Of 2, 1 and 3 tokens, with what was told between them."""
    turns = jnp.array([[1, 1, 0, 1, 0, 0, 1, 1, 1, 0]], bool)
    x = jnp.array([[-1.5, -0.5, 9, -2, 9, 9, -0.1, -0.6, -0.8, 9]])
    number = masked.numbered(turns)
    np.testing.assert_array_equal(number, [[0, 0, 0, 1, 1, 1, 2, 2, 2, 2]])
    for marks, places in (
        (masked.starts(turns), (0, 3, 6)),
        (masked.ends(turns), (1, 3, 8)),
    ):
        assert tuple(np.flatnonzero(marks)) == places
    whole = jnp.ones((1, 10), bool)
    assert tuple(np.flatnonzero(masked.ends(whole))) == (9,)
    steps = advantages.of_steps(jnp.where(turns, x, jnp.nan), number, turns)
    np.testing.assert_allclose(steps, [[-2, -2, -1.5, *[0] * 7]], rtol=1e-6)
    back = advantages.at_tokens(steps, number, turns)
    np.testing.assert_allclose(back, [[-2, -2, 0, -2, 0, 0, -1.5, -1.5, -1.5, 0]])
