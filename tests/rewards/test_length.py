"""Worked example of the survey's formulas, by hand: https://arxiv.org/abs/2503.21614."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vrl_jax.rewards import length

GOLDEN = Path(__file__).parents[1] / "golden/objectives_cases.json"
L = jnp.array([400, 800, 1200, 2000])
C = jnp.array([1.0, 1, 0, 1])
OPEN_R1 = {"right": (0.5, 1.0), "wrong": (-1.0, -0.5)}


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        (lambda: length.kimi(L, C), [0.5, 0.25, 0, -0.5]),
        (lambda: length.kimi(jnp.array([7, 7, 7, 7]), C), [0, 0, 0, 0]),
        (lambda: length.l1_exact(L, C, 1000), [0.82, 0.94, -0.06, 0.70]),
        (lambda: length.l1_max(L, C, 1000), [0.68, 0.56, 0, 0.20]),
        (lambda: length.l1_max(L, C, 1000, alpha=1e-3), [1, 0.7, 0, 0]),
        (
            lambda: length.o1_pruner(
                L, C, reference_length=1000, reference_accuracy=0.5
            ),
            [2.5, 1.25, -7 / 6, 0.5],
        ),
        (
            lambda: length.dast(L, C, max_length=4000),
            [0.888889, 0.777778, -0.4, 0.444444],
        ),
        (
            lambda: length.cosine(L, C, max_length=4000),
            [1.975528, 1.904508, -7.938926, 1.5],
        ),
        (
            lambda: length.cosine(L, C, max_length=4000, **OPEN_R1),
            [0.987764, 0.952254, -0.896946, 0.75],
        ),
        (
            lambda: length.cosine(L, C, max_length=2000),
            [1.904508, 1.654508, -3.454915, -10],
        ),
        (lambda: length.think_prune(L, C, limit=1000), [1, 1, 0, 0]),
        (
            lambda: length.train_to_be_efficient(L, C),
            [0.938022, 0.915877, 0, 0.849169],
        ),
        (lambda: length.shorter_better(L, C), [2, 1.6, -0.8, 0.4]),
        (  # none right: L* is the mean, 1100
            lambda: length.shorter_better(L, 0 * C),
            [-0.7, -0.3, -0.1, -0.9],
        ),
        (lambda: length.laser(L, C, target=1000), [1.5, 1.5, 0, 1]),
        # Right ones beyond 1000 lose 0.5, or win and lose it.
        (lambda: length.laser_penalty(L, C, target=1000), [1, 1, 0, 0.5]),
        (lambda: length.laser_hybrid(L, C, target=1000), [1.5, 1.5, 0, 0.5]),
        (
            lambda: length.where_any_right(
                jnp.stack([length.l1_exact(L, c, 1000) for c in (C, 0 * C)]),
                jnp.stack([C, 0 * C]),
            ),
            [[0.82, 0.94, -0.06, 0.70], [0, 0, 0, 0]],
        ),
        (
            lambda: length.soft_overlong(L, max_length=2000, buffer=1000),
            [0, 0, -0.2, -1],
        ),
        (lambda: length.efficient_length(L, budget=1000), [1, 1, 0, 0]),
        (
            lambda: length.adaptive_weight(
                jnp.array([1e-4, 1e-5]), jnp.array([0.5, 0.1]), reference=0.4, eta=1e-3
            ),
            [2e-4, 0],
        ),
    ],
)
def test_formulas_golden(score, expected):
    np.testing.assert_allclose(jax.jit(score)(), expected, atol=2e-6)


def test_rows_are_groups_of_their_own():
    lengths, correct = jnp.stack([L, L[::-1]]), jnp.stack([C, C[::-1]])
    for rule in (length.kimi, length.shorter_better, length.train_to_be_efficient):
        together = jax.jit(rule)(lengths, correct)
        np.testing.assert_allclose(together[0], jax.jit(rule)(L, C), rtol=1e-6)
        np.testing.assert_allclose(together[1], jax.jit(rule)(L, C)[::-1], rtol=1e-6)


def test_train_to_be_efficient_compares_one_right_answer_with_itself():
    got = length.train_to_be_efficient(L, jnp.array([0.0, 1, 0, 0]))
    np.testing.assert_allclose(got, [0, 0.9, 0, 0], atol=1e-6)  # 1 - 0.2 / 2


def test_laser_targets_by_hand():
    lengths = jnp.array([[100, 200, 300], [100, 250, 300], [300, 300, 300]])
    correct = jnp.array([[1.0, 1, 1], [1, 0, 0], [0, 0, 0]])
    np.testing.assert_array_equal(length.difficulty(correct), [0, 1, 2])
    # Easy, n = 2: half of the three right answers within 200; medium, n = 1: all of
    # the one within 100; hard: no right answer, the longest.
    targets = length.laser_targets(lengths, correct, jnp.array([100, 200, 300]))
    np.testing.assert_array_equal(targets, [200, 100, 300])


def test_repeated_tokens_marks_the_repetition_only():
    tokens = jnp.array([[5, 6, 7, 5, 6, 9, 0, 0], [1, 1, 1, 1, 2, 3, 4, 5]])
    mask = jnp.array([[True] * 6 + [False] * 2, [True] * 8])
    got = jax.jit(lambda t, m: length.repeated_tokens(t, m, n=2))(tokens, mask)
    expected = [[0, 0, 0, -0.05, -0.05, 0, 0, 0], [0, -0.05, -0.05, -0.05, 0, 0, 0, 0]]
    np.testing.assert_allclose(got, expected)
    assert not length.repeated_tokens(tokens, mask).any()  # shorter than 40


def test_soft_overlong_golden():
    case = json.loads(GOLDEN.read_text())["dapo_rewards"]
    got = length.soft_overlong(np.array(case["lengths"]), max_length=20, buffer=8)
    np.testing.assert_array_equal(got, case["dapo_trl_easyr1"])


def test_soft_overlong_of_the_paper():
    # By hand: half of the 4096 tokens of buffer used.
    assert length.soft_overlong(18432, max_length=20480, buffer=4096) == -0.5
    assert length.soft_overlong(4, max_length=4, buffer=4) == -1.0


@pytest.mark.parametrize("buffer", [0, -1, 21])
def test_soft_overlong_bad_buffer_raises(buffer):
    with pytest.raises(ValueError, match=f"got buffer={buffer} and max_length=20"):
        length.soft_overlong(np.array(3), max_length=20, buffer=buffer)
