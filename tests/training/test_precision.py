"""Precisions: rounding is fair, small updates count, and the learner takes them all."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vrl_jax.models.trained import chain, language, only
from vrl_jax.recipes.grpo import grpo
from vrl_jax.training.iteration import iteration
from vrl_jax.training.learner import adamw, make_learner
from vrl_jax.training.precision import (
    PRECISIONS,
    precision,
    stochastic,
    stochastic_round,
)

from ..fixtures import small, toy

BF16 = jnp.bfloat16


@pytest.mark.parametrize("value", [1.001, -1.001, 3.3e-5, 250.3, -7e30])
def test_rounding_is_right_on_average(value):
    count = 40_000
    x = jnp.full(count, value, jnp.float32)
    rounded = np.asarray(stochastic_round(jax.random.key(0), x), np.float64)
    lower, upper = np.unique(rounded)
    exact = float(np.float32(value))
    assert lower < exact < upper
    share = (exact - lower) / (upper - lower)
    # Five standard errors of a mean of Bernoulli draws.
    error = 5 * np.sqrt(share * (1 - share) / count)
    assert abs((rounded == upper).mean() - share) < error


@settings(max_examples=30, deadline=None)
@given(st.floats(width=32))
def test_what_bfloat16_holds_is_kept(value):
    held = jnp.float32(value).astype(BF16).astype(jnp.float32)
    got = stochastic_round(jax.random.key(1), held)
    np.testing.assert_array_equal(got.astype(jnp.float32), held)


def test_not_a_number_stays_none():
    """This one has every bit set: adding to it would give a zero."""
    worst = jax.lax.bitcast_convert_type(
        jnp.full(9, 0x7FFFFFFF, jnp.uint32), jnp.float32
    )
    assert jnp.isnan(stochastic_round(jax.random.key(0), worst)).all()


def walk(optimizer, params, steps):
    """Steps of gradient 1 in every element."""

    def step(carry, _):
        params, state = carry
        grads = jax.tree.map(jnp.ones_like, params)
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    start = (params, optimizer.init(params))
    return jax.lax.scan(step, start, None, length=steps)[0]


def test_small_updates_are_not_lost():
    """Steps of 1e-4 from 1: the unit of bfloat16 there is 2^-8 below, 2^-7 above."""
    start = {"w": jnp.ones(1000, BF16)}
    lost, _ = walk(optax.sgd(1e-4), start, 200)
    assert (lost["w"] == 1).all()
    kept, _ = walk(stochastic(optax.sgd(1e-4), jax.random.key(0)), start, 200)
    assert kept["w"].dtype == BF16
    # 1 - 200 * 1e-4, with a standard error of about sqrt(200 * 2^-8 * 1e-4 / 1000).
    assert abs(kept["w"].astype(jnp.float32).mean() - 0.98) < 0.002


def test_elements_and_steps_have_draws_of_their_own():
    optimizer = stochastic(optax.sgd(1e-3), jax.random.key(0))
    params = {"v": jnp.ones(64, BF16), "w": jnp.ones(64, BF16)}
    once, state = walk(optimizer, params, 1)
    assert 0 < (once["w"] != 1).sum() < 64
    assert (once["w"] != once["v"]).any()
    again, _ = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
    assert ((again["w"] != 0) != (once["w"] != 1)).any()


@pytest.mark.parametrize("name", PRECISIONS)
def test_an_iteration_in_each_precision(name):
    chosen = precision(name)
    actor = toy.actor(params=toy.params(chosen.dtype))
    learner = make_learner(
        actor.policy,
        actor.params,
        chosen.optimizer(adamw(1e-4), jax.random.key(0)),
        actor.allowed,
        trains=chain(only(language), chosen.trains),
        micro_batches=2,
    )
    moments = {leaf.dtype for leaf in jax.tree.leaves(learner.opt_state) if leaf.ndim}
    assert moments == {jnp.dtype("float32")}
    recipe = grpo(group_size=small.GROUP)
    batches = itertools.repeat(small.samples())
    after, metrics = iteration(recipe, actor, learner, batches, jax.random.key(3))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
        lambda x: (x.shape, x.dtype), learner
    ), "jit would compile again"
    assert {leaf.dtype for leaf in jax.tree.leaves(after.params)} == {
        jnp.dtype(chosen.dtype)
    }
    assert np.isfinite(float(metrics["actor/loss"].total))
    assert any(
        (new != old).any()
        for new, old in zip(
            jax.tree.leaves(after.params), jax.tree.leaves(actor.params), strict=True
        )
    )


def test_gradients_of_micro_batches_are_added_in_float32():
    actor = toy.actor(params=toy.params(BF16))
    keep = stochastic(optax.trace(0.0), jax.random.key(0))
    learner = make_learner(
        actor.policy, actor.params, keep, actor.allowed, micro_batches=4
    )
    batches = itertools.repeat(small.samples())
    recipe = grpo(group_size=small.GROUP)
    after, metrics = iteration(recipe, actor, learner, batches, jax.random.key(3))
    weight = metrics["actor/loss"].weight
    summed = after.opt_state.inner.trace["text"]["mixer"] * weight
    # A sum in bfloat16 would be one of its numbers.
    error = np.abs(summed - summed.astype(BF16).astype(jnp.float32))
    assert (error > 1e-4 * np.abs(summed)).mean() > 0.3


def test_an_unknown_name():
    with pytest.raises(ValueError, match="no precision 'fp8'; there are float32, "):
        precision("fp8")
