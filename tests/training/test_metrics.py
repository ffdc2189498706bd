"""What is logged, by hand."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest

from vrl_jax.training.metrics import (
    advantage_metrics,
    as_floats,
    average,
    by_source,
    mean_known,
    policy_metrics,
    rollout_metrics,
)
from vrl_jax.types import Batch, Episode, Likelihood, Mean, Rollout, Sample, Turn

from ..fixtures.chain import chain_prompts

MASK = jnp.array([[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 1, 0]], bool)
OLD = jnp.array([[-1, -2, 9], [-1, 9, 9], [-1, -1, -1], [-3, -1, 9]], jnp.float32)


def test_policy_metrics_by_hand():
    # log-ratios of the eight tokens: 0.5 0 | -0.5 | 0 0 1 | 0 -1
    moved = jnp.array([[0.5, 0, 9], [-0.5, 9, 9], [0, 0, 1], [0, -1, 9]])
    advantages = jnp.array([[1, 1, 9], [-1, 9, 9], [-1, 1, -1], [1, 1, 9.0]])
    batch = Batch(None, None, None, MASK, None, OLD, advantages)
    new = Likelihood(OLD + moved, jnp.where(MASK, 2.0, math.nan))
    part = Mean(jnp.float32(1), jnp.float32(4))
    logged = as_floats(policy_metrics(new, batch, part, clip_low=0.2, clip_high=0.28))
    fell = [np.exp(-1) - np.exp(-1.5), np.exp(-1) - np.exp(-2)]  # the third, the last
    rose = [np.exp(-0.5) - np.exp(-1), 1 - np.exp(-1)]
    probabilities = sum(fell + rose) / 8
    assert logged == {
        "actor/pg_loss": 0.25,
        "actor/entropy": 2,
        "actor/ppo_kl": 0,  # -(0.5 - 0.5 + 1 - 1)
        "actor/logprob_gap": 3 / 8,
        "actor/probs_diff": pytest.approx(probabilities),
        "actor/pg_clipfrac_lower": 1 / 8,  # A < 0 and the ratio fell: the third
        "actor/pg_clipfrac_higher": 1 / 8,  # A > 0 and it rose: the first
    }


def test_rollout_metrics_by_hand():
    rollout = Rollout(
        prompts=chain_prompts([1, 2]),
        tokens=jnp.zeros((4, 3), int),
        positions=None,
        mask=MASK,
        temperature=None,
        old_logprobs=OLD,
        extra_logprobs={},
        rewards=jnp.array([1.0, 0, 0.5, 0.5]),
        reward_parts={"accuracy": jnp.array([1.0, 0, 0, 0])},
        group=None,
    )
    logged = as_floats(rollout_metrics(rollout))
    assert logged == pytest.approx(
        {
            "critic/score/mean": 0.5,
            "critic/score/max": 1,
            "critic/score/min": 0,
            "response_length/mean": 2,
            "response_length/max": 3,
            "response_length/min": 1,
            "response_length/clip_ratio": 0.25,  # one of four fills all three tokens
            "prompt_length/mean": 2,
            "prompt_length/max": 2,
            "prompt_length/min": 2,
            "actor/sampled_nll": 11 / 8,
            "reward/accuracy": 0.25,
            "groups/zero_variance": 0.5,
            "groups/all_right": 0,
            "groups/all_wrong": 0.5,
        }
    )
    alone = dataclasses.replace(rollout, prompts=chain_prompts([1, 2, 3, 4]))
    assert "groups/zero_variance" not in rollout_metrics(alone)


def test_average_adds_totals_and_weights():
    one, other = (
        {"x": Mean(jnp.float32(t), jnp.float32(w))} for t, w in ((6, 1), (3, 2))
    )
    assert as_floats(average([one, other])) == {"x": 3}


def test_as_floats_of_nothing_counted_is_nan():
    nothing = Mean(jnp.float32(0), jnp.float32(0))
    assert np.isnan(as_floats({"x": nothing})["x"])


def test_by_source_leaves_out_the_unscored():
    def group(source, tokens, *scores):
        sample = Sample("1", source, "?", (), "3")
        told = Turn("?", (1, 1, 1), chosen=False)
        turns = (Turn("3", (1,) * tokens), told)
        episode = Episode(sample, "?", turns, finished=True)
        return [episode] * len(scores), [{"overall": score} for score in scores]

    played = [
        group("a", 1, 1.0, math.nan, 1.0),
        group("a", 4, 0.0, 1.0),
        group("b", 2, math.nan),
    ]
    assert by_source(played) == {
        "reward/overall/a": 0.75,
        "response_length/mean/a": (3 * 1 + 2 * 4) / 5,
        "response_length/mean/b": 2,
        "groups/zero_variance/a": 0.5,
        "groups/zero_variance/b": 1,
    }


def test_advantage_metrics_by_hand():
    advantages = jnp.where(MASK, jnp.arange(12.0).reshape(4, 3), math.nan)
    batch = Batch(None, None, None, MASK, None, OLD, advantages)
    assert as_floats(advantage_metrics(batch)) == {
        "critic/advantages/mean": (0 + 1 + 3 + 6 + 7 + 8 + 9 + 10) / 8,
        "critic/advantages/max": 10,
        "critic/advantages/min": 0,
    }


def test_mean_known_leaves_out_the_unscored():
    known = mean_known(jnp.array([1.0, jnp.nan, 3.0]))
    nothing = mean_known(jnp.array([jnp.nan]))
    numbers = as_floats({"known": known, "nothing": nothing})
    assert numbers["known"] == 2.0 and math.isnan(numbers["nothing"])
