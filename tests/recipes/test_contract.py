"""What every recipe keeps to, found by listing the folder; no name is asked for."""

import dataclasses
import itertools
import pkgutil
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vrl_jax import recipes
from vrl_jax.engine.likelihood import likelihood
from vrl_jax.training.iteration import Recipe, iteration
from vrl_jax.training.learner import make_learner, split
from vrl_jax.training.metrics import as_floats, merged
from vrl_jax.types import Batch, Likelihood, Max, Mean, Rollout

from ..fixtures import small

NAMES = sorted(module.name for module in pkgutil.iter_modules(recipes.__path__))


class Played(NamedTuple):
    recipe: Recipe
    acted: Rollout
    scored: Rollout
    batch: Batch
    credited: dict[str, Mean]


@pytest.fixture(scope="module", params=NAMES)
def played(request):
    recipe, actor = small.recipe(request.param), small.critic_actor()
    act_key, score_key = jax.random.split(jax.random.key(0))
    acted = recipe.act(actor, itertools.repeat(small.samples()), act_key)
    scored = recipe.score(actor, acted, score_key)
    return Played(recipe, acted, scored, *jax.jit(recipe.credit)(scored))


def other_policy(batch: Batch) -> Likelihood:
    """Not the one that sampled; a response's numbers depend on itself alone."""
    waves = jnp.sin(batch.tokens + 3.0 * jnp.arange(batch.tokens.shape[1]))
    logprobs = jnp.where(batch.mask, batch.old_logprobs + 0.3 * waves, 0)
    values = {
        name: jnp.where(batch.mask, jnp.cos(waves + number), 0)
        for number, name in enumerate(small.CRITICS)
    }
    return Likelihood(logprobs, jnp.where(batch.mask, 1 + waves, 0), values)


def equal(one, other, tolerance=1e-6):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance),
        one,
        other,
    )


def poisoned(tree, mask):
    """The same with NaN off the mask, in every float of the mask's shape."""
    return jax.tree.map(
        lambda x: (
            jnp.where(mask, x, jnp.nan)
            if x.shape == mask.shape and jnp.issubdtype(x.dtype, jnp.floating)
            else x
        ),
        tree,
    )


def test_act_gives_whole_groups_of_finished_tables(played):
    rollout, samples = played.acted, len(small.samples())
    rows, tokens = rollout.tokens.shape
    prompts = len(rollout.prompts.tokens)
    contexts = 1 if rollout.place is None else int(rollout.place.max()) + 1
    assert (prompts, tokens) == (contexts * samples, small.BUDGET)
    assert rows % prompts == 0
    episodes = rows // contexts
    assert rollout.positions.shape == (rows, tokens, 3)
    for table in (rollout.mask, rollout.old_logprobs):
        assert table.shape == (rows, tokens)
    parts = rollout.reward_parts.values()
    assert rollout.temperature.shape == (rows,)
    for column in (rollout.rewards, rollout.group, *parts):
        assert column.shape == (episodes,)
    np.testing.assert_array_equal(
        rollout.group, np.repeat(np.arange(samples), episodes // samples)
    )
    assert rollout.mask[:, 0].all()  # a response has a token, and no holes
    assert (np.diff(rollout.mask.astype(int), axis=1) <= 0).all()
    np.testing.assert_array_equal(rollout.old_logprobs[~rollout.mask], 0)


def test_score_only_adds_logprobs_and_values(played):
    before, after = played.acted, played.scored
    kept = dataclasses.replace(
        after, extra_logprobs=before.extra_logprobs, extra=before.extra
    )
    jax.tree.map(np.testing.assert_array_equal, kept, before)
    added = {name: x for name, x in after.extra.items() if name not in before.extra}
    for seen in (*after.extra_logprobs.values(), *added.values()):
        assert seen.shape == before.mask.shape
        np.testing.assert_array_equal(seen[~before.mask], 0)
        assert np.isfinite(seen).all()


def test_credit_gives_an_advantage_a_token_and_means(played):
    batch = played.batch
    assert batch.advantages.shape == batch.mask.shape
    assert np.isfinite(batch.advantages).all()
    assert np.abs(batch.advantages[batch.mask]).max() > 0
    assert all(isinstance(mean, Mean) for mean in played.credited.values())
    assert np.isfinite(list(as_floats(played.credited).values())).all()
    for field in ("tokens", "mask", "old_logprobs", "temperature", "positions"):
        np.testing.assert_array_equal(
            getattr(batch, field), getattr(played.scored, field)
        )


def test_credit_is_the_same_without_jit(played):
    equal(played.recipe.credit(played.scored), (played.batch, played.credited))


def test_loss_is_the_same_without_jit_and_logs_means(played):
    loss = lambda batch: played.recipe.loss(other_policy, batch)
    found = jax.jit(loss)(played.batch)
    equal(loss(played.batch), found)
    mean, metrics = found
    assert isinstance(mean, Mean)
    assert all(isinstance(value, Mean | Max) for value in metrics.values())
    assert np.isfinite(list(as_floats({"loss": mean, **metrics}).values())).all()
    assert mean.weight > 0


def test_padding_may_hold_nan(played):
    """Law 4: in whatever credit and loss read, and in the gradient.

    Without jit: XLA may turn `x * mask` into what should have been written.
    """
    recipe, mask = played.recipe, played.scored.mask
    assert not mask.all()

    def value_and_slope(rollout, padding):
        batch, credited = recipe.credit(rollout)
        batch = dataclasses.replace(
            batch, advantages=jnp.where(mask, batch.advantages, padding)
        )

        def loss(shift):
            new = other_policy(batch)
            new = new._replace(logprobs=jnp.where(mask, new.logprobs + shift, 0))
            mean, metrics = recipe.loss(lambda _: new, batch)
            return mean.total, (mean, metrics)

        slope, found = jax.grad(loss, has_aux=True)(jnp.zeros(mask.shape))
        return credited, found, slope

    clean = value_and_slope(played.scored, 0.0)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(clean))
    equal(value_and_slope(poisoned(played.scored, mask), jnp.nan), clean)
    slope = clean[-1]
    assert np.abs(slope[mask]).max() > 0
    np.testing.assert_array_equal(slope[~mask], 0)


def test_micro_batches_add_up(played):
    """Law 4: total and weight of the loss and of everything it logs."""
    loss = jax.jit(lambda batch: played.recipe.loss(other_policy, batch))
    whole = loss(played.batch)
    parts = [loss(piece) for piece in split(played.batch, 2)]
    equal(merged(*parts), whole, 1e-5)


def test_order_of_the_groups_does_not_matter(played):
    """Law 4: groups turned round give the same loss, from credit on."""
    recipe, rollout = played.recipe, played.scored
    order = [2, 0, 3, 1]  # of samples: prompts, rows, episodes lie by them

    def turn(x):  # by numpy: nothing to compile
        by_sample = np.asarray(x).reshape(4, -1, *x.shape[1:])
        return jnp.asarray(by_sample[order].reshape(x.shape))

    turned = jax.tree.map(turn, rollout)
    turned = dataclasses.replace(turned, episode=rollout.episode)
    batch, credited = recipe.credit(turned)
    equal(credited, played.credited, 1e-5)
    equal(
        recipe.loss(other_policy, batch), recipe.loss(other_policy, played.batch), 1e-5
    )


def asked_of(batch: Batch) -> Batch:
    """Without what a loss alone reads: recipes that differ in that share programs."""
    return dataclasses.replace(
        batch, old_logprobs=None, advantages=None, extra={}, views={}
    )


@jax.jit
def real_policy(params, batch: Batch):
    """What the learner's policy says, and the gradient of that times slopes.

    Compiled once for all recipes of one shape.
    """
    actor = small.critic_actor()
    rows = batch.tokens, batch.positions, batch.mask, batch.temperature

    def said(params) -> Likelihood:
        return likelihood(
            actor.policy,
            params,
            batch.prompts,
            *rows,
            actor.allowed,
            batch.log_kept,
            batch.shown,
        )

    return jax.vjp(said, params)


@jax.jit
def pulled_back(pull, slopes: Likelihood):
    return pull(slopes)[0]


def test_loss_reaches_every_weight_of_a_real_policy(played):
    """Law 1, the ratio starts at 1; then tower and decoder have a gradient.

    By the chain rule, over each time that the loss asks the policy.
    """
    params, asked = small.critic_actor().params, []

    def listening(batch):
        asked.append(real_policy(params, asked_of(batch)))
        return asked[-1][0]

    played.recipe.loss(listening, played.batch)
    new = np.asarray(asked[0][0].logprobs)
    old = np.asarray(played.batch.old_logprobs)
    sampled = old != 0  # 0 where nobody sampled
    np.testing.assert_allclose(new[sampled], old[sampled], rtol=0, atol=1e-5)
    zeros = [jax.tree.map(jnp.zeros_like, said) for said, _ in asked]

    def shifted(shifts):
        said = iter(
            jax.tree.map(jnp.add, told, shift)
            for (told, _), shift in zip(asked, shifts, strict=True)
        )
        return played.recipe.loss(lambda _: next(said), played.batch)[0].total

    slopes = jax.grad(shifted)(zeros)
    parts = [
        pulled_back(pull, slope) for (_, pull), slope in zip(asked, slopes, strict=True)
    ]
    gradient = jax.tree.map(lambda *x: sum(map(np.asarray, x)), *parts)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    for part in ("vision", "text"):
        sizes = [float(np.abs(x).max()) for x in jax.tree.leaves(gradient[part])]
        assert min(sizes) > 0


def test_iteration_learns(played):
    """The algorithm box, with a policy that compiles in a moment."""
    actor = small.critic_chain_actor()
    before = jax.tree.map(jnp.copy, actor.params)
    learner, metrics = iteration(
        played.recipe,
        actor,
        make_learner(
            actor.policy,
            jax.tree.map(jnp.copy, actor.params),
            small.optimizer(),
            actor.allowed,
            micro_batches=2,
        ),
        itertools.repeat(small.samples()),
        jax.random.key(1),
    )
    logged = as_floats(metrics)
    assert all(isinstance(mean, Mean | Max) for mean in metrics.values())
    assert 0 < logged["actor/grad_norm"] < np.inf
    assert logged["training/skipped"] == 0
    assert int(learner.step) == 1
    for part in ("table", "look"):  # what it does with the picture changes too
        assert float(jnp.abs(learner.params[part] - before[part]).max()) > 0
