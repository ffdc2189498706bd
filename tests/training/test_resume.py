"""Whatever is trained, a run that was killed ends with the bits of one that was not."""

import dataclasses

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from vrl_jax.models.lora import Adapter, Lora, continued
from vrl_jax.models.trained import chain, language, only
from vrl_jax.recipes.grpo import grpo
from vrl_jax.training.average import average_params, averaged
from vrl_jax.training.learner import adamw
from vrl_jax.training.loop import Stage, newest_params, train
from vrl_jax.training.precision import precision

from ..fixtures import small, toy

RECIPE = grpo(group_size=small.GROUP)


def adapters():
    random = np.random.RandomState(0)
    a, b = random.randn(2, toy.WIDTH, 2).astype(np.float32)
    return continued(Lora({"text": {"mixer": Adapter(a, 0 * b.T)}}, np.float32(2)))


def cases():
    key = jax.random.key(1)
    master, rounded = map(precision, ("bfloat16_master", "bfloat16_stochastic"))
    adam = optax.flatten(adamw(1e-2))
    return {
        "frozen tower, average": (
            precision("float32"),
            only(language),
            averaged(adam, 0.5),
            average_params,
        ),
        "adapters": (precision("float32"), adapters(), adam, newest_params),
        "float32 master": (
            master,
            chain(only(language), master.trains),
            adam,
            newest_params,
        ),
        "stochastic": (
            rounded,
            only(language),
            rounded.optimizer(adam, key),
            newest_params,
        ),
    }


class Killed(Exception):
    pass


def run(folder, case, *, kill_at=None):
    """Everything is trained for a step, then this case for three."""
    chosen, trains, optimizer, result = case
    plain = Stage("first", RECIPE, small.samples(), 1, 4, optax.sgd(0.1))
    stage = dataclasses.replace(
        plain,
        name="second",
        steps=3,
        optimizer=optimizer,
        trains=trains,
        result=result,
        evaluate_every=1,
    )
    seen, calls = [], []

    def evaluate(actor):
        calls.append(1)
        if len(calls) == kill_at:
            raise Killed
        leaves = [
            np.asarray(leaf, np.float32) for leaf in jax.tree.leaves(actor.params)
        ]
        return {"val/sum": float(sum(np.abs(leaf).sum() for leaf in leaves))}

    actor = train(
        [plain, stage],
        toy.actor(params=toy.params(chosen.dtype)),
        folder=folder,
        seed=0,
        evaluate=evaluate,
        checkpoint_every=1,
        ended=lambda stage, learner: seen.append(learner),
    )
    return actor, seen[-1]


@pytest.mark.parametrize("name", cases())
def test_killed_in_the_second_stage(tmp_path, name):
    case = cases()[name]
    actor, learner = run(tmp_path / "whole", case)
    with pytest.raises(Killed):
        run(tmp_path / "broken", case, kill_at=4)
    resumed, again = run(tmp_path / "broken", case)
    jax.tree.map(np.testing.assert_array_equal, again, learner)
    jax.tree.map(np.testing.assert_array_equal, resumed.params, actor.params)
    for file in ("metrics.jsonl", "evaluations.jsonl"):
        texts = [(tmp_path / n / file).read_text() for n in ("whole", "broken")]
        assert texts[0] == texts[1]
    assert (actor.params["text"]["mixer"] != toy.params()["text"]["mixer"]).any()


def test_checkpoints_hold_what_is_trained(tmp_path):
    run(tmp_path, cases()["adapters"])
    steps = tmp_path / "checkpoints" / "global_step_4" / "learner"
    with ocp.StandardCheckpointer() as checkpointer:
        stored = checkpointer.metadata(steps.resolve()).item_metadata
    names = {name for name in stored if not name.startswith("opt_state")}
    assert names == {
        "trained.text.mixer.a",
        "trained.text.mixer.b",
        "step",
        "skipped",
        "allowed",
    }


def test_fixed_parts_of_another_shape(tmp_path):
    case = cases()["frozen tower, average"]
    with pytest.raises(Killed):
        run(tmp_path, case, kill_at=4)
    chosen, _, optimizer, result = case
    with pytest.raises(
        ValueError, match=r"checkpoint .*, step \d+ is of another model"
    ):
        run(tmp_path, (chosen, only(lambda p: "mixer" in p), optimizer, result))
