"""The recipe that most papers are, and which of its parts each of them takes."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from vrl_jax.engine.reference import near
from vrl_jax.recipes.grpo import grpo
from vrl_jax.types import Likelihood

from ..fixtures import small

ROWS = jnp.array([[1, 0, 0], [1, 1, 1]] * 2, bool)
"""A response of one token and one of three, twice."""

PLAIN, DUAL = (5 - 1.2) / 2, (3 - 3 * 1.2) / 4
HIGHER = (3 - 3 * 1.25) / 4


def batch(recipe):
    """Advantage -1 for the short responses, 1 for the long ones."""
    scored = small.scored([0.0, 1.0] * 2)
    rollout = dataclasses.replace(
        scored,
        tokens=jnp.zeros(ROWS.shape, int),
        mask=ROWS,
        old_logprobs=jnp.zeros(ROWS.shape),
        extra_logprobs={"reference": jnp.where(ROWS, 1.0, jnp.nan)},
    )
    found, metrics = recipe.credit(rollout)
    given = jnp.broadcast_to(jnp.array([[-1.0], [1.0]] * 2), ROWS.shape)
    return dataclasses.replace(found, advantages=given), metrics


def loss(recipe, ratios):
    new = Likelihood(jnp.where(ROWS, jnp.log(ratios), 0.0), jnp.ones(ROWS.shape))
    mean, metrics = recipe.loss(lambda _: new, batch(recipe)[0])
    return mean.total / mean.weight, metrics


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("grpo", PLAIN),
        ("visual_rft", PLAIN),
        ("satori", PLAIN),
        ("q_insight", PLAIN),
        ("vicrit", PLAIN),
        ("curr_reft", PLAIN),
        ("v_triune", (5 - 3 * 1.25) / 4),
        ("racro", DUAL),
        ("vision_sr1", HIGHER),
        ("perception_r1", HIGHER),
    ],
)
def test_clips_and_means_by_hand(name, wanted):
    """Ratio 5 where A is -1, 1.25 where it is 1; sequence mean, or dual clip, token."""
    found, _ = loss(small.recipe(name), jnp.array([[5.0], [1.25]] * 2))
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_the_anchor_is_paid_for_each_token():
    """The reference one nat above: k3 = e - 2 each, weight 0.5, beside A r = 0."""
    recipe = grpo(group_size=4, anchor=near({}, weight=0.5))
    found, metrics = loss(recipe, jnp.ones((4, 1)))
    np.testing.assert_allclose(found, 0.5 * (np.e - 2), rtol=1e-5)
    kl = metrics["actor/kl_loss"]
    np.testing.assert_allclose(kl.total / kl.weight, np.e - 2, rtol=1e-5)
    np.testing.assert_allclose(metrics["actor/pg_loss"].total, 0, atol=1e-6)
    assert batch(recipe)[1]["actor/kl_coef"].total == 0.5
