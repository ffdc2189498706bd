"""Episodes of several conversations through filter, credit, metrics and an update."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from vrl_jax import advantages, objectives, reductions
from vrl_jax.programs.acting import act
from vrl_jax.programs.dynamic_sampling import dynamic_sampling
from vrl_jax.programs.search import of_each, tree_search
from vrl_jax.training.iteration import Recipe, as_batch, iteration
from vrl_jax.training.learner import make_learner
from vrl_jax.training.metrics import as_floats, rollout_metrics

from ..fixtures import small

ROWS, GROUP = 6, 2


def searching(**changes):
    """Steps of two tokens, tried twice from one place: six rows an episode."""
    value = lambda sample, turn: float(sum(turn.tokens) % 7)
    program = functools.partial(
        tree_search, values=of_each(value), width=2, beam=1, depth=3, step_tokens=2
    )
    settings = {"program": program, "group_size": GROUP, "rows": ROWS, **changes}
    return functools.partial(act, **settings)


def last_token(episodes):
    return [{"overall": e.turns[0].tokens[-1] / 100, "accuracy": 0.5} for e in episodes]


def blind_actor(**changes):
    actor = small.chain_actor()
    params = {"table": actor.params["table"]}
    return dataclasses.replace(actor, params=params, reward=last_token, **changes)


@pytest.fixture(scope="module")
def rollout():
    return searching()(blind_actor(), iter([small.samples()]), jax.random.key(0))


def test_an_episodes_advantage_goes_to_all_its_rows(rollout):
    given = advantages.group_centered(rollout.rewards, group_size=GROUP)
    batch = as_batch(rollout, given[:, None])
    rows = np.asarray(batch.advantages[:, 0]).reshape(4, ROWS, GROUP)
    np.testing.assert_allclose(rows, np.asarray(given).reshape(4, 1, 2) + 0 * rows)
    # Every node that reads the question itself shares it with its whole group.
    places = np.asarray(rollout.place).reshape(4, ROWS, GROUP)
    np.testing.assert_array_equal(places[0, :, 0], range(ROWS))


def test_metrics_are_of_episodes(rollout):
    found = as_floats(jax.jit(rollout_metrics)(rollout))
    lengths = np.asarray(rollout.mask.sum(axis=1)).reshape(4, ROWS, GROUP).sum(axis=1)
    assert found["response_length/mean"] == pytest.approx(lengths.mean())
    assert found["response_length/min"] == lengths.min()
    assert found["critic/score/mean"] == pytest.approx(float(rollout.rewards.mean()))


def test_dynamic_sampling_keeps_episodes_with_their_rows(rollout):
    """The second sample of each round; what is kept of it is as it was played."""
    keep = lambda rollout: np.array([False, True, False, False])
    stream = iter(lambda: small.samples(), None)
    kept = dynamic_sampling(
        blind_actor(), stream, jax.random.key(0), act=searching(), keep=keep
    )
    assert kept.rewards.shape == (8,) and kept.tokens.shape[0] == 48
    np.testing.assert_array_equal(kept.group, np.repeat(range(4), GROUP))
    np.testing.assert_array_equal(kept.place, rollout.place)
    np.testing.assert_array_equal(kept.episode, rollout.episode)
    scored = blind_actor().likelihood(kept).logprobs
    np.testing.assert_allclose(scored, kept.old_logprobs, rtol=0, atol=1e-5)
    assert kept.facts["asks"].shape == (8,)


def credit(rollout):
    given = advantages.group_centered(rollout.rewards, group_size=GROUP)
    return as_batch(rollout, given[:, None]), {}


def loss(policy, batch):
    per_token = objectives.clipped_surrogate(
        policy(batch).logprobs, batch.old_logprobs, batch.advantages
    )
    return reductions.token_mean(per_token, batch.mask), {}


def test_an_iteration_trains_on_a_search():
    actor = blind_actor()
    recipe = Recipe(searching(), lambda actor, rollout, key: rollout, credit, loss)
    learner = make_learner(
        actor.policy, actor.params, small.optimizer(), actor.allowed, minibatches=2
    )
    before = np.asarray(learner.params["table"])
    learner, metrics = iteration(
        recipe, actor, learner, iter([small.samples()]), jax.random.key(0)
    )
    assert (np.asarray(learner.params["table"]) != before).any()
    found = as_floats(metrics)
    assert found["play/steps"] >= 1 and found["training/skipped"] == 0
