"""Law 5: a run that was killed ends with the same bits as one that was not."""

import dataclasses
import filecmp
import gc
import json
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vrl_jax import reductions
from vrl_jax.models.trained import everything
from vrl_jax.training import files
from vrl_jax.training.iteration import Recipe
from vrl_jax.training.loop import Stage, run_files, train
from vrl_jax.types import Mean

from ..fixtures import small
from ..fixtures.compilations import compilations

REPLAYED = ("metrics.jsonl", "evaluations.jsonl")


class Killed(KeyboardInterrupt):
    """Passes through `except Exception`, as a signal does."""


@dataclasses.dataclass
class Mortal:
    """A function that dies at its nth call, and only then."""

    function: object
    at: int | None
    calls: int = 0

    def __call__(self, *arguments):
        self.calls += 1
        if self.calls - 1 == self.at:
            raise Killed
        return self.function(*arguments)


def stage(recipe, steps, **changes) -> Stage:
    return Stage(
        **{
            "name": recipe,
            "recipe": small.recipe(recipe) if isinstance(recipe, str) else recipe,
            "samples": small.samples(),
            "steps": steps,
            "prompts_per_step": 2,
            "optimizer": small.optimizer(),
            **changes,
        }
    )


def two_stages(steps=4):
    return [stage("sft", 3), stage("vppo", steps, minibatches=2, evaluate_every=2)]


def checksum(actor):
    """An evaluation that every parameter enters."""
    return {"val/accuracy": float(sum(x.sum() for x in jax.tree.leaves(actor.params)))}


def run(folder, stages=None, *, kill_reward=None, kill_evaluate=None, **changes):
    changes = {"reward": Mortal(small.even_reward, kill_reward), **changes}
    actor = dataclasses.replace(small.chain_actor(), **changes)
    return train(
        stages or two_stages(),
        actor,
        folder=folder,
        seed=0,
        evaluate=Mortal(checksum, kill_evaluate),
        checkpoint_every=2,
    )


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    return folder, run(folder).params


def assert_same(folder, params, unbroken):
    other, wanted = unbroken
    jax.tree.map(np.testing.assert_array_equal, params, wanted)
    for name in REPLAYED:
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name
    compared = filecmp.dircmp(folder / "rollouts", other / "rollouts")
    assert compared.left_list == compared.right_list
    assert {*compared.same_files, "images"} == {*compared.left_list}


def test_run_writes_a_line_a_step(unbroken):
    folder, _ = unbroken
    rows = files.read_lines(run_files(folder).metrics)
    assert [(row["phase"], row["step"]) for row in rows] == [
        *(("sft", step) for step in (1, 2, 3)),
        *(("vppo", step) for step in (1, 2, 3, 4)),
    ]
    assert len(files.read_lines(run_files(folder).timings)) == 7
    assert [r["step"] for r in files.read_lines(run_files(folder).evaluations)] == [
        3,
        2,
        4,
    ]
    assert rows[-1]["data/prompts_played"] % 2 == 0
    # Two of four rows, then the other two.
    assert [row["data/prompts_repeated"] for row in rows[:2]] == [0, 0]
    assert rows[0]["data/tokens_played"] == 0  # a demonstration is not sampled
    for row in rows[3:]:
        kept = round(row["response_length/mean"] * 2 * small.GROUP)
        dropped = row["data/prompts_played"] - 2
        longest = dropped * small.GROUP * small.BUDGET
        assert kept + dropped * small.GROUP <= row["data/tokens_played"]
        assert row["data/tokens_played"] <= kept + longest
    assert {row.get("training/logprob_gap", 0) < 1e-5 for row in rows} == {True}


def test_rows_that_are_in_a_step_twice_are_counted(tmp_path):
    """By hand: of 2 rows 4 make two passes, so each is there twice."""
    few = stage("sft", 1, samples=small.samples()[:2], prompts_per_step=4)
    run(tmp_path, [few])
    (row,) = files.read_lines(run_files(tmp_path).metrics)
    assert (row["data/prompts_played"], row["data/prompts_repeated"]) == (4, 2)


def test_a_stage_that_is_measured_first(tmp_path):
    """Once, also where the run was killed before its first checkpoint."""
    stages = [stage("sft", 3, evaluate_first=True)]
    run(tmp_path / "unbroken", stages)
    rows = files.read_lines(run_files(tmp_path / "unbroken").evaluations)
    assert [row["step"] for row in rows] == [0, 3]
    assert rows[0]["val/accuracy"] == checksum(small.chain_actor())["val/accuracy"]
    killed = tmp_path / "killed"
    with pytest.raises(Killed):
        run(killed, stages, kill_evaluate=1)
    assert len(files.read_lines(run_files(killed).evaluations)) == 1
    run(killed, stages)
    for name in REPLAYED:
        unbroken = tmp_path / "unbroken" / name
        assert (killed / name).read_bytes() == unbroken.read_bytes()


def test_the_log_is_told_of_every_step_of_all_stages(tmp_path):
    told = []
    actor = small.chain_actor()
    train(
        [stage("sft", 2), stage("grpo", 2, evaluate_first=True)],
        actor,
        folder=tmp_path,
        seed=0,
        evaluate=checksum,
        log=lambda step, row: told.append((step, row)),
    )
    assert [step for step, _ in told] == [1, 2, 2, 3, 4]
    (_, second), (_, first), (_, third) = told[1:4]
    assert second["val/accuracy"] == first["val/accuracy"]  # one stage's end, the next
    assert "critic/score/mean" in third and "timing_s/step" in third
    assert "val/accuracy" not in third
    lines = files.read_lines(run_files(tmp_path).metrics)
    assert told[-1][1]["actor/pg_loss"] == lines[-1]["actor/pg_loss"]


def test_the_params_that_training_began_with_are_let_go(tmp_path):
    """The learner has its own; on a device there is no room for both."""
    params = jax.tree.map(jnp.copy, small.chain_actor().params)
    kept = [weakref.ref(leaf) for leaf in jax.tree.leaves(params)]
    begun = [dataclasses.replace(small.chain_actor(), params=params)]
    del params
    seen = []

    def evaluate(actor):
        gc.collect()
        seen.append([leaf() is None for leaf in kept])
        return checksum(actor)

    stages = [stage("sft", 1, evaluate_first=True)]
    train(stages, begun.pop(), folder=tmp_path, seed=0, evaluate=evaluate)
    assert seen == [[True] * len(kept)] * 2


def test_a_stage_that_ended_is_let_go_before_the_next_begins(tmp_path):
    """Its moments too: on a device there may be room for one learner."""
    over, seen = [], []

    def trains(params):
        gc.collect()
        seen.append([learner() is None for learner in over])
        return everything(params)

    train(
        [stage("sft", 1, trains=trains), stage("sft", 1, trains=trains, name="more")],
        small.chain_actor(),
        folder=tmp_path,
        seed=0,
        evaluate=checksum,
        ended=lambda stage, learner: over.append(weakref.ref(learner)),
    )
    assert seen == [[], [True]]


def test_same_seed_same_bits(tmp_path, unbroken):
    assert_same(tmp_path, run(tmp_path).params, unbroken)


@pytest.mark.parametrize(
    "moment",
    [
        {"kill_reward": 0},  # exactly between the stages
        {"kill_reward": 3},  # while a step plays, with nothing saved in this stage
        {"kill_reward": 9},  # after the stage's own checkpoint
        {"kill_evaluate": 0},  # at the end of the first stage, before it is saved
        {"kill_evaluate": 1},  # in the middle of the second
        {"kill_evaluate": 2},  # at the very end
    ],
    ids=str,
)
def test_a_killed_run_resumes_to_the_same_bits(tmp_path, unbroken, moment, capsys):
    with pytest.raises(Killed):
        run(tmp_path, **moment)
    for name in REPLAYED:  # it died while it wrote a line
        with (tmp_path / name).open("a") as lines:
            lines.write('{"phase": "vp')
    with compilations() as built:
        resumed = run(tmp_path)
    assert_same(tmp_path, resumed.params, unbroken)
    assert f"resuming {tmp_path} after step" in capsys.readouterr().out
    programs = {
        "jit(run)",
        "jit(_score_view)",
        "jit(credit)",
        "jit(update_moving)",
    }
    assert not programs & set(built)  # Law 6: those of the unbroken run will do


def test_a_run_killed_before_its_first_checkpoint_starts_over(tmp_path, unbroken):
    broken = dataclasses.replace(
        two_stages()[0], recipe=small.recipe("sft")._replace(act=Mortal(None, 0))
    )
    with pytest.raises(Killed):
        run(tmp_path, [broken, two_stages()[1]])
    assert_same(tmp_path, run(tmp_path).params, unbroken)


def test_rewards_beside_sampling_and_in_threads_replay_too(tmp_path):
    """One prompt at a time, its reward beside the next one's sampling; killed once."""
    stages = [stage("grpo", 3)]
    beside = {"prompts_per_pass": 1, "reward_threads": 2}
    whole = tmp_path / "whole"
    params = run(whole, stages, **beside).params
    with pytest.raises(Killed):
        run(tmp_path / "killed", stages, kill_reward=5, **beside)
    again = run(tmp_path / "killed", stages, **beside).params
    assert_same(tmp_path / "killed", again, (whole, params))


def test_parts_are_logged_for_each_source(tmp_path):
    """By hand: each sample of one source, each response's part from its own row."""
    samples = [
        dataclasses.replace(sample, source="ab"[number % 2])
        for number, sample in enumerate(small.samples())
    ]

    def reward(episodes):
        part = float(episodes[0].sample.source == "a")
        return [{"overall": 2.0, "accuracy": part}] * len(episodes)

    one = stage("grpo", 1, samples=samples, prompts_per_step=4)
    run(tmp_path, [one], reward=reward)
    [row] = files.read_lines(run_files(tmp_path).metrics)
    logged = {name: row[name] for name in row if name.endswith(("/a", "/b"))}
    lengths = [logged.pop(f"response_length/mean/{source}") for source in "ab"]
    assert sum(lengths) / 2 == row["response_length/mean"]
    assert logged == {
        "groups/zero_variance/a": 1,
        "groups/zero_variance/b": 1,
        "reward/accuracy/a": 1,
        "reward/accuracy/b": 0,
        "reward/errors/a": 0,
        "reward/errors/b": 0,
        "reward/overall/a": 2,
        "reward/overall/b": 2,
        "reward/unscored/a": 0,
        "reward/unscored/b": 0,
    }
    assert row["reward/accuracy"] == 0.5


def test_more_steps_continue_a_shorter_run(tmp_path, unbroken):
    run(tmp_path, two_stages(steps=2))
    assert_same(tmp_path, run(tmp_path).params, unbroken)


def test_an_ended_run_only_reads(tmp_path, unbroken):
    run(tmp_path)
    again = run(tmp_path, kill_reward=0, kill_evaluate=0)  # neither is called
    assert_same(tmp_path, again.params, unbroken)


def test_a_checkpoint_of_another_shape_is_named(tmp_path):
    run(tmp_path, [stage("sft", 2)])
    params = small.chain_actor().params
    wider = {**params, "look": jnp.zeros((2, *params["look"].shape))}
    with pytest.raises(ValueError) as error:
        run(tmp_path, [stage("sft", 4)], params=wider)
    said = str(error.value)
    assert "trained.look is (384,), not (2, 384)" in said
    assert "Choose another run folder" in said
    assert "step 2" in said


def nan_at(bad_row: int) -> Recipe:
    """Supervised steps whose loss is NaN where a batch holds sample `bad_row`."""
    plain = small.recipe("sft")
    bad = small.tokenizer()(f"it is {bad_row}")["input_ids"]

    def loss(policy, batch):
        mean, metrics = plain.loss(policy, batch)
        spoilt = (batch.tokens[:, : len(bad)] == jnp.array(bad)).all(axis=1).any()
        return Mean(jnp.where(spoilt, jnp.nan, 1.0) * mean.total, mean.weight), metrics

    return plain._replace(loss=loss)


def test_steps_without_finite_gradient_are_skipped_and_counted(tmp_path):
    """Law 7: every epoch has one such step, and training goes on."""
    trained = run(tmp_path, [stage(nan_at(3), 12, name="nan")])
    rows = files.read_lines(run_files(tmp_path).metrics)
    skipped = [row["training/skipped"] for row in rows]
    assert sum(skipped) == 6  # more than five, and never five in a row
    lines = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in lines  # strict readers would refuse the file
    losses = [row["actor/loss"] for row in rows]
    assert [loss is None for loss in losses] == [s == 1 for s in skipped]
    assert np.isfinite(trained.params["table"]).all()
    assert not (tmp_path / "not_finite.json").exists()


def test_five_steps_without_finite_gradient_in_a_row_stop_the_run(tmp_path):
    always = nan_at(3)._replace(
        loss=lambda policy, batch: (
            reductions.token_mean(policy(batch).logprobs * jnp.inf, batch.mask),
            {},
        )
    )
    file = tmp_path / "not_finite.json"
    with pytest.raises(FloatingPointError, match=f"5 steps in a row .* {file}.*Lower"):
        run(tmp_path, [stage(always, 9, name="nan")])
    suspects = json.loads(file.read_text())["samples"]
    assert [len(ids) for ids in suspects] == [2] * 5
    assert {name for ids in suspects for name in ids} == {s.id for s in small.samples()}
    assert len(files.read_lines(run_files(tmp_path).metrics)) == 5


def test_rewards_that_raise_are_counted_and_not_fatal(tmp_path):
    """Law 7: a whole run without one score; the log says so."""

    def broken(episodes):
        raise OSError("the judge does not answer")

    run(tmp_path, [stage("grpo", 2)], reward=broken)
    rows = files.read_lines(run_files(tmp_path).metrics)
    assert [row["reward/errors"] for row in rows] == [1, 1]
    assert [row["actor/grad_norm"] for row in rows] == [0, 0]
