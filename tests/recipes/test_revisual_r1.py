"""ReVisual-R1: who is drawn, and that the others teach nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vrl_jax.recipes.revisual_r1 import KEPT, distilled, efficient, revisual_r1
from vrl_jax.types import Episode, Likelihood, Turn

from ..fixtures import small

WORKED = jnp.array([0, 0.02, 0.5, -0.5, 0.9, -0.1, 1.5, 0])  # the sheet's advantages


def drawn(seed=0, advantages=WORKED, **how):
    kept = distilled(jax.random.key(seed), advantages, **{"share": 0.5, **how})
    return np.flatnonzero(kept).tolist()


def test_the_worked_batch():
    """E = {2, 3, 4, 5} under the configuration's bounds; k = ceil(0.5 x 8) = 4."""
    assert drawn(high=0.97) == [2, 3, 4, 5]
    assert drawn(share=1.0, high=0.97) == [2, 3, 4, 5]  # min(k, |E|)
    assert drawn(share=1.0) == [2, 3, 4, 5, 6]  # the paper's only right answer stays
    some = [drawn(seed, share=0.25, high=0.97) for seed in range(20)]
    assert {len(one) for one in some} == {2} and len({*map(tuple, some)}) > 1
    assert {row for one in some for row in one} <= {2, 3, 4, 5}


def test_colder_is_greedier():
    """exp(|A| / tau): at a low temperature the largest is always drawn."""
    one = [drawn(seed, share=0.125, tau=0.01) for seed in range(20)]
    assert one == [[6]] * 20
    assert len({tuple(drawn(seed, share=0.125, tau=10.0)) for seed in range(20)}) > 2


def test_without_any_signal_all_stay():
    assert drawn(advantages=jnp.zeros(4)) == [0, 1, 2, 3]


def test_what_is_not_drawn_teaches_nothing_and_counts_nothing():
    recipe = revisual_r1(group_size=small.GROUP, share=0.25)
    actor = small.actor(step=3, total_steps=10)
    rollout = recipe.act(actor, iter([small.samples()]), jax.random.key(0))
    kept = np.asarray(rollout.reward_parts[KEPT]).astype(bool)
    assert kept.sum() == len(kept) / 4
    batch, _ = recipe.credit(rollout)

    def loss(shift):
        new = jnp.where(batch.mask, batch.old_logprobs + shift, 0)
        return recipe.loss(lambda _: Likelihood(new, 0 * new), batch)[0]

    mean = loss(jnp.zeros(batch.mask.shape))
    assert mean.weight == batch.mask[kept].sum()
    slope = jax.grad(lambda shift: loss(shift).total)(jnp.zeros(batch.mask.shape))
    np.testing.assert_array_equal(slope[~kept], 0)
    told = kept[:, None] & np.asarray(batch.mask)
    # On-policy the gradient of a token is its advantage, of the whole group's rewards.
    np.testing.assert_allclose(slope[told], -batch.advantages[told], rtol=1e-5)
    other = dataclasses.replace(rollout, rewards=rollout.rewards * 2)
    again, _ = recipe.credit(other)
    np.testing.assert_allclose(again.advantages, batch.advantages, rtol=1e-4)


def loss_of(recipe, new, advantage=1.0):
    """Of two drawn responses of one token each, at log-prob `new`, before at 0."""
    rollout = dataclasses.replace(
        small.scored([0.0, 0.0]), reward_parts={KEPT: jnp.ones(2)}
    )
    batch, _ = recipe.credit(rollout)
    batch = dataclasses.replace(batch, advantages=jnp.full((2, 1), advantage))
    shown = jnp.full((2, 1), new)
    mean, _ = recipe.loss(lambda _: Likelihood(shown, 0 * shown), batch)
    return float(mean.total / mean.weight)


def test_clips_and_entropy_by_hand():
    """Ratios 1.3 and 0.7 against the bounds 0.2 and 0.25, and -0.1 H."""
    plain = revisual_r1(group_size=2)
    assert loss_of(plain, np.log(1.3)) == pytest.approx(-1.25, rel=1e-5)
    assert loss_of(plain, np.log(0.7), -1.0) == pytest.approx(0.8, rel=1e-5)
    assert loss_of(plain, np.log(5.0), -1.0) == pytest.approx(3.0, rel=1e-5)  # dual
    exploring = revisual_r1(group_size=2, entropy_weight=0.1)
    new = np.log(0.9)  # the sampled token says -log 0.9 of the entropy
    wanted = -0.9 - 0.1 * -new
    assert loss_of(exploring, new) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(("step", "tau"), [(0, 1.0), (5, 0.65), (10, 0.3), (11, 0.3)])
def test_the_temperature_falls_over_training(monkeypatch, step, tau):
    seen = []

    def noting(key, advantages, *, tau, **bounds):
        seen.append(tau)
        return jnp.ones(len(advantages), bool)

    monkeypatch.setattr("vrl_jax.recipes.revisual_r1.distilled", noting)
    actor = small.actor(step=step, total_steps=11)
    revisual_r1(group_size=small.GROUP).act(
        actor, iter([small.samples()]), jax.random.key(0)
    )
    assert seen == [pytest.approx(tau)]


@pytest.mark.parametrize(("count", "worth"), [(2100, 0), (1950, 0.75), (1900, 1)])
def test_length_is_paid_right_or_wrong(count, worth):
    """The sheet's lengths at alpha 0.005, delta 0.5, budget 2000."""
    turn = Turn("no", tuple(range(count)))
    episode = Episode(small.samples()[0], "?", (turn,), True)
    reward = efficient(lambda episodes: [0.0] * len(episodes), budget=2000)
    (score,) = reward([episode])
    assert score["length"] == pytest.approx(worth, abs=1e-5)
    assert score["overall"] == pytest.approx(0.05 * worth, abs=1e-6)
