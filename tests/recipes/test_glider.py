"""GLIDER: the sheet's three subtasks, rows as they come, a critic that learns."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vrl_jax import masked, objectives
from vrl_jax.engine.desk import Limits
from vrl_jax.models.critic import parts
from vrl_jax.models.trained import also, critic, language, only
from vrl_jax.recipes.glider import (
    advantage,
    exp_advantage,
    glider,
    glider_cloning,
    judged,
    q_weight,
    sarsa_targets,
)
from vrl_jax.training.average import following
from vrl_jax.training.iteration import as_batch, iteration
from vrl_jax.training.learner import adamw, make_learner
from vrl_jax.training.metrics import as_floats
from vrl_jax.types import Likelihood

from ..fixtures import small, toy

# Three subtasks, of 2, 1 and 3 tokens, with what was told between them: r, Q', Q, V and
# mean log-probs of the worked example of the method's notes; gamma is 0.99.
MASK = jnp.array([[1, 1, 0, 1, 0, 0, 1, 1, 1, 0]], bool)
FIRST, LAST = (0, 3, 6), (1, 3, 8)
REWARDS = (0.2, 0.3, 0.5)
TARGET, Q = (0.6, 0.7, 0.4), (0.5, 0.6, 0.3)
CLOSE, FAR = (0.55, 0.65, 0.35), (0.7, 0.6, 0.35)
LOGPROBS = jnp.array([[-1.5, -0.5, 9, -2, 9, 9, -0.1, -0.6, -0.8, 9]])


def at(places, numbers, elsewhere=7.0):
    """The numbers where the loss should look; elsewhere what would show."""
    return jnp.full((1, 10), elsewhere).at[0, jnp.array(places)].set(jnp.array(numbers))


def scored(rewards=REWARDS, mask=MASK):
    rows = len(mask)
    return dataclasses.replace(
        small.scored([math.nan] * rows),
        mask=mask,
        tokens=jnp.zeros(mask.shape, int),
        old_logprobs=jnp.zeros(mask.shape),
        extra={"reward": at(LAST, rewards, 0.0)},
    )


def told(values):
    said = {"q": at(LAST, Q), "target": at(LAST, TARGET), "value": at(FIRST, values)}
    zeros = jnp.zeros(LOGPROBS.shape)
    off = {name: jnp.where(MASK, x, 0) for name, x in said.items()}
    return Likelihood(jnp.where(MASK, LOGPROBS, 0), zeros, off)


def logged(recipe, values, rollout=None):
    batch, _ = recipe.credit(rollout or scored())
    mean, metrics = recipe.loss(lambda _: told(values), batch)
    return float(mean.total / mean.weight), as_floats(metrics)


def test_the_worked_targets_and_error():
    """y = [.893, .696, .5], L_Q = .067888."""
    wanted = [[0.893, 0.696, 0.5]]
    found = sarsa_targets(jnp.array([REWARDS]), jnp.array([TARGET]))
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    _, metrics = logged(glider(), CLOSE)
    assert metrics["critic/q_loss"] == pytest.approx(0.067888, abs=1e-6)
    assert metrics["critic/q"] == pytest.approx(np.mean(Q))
    assert metrics["critic/value"] == pytest.approx(np.mean(CLOSE))
    assert metrics["critic/target_gap"] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("weight", "expected"),
    [(q_weight, 0.733333), (advantage, 0.058333), (exp_advantage, 1.226483)],
)
def test_the_worked_policy_losses(weight, expected):
    """Advantages of .05 each; the exponential's weights are 1.051271."""
    _, metrics = logged(glider(weight=weight), CLOSE)
    assert metrics["actor/pg_loss"] == pytest.approx(expected, abs=1e-6)
    if weight is exp_advantage:
        assert metrics["actor/weight"] == pytest.approx(1.051271, abs=1e-6)


def test_the_worked_expectile():
    """.004083; with the weights swapped, as in the flat code, .003417."""
    for expectile, expected in ((0.9, 0.004083), (0.1, 0.003417)):
        _, metrics = logged(glider(expectile=expectile), FAR)
        assert metrics["critic/vf_loss"] == pytest.approx(expected, abs=1e-6)
        found = objectives.expectile_loss(
            jnp.array(FAR), jnp.array(TARGET), expectile=expectile
        )
        assert float(found.mean()) == pytest.approx(expected, abs=1e-6)


def test_the_loss_is_the_sum_of_the_worked_parts():
    loss, _ = logged(glider(weight=q_weight), FAR)
    assert loss == pytest.approx(0.733333 + 0.067888 + 0.004083, abs=2e-6)


def test_the_worked_target_step():
    """tau .2: .8 * .6 + .2 * .5 = .58, of the q that the update made."""
    params = {
        "critic": {"q": {"w": jnp.array([1.5])}, "target": {"w": jnp.array([0.6])}}
    }
    optimizer = following(optax.sgd(1.0), "q", "target", rate=0.2)
    state = optimizer.init(params)
    grads = {
        "critic": {"q": {"w": jnp.array([1.0])}, "target": {"w": jnp.array([9.0])}}
    }
    updates, _ = optimizer.update(grads, state, params)
    moved = optax.apply_updates(params, updates)["critic"]
    np.testing.assert_allclose(moved["q"]["w"], 0.5)
    np.testing.assert_allclose(moved["target"]["w"], 0.58, rtol=1e-6)


def test_exp_advantage_is_bounded():
    gains = jnp.array([[1.0, 100.0, -2.0]])
    found = exp_advantage(gains, jnp.zeros((1, 3)), temperature=0.5)
    np.testing.assert_allclose(found, [[math.exp(2), 20, math.exp(-4)]], rtol=1e-5)


def test_gradients_go_where_they_should():
    """To log-probs, V and Q; neither a weight nor a target learns from its use."""
    recipe = glider()
    batch, _ = recipe.credit(scored())

    def loss(new):
        mean, _ = recipe.loss(lambda _: new, batch)
        return mean.total / mean.weight

    slope = jax.grad(loss)(told(FAR))
    weights = np.exp(np.array(TARGET) - np.array(FAR))
    lengths = np.array([2, 1, 3])
    number = np.asarray(masked.numbered(MASK))[0]
    wanted = np.where(MASK[0], -(weights / lengths)[number] / 3, 0)
    np.testing.assert_allclose(slope.logprobs[0], wanted, rtol=1e-5)
    # d/dV |tau - 1(u < 0)| u^2 = -2 |..| u,  d/dQ (Q - y)^2 = 2 (Q - y), a third each.
    u = np.array(TARGET) - np.array(FAR)
    of_v = -2 * np.where(u < 0, 0.1, 0.9) * u / 3
    of_q = 2 * (np.array(Q) - np.array([0.893, 0.696, 0.5])) / 3
    for name, places, numbers in (("value", FIRST, of_v), ("q", LAST, of_q)):
        np.testing.assert_allclose(
            slope.values[name], at(places, numbers, 0.0), rtol=1e-4, atol=1e-7
        )
    assert not slope.values["target"].any()


def test_rows_without_rewards_are_cloned():
    rollout = scored((math.nan,) * 3)
    loss, metrics = logged(glider(), CLOSE, rollout)
    lp = (-1 - 2 - 0.5) / 3
    assert loss == pytest.approx(-lp) and metrics["sft/loss"] == pytest.approx(-lp)
    assert math.isnan(metrics["critic/q_loss"])
    loss, metrics = logged(glider_cloning(), CLOSE)
    assert loss == pytest.approx(-lp) and metrics["sft/loss"] == pytest.approx(-lp)


def test_each_kind_has_a_mean_of_its_own():
    """One action with a reward beside three without: half of the loss is its."""
    mask = jnp.concatenate([MASK, MASK & (jnp.arange(10) < 2)])
    reward = jnp.zeros((2, 10)).at[0, jnp.array(LAST)].set(jnp.nan).at[1, 1].set(1.0)
    rollout = dataclasses.replace(scored(mask=mask), extra={"reward": reward})
    batch, _ = glider().credit(rollout)
    logprobs = jnp.where(mask, jnp.concatenate([LOGPROBS, LOGPROBS]), 0)
    new = Likelihood(logprobs, jnp.zeros((2, 10)), {})
    mean, _ = glider_cloning().loss(lambda _: new, batch)
    assert float(mean.total / mean.weight) == pytest.approx(3.5 / 3 + 1.0)


def row(number=0, **columns):
    """Two turns, the second with a picture."""
    sample = small.samples()[0]
    columns = {
        "asks": ["What is it?", "<image>or is it"],
        "demonstration": ["it is", "one"],
        "rewards": [0.25, 0.75],
        **columns,
    }
    name = f"{sample.id}-{number}"
    return dataclasses.replace(sample, id=name, annotations=columns)


LIMITS = Limits(row_tokens=40, pictures=2)


def test_rewards_lie_where_the_actions_end():
    rows = [row(0), row(1, rewards=None)]
    recipe = glider(limits=LIMITS)
    rollout = recipe.act(toy.actor(), iter([rows]), jax.random.key(0))
    last = np.asarray(masked.ends(rollout.mask))
    assert last.sum(axis=1).tolist() == [2, 2]
    reward = np.asarray(rollout.extra["reward"])
    np.testing.assert_array_equal(reward[0][last[0]], [0.25, 0.75])
    assert np.isnan(reward[1][last[1]]).all()
    assert not reward[~last].any()
    ends = np.asarray(rollout.tokens)[last]
    assert set(ends.tolist()) == {int(toy.actor().stop_ids[0])}


@pytest.mark.parametrize(
    "rewards", [[1.0], [1.0, 2.0, 3.0], [1.0, math.nan], [1.0, "x"], 1.0, []]
)
def test_wrong_rewards_are_named(rewards):
    with pytest.raises(ValueError, match=r"row-0-0 needs in the column 'rewards'"):
        glider(limits=LIMITS).act(
            toy.actor(), iter([[row(rewards=rewards)]]), jax.random.key(0)
        )


def test_a_policy_without_critics_is_told():
    batch = as_batch(scored(), jnp.ones((1, 1)), scored().extra)
    bare = Likelihood(LOGPROBS, LOGPROBS)
    with pytest.raises(ValueError, match=r"judged.*no q, target, value"):
        glider().loss(lambda _: bare, batch)


def test_the_critic_learns_and_its_target_follows():
    """One trajectory pays 0.25 and 0.75, the other nothing; the tower is frozen."""
    plain = toy.actor()
    policy, params = judged(plain.policy, plain.params, jax.random.key(0))
    jax.tree.map(
        np.testing.assert_array_equal, params["critic"]["q"], params["critic"]["target"]
    )
    rates = {"critic": adamw(0.01), "policy": adamw(0.01)}
    optimizer = following(optax.multi_transform(rates, parts), "q", "target", rate=0.2)
    learner = make_learner(
        policy, params, optimizer, plain.allowed, trains=also(critic, only(language))
    )
    actor = dataclasses.replace(plain, policy=policy)
    good, bad = row(0), row(1, demonstration=["what", "it"], rewards=[0.0, 0.0])
    recipe, history = glider(limits=LIMITS), []
    samples = itertools.repeat([good, bad])
    for number in range(40):
        before = np.array(learner.params["critic"]["target"]["last"]["kernel"])
        learner, metrics = iteration(
            recipe, actor, learner, samples, jax.random.key(number)
        )
        history.append(as_floats(metrics))
        own = learner.params["critic"]
        wanted = 0.8 * before + 0.2 * own["q"]["last"]["kernel"]
        np.testing.assert_allclose(own["target"]["last"]["kernel"], wanted, atol=1e-6)
    errors = [one["critic/q_loss"] for one in history]
    assert errors[-1] < 0.1 * errors[0]
    assert history[-1]["actor/weight"] != 1
    vision = learner.params["vision"]
    jax.tree.map(np.testing.assert_array_equal, vision, params["vision"])
