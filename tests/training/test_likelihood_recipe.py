"""The recipe of demonstrations: how rows are weighed, and what divides."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from vrl_jax import reductions
from vrl_jax.training.likelihood_recipe import likelihood_recipe
from vrl_jax.training.metrics import as_floats
from vrl_jax.types import Likelihood

from ..fixtures import small

MASK = jnp.array([[1, 1, 1], [1, 0, 0], [0, 0, 0]], bool)
NEW = jnp.array([[-1, -2, -6], [-5, 9, 9], [9, 9, 9]], jnp.float32)


def logged(**how):
    recipe = likelihood_recipe(None, **how)
    rollout = dataclasses.replace(small.scored([jnp.nan] * 3), mask=MASK)
    batch, credited = recipe.credit(rollout)
    new = Likelihood(jnp.where(MASK, NEW, 0), jnp.where(MASK, 2.0, 0))
    mean, metrics = recipe.loss(lambda _: new, batch)
    assert credited == {} and recipe.score(None, rollout, None) is rollout
    return as_floats({"loss": mean, **metrics})


def test_tokens_or_rows_count_once():
    """By hand: 14 / 4 tokens, (9 / 3 + 5) / 2 rows; a row without tokens is none."""
    found = logged(reduction=reductions.token_mean)
    assert found == {"loss": 3.5, "sft/loss": 3.5, "actor/entropy": 2}
    assert logged(reduction=reductions.sequence_mean)["loss"] == 4


def test_a_row_weighs_what_is_said_of_its_mask():
    """(2 9 / 3 + 0.5 5) / 2: a weight is in the sum and not in the divisor."""
    found = logged(
        reduction=reductions.sequence_mean,
        weights=lambda mask: jnp.where(mask.sum(axis=1) == 3, 2.0, 0.5),
        measure=lambda new, batch: {
            "my/weight": reductions.token_mean(batch.advantages, batch.mask)
        },
    )
    np.testing.assert_allclose(found["loss"], 4.25)
    np.testing.assert_allclose(found["my/weight"], 6.5 / 4)
