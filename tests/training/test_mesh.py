"""Law 4 on meshes: where arrays lie changes no token, no loss and no parameter."""

import contextlib
import dataclasses
import functools
import json
import math
import re

import jax
import numpy as np
import pytest

from vrl_jax.models import sharding
from vrl_jax.models.qwen_vl.parameters import parameter_table
from vrl_jax.training.ahead import one_step_behind
from vrl_jax.training.iteration import iteration
from vrl_jax.training.learner import make_learner, split, update, update_moving
from vrl_jax.training.loop import Stage, train
from vrl_jax.training.metrics import as_floats

from ..fixtures import meshed, small
from ..fixtures.compilations import compilations

SHAPES = {
    "8x1x1": {"data": 8},
    "2x2x2": {"data": 2, "fsdp": 2, "tensor": 2},
    # 2 key-value heads on 4 devices are whole on each.
    "1x2x4": {"fsdp": 2, "tensor": 4},
}
LONG = ("2x2x2", "1x2x4")
STEPS = [(name, 3) for name in SHAPES] + [
    pytest.param(name, 20, marks=pytest.mark.proof) for name in LONG
]


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
def trained(name, steps=3):
    """What was sampled, the losses, the learner."""
    tokens, losses = [], []
    with on(name):
        now = learner()
        playing = meshed.actor(observe=lambda group, scores: tokens.append(group))
        for step in range(steps):
            key = jax.random.fold_in(jax.random.key(0), step)
            now, metrics = iteration(
                meshed.RECIPE, playing, now, iter([meshed.samples()]), key
            )
            row = as_floats(metrics)
            losses.append([row[name] for name in meshed.COMPARED])
    written = [[e.turns[0].tokens for e in group] for group in tokens]
    return written, losses, now


@pytest.mark.parametrize(("name", "steps"), STEPS)
def test_a_mesh_changes_nothing_that_is_learned(name, steps):
    tokens, losses, alone = trained(None, steps)
    again, same, spread = trained(name, steps)
    assert again == tokens
    assert not meshed.too_far(meshed.gaps(same, losses))
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


def scored():
    """A minibatch of 8 prompts, on the mesh that is set."""
    rollout = meshed.RECIPE.act(
        meshed.actor(), iter([meshed.samples()]), jax.random.key(1)
    )
    batch, _ = jax.jit(meshed.RECIPE.credit)(rollout)
    return rollout, split(batch, 2)[0]


def test_weights_are_gathered_and_activations_are_not():
    with on("2x2x2"):
        made, (_, batch) = learner(), scored()
        moving = dataclasses.replace(made, fixed=())
        lowered = update_moving.lower(meshed.RECIPE.loss, moving, made.fixed, batch)
        program = lowered.compile().as_text()
    found = re.findall(r"= \w+\[([\d,]+)\]\S* all-gather\(", program)
    gathered = {tuple(sorted(map(int, shape.split(",")))) for shape in found}
    weights = set()
    for row in parameter_table(small.spec()):
        lies = sharding.partition(row.axes, row.shape, mesh_of("2x2x2"), unit=row.unit)
        parts = zip(row.shape, lies, strict=True)
        weights.add(tuple(sorted(n // 2 if p == "tensor" else n for n, p in parts)))
    # Where states are picked by position, those of a few tokens come along.
    few = batch.prompts.tokens.shape[0] * small.spec().text.width
    large = {shape for shape in gathered if math.prod(shape) > few}
    assert large and large <= weights, large - weights


def test_nothing_is_compiled_or_moved_unasked_after_the_first_step():
    with on("2x2x2"):
        made, playing, (rollout, batch) = learner(), meshed.actor(), scored()
        made, _ = update(meshed.RECIPE.loss, made, batch)
        sharding.on_host(playing.likelihood(rollout))
        with jax.transfer_guard("disallow"), compilations() as seen:
            made, metrics = update(meshed.RECIPE.loss, made, batch)
            playing = dataclasses.replace(playing, params=made.params)
            found = sharding.on_host(playing.likelihood(rollout))
            assert np.isfinite(found.logprobs).all()
            assert np.isfinite(jax.device_get(metrics["actor/loss"].total))
    assert not seen


def test_an_update_that_is_not_finite_is_skipped_on_a_mesh():
    with on("2x2x2"):
        made, (_, batch) = learner(), scored()
        before = sharding.on_host((made.trained, made.opt_state))
        broken = dataclasses.replace(batch, advantages=batch.advantages * np.nan)
        made, metrics = update(meshed.RECIPE.loss, made, broken)
        after = sharding.on_host((made.trained, made.opt_state))
    jax.tree.map(np.testing.assert_array_equal, after, before)
    assert (int(made.skipped), int(made.step)) == (1, 0)
    assert as_floats(metrics)["training/skipped"] == 1


def test_a_checkpoint_of_one_mesh_goes_on_on_another(tmp_path):
    class Stopped(Exception):
        pass

    def run(name, folder, stop_at=None):
        calls = []

        def evaluate(actor):
            calls.append(1)
            if len(calls) == stop_at:
                raise Stopped
            return {}

        with on(name):
            stage = Stage(
                "rl",
                meshed.RECIPE,
                meshed.samples(),
                4,
                meshed.PROMPTS,
                meshed.OPTIMIZER,
                minibatches=2,
                evaluate_every=1,
            )
            return train(
                [stage],
                meshed.actor(),
                folder=tmp_path / folder,
                seed=0,
                evaluate=evaluate,
                checkpoint_every=1,
            )

    def rows(folder):
        lines = (tmp_path / folder / "metrics.jsonl").read_text().splitlines()
        return [[json.loads(line)[name] for name in meshed.COMPARED] for line in lines]

    whole = run(None, "whole")
    with pytest.raises(Stopped):
        run("2x2x2", "broken", stop_at=3)
    resumed = run("8x1x1", "broken")
    assert not meshed.too_far(meshed.gaps(rows("broken"), rows("whole")))
    for one, other in zip(
        jax.tree.leaves(whole.params), jax.tree.leaves(resumed.params), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-5)


def test_one_step_behind_is_refused_on_a_mesh():
    with on("8x1x1"), pytest.raises(ValueError, match="leave it out on a mesh"):
        one_step_behind(meshed.RECIPE).act(None, iter([]), jax.random.key(0))
