"""What goes wrong with checkpoints costs steps at most, and is told."""

import contextlib
import dataclasses
import os
import resource
import signal

import jax
import numpy as np
import optax
import pytest

from vrl_jax.models.trained import only
from vrl_jax.recipes.grpo import grpo
from vrl_jax.training import checkpoint, files, loop
from vrl_jax.training.loop import Stage, train
from vrl_jax.training.preemption import Preempted

from ..fixtures import small, toy

RECIPE = grpo(group_size=small.GROUP)


def run(folder, evaluate=lambda actor: {}, **changes):
    """Four steps, each evaluated and saved."""
    stage = Stage("only", RECIPE, small.samples(), 4, 4, optax.sgd(0.1))
    return train(
        [dataclasses.replace(stage, evaluate_every=1, **changes)],
        toy.actor(),
        folder=folder,
        seed=0,
        evaluate=evaluate,
        checkpoint_every=1,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return run(folder), (folder / "metrics.jsonl").read_bytes()


def same(folder, actor, whole):
    jax.tree.map(np.testing.assert_array_equal, actor.params, whole[0].params)
    assert (folder / "metrics.jsonl").read_bytes() == whole[1]


def after(step, action):
    """An evaluation that does something once, after the given step."""
    calls = []

    def evaluate(actor):
        calls.append(1)
        if len(calls) == step:
            action()
        return {}

    return evaluate


class Killed(Exception):
    pass


def killed():
    raise Killed


def halted(folder):
    """The third step is saved, the fourth only logged."""
    with pytest.raises(Killed):
        run(folder, after(4, killed))
    return folder / "checkpoints"


def largest(folder):
    return max((f for f in folder.rglob("*") if f.is_file()), key=os.path.getsize)


def cut_short(step):
    file = largest(step)
    os.truncate(file, os.path.getsize(file) // 2)


def flip(step):
    """One bit of the arrays' bytes."""
    file = largest(step / "learner")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def no_host(step):
    next((step / "host").iterdir()).write_text("{")


@pytest.mark.parametrize("damage", [cut_short, flip, no_host])
def test_damaged_newest_gives_way_to_the_one_before(tmp_path, whole, damage, capsys):
    steps = halted(tmp_path)
    damage(steps / "global_step_3")
    actor = run(tmp_path)
    told = capsys.readouterr().out
    assert "checkpoint 3 is damaged" in told and "resuming" in told
    assert "after step 2" in told
    assert (tmp_path / "damaged" / "global_step_3").is_dir()
    same(tmp_path, actor, whole)


def test_a_device_without_memory_is_no_damage(tmp_path, monkeypatch):
    """What is whole stays where it is: a larger machine goes on from it."""
    checkpoints = halted(tmp_path)
    before = sorted(path.name for path in checkpoints.iterdir())

    def full(*arguments):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr(checkpoint, "read", full)
    with pytest.raises(jax.errors.JaxRuntimeError, match="out of memory"):
        run(tmp_path)
    assert sorted(path.name for path in checkpoints.iterdir()) == before
    assert not (tmp_path / "damaged").exists()


def test_what_a_resumed_learner_began_with_is_let_go(tmp_path, monkeypatch):
    """A device may have no room for two: one is gone before the other is read."""
    halted(tmp_path)
    started, gone = [], []
    make, restore = loop.make_learner, checkpoint.ocp.args.StandardRestore

    def made(*given, **named):
        started.append(make(*given, **named))
        return started[-1]

    def asked(like):
        leaves = jax.tree.leaves((started[0].trained, started[0].opt_state))
        gone.extend(leaf.is_deleted() for leaf in leaves)
        return restore(like)

    monkeypatch.setattr(loop, "make_learner", made)
    monkeypatch.setattr(checkpoint.ocp.args, "StandardRestore", asked)
    run(tmp_path)
    assert gone and all(gone)


def test_where_all_are_damaged_nothing_is_lost_until_they_are_moved(tmp_path, whole):
    checkpoints = halted(tmp_path)
    written = (tmp_path / "metrics.jsonl").read_bytes()
    for step in checkpoints.glob("global_step_*"):
        no_host(step)
    for _ in range(2):
        with pytest.raises(OSError, match=r"no checkpoint in .* move .* away"):
            run(tmp_path)
        assert len([*checkpoints.glob("global_step_*")]) == 3
        assert (tmp_path / "metrics.jsonl").read_bytes() == written
    checkpoints.rename(tmp_path / "elsewhere")
    same(tmp_path, run(tmp_path), whole)


def test_what_a_stage_holds_fixed_is_no_damage_of_its_checkpoints(tmp_path):
    text = {"trains": only(lambda path: path.startswith("text/"))}
    with pytest.raises(Killed):
        run(tmp_path, after(2, killed), **text)
    written = (tmp_path / "metrics.jsonl").read_bytes()
    file = largest(tmp_path / "fixed")
    kept = file.read_bytes()
    cut_short(tmp_path / "fixed")
    with pytest.raises(OSError, match="stage_0, which every checkpoint of the stage"):
        run(tmp_path, **text)
    assert (tmp_path / "checkpoints" / "global_step_1").is_dir()
    assert (tmp_path / "metrics.jsonl").read_bytes() == written
    file.write_bytes(kept)
    run(tmp_path, **text)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8", "bool"])
def test_fingerprint_sees_every_bit_and_the_order(dtype):
    values = np.random.RandomState(0).randint(0, 2, (3, 5)).astype(dtype)
    kept = checkpoint._fingerprint({"x": values})
    for place in np.ndindex(3, 5):
        for bit in range(8 * values.itemsize if dtype != "bool" else 1):
            other = values.copy()
            view = other.view(f"uint{8 * values.itemsize}")
            view[place] ^= view.dtype.type(1) << view.dtype.type(bit)
            assert checkpoint._fingerprint({"x": other}) != kept
    turned = np.arange(15, dtype=np.int32).reshape(3, 5)
    assert checkpoint._fingerprint({"x": turned}) != checkpoint._fingerprint(
        {"x": turned[::-1].copy()}
    )


def test_sigterm_saves_and_ends(tmp_path, whole):
    asked = after(2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Preempted, match="after step 2"):
        run(tmp_path, asked)
    assert signal.getsignal(signal.SIGTERM) == handler
    same(tmp_path, run(tmp_path), whole)


@contextlib.contextmanager
def room_for(size):
    """No file may grow beyond `size` bytes: what a writer sees of a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    "room, file", [(16, "evaluations.jsonl"), (1 << 14, "checkpoints")]
)
def test_full_disk_is_told_and_loses_nothing(tmp_path, whole, room, file):
    with contextlib.ExitStack() as stack:
        fill = after(2, lambda: stack.enter_context(room_for(room)))
        with pytest.raises(OSError) as raised:
            run(tmp_path, fill)
    told = str(raised.value)
    assert file in told and "could not be written" in told and "ake room" in told
    same(tmp_path, run(tmp_path), whole)


def test_a_place_that_is_no_folder_is_told(tmp_path):
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(OSError, match="checkpoints"):
        run(tmp_path)


@pytest.mark.parametrize("unscored", [0.2, np.nan])
def test_the_best_is_kept_beside_the_newest(tmp_path, unscored):
    scores = iter([0.1, 0.9, unscored, 0.3, 0.4, 0.5])
    run(tmp_path, lambda actor: {"val/accuracy": next(scores)}, steps=6)
    kept = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert kept == {f"global_step_{step}" for step in (2, 4, 5, 6)}


def test_lines_that_were_taken_out_are_told(tmp_path):
    halted(tmp_path)
    files.write_lines(tmp_path / "metrics.jsonl", [])
    with pytest.raises(ValueError, match=r"metrics\.jsonl has 0 bytes and had"):
        run(tmp_path)


def test_a_run_of_another_method_is_not_gone_on_with(tmp_path, whole):
    halted(tmp_path)
    with pytest.raises(
        ValueError, match=r"'only' had .*clip_low=0\.2.* and has .*clip_low=0\.3"
    ):
        run(tmp_path, recipe=grpo(group_size=small.GROUP, clip=0.3))
    same(tmp_path, run(tmp_path), whole)
