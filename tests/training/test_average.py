"""The running average: by hand, in the learner's update, as a policy."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vrl_jax.models.trained import language, only
from vrl_jax.recipes.grpo import grpo
from vrl_jax.training.average import average_params, averaged, debiased, ema, following
from vrl_jax.training.iteration import iteration
from vrl_jax.training.learner import adamw, make_learner

from ..fixtures import small, toy


def walked(decay, dtype=jnp.float32):
    """p = 1, then 2, 3, 4 by gradient steps of +1; the averages on the way."""
    optimizer = averaged(optax.sgd(1.0), decay)
    params = {"w": jnp.ones(2, dtype)}
    state, averages = optimizer.init(params), []
    for _ in range(3):
        updates, state = optimizer.update({"w": -jnp.ones(2, dtype)}, state, params)
        params = optax.apply_updates(params, updates)
        averages.append(float(state.average["w"][0]))
    assert state.average["w"].dtype == jnp.float32
    return averages


def test_by_hand():
    """0.5 * 1 + 0.5 * 2, and so on."""
    assert float(ema(jnp.float32(1), jnp.float32(3), 0.75)) == 1.5
    np.testing.assert_allclose(walked(0.5), [1.5, 2.25, 3.125])
    np.testing.assert_allclose(walked(0.5, jnp.bfloat16), [1.5, 2.25, 3.125])


def test_without_a_trace_of_the_start():
    """Weights 0.5^(n - i): 2, (2 + 2 * 3) / 3 -> (1 * 2 + 2 * 3) / 3, ... / 7."""
    wanted = [2, (2 + 2 * 3) / 3, (2 + 2 * 3 + 4 * 4) / 7]
    np.testing.assert_allclose(walked(debiased(0.5)), wanted, rtol=1e-6)


def test_in_an_iteration():
    actor = toy.actor()
    recipe = grpo(group_size=small.GROUP)

    def after(optimizer):
        learner = make_learner(
            actor.policy,
            actor.params,
            optimizer,
            actor.allowed,
            trains=only(language),
            micro_batches=2,
        )
        batches = itertools.repeat(small.samples())
        return iteration(recipe, actor, learner, batches, jax.random.key(3))[0]

    learner = after(averaged(adamw(1e-2), 0.75))
    plain = after(adamw(1e-2))
    jax.tree.map(np.testing.assert_array_equal, learner.params, plain.params)
    wanted = jax.tree.map(
        lambda old, new: 0.75 * old + 0.25 * new, actor.params, learner.params
    )
    average = average_params(learner)
    jax.tree.map(
        lambda a, w: np.testing.assert_allclose(a, w, atol=1e-6), average, wanted
    )
    assert size(learner.opt_state.average) == size(learner.trained)
    with pytest.raises(ValueError, match="keeps no average"):
        average_params(plain)

    # As a reference: the same tokens, scored by the average.
    batches = itertools.repeat(small.samples())
    rollout = recipe.act(actor, batches, jax.random.key(0))
    reference = dataclasses.replace(actor, params=average)
    scored = reference.add_logprobs(rollout, "ref", as_seen, jax.random.key(0))
    gap = np.abs(scored.extra_logprobs["ref"] - rollout.old_logprobs)
    assert 1e-4 < gap.max() < 5


def test_a_follower_needs_a_leader():
    optimizer = following(optax.sgd(1.0), "q", "target", rate=0.2)
    for params in ({"q": jnp.ones(2)}, {"critic": {"target": jnp.ones(2)}}):
        with pytest.raises(ValueError, match="'target' with a 'q' beside it"):
            optimizer.init(params)


def size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def as_seen(key, images):
    return images
