"""PPO: the released loss, what a missing reward leaves alone, and that it learns."""

import dataclasses
import functools
import itertools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vrl_jax import divergences, objectives
from vrl_jax.engine.reference import near
from vrl_jax.models.critic import linear, parts, with_critics
from vrl_jax.models.trained import also, critic, language, only
from vrl_jax.recipes.ppo import ppo, value_metrics
from vrl_jax.training.iteration import iteration
from vrl_jax.training.learner import adamw, make_learner
from vrl_jax.training.loop import Stage, train
from vrl_jax.training.metrics import as_floats
from vrl_jax.types import Likelihood

from ..fixtures import small, toy

CASES = json.loads(
    (Path(__file__).parents[1] / "golden/objectives_cases.json").read_text()
)
INPUTS = CASES["inputs"]
MASK = np.array(INPUTS["response_mask"]) > 0
ROW, COLUMN = np.arange(8)[:, None], np.arange(4)
VALUES = (3 * ROW + 5 * COLUMN) % 7 / 10 - 0.1
"""What the critic said: -0.1 to 0.5."""
PREDICTED = VALUES + ((2 * ROW + 3 * COLUMN) % 5 - 2) * 0.4
"""What it says now: up to 0.8 away, so that both bands clip."""


def scored(rewards=INPUTS["rewards"], values=VALUES, mask=MASK):
    return dataclasses.replace(
        small.scored(rewards),
        mask=jnp.array(mask),
        tokens=jnp.zeros(mask.shape, int),
        old_logprobs=jnp.array(INPUTS["old_logp"]),
        extra_logprobs={"reference": jnp.array(INPUTS["ref_logp"])},
        extra={"value": jnp.array(values)},
    )


@functools.partial(jax.jit, static_argnums=0)
def step(recipe, rollout, logprobs, values):
    """The divided loss, its slopes, everything that is logged."""
    batch, credited = recipe.credit(rollout)

    def loss(logprobs, values):
        new = Likelihood(logprobs, jnp.zeros_like(logprobs), {"value": values})
        mean, metrics = recipe.loss(lambda _: new, batch)
        return mean.total / mean.weight, metrics

    both = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    (value, metrics), slopes = both(logprobs, values)
    return value, slopes, {**credited, **metrics}, batch


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (
            lambda: ppo(),
            {
                "actor/pg_loss": 0.14414829618020014,
                "critic/vf_loss": 0.4096,
                "critic/vf_clipfrac": 0.12,
                "critic/vf_explained_var": -0.36435733693778194,
                "critic/returns/mean": 0.5,
                "critic/returns/max": 1.0,
                "critic/values/min": -0.1,
                "squares": (0.0674111582559575, 0.00031536),
                "first": [1.42104793, 0.55030778, 0.89860384, 1.2468999],
                "row 4": [0.0028, -0.0012, 0.0028, 0.0016],
            },
        ),
        (
            lambda: ppo(
                decay=0.95,
                value_clip=0.2,
                anchor=near(None, weight=0.05, divergence=divergences.k1),
            ),
            {
                "actor/pg_loss": 0.15247084171313458,
                "critic/vf_loss": 0.4044252422961086,
                "critic/vf_clipfrac": 0.2,
                "critic/vf_explained_var": -0.4058416896131034,
                "critic/returns/mean": 0.479302635,
                "critic/returns/max": 1.02,
                "critic/values/min": -0.1,
                "squares": (0.06999641274084602, 0.0002918419631546369),
                "first": [1.37395373, 0.49820132, 0.91885241, 1.39561798],
                "row 4": [0.0027101325, -0.00123565, 0.002733, 0.00166],
            },
        ),
    ],
    ids=["as in verl", "with TRL's numbers"],
)
def test_golden(make, expected):
    """By verl's `compute_gae_advantage_return` and `compute_value_loss`.

    Of verl/trainer/ppo/core_algos.py at 012be9d, in torch, float64, with masked_mean of
    max(-A r, -A clip(r)) beside them; clip 0.2, 0.1 of the value loss.
    """
    with jax.enable_x64(True):
        recipe = make()
        value, slopes, metrics, batch = step(
            recipe, scored(), jnp.array(INPUTS["logp"]), jnp.array(PREDICTED)
        )
        logged = as_floats(metrics)
    for name in (name for name in expected if "/" in name):
        np.testing.assert_allclose(logged[name], expected[name], rtol=1e-7)
    total = expected["actor/pg_loss"] + 0.1 * expected["critic/vf_loss"]
    np.testing.assert_allclose(value, total, rtol=1e-7)
    slopes = [np.asarray(slope) for slope in slopes]
    squares = [np.sum(slope**2) for slope in slopes]
    np.testing.assert_allclose(squares, expected["squares"], rtol=1e-7)
    np.testing.assert_allclose(slopes[1][4], expected["row 4"], rtol=1e-7, atol=1e-12)
    np.testing.assert_allclose(batch.advantages[0], expected["first"], rtol=1e-6)


def test_a_response_by_hand():
    """R = 1, V = .5, .25: with gamma and lambda 1 the gain is R - V, the return R."""
    rollout = dataclasses.replace(
        small.scored([1.0]),
        mask=jnp.ones((1, 2), bool),
        old_logprobs=jnp.zeros((1, 2)),
        extra={"value": jnp.array([[0.5, 0.25]])},
    )
    batch, metrics = ppo().credit(rollout)
    np.testing.assert_allclose(batch.extra["returns"], [[1, 1]])
    # .5 and .75, less their mean, over their std of .25 / sqrt(2).
    np.testing.assert_allclose(batch.advantages, [[-(0.5**0.5), 0.5**0.5]], rtol=1e-6)
    new = Likelihood(jnp.zeros((1, 2)), jnp.zeros((1, 2)), {"value": jnp.ones((1, 2))})
    mean, logged = ppo(value_weight=2.0).loss(lambda _: new, batch)
    # V = 1 = R, but the band ends at .5 + .5 = 1 and .25 + .5 = .75: .25^2 / 2 / 2.
    found = as_floats(logged)
    assert found["critic/vf_loss"] == 0.25**2 / 4
    assert found["critic/vf_clipfrac"] == 0.5
    assert float(mean.total / mean.weight) == pytest.approx(0.25**2 / 2)
    assert as_floats(metrics)["critic/vf_explained_var"] < 0


def test_explained_variance():
    values, returns = jnp.array([[0.0, 1.0, jnp.nan]]), jnp.array([[1.0, 3.0, 7.0]])
    mask = jnp.array([[True, True, False]])

    def explained(values):
        named = as_floats(value_metrics(values, returns, mask))
        return named["critic/vf_explained_var"]

    assert explained(returns) == 1
    # var(1, 2) / var(1, 3) = 1 / 4.
    assert explained(values) == pytest.approx(0.75, abs=1e-5)
    assert explained(jnp.zeros((1, 3))) == pytest.approx(0, abs=1e-5)


def test_what_has_no_reward_trains_neither():
    rewards = np.array(INPUTS["rewards"])
    rewards[2] = np.nan
    poisoned = np.where(np.arange(8)[:, None] == 2, 1e3, VALUES)
    without = MASK & (np.arange(8) != 2)[:, None]
    tables = jnp.array(INPUTS["logp"]), jnp.array(PREDICTED)
    recipe = ppo()
    value, slopes, metrics, _ = step(recipe, scored(rewards, poisoned), *tables)
    rest = step(recipe, scored(np.nan_to_num(rewards), mask=without), *tables)
    np.testing.assert_allclose(value, rest[0], rtol=1e-5)
    for slope, other in zip(slopes, rest[1], strict=True):
        np.testing.assert_allclose(slope, other, rtol=1e-5, atol=1e-8)
        assert not slope[2].any() and slope[0].any()
    named = as_floats(metrics)
    assert named["critic/values/max"] < 1 and np.isfinite([*named.values()]).all()


def test_an_anchor_pays_at_every_token():
    rollout = scored()
    anchor = near(None, weight=0.5, divergence=divergences.k1)
    batch, _ = ppo(anchor=anchor).credit(rollout)
    plain, _ = ppo().credit(rollout)
    distance = (np.array(INPUTS["old_logp"]) - np.array(INPUTS["ref_logp"])) * MASK
    later = np.cumsum(distance[:, ::-1], axis=1)[:, ::-1]
    paid = (plain.extra["returns"] - batch.extra["returns"])[MASK]
    np.testing.assert_allclose(paid, 0.5 * later[MASK], atol=1e-6)


def test_dual_clip_as_in_verl():
    recipe = ppo(surrogate=objectives.dual_clipped_surrogate)
    batch, _ = recipe.credit(scored())
    far = jnp.where(MASK, batch.old_logprobs + 2, 0)
    new = Likelihood(far, jnp.zeros((8, 4)), {"value": jnp.zeros((8, 4))})
    bounded, plain = (
        as_floats(one.loss(lambda _: new, batch)[1])["actor/pg_loss"]
        for one in (recipe, ppo())
    )
    assert bounded < plain


def test_a_critic_that_has_not_moved_is_not_clipped():
    values = jnp.array(np.random.RandomState(0).randn(1, 999), jnp.float32)
    told = objectives.value_clip_fraction(values, values + 1e-3, -values)
    assert not told.any()


def even_share(episodes):
    """The share of even ids among all that was written."""
    tokens = [episode.turns[0].tokens for episode in episodes]
    return [{"overall": float(np.mean([t % 2 == 0 for t in ids]))} for ids in tokens]


def toy_actor():
    plain = toy.actor(reward=even_share)
    policy, params = with_critics(
        plain.policy, plain.params, jax.random.key(0), {"value": linear}
    )
    return dataclasses.replace(plain, policy=policy, params=params)


def test_a_reference_needs_no_critic():
    actor, plain = toy_actor(), toy.actor()
    recipe = ppo(anchor=near(plain.params, weight=0.1))
    rollout = recipe.act(actor, iter([small.samples()]), jax.random.key(0))
    assert rollout.tokens.shape[0] == len(small.samples())  # a group of 1
    found = recipe.score(actor, rollout, None)
    np.testing.assert_allclose(
        found.extra_logprobs["reference"], rollout.old_logprobs, atol=1e-5
    )
    assert not found.extra["value"].any()  # linear critics begin at 0
    with pytest.raises(ValueError, match=r"no critic 'value'.*with_critics"):
        recipe.score(plain, rollout, None)


def test_the_reward_rises_and_the_critic_learns():
    actor, recipe, history = toy_actor(), ppo(group_size=8), []
    rates = {"critic": adamw(0.03), "policy": adamw(0.03)}
    optimizer = optax.multi_transform(rates, parts)
    learner = make_learner(actor.policy, actor.params, optimizer, actor.allowed)
    for number in range(14):
        batches, key = iter([small.samples()]), jax.random.key(number)
        learner, metrics = iteration(recipe, actor, learner, batches, key)
        history.append(as_floats(metrics))

    def early_and_late(name):
        numbers = [row[name] for row in history]
        return numbers[0], np.mean(numbers[-4:])

    before, after = early_and_late("critic/score/mean")
    assert after > before + 0.15
    before, after = early_and_late("critic/vf_loss")
    assert after < 0.6 * before


def test_a_killed_run_goes_on_with_its_critic(tmp_path):
    """Policy without its tower, and critic, each at a rate of its own."""
    begun = toy_actor()
    rates = {"critic": adamw(1e-1), "policy": adamw(1e-2)}
    stage = Stage(
        "rl",
        ppo(),
        small.samples(),
        steps=3,
        prompts_per_step=4,
        optimizer=optax.multi_transform(rates, parts),
        trains=also(critic, only(language)),
        evaluate_every=1,
    )

    def run(folder, kill_at=0):
        calls = itertools.count(1)

        def evaluate(actor):
            if next(calls) == kill_at:
                raise InterruptedError
            return {}

        return train(
            [stage],
            begun,
            folder=tmp_path / folder,
            seed=0,
            evaluate=evaluate,
            checkpoint_every=1,
        ).params

    whole = run("whole")
    with pytest.raises(InterruptedError):
        run("broken", kill_at=3)
    jax.tree.map(np.testing.assert_array_equal, run("broken"), whole)
    assert whole["critic"]["value"]["last"]["kernel"].any()
    jax.tree.map(np.testing.assert_array_equal, whole["vision"], begun.params["vision"])
