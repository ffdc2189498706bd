"""What is trained: splits join to what was split, and save what they claim."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from hypothesis import given, settings
from hypothesis import strategies as st

from vrl_jax.engine.processing import encode
from vrl_jax.models import lora
from vrl_jax.models.qwen_vl.parameters import parameter_table
from vrl_jax.models.trained import (
    Split,
    chain,
    everything,
    float32_master,
    language,
    only,
    projector,
    tower,
)
from vrl_jax.recipes.grpo import grpo
from vrl_jax.training.iteration import iteration
from vrl_jax.training.learner import adamw, make_learner, update_moving
from vrl_jax.types import Batch

from ..fixtures import small

TABLE = parameter_table(small.spec())
RECIPE = grpo(group_size=small.GROUP)
OPTIMIZER = adamw(1e-2)


def learner(trains, params=None):
    actor = small.actor()
    params = small.params() if params is None else params
    return make_learner(
        actor.policy, params, OPTIMIZER, actor.allowed, trains=trains, micro_batches=2
    )


def one_step(before):
    batches = itertools.repeat(small.samples())
    return iteration(RECIPE, small.actor(), before, batches, jax.random.key(3))


def size(tree):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def assert_same(got, wanted):
    jax.tree.map(np.testing.assert_array_equal, got, wanted)


def moved(before, after):
    """The paths whose arrays changed."""
    before, after = flatten_dict(before, sep="/"), flatten_dict(after, sep="/")
    return {path for path in before if not np.array_equal(before[path], after[path])}


SPLITS = {
    "everything": everything,
    "language": only(language),
    "tower and projector": only(lambda path: path.startswith("vision/")),
    "twice": chain(only(language), only(lambda path: "layers" in path)),
    "adapters": lora.adapters(jax.random.key(0), TABLE, rank=2),
    "adapters of some layers": chain(
        lora.adapters(jax.random.key(0), TABLE, rank=2),
        only(lambda path: "query" in path),
    ),
}


@pytest.mark.parametrize("name", SPLITS)
def test_a_split_joins_to_what_was_split(name):
    trained, fixed, join = SPLITS[name](small.params())
    assert_same(join(trained, fixed), small.params())
    assert SPLITS[name](small.params()).join is join, "jit would compile again"


def test_a_chain_is_undone_from_its_end():
    """2 * (x + 1) where doubling comes first."""
    doubled = lambda params: Split(params["w"] / 2, 2, lambda t, by: {"w": t * by})
    raised = lambda half: Split(half - 1, 1, lambda t, by: t + by)
    trained, fixed, join = chain(doubled, raised)({"w": 10.0})
    assert (trained, fixed) == (4.0, (2, 1)) and join(trained, fixed) == {"w": 10.0}


def test_each_parameter_is_of_one_part():
    for row in TABLE:
        assert sum(rule(row.path) for rule in (tower, projector, language)) == 1


def test_a_rule_that_chooses_nothing():
    with pytest.raises(ValueError, match=r"chooses no parameter; paths are vision/"):
        only(lambda path: path.startswith("txt"))(small.params())


@settings(max_examples=30, deadline=None)
@given(st.sets(st.sampled_from([row.path for row in TABLE]), min_size=1))
def test_any_rule_parts_the_tree(chosen):
    trained, fixed, join = only(chosen.__contains__)(small.params())
    assert set(flatten_dict(trained, sep="/")) == chosen
    assert not chosen & set(flatten_dict(fixed, sep="/"))
    assert_same(join(trained, fixed), small.params())


def test_float32_master():
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), small.params())
    trained, fixed, join = chain(only(projector), float32_master)(params)
    assert {leaf.dtype for leaf in jax.tree.leaves(trained)} == {jnp.dtype("float32")}
    assert_same(join(trained, fixed), params)


@pytest.mark.parametrize(
    ("trains", "rule"),
    [
        (only(projector), projector),
        (SPLITS["adapters"], lora.text_linear),
    ],
    ids=["projector", "adapters"],
)
def test_an_iteration_trains_that_alone(trains, rule):
    before = learner(trains)
    fixed = before.fixed
    after, metrics = one_step(before)
    assert float(metrics["training/logprob_gap"].total) < 1e-3
    changed = moved(small.params(), after.params)
    kernels = {path for path in changed if path.endswith("kernel")}
    assert changed and all(map(rule, changed))
    assert kernels == {
        row.path for row in TABLE if rule(row.path) and row.path.endswith("kernel")
    }
    assert_same(after.fixed, fixed)
    assert all(
        a is b
        for a, b in zip(
            jax.tree.leaves(after.fixed), jax.tree.leaves(fixed), strict=True
        )
    ), "what is fixed is neither copied nor given up"


def test_what_is_frozen_costs_nothing():
    """Operations of one update as XLA counts them, and bytes of optimiser state."""
    shape = (4 * small.GROUP, small.BUDGET)
    batch = Batch(
        prompts=encode(small.actor().processor, small.samples()).prompts,
        tokens=jnp.ones(shape, jnp.int32),
        positions=jnp.ones((*shape, 3), jnp.int32),
        mask=jnp.ones(shape, bool),
        temperature=jnp.ones(shape[0]),
        old_logprobs=jnp.zeros(shape),
        advantages=jnp.ones(shape),
    )

    def cost(trains):
        whole = learner(trains)
        moving = dataclasses.replace(whole, fixed=(), micro_batches=1)
        lowered = update_moving.lower(RECIPE.loss, moving, whole.fixed, batch)
        assert abs(size(whole.opt_state) - 2 * size(whole.trained)) < 100
        return lowered.cost_analysis()["flops"], size(whole.opt_state)

    whole, text, merger = map(cost, (everything, only(language), only(projector)))
    # 71.0, 50.6 and 44.9 million operations; 859, 248 and 165 kB.
    assert text[0] < 0.75 * whole[0] and merger[0] < 0.65 * whole[0]
    assert text[1] < 0.3 * whole[1] and merger[1] < 0.2 * whole[1]
