"""VPPO by the full KL: the recipe's own score, end to end, on a small policy."""

import itertools

import jax
import numpy as np
import pytest

from vrl_jax import perception
from vrl_jax.recipes import vppo

from ..fixtures import small


@pytest.fixture(scope="module")
def played():
    recipe = vppo.vppo(group_size=small.GROUP, scoring=vppo.full_kl)
    actor = small.chain_actor()
    batches = itertools.repeat(small.samples())
    acted = recipe.act(actor, batches, jax.random.key(0))
    return recipe, actor, acted, recipe.score(actor, acted, jax.random.key(1))


def test_full_kl_is_never_negative_and_0_without_a_picture(played):
    _, _, acted, scored = played
    assert acted.states is not None and scored.states is None
    found = np.asarray(scored.divergences["blackened"])
    assert found.min() >= 0
    sees = np.asarray(scored.prompts.images.frames > 0).any(axis=1)
    by_prompt = found.reshape(len(sees), -1)
    assert (by_prompt[sees].max(axis=1) > 0).all()
    np.testing.assert_array_equal(by_prompt[~sees], 0)
    np.testing.assert_array_equal(found[~np.asarray(scored.mask)], 0)


def test_full_kl_chooses_the_tokens_that_train(played):
    recipe, _, _, scored = played
    batch, metrics = recipe.credit(scored)
    chosen = perception.top_share(scored.divergences["blackened"], scored.mask, 0.4)
    trained = np.asarray(batch.advantages) != 0
    assert trained.any() and not (trained & ~np.asarray(chosen)).any()
    kept, dropped = (
        metrics[f"perception/dependency_{name}"] for name in ("kept", "dropped")
    )
    assert kept.total / kept.weight >= dropped.total / dropped.weight
