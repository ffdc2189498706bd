"""Saving and restoring a run: the learner's arrays and the host's state, by orbax.

What a stage holds fixed is written once, when it starts; its checkpoints hold the rest.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import Array

from vrl_jax.training.learner import Learner


def open_manager(folder: Path, *, keep: int = 3) -> ocp.CheckpointManager:
    """The checkpoints of a run folder, `global_step_N`; the last `keep` are kept."""
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        step_prefix="global_step",
        create=True,
        enable_async_checkpointing=True,
    )
    return ocp.CheckpointManager(
        (folder / "checkpoints").resolve(),
        options=options,
        # Named here, or a manager that has not saved yet knows no array's shape.
        item_handlers={
            "learner": ocp.StandardCheckpointHandler(),
            "host": ocp.JsonCheckpointHandler(),
        },
    )


def save(
    manager: ocp.CheckpointManager, step: int, learner: Learner, host: dict[str, Any]
) -> None:
    """Atomic; the host's state is JSON."""
    arrays = ocp.args.StandardSave(_arrays(learner))
    manager.save(
        step, args=ocp.args.Composite(learner=arrays, host=ocp.args.JsonSave(host))
    )


def host_state(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
    """The JSON part alone: it says which stage the arrays belong to."""
    return manager.restore(step, args=ocp.args.Composite(host=ocp.args.JsonRestore()))[
        "host"
    ]


def restore(manager: ocp.CheckpointManager, step: int, learner: Learner) -> Learner:
    """`learner` with the arrays of a checkpoint. `ValueError` where shapes differ."""
    like = jax.tree.map(ocp.utils.to_shape_dtype_struct, _arrays(learner))
    stored = manager.item_metadata(step)["learner"]
    _check_shapes(f"{manager.directory}, step {step}", stored, like)
    args = ocp.args.Composite(learner=ocp.args.StandardRestore(like))
    return _with_arrays(learner, manager.restore(step, args=args)["learner"])


def save_fixed(folder: Path, stage: int, learner: Learner) -> None:
    """Writes what the learner of this stage holds fixed, if anything."""
    if arrays := _arrays(learner, fixed=True):
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(_fixed_folder(folder, stage), arrays, force=True)


def restore_fixed(folder: Path, stage: int, learner: Learner) -> Learner:
    """`learner` with what `save_fixed` wrote. `ValueError` where shapes differ."""
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
        # Orbax commits to a device, which jit takes for another program.
        return read if leaf.committed else jnp.asarray(np.asarray(read))

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
        raise ValueError(
            f"the checkpoint {where} is of another model or optimiser: "
            f"{'; '.join(wrong[:4])}{' ...' if len(wrong) > 4 else ''}. "
            "Choose another run folder, or the settings it was made with."
        )


def _shape(arrays: Mapping[str, Any], name: str) -> tuple[int, ...] | str:
    return tuple(arrays[name].shape) if name in arrays else "absent"
