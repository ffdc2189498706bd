"""What is logged, by hand."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vrl_jax.training.average import averaged
from vrl_jax.training.learner import adamw
from vrl_jax.training.metrics import (
    advantage_metrics,
    as_floats,
    average,
    by_source,
    fact_metrics,
    learning_rate_metrics,
    mean_known,
    merged,
    policy_metrics,
    rollout_metrics,
    sampler_gap,
)
from vrl_jax.types import Batch, Episode, Likelihood, Mean, Rollout, Sample, Turn

from ..fixtures import small
from ..fixtures.chain import chain_prompts

MASK = jnp.array([[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 1, 0]], bool)
SLOWER = optax.linear_schedule(1.0, 0.0, 4)
OLD = jnp.array([[-1, -2, 9], [-1, 9, 9], [-1, -1, -1], [-3, -1, 9]], jnp.float32)


def test_a_fact_that_is_not_known_is_not_in_the_mean():
    rollout = small.scored([1.0, 2.0, 3.0])
    facts = {"opening": [np.nan, 1.0, 2.0], "tries": [1.0, 2.0, 6.0]}
    facts = {name: jnp.array(values) for name, values in facts.items()}
    found = fact_metrics(dataclasses.replace(rollout, facts=facts))
    assert {name: float(x.total / x.weight) for name, x in found.items()} == {
        "play/opening": 1.5,
        "play/tries": 3.0,
    }


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
    moved_by = fell + rose
    weights = np.exp([0.5, 0, -0.5, 0, 0, 1, 0, -1])
    assert logged == {
        "actor/pg_loss": 0.25,
        "actor/entropy": 2,
        "actor/ppo_kl": 0,  # -(0.5 - 0.5 + 1 - 1)
        "actor/logprob_gap": 3 / 8,
        "actor/probs_diff": pytest.approx(sum(moved_by) / 8),
        "actor/probs_diff_squared": pytest.approx(np.square(moved_by).sum() / 8),
        "actor/probs_diff_max": pytest.approx(1 - np.exp(-1)),
        "actor/ratio": pytest.approx(weights.mean()),
        "actor/ratio_squared": pytest.approx(np.square(weights).mean()),
        "actor/ratio_above_2": 1 / 8,  # e
        "actor/pg_clipfrac_lower": 1 / 8,  # A < 0 and the ratio fell: the third
        "actor/pg_clipfrac_higher": 1 / 8,  # A > 0 and it rose: the first
    }


def test_sampler_gap_is_the_same_in_micro_batches():
    """Of five tokens: 0.1 0.2 | 0.3 0.4 0.5 between the probabilities."""
    mask = jnp.array([[1, 1, 0], [1, 1, 1]], bool)
    gaps = np.array([0.1, 0.2, 0.3, 0.4, 0.5])
    old = jnp.where(mask, jnp.log(0.25), jnp.nan)
    new = jnp.log(0.25 + jnp.array([[0.1, 0.2, jnp.nan], [0.3, 0.4, 0.5]]))

    def rows(at):
        batch = Batch(None, None, None, mask[at], None, old[at], jnp.ones((1, 3)))
        seen = Likelihood(new[at], jnp.zeros((1, 3)))
        part = Mean(jnp.float32(0), jnp.float32(1))
        return policy_metrics(seen, batch, part, clip_low=0.2, clip_high=0.2)

    first, second = rows(np.s_[:1]), rows(np.s_[1:])
    logged = as_floats(sampler_gap(merged(first, second)))
    weights = 1 + gaps / 0.25
    assert logged == pytest.approx(
        {
            "training/logprob_gap": np.log(weights).mean(),
            "training/rollout_probs_diff_mean": 0.3,
            "training/rollout_probs_diff_max": 0.5,
            "training/rollout_probs_diff_std": np.std(gaps, ddof=1),
            "training/rollout_is_mean": 2.2,
            "training/rollout_is_ratio_fraction_high": 0.6,  # 2.2, 2.6 and 3
            "training/rollout_is_eff_sample_size": 11**2 / (5 * np.sum(weights**2)),
        }
    )
    assert sampler_gap({"sft/loss": Mean(jnp.float32(1), jnp.float32(1))}) == {}


@pytest.mark.parametrize(
    ("optimizer", "rates"),
    [
        (adamw(SLOWER), [1, 0.75, 0.5]),
        (optax.flatten(averaged(adamw(1e-2), 0.9)), [0.01] * 3),
        (
            optax.inject_hyperparams(optax.sgd)(optax.linear_schedule(4, 0, 4)),
            [4, 3, 2],
        ),
        (optax.sgd(1.0), None),  # tells nothing
    ],
)
def test_learning_rate_is_the_optimiser_s(optimizer, rates):
    params = {"a": jnp.ones(2), "b": jnp.ones(())}
    state, seen = optimizer.init(params), []
    for _ in range(3):
        _, state = optimizer.update(params, state, params)
        seen.append(as_floats(learning_rate_metrics(state)).get("actor/lr"))
    assert seen == (pytest.approx(rates) if rates else [None] * 3)


def test_adamw_steps_as_without_the_note():
    params = {"a": jnp.arange(3.0), "b": jnp.ones(())}
    plain = optax.adamw(1e-2, weight_decay=0.01)
    plain = optax.chain(optax.clip_by_global_norm(1.0), plain)
    made = []
    for optimizer in (adamw(1e-2), plain):
        updates, _ = optimizer.update(params, optimizer.init(params), params)
        made.append(updates)
    jax.tree.map(np.testing.assert_array_equal, *made)


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
            "critic/rewards/mean": 0.5,
            "critic/rewards/max": 1,
            "critic/rewards/min": 0,
            "response_length/mean": 2,
            "response_length/max": 3,
            "response_length/min": 1,
            "response_length/clip_ratio": 0.25,  # one of four fills all three tokens
            "prompt_length/mean": 2,
            "prompt_length/max": 2,
            "prompt_length/min": 2,
            "prompt_length/clip_ratio": 0,  # two of three
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
