"""What verl's rollout correction does with whole responses, by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from vrl_jax import divergences, masked, mismatch, objectives

MASK = jnp.array([[True, False, False, False], [True, True, True, True], [False] * 4])


def test_each_response_counts_once_where_weights_are_of_responses():
    """Weights 2 of one token and 0.5 of four: the mean is 1.25, not 0.8."""
    weights = jnp.array([[2.0] * 4, [0.5] * 4, [jnp.nan] * 4])
    got = mismatch.mean_one_of_responses(weights, MASK)
    expected = np.where(MASK, [[1.6], [0.4], [0]], 0)
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    of_tokens = mismatch.mean_one(weights, MASK)
    np.testing.assert_allclose(of_tokens[:2, 0], [2.5, 0.625], rtol=1e-6)


SAMPLER = jnp.log(jnp.array([[0.5, 0.5], [0.5, 0.5], [0.5, 0.5]]))
LEARNER = jnp.log(jnp.array([[0.25, 0.5], [0.5, 0.9], [0.5, 0.5]]))
BOTH = jnp.ones((3, 2), bool)
"""Sampler over learner: 2 and 1; 1 and 5/9; 1 and 1."""


@pytest.mark.parametrize(
    ("ratio", "low", "high", "kept"),
    [
        # Geometric means 1.414, 0.745 and 1, products 2, 0.556 and 1.
        (objectives.sequence_ratio, 0.667, 1.5, [True, True, True]),
        (objectives.sequence_ratio, 0.8, 1.25, [False, False, True]),
        (objectives.response_ratio, 0.667, 1.5, [False, False, True]),
        (objectives.response_ratio, 0.5, 2.0, [True, True, True]),
    ],
)
def test_k1_of_responses_has_two_bounds(ratio, low, high, kept):
    found = ratio(SAMPLER, LEARNER, BOTH)
    agree = mismatch.agreeing_tokens(found, BOTH, low=low, high=high + 1e-6)
    np.testing.assert_array_equal(agree, jnp.array(kept)[:, None] & BOTH)


@pytest.mark.parametrize(
    ("statistic", "threshold", "kept"),
    [
        # k2 = d^2 / 2: 0.2402 and 0; 0 and 0.1727; 0 and 0.
        (masked.mean, 0.1, [False, True, True]),
        (masked.sum, 0.1, [False, False, True]),
        (masked.sum, 0.2, [False, True, True]),
        (masked.max, 0.2, [False, True, True]),
        (masked.max, 0.25, [True, True, True]),
    ],
)
def test_k2_of_responses_by_mean_sum_or_max(statistic, threshold, kept):
    k2 = divergences.k2(SAMPLER, LEARNER)
    agree = mismatch.agreeing_responses(
        k2, BOTH, threshold=threshold, statistic=statistic
    )
    np.testing.assert_array_equal(agree, jnp.array(kept)[:, None] & BOTH)
    empty = mismatch.agreeing_responses(k2 * jnp.nan, BOTH & False, statistic=statistic)
    assert not empty.any()
