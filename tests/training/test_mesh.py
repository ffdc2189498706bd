"""Law 4 on meshes: where arrays lie changes no token, no loss and no parameter."""

import contextlib
import functools
import math

import jax
import numpy as np
import pytest

from vrl_jax.models import sharding
from vrl_jax.models.qwen_vl.parameters import parameter_table
from vrl_jax.training.iteration import iteration
from vrl_jax.training.learner import make_learner
from vrl_jax.training.metrics import as_floats

from ..fixtures import meshed, small

SHAPES = {
    "8x1x1": {"data": 8},
    "2x2x2": {"data": 2, "fsdp": 2, "tensor": 2},
    # 2 key-value heads on 4 devices are whole on each.
    "1x2x4": {"fsdp": 2, "tensor": 4},
}
LONG = ("2x2x2", "1x2x4")


def mesh_of(name):
    sizes = SHAPES[name]
    return sharding.make_mesh(
        **sizes, devices=jax.devices()[: math.prod(sizes.values())]
    )


def on(name):
    return jax.set_mesh(mesh_of(name)) if name else contextlib.nullcontext()


def learner():
    made = meshed.actor()
    return make_learner(
        made.policy, made.params, meshed.OPTIMIZER, made.allowed, minibatches=2
    )


@functools.cache
def trained(name):
    """After 20 steps, or 3: what was sampled, the losses, the learner, a rollout."""
    tokens, losses = [], []
    with on(name):
        now = learner()
        playing = meshed.actor(observe=lambda group, scores: tokens.append(group))
        for step in range(20 if name in (None, *LONG) else 3):
            key = jax.random.fold_in(jax.random.key(0), step)
            now, metrics = iteration(
                meshed.RECIPE, playing, now, iter([meshed.samples()]), key
            )
            row = as_floats(metrics)
            losses.append([row[name] for name in meshed.COMPARED])
    written = [[e.turns[0].tokens for e in group] for group in tokens]
    return written, losses, now


@pytest.mark.parametrize("name", SHAPES)
def test_a_mesh_changes_nothing_that_is_learned(name):
    tokens, losses, alone = trained(None)
    again, same, spread = trained(name)
    count = len(same)
    assert again == tokens[: len(again)]
    np.testing.assert_allclose(same, losses[:count], rtol=0, atol=1e-5)
    if name in LONG:
        for one, other in zip(
            jax.tree.leaves(alone.params), jax.tree.leaves(spread.params), strict=True
        ):
            np.testing.assert_allclose(one, other, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", SHAPES)
def test_the_state_stays_where_the_table_puts_it(name):
    state = trained(name)[2]
    places = sharding.param_shardings(parameter_table(small.spec()), mesh_of(name))
    moments = state.opt_state[1][0]
    for tree in (state.trained, moments.mu, moments.nu):
        jax.tree.map(
            lambda x, place: (
                None
                if x.sharding.is_equivalent_to(place, x.ndim)
                else pytest.fail(
                    f"{x.shape} lies as {x.sharding.spec}, not {place.spec}"
                )
            ),
            tree,
            places,
        )


def test_key_value_heads_that_do_not_divide_are_everywhere():
    layers = trained("1x2x4")[2].trained["text"]["layers"]
    for part, count in (("key", 1), ("value", 1), ("query", 4)):
        kernel = layers[part]["kernel"]
        assert kernel.sharding.shard_shape(kernel.shape)[2] * count == kernel.shape[2]
