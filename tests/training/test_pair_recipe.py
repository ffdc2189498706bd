"""The recipe of preferences: which rows are a pair, and which pairs count."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from vrl_jax.training.metrics import as_floats
from vrl_jax.training.pair_recipe import pair_recipe
from vrl_jax.types import Likelihood

from ..fixtures import small

MASK = jnp.array([[1, 1], [1, 0], [1, 0], [0, 0], [1, 1], [1, 1]], bool)
"""Three pairs; of the second, nothing is rejected."""

NEW = jnp.array([[-1, -2], [-4, 9], [-7, 9], [9, 9], [-3, -3], [-1, -1]], jnp.float32)
REFERENCE = jnp.full(MASK.shape, -2.0)


def played(pair_loss, *, steps=None, **columns):
    named = {"steps": steps} if steps else {}
    recipe = pair_recipe(None, pair_loss=pair_loss, **named)
    rollout = dataclasses.replace(
        small.scored([1.0, 0.0] * 3),
        mask=MASK,
        extra_logprobs={"reference": REFERENCE},
        **columns,
    )
    batch, _ = recipe.credit(rollout)
    new = Likelihood(jnp.where(MASK, NEW, 0), jnp.ones(MASK.shape))
    mean, metrics = recipe.loss(lambda _: new, batch)
    return mean, as_floats(metrics), batch


def test_a_loss_is_given_both_sides_of_each_pair():
    seen = []

    def pair_loss(chosen, rejected):
        seen.append((chosen, rejected))
        return chosen.gain

    mean, _, batch = played(pair_loss)
    ((chosen, rejected),) = seen
    np.testing.assert_array_equal(chosen.gain, [1, -5, -2])
    np.testing.assert_array_equal(rejected.gain, [-2, 0, 2])
    np.testing.assert_array_equal(chosen.logprob, [-3, -7, -6])
    np.testing.assert_array_equal(rejected.logprob, [-4, 0, -2])
    np.testing.assert_array_equal(batch.advantages[:, 0], [1, -1] * 3)
    assert (mean.total, mean.weight) == (1 - 2, 2)


def test_a_pair_without_one_of_its_sides_counts_nowhere():
    """Of pairs one and three, by hand."""
    _, metrics, _ = played(lambda chosen, rejected: chosen.gain)
    assert metrics["rewards/margins"] == (3 - 4) / 2
    assert metrics["rewards/accuracies"] == 0.5
    assert metrics["logps/chosen"] == (-3 - 6) / 2
    assert metrics["logps/rejected"] == (-4 - 2) / 2


def test_steps_have_weights_and_are_told_apart():
    """Pair one is a look, pair three what is said; by hand, of their gains."""
    mean, metrics, _ = played(
        lambda chosen, rejected: chosen.gain,
        steps={"look": 0.25, "say": 1.0},
        place=jnp.array([0, 0, 0, 0, 1, 1]),
    )
    assert mean.total / mean.weight == 0.25 * 1 + 1.0 * -2
    assert (metrics["actor/look_loss"], metrics["actor/say_loss"]) == (1, -2)
    margins = [metrics[f"rewards/{step}_margins"] for step in ("look", "say")]
    right = [metrics[f"rewards/{step}_accuracies"] for step in ("look", "say")]
    assert (margins, right) == ([3, -4], [1, 0])
    assert metrics["rewards/margins"] == (3 - 4) / 2  # of both, unweighed


def test_without_steps_all_pairs_of_an_episode_weigh_the_same():
    mean, metrics, _ = played(
        lambda chosen, rejected: chosen.gain, place=jnp.array([0, 0, 0, 0, 1, 1])
    )
    assert (mean.total, mean.weight) == (1 - 2, 2)
    assert not any("step" in name or "_loss" in name for name in metrics)
