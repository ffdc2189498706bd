"""Saving and restoring a run: the learner's arrays and the host's state, by orbax.

What a stage holds fixed is written once, when it starts; its checkpoints hold the rest.
The host's state notes a fingerprint of the arrays, so that a checkpoint whose bits have
changed on the disk is not taken for a whole one.
"""

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import Array

from vrl_jax.training import processes
from vrl_jax.training.learner import Learner


class Mismatch(ValueError):
    """A checkpoint of another model or optimiser: whole, but not ours."""


class Resumed(NamedTuple):
    """A checkpoint that was read: its step, its arrays, its host state."""

    step: int
    learner: Learner
    host: dict[str, Any]


@contextlib.contextmanager
def open_manager(folder: Path, *, keep: int = 3) -> Iterator[ocp.CheckpointManager]:
    """The checkpoints of a run folder, `global_step_N`.

    Kept are the last `keep` and the one with the best score. Raises `OSError` where a
    checkpoint could not be written: those before it are whole.
    """
    place = (folder / "checkpoints").resolve()
    policies = ocp.checkpoint_managers
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policies.AnyPreservationPolicy(
            [
                policies.LatestN(keep),
                policies.BestN(get_metric_fn=_score, n=1),
            ]
        ),
        best_fn=_score,
        step_prefix="global_step",
        create=True,
        enable_async_checkpointing=True,
        # A folder that cannot be made fails at once; in a thread it would leave other
        # threads waiting for it, for minutes.
        async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
    )
    with _told(place):
        manager = ocp.CheckpointManager(
            place,
            options=options,
            # Named here, or a manager that has not saved yet knows no array's shape.
            item_handlers={
                "learner": ocp.StandardCheckpointHandler(),
                "host": ocp.JsonCheckpointHandler(),
            },
        )
    try:
        yield manager
    except BaseException as error:
        # Of several processes one may be gone, and closing would wait for it.
        if jax.process_count() == 1 or not isinstance(
            error, jax.errors.JaxRuntimeError
        ):
            # What ended the run is what is told, not that its last save failed as well.
            with contextlib.suppress(Exception):
                manager.close()
        raise
    with _told(place):
        finish(manager)
        manager.close()


def save(
    manager: ocp.CheckpointManager,
    step: int,
    learner: Learner,
    host: dict[str, Any],
    *,
    score: float | None = None,
) -> None:
    """Atomic and asynchronous; the host's state is JSON. The highest `score` is best.

    Raises `OSError` where this checkpoint, or the one before, could not be written.
    """
    arrays = _arrays(learner)
    host = {**host, "fingerprint": _fingerprint(arrays)}
    items = ocp.args.Composite(
        learner=ocp.args.StandardSave(arrays), host=ocp.args.JsonSave(host)
    )
    with _told(manager.directory):
        finish(manager)
        manager.save(step, args=items, metrics={"score": score})


def finish(manager: ocp.CheckpointManager) -> None:
    """Waits until what was saved is on the disk; raises what went wrong there."""
    manager.wait_until_finished()
    manager.check_for_errors()


def resume(
    manager: ocp.CheckpointManager, folder: Path, start: Callable[[int], Learner]
) -> Resumed | None:
    """The newest whole checkpoint, in the learner that `start(stage)` makes.

    One that cannot be read, or whose arrays are not those that were saved, is set
    aside in `damaged/`, is told, and the one before it is taken; None where there was
    no checkpoint. Raises `Mismatch` for a checkpoint of another model or optimiser, and
    `OSError`, with all of them left where they are, where none is whole, where the disk
    does not give a file, or where what the stage holds fixed cannot be read.
    """
    damaged: dict[int, str] = {}
    for step in sorted(manager.all_steps(), reverse=True):
        found, reason = None, ""
        try:
            found = read(manager, step, start)
        except (Mismatch, jax.errors.JaxRuntimeError, MemoryError):
            raise  # no fault of the files: a device's memory, or a process is gone
        except Exception as error:  # whatever a reader makes of broken files
            if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
                raise  # the disk, or who may read it
            reason = _first_line(error)
        if processes.any_of(bool(reason)):
            damaged[step] = reason or "another process cannot read it"
            continue
        stage = found.host["stage"]
        found = found._replace(learner=restore_fixed(folder, stage, found.learner))
        for broken, reason in damaged.items():
            kept = _set_aside(manager, folder, broken)
            print(
                f"checkpoint {broken} is damaged ({reason[:200]}); it is now in "
                f"{kept}, and the one before it is taken",
                flush=True,
            )
        return found
    if damaged:
        told = "; ".join(f"{step}: {said[:200]}" for step, said in damaged.items())
        raise OSError(
            f"no checkpoint in {manager.directory} can be read ({told}). Give the "
            "files back, or, to begin again from the first step, choose another run "
            f"folder or move {manager.directory} away."
        )
    return None


def read(
    manager: ocp.CheckpointManager, step: int, start: Callable[[int], Learner]
) -> Resumed:
    """The checkpoint of this step, in the learner that `start(stage)` makes.

    What the stage holds fixed is as it was made: `restore_fixed` reads it. Raises
    `Mismatch` for one of another model or optimiser, and whatever a reader makes of
    files that are broken.
    """
    host = _host(manager, step)
    learner = start(host["stage"])
    like = jax.tree.map(ocp.utils.to_shape_dtype_struct, _arrays(learner))
    stored = manager.item_metadata(step)["learner"]
    _check_shapes(f"{manager.directory}, step {step}", stored, like)
    for leaf in _arrays(learner).values():
        leaf.delete()  # a device may have no room for two
    args = ocp.args.Composite(learner=ocp.args.StandardRestore(like))
    arrays = manager.restore(step, args=args)["learner"]
    _check_fingerprint(arrays, host)
    return Resumed(step, _with_arrays(learner, arrays), host)


def read_trained(
    manager: ocp.CheckpointManager,
    folder: Path,
    step: int,
    start: Callable[[int], Learner],
    *,
    part: str = "trained.",
) -> Learner:
    """What is trained and what is fixed, in the learner that `start(stage)` makes.

    Nothing of the optimiser is read, so `start` may give any. Where critics were
    trained beside (`models.trained.also`), "trained.1." is the `part` that a learner
    without them has. Raises as `read` does.
    """
    host = _host(manager, step)
    learner = start(host["stage"])
    like = {
        name.replace("trained.", part, 1): ocp.utils.to_shape_dtype_struct(leaf)
        for name, leaf in _arrays(learner).items()
        if name.startswith("trained.")
    }
    stored = manager.item_metadata(step)["learner"]
    trained = {name: stored[name] for name in stored if name.startswith(part)}
    where = f"{manager.directory}, step {step}"
    _check_shapes(where, trained, like)
    args = ocp.args.PyTreeRestore(
        like,
        restore_args=ocp.checkpoint_utils.construct_restore_args(like),
        partial_restore=True,
    )
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        place = manager.directory / f"global_step_{step}" / "learner"
        arrays = checkpointer.restore(place, args=args)
    _check_fingerprint(arrays, host)
    named = {name.replace(part, "trained.", 1): x for name, x in arrays.items()}
    learner = _with_arrays(learner, named)
    return restore_fixed(folder, host["stage"], learner)


def _host(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
    args = ocp.args.Composite(host=ocp.args.JsonRestore())
    return manager.restore(step, args=args)["host"]


def _check_fingerprint(arrays: Mapping[str, Array], host: Mapping[str, Any]) -> None:
    found = _fingerprint(arrays)
    if wrong := [name for name in found if found[name] != host["fingerprint"][name]]:
        raise ValueError(f"{', '.join(wrong[:4])} changed after they were saved")


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else repr(error)


def _set_aside(manager: ocp.CheckpointManager, folder: Path, step: int) -> Path:
    name = f"global_step_{step}"
    (folder / "damaged").mkdir(exist_ok=True)
    number = sum(path.name.startswith(name) for path in (folder / "damaged").iterdir())
    kept = folder / "damaged" / (f"{name}.{number}" if number else name)
    processes.wait()
    if processes.leads():
        os.rename(manager.directory / name, kept)
    processes.wait()
    manager.reload()
    return kept


def _score(metrics: Mapping[str, float | None]) -> float:
    """What the best is chosen by: NaN, which has no order, is worse than any."""
    score = metrics["score"]
    return score if score is not None and math.isfinite(score) else -math.inf


@contextlib.contextmanager
def _told(place: Path) -> Iterator[None]:
    """What a writer raises, as one `OSError` with the way out."""
    try:
        yield
    except jax.errors.JaxRuntimeError:  # a device's, or another process is gone
        raise
    except Exception as error:
        raise OSError(
            f"a checkpoint could not be written to {place}: "
            f"{_first_line(error)[:300]}. The ones "
            "before it are whole: make room or give the folder back its permissions, "
            "and run the same command again."
        ) from error


@jax.jit
def _sums(arrays: dict[str, Array]) -> dict[str, Array]:
    def weighed(x: Array) -> Array:
        """The sum of the words, each times an odd number of its own, modulo 2^32.

        A changed bit adds an odd multiple of a power of two, which is never 0.
        """
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            x = jax.random.key_data(x)
        unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}
        x = x.astype(jnp.uint8) if x.dtype == jnp.bool_ else x
        words = jax.lax.bitcast_convert_type(x, unsigned[x.dtype.itemsize])
        words = words.astype(jnp.uint32)
        weights = jnp.uint32(1)
        for axis in range(words.ndim):
            places = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
            # Odd, so products are odd; 2654435761 is 2^32 over the golden ratio.
            weights = weights * (2 * (places + 1) * jnp.uint32(2654435761) + 1)
        return (words * weights).sum(dtype=jnp.uint32)

    return jax.tree.map(weighed, arrays)


def _fingerprint(arrays: Mapping[str, Array]) -> dict[str, int]:
    return {name: int(total) for name, total in _sums(dict(arrays)).items()}


def save_fixed(folder: Path, stage: int, learner: Learner) -> None:
    """Writes what the learner of this stage holds fixed, if anything."""
    if arrays := _arrays(learner, fixed=True):
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(_fixed_folder(folder, stage), arrays, force=True)


def restore_fixed(folder: Path, stage: int, learner: Learner) -> Learner:
    """`learner` with what `save_fixed` wrote. `Mismatch` where shapes differ.

    `OSError`, which names the folder, where it cannot be read: every checkpoint of the
    stage needs it.
    """
    if not (arrays := _arrays(learner, fixed=True)):
        return learner
    place = _fixed_folder(folder, stage)
    like = jax.tree.map(ocp.utils.to_shape_dtype_struct, arrays)
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            _check_shapes(str(place), checkpointer.metadata(place).item_metadata, like)
            return _with_arrays(learner, checkpointer.restore(place, like))
    except (Mismatch, jax.errors.JaxRuntimeError, MemoryError):
        raise
    except Exception as error:  # whatever a reader makes of broken files
        raise OSError(
            f"{place}, which every checkpoint of the stage needs, cannot be read "
            f"({_first_line(error)[:300]}). Give its files back, from a copy, or "
            "choose another run folder, which begins from the first step."
        ) from error


def _fixed_folder(folder: Path, stage: int) -> Path:
    return (folder / "fixed" / f"stage_{stage}").resolve()


def _arrays(learner: Learner, *, fixed: bool = False) -> dict[str, Array]:
    """The arrays of `fixed`, or all the others, each under its path."""
    return {
        _name(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(learner)
        if _name(path).startswith("fixed.") == fixed
    }


def _with_arrays(learner: Learner, arrays: Mapping[str, Array]) -> Learner:
    def placed(path: Any, leaf: Array) -> Array:
        read = arrays.get(_name(path), leaf)
        if leaf.committed or read is leaf:
            return read
        # Orbax commits to a device, which jit takes for another program.
        held = np.array(read)
        read.delete()  # the device may have no room for two
        return jnp.asarray(held)

    return jax.tree_util.tree_map_with_path(placed, learner)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _check_shapes(
    where: str, stored: Mapping[str, Any], like: Mapping[str, Any]
) -> None:
    wrong = [
        f"{name} is {_shape(stored, name)}, not {_shape(like, name)}"
        for name in sorted({*stored, *like})
        if _shape(stored, name) != _shape(like, name)
    ]
    if wrong:
        raise Mismatch(
            f"the checkpoint {where} is of another model or optimiser: "
            f"{'; '.join(wrong[:4])}{' ...' if len(wrong) > 4 else ''}. "
            "Choose another run folder, or the settings it was made with."
        )


def _shape(arrays: Mapping[str, Any], name: str) -> tuple[int, ...] | str:
    return tuple(arrays[name].shape) if name in arrays else "absent"
