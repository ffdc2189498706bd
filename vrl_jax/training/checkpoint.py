"""Saving and restoring a run: the learner's arrays and the host's state, by orbax."""

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
    # Not tree.map: it would sort the names, and leaves have an order.
    like = {
        name: ocp.utils.to_shape_dtype_struct(leaf)
        for name, leaf in _arrays(learner).items()
    }
    stored = manager.item_metadata(step)["learner"]
    _check_shapes(f"{manager.directory}, step {step}", stored, like)
    args = ocp.args.Composite(learner=ocp.args.StandardRestore(like))
    arrays = manager.restore(step, args=args)["learner"]
    leaves, structure = jax.tree.flatten(learner)
    placed = [
        # Orbax commits to a device, which jit takes for another program.
        arrays[name] if leaf.committed else jnp.asarray(np.asarray(arrays[name]))
        for name, leaf in zip(like, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, placed)


def _arrays(learner: Learner) -> dict[str, Array]:
    """Each array under its path, in the order of the tree's leaves."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(learner)
    }


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
