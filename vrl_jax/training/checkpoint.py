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
    aside in `damaged/`, is told, and the one before it is taken; None where there is
    none. Raises `Mismatch` for a checkpoint of another model or optimiser.
    """
    for step in sorted(manager.all_steps(), reverse=True):
        found, reason = None, ""
        try:
            found = read(manager, folder, step, start)
        except (Mismatch, jax.errors.JaxRuntimeError):
            raise  # no fault of the files: a device's memory, or a process is gone
        except Exception as error:  # whatever a reader makes of broken files
            reason = str(error).splitlines()[0] if str(error) else repr(error)
        if not processes.any_of(bool(reason)):
            return found
        kept = _set_aside(manager, folder, step)
        print(
            f"checkpoint {step} is damaged ({reason[:200]}); it is now in {kept}, "
            "and the one before it is taken",
            flush=True,
        )
    return None


def read(
    manager: ocp.CheckpointManager,
    folder: Path,
    step: int,
    start: Callable[[int], Learner],
) -> Resumed:
    """The checkpoint of this step, in the learner that `start(stage)` makes.

    Raises `Mismatch` for one of another model or optimiser, and whatever a reader makes
    of files that are broken.
    """
    args = ocp.args.Composite(host=ocp.args.JsonRestore())
    host = manager.restore(step, args=args)["host"]
    learner = restore_fixed(folder, host["stage"], start(host["stage"]))
    like = jax.tree.map(ocp.utils.to_shape_dtype_struct, _arrays(learner))
    stored = manager.item_metadata(step)["learner"]
    _check_shapes(f"{manager.directory}, step {step}", stored, like)
    for leaf in _arrays(learner).values():
        leaf.delete()  # a device may have no room for two
    args = ocp.args.Composite(learner=ocp.args.StandardRestore(like))
    arrays = manager.restore(step, args=args)["learner"]
    found = _fingerprint(arrays)
    if wrong := [name for name in found if found[name] != host["fingerprint"][name]]:
        raise OSError(f"{', '.join(wrong[:4])} changed after they were saved")
    return Resumed(step, _with_arrays(learner, arrays), host)


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
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        raise OSError(
            f"a checkpoint could not be written to {place}: {reason[:300]}. The ones "
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
    """`learner` with what `save_fixed` wrote. `Mismatch` where shapes differ."""
    if not (arrays := _arrays(learner, fixed=True)):
        return learner
    place = _fixed_folder(folder, stage)
    like = jax.tree.map(ocp.utils.to_shape_dtype_struct, arrays)
    with ocp.StandardCheckpointer() as checkpointer:
        _check_shapes(str(place), checkpointer.metadata(place).item_metadata, like)
        return _with_arrays(learner, checkpointer.restore(place, like))


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
