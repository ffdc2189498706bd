"""What a recipe learns by, in words, and a run that goes on only with its own."""

import itertools
import pkgutil

import jax.numpy as jnp
import pytest

from vrl_jax import divergences, recipes
from vrl_jax.engine.reference import near
from vrl_jax.recipes.dr_grpo import dr_grpo
from vrl_jax.recipes.grpo import grpo
from vrl_jax.recipes.vppo import vppo
from vrl_jax.training.identity import method_of

from ..fixtures import small

NAMES = sorted(module.name for module in pkgutil.iter_modules(recipes.__path__))


def mine(alpha, table):
    def credit(rollout):
        return alpha * table

    return grpo()._replace(credit=credit)


def test_numbers_functions_and_files_tell_methods_apart():
    told = [
        method_of(recipe)
        for recipe in (
            grpo(),
            grpo(clip=0.3),
            grpo(group_size=4),
            dr_grpo(),
            vppo(),
            grpo(anchor=near({}, weight=0.04)),
            grpo(anchor=near({}, weight=0.05)),
            grpo(anchor=near({}, weight=0.05, divergence=divergences.k1)),
            mine(0.4, jnp.ones(3)),
            mine(9.0, jnp.ones(3)),
        )
    ]
    # Of the reference's divergence only the anchor knows, by a function's name.
    for one, other in itertools.combinations(told[:7] + told[8:], 2):
        assert one != other


def test_what_is_only_held_is_not_told():
    """Params, arrays and how they are fetched may be others in a run that goes on."""
    assert method_of(mine(0.4, jnp.ones(3))) == method_of(mine(0.4, jnp.zeros(5)))
    one, other = near({}, weight=1.0), near({"a": 1}, weight=1.0, fetch=dict)
    assert method_of(grpo(anchor=one)) == method_of(grpo(anchor=other))


@pytest.mark.parametrize("name", NAMES)
def test_words_do_not_change_from_run_to_run(name):
    told = method_of(small.recipe(name))
    assert not any(" at 0x" in part for part in told)
    small.recipe.cache_clear()
    assert method_of(small.recipe(name)) == told
