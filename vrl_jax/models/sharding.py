"""Where arrays lie: one rule table from logical axes to the axes of a mesh.

A mesh has three axes. `data` splits the batch; `fsdp` splits the batch, and parameters
with their optimiser state along their width; `tensor` splits heads, the inner width of
MLPs, and the vocabulary. An array is described by the logical name of each of its axes,
and `RULES` says the rest. Without a mesh (`jax.set_mesh`), nothing here does anything.
"""

import math
from collections.abc import Mapping, Sequence

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from vrl_jax.models.parameters import Parameter, nest
from vrl_jax.models.policy import Params

RULES: Mapping[str, str | tuple[str, ...]] = {
    # Parameters. What is not here (layers, say) lies whole on every device.
    "embed": "fsdp",
    "vision_embed": "fsdp",
    "vocabulary": "tensor",
    "mlp": "tensor",
    "vision_mlp": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "vision_heads": "tensor",
    # Activations, caches and batches: prompts, responses, slots, packs of pictures.
    "batch": ("data", "fsdp"),
}
"""Logical axis -> mesh axis or axes."""

Axes = tuple[str | None, ...]


def make_mesh(
    *,
    data: int = 1,
    fsdp: int = 1,
    tensor: int = 1,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """A mesh of data x fsdp x tensor devices, which must be all that there are.

    Compiled programs find their own collectives (`AxisType.Auto`) from how arrays lie.
    """
    devices = jax.devices() if devices is None else devices
    shape = {"data": data, "fsdp": fsdp, "tensor": tensor}
    if math.prod(shape.values()) != len(devices):
        asked = " x ".join(f"{name} {size}" for name, size in shape.items())
        raise ValueError(
            f"a mesh of {asked} needs {math.prod(shape.values())} devices, and there "
            f"are {len(devices)}."
        )
    kinds = (AxisType.Auto,) * len(shape)
    return jax.make_mesh(tuple(shape.values()), tuple(shape), kinds, devices=devices)


def partition(
    axes: Axes,
    shape: Sequence[int],
    mesh: Mesh | AbstractMesh,
    *,
    unit: int = 1,
) -> PartitionSpec:
    """How an array with these logical axes lies on the mesh.

    An axis that its part of the mesh does not divide lies whole on every device: a
    model with 2 key-value heads on 4 tensor devices holds them 4 times. Axes of heads
    are cut between heads, `unit` values each.
    """
    parts = []
    for axis, size in zip(axes, shape, strict=True):
        over = RULES.get(axis) if axis else None
        names = (over,) if isinstance(over, str) else over or ()
        count = math.prod(mesh.shape[name] for name in names)
        pieces = size // unit if axis and axis.endswith("heads") else size
        parts.append(over if count > 1 and pieces % count == 0 else None)
    return PartitionSpec(*parts)


def param_shardings(table: Sequence[Parameter], mesh: Mesh | AbstractMesh) -> Params:
    """A tree like the params: where each of a model's parameters lies."""
    return nest(
        (
            row.path,
            NamedSharding(
                mesh,
                partition(row.stacked_axes, row.stacked_shape, mesh, unit=row.unit),
            ),
        )
        for row in table
    )


def placed(x: Array, *axes: str | None) -> Array:
    """`x`, told how it lies on the mesh that is set; itself where none is."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    spec = partition(axes, x.shape, mesh)
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))
