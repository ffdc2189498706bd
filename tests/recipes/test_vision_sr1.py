"""Vision-SR1: who reads the description is paid for, and not trained."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from vrl_jax.recipes.vision_sr1 import self_reward, vision_sr1
from vrl_jax.rewards.boxed import boxed_right
from vrl_jax.types import Likelihood, Rollout, Turn

from ..fixtures import small


def even(sample, turn):
    """Half of all answers, at random."""
    return sum(turn.tokens) % 2 == 0


def accuracy(episodes):
    return [float(even(e.sample, e.turns[0])) for e in episodes]


def rollout(rewards, old):
    return Rollout(
        prompts=None,
        tokens=jnp.zeros(old.shape, int),
        positions=None,
        mask=jnp.ones(old.shape, bool),
        temperature=jnp.ones(len(rewards)),
        old_logprobs=old,
        extra_logprobs={},
        rewards=jnp.array(rewards),
        reward_parts={},
        group=jnp.zeros(len(rewards), int),
    )


def test_the_reader_is_paid_for_and_not_trained():
    """R = 0.9 accuracy + 0.1 format + reread, one row an episode."""
    recipe = vision_sr1(group_size=small.GROUP, right=even)
    actor = small.actor(reward=self_reward(accuracy))
    played = recipe.act(actor, iter([small.samples()]), jax.random.key(0))
    assert len(played.tokens) == len(small.samples()) * small.GROUP
    assert played.episode is None
    parts = played.reward_parts
    np.testing.assert_allclose(
        played.rewards,
        0.9 * parts["accuracy"] + 0.1 * parts["format"] + parts["reread"],
        atol=1e-6,
    )
    np.testing.assert_array_equal(parts["reread"], played.facts["reread"])
    for part in ("accuracy", "reread"):
        assert set(np.asarray(parts[part]).tolist()) == {0.0, 1.0}
    assert (np.asarray(parts["accuracy"]) != np.asarray(parts["reread"])).any()


def test_advantages_of_the_worked_group():
    """R = 2, 1, 1.1, 0: mean 1.025, std (n - 1) 0.818026, by hand."""
    batch, _ = vision_sr1(group_size=4).credit(
        rollout([2.0, 1.0, 1.1, 0.0], jnp.zeros((4, 1)))
    )
    np.testing.assert_allclose(
        batch.advantages[:, 0],
        [1.191892, -0.030561, 0.091684, -1.253015],
        atol=3e-6,
    )


def test_loss_is_clipped_on_three_sides():
    """Ratios 2, 0.5 and 5 with A = 1, -1, -1: -1.3, 0.8, and 3 by the dual clip."""
    recipe = vision_sr1(group_size=3)
    batch, _ = recipe.credit(rollout([0.0, 1.0, 2.0], jnp.zeros((3, 1))))
    given = jnp.array([[1.0], [-1.0], [-1.0]])
    batch = dataclasses.replace(batch, advantages=given)
    new = Likelihood(jnp.log(jnp.array([[2.0], [0.5], [5.0]])), jnp.ones((3, 1)))
    mean, _ = recipe.loss(lambda _: new, batch)
    np.testing.assert_allclose(mean.total, -1.3 + 0.8 + 3.0, rtol=1e-5)
    assert mean.weight == 3


def test_boxed_right_reads_the_last_box():
    sample = small.samples()[3]
    said = functools.partial(Turn, tokens=(1,))
    assert boxed_right(sample, said(r"\boxed{2}, no: \boxed{ 3 }"))
    assert not boxed_right(sample, said("3"))
