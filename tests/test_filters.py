import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vrl_jax import filters

CASES = json.loads((Path(__file__).parent / "golden/objectives_cases.json").read_text())
SAMPLING = CASES["dapo_rewards"]["dynamic_sampling"]
SCORES = np.array(list(SAMPLING["groups"].values()), np.float32)


def keys(keep):
    return [name for name, kept in zip(SAMPLING["groups"], keep, strict=True) if kept]


def test_dynamic_sampling_golden():
    scores = jnp.asarray(SCORES.ravel())
    mixed = filters.mixed_groups(scores, group_size=4)
    assert keys(mixed) == SAMPLING["easyr1_mean_in_0p01_0p99"]
    equal = filters.zero_variance_groups(scores, group_size=4)
    assert keys(~equal) == SAMPLING["verl_std_gt_0"]
    for function, eager in (
        (filters.mixed_groups, mixed),
        (filters.zero_variance_groups, equal),
    ):
        jitted = jax.jit(function, static_argnames="group_size")
        np.testing.assert_array_equal(jitted(scores, group_size=4), eager)


def test_mixed_groups_bounds_are_strict():
    scores = jnp.array([0.0, 0.5, 0.5, 1.0, 0.0, 1.0])  # means 0.25, 0.75, 0.5
    keep = filters.mixed_groups(scores, group_size=2, low=0.25, high=0.75)
    np.testing.assert_array_equal(keep, [False, False, True])


def test_zero_variance_groups_are_exact():
    scores = jnp.array([0.1, 0.1, 0.1, 0.1, 0.1, 0.1000001])
    equal = filters.zero_variance_groups(scores, group_size=3)
    np.testing.assert_array_equal(equal, [True, False])


def test_permuting_groups_permutes_the_choice():
    order = [3, 1, 0, 2]
    for function in (filters.mixed_groups, filters.zero_variance_groups):
        plain = function(jnp.asarray(SCORES.ravel()), group_size=4)
        shuffled = function(jnp.asarray(SCORES[order].ravel()), group_size=4)
        np.testing.assert_array_equal(shuffled, np.asarray(plain)[order])


@pytest.mark.parametrize(
    "function", [filters.mixed_groups, filters.zero_variance_groups]
)
def test_partial_groups_raise(function):
    with pytest.raises(ValueError, match="got 16 rewards for group_size=3"):
        function(jnp.asarray(SCORES.ravel()), group_size=3)


def test_unscored_responses_do_not_count():
    nan = jnp.nan
    scores = jnp.array([1.0, 0, nan, 1, nan, 1, nan, nan, nan, nan, nan, nan])
    mixed = filters.mixed_groups(scores, group_size=3)
    np.testing.assert_array_equal(mixed, [True, False, False, False])
    equal = filters.zero_variance_groups(scores, group_size=3)
    np.testing.assert_array_equal(equal, [False, True, True, True])
