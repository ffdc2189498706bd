"""Where arrays lie: one rule table from logical axes to the axes of a mesh.

A mesh has three axes. `data` splits the batch; `fsdp` splits the batch, and parameters
with their optimiser state along their width; `tensor` splits heads, the inner width of
MLPs, and the vocabulary. An array is described by the logical name of each of its axes,
and `RULES` says the rest. The mesh is the one that is set (`jax.set_mesh`); without
one, nothing here does anything. All processes make the same calls: what the host gives
is the same in each, and each device takes its part.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import mesh_utils
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
    # The width of what layers keep for the backward pass: `remat.split`.
    "kept": "tensor",
}
"""Logical axis -> mesh axis or axes."""

Axes = tuple[str | None, ...]
Tree = TypeVar("Tree")


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
            f"are {len(devices)}; of GPUs, CUDA_VISIBLE_DEVICES leaves some out."
        )
    # Axes may share one of the torus: data 2 x fsdp 32 on 4 x 4 x 4 chips.
    laid = mesh_utils.create_device_mesh(
        tuple(shape.values()), devices, allow_split_physical_axes=True
    )
    return Mesh(laid, tuple(shape), axis_types=(AxisType.Auto,) * len(shape))


def parse_mesh(text: str) -> Mesh | None:
    """The mesh of "data=2,fsdp=4"; axes that are not named have 1 device. "": none."""
    return make_mesh(**parse_axes(text)) if text else None


def parse_axes(text: str) -> dict[str, int]:
    """The sizes of "data=2,fsdp=4"."""
    sizes: dict[str, int] = {}
    for part in text.split(","):
        name, _, size = part.partition("=")
        known = name in ("data", "fsdp", "tensor") and name not in sizes
        if not known or not size.isdecimal() or int(size) < 1:
            raise ValueError(
                "a mesh is given by its axes, data, fsdp and tensor, each at most once "
                f"and with its number of devices: data=2,fsdp=4. Got {text!r}."
            )
        sizes[name] = int(size)
    return sizes


def partition(
    axes: Axes,
    shape: Sequence[int],
    mesh: Mesh | AbstractMesh,
    *,
    unit: int = 1,
) -> PartitionSpec:
    """How an array with these logical axes lies on the mesh.

    An axis that its part of the mesh does not divide lies whole on every device: a
    model with 2 key-value heads on 4 tensor devices holds them 4 times. So does a
    second axis for which the same part of the mesh is meant. Axes of heads are cut
    between heads, `unit` values each.
    """
    parts: list[str | tuple[str, ...] | None] = []
    taken: set[str] = set()
    for axis, size in zip(axes, shape, strict=True):
        over = RULES.get(axis) if axis else None
        names = (over,) if isinstance(over, str) else over or ()
        count = math.prod(mesh.shape[name] for name in names)
        pieces = size // unit if axis and axis.endswith("heads") else size
        cut = count > 1 and pieces % count == 0 and taken.isdisjoint(names)
        taken.update(names if cut else ())
        parts.append(over if cut else None)
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


def whole_along(sharding: NamedSharding, axis: str) -> NamedSharding:
    """The same, but that nothing is spread over this axis of the mesh."""
    spec = (None if part == axis else part for part in sharding.spec)
    return NamedSharding(sharding.mesh, PartitionSpec(*spec))


def gathered(tree: Tree) -> Tree:
    """Arrays that are whole along `fsdp`, as sampling reads them best."""
    if jax.sharding.get_mesh().empty:
        return tree
    return jax.device_put(tree, lying_whole(tree))


def lying_whole(tree: Tree) -> Tree:
    """The shardings of such arrays; see `whole_along`."""
    return jax.tree.map(lambda x: whole_along(x.sharding, "fsdp"), tree)


def to_host(params: Params) -> Params:
    """The params in the memory of the hosts of their devices, spread as they are.

    Every backend of today has it: TPU, GPU and, in name, CPU.
    """
    return _in_memory(params, "pinned_host")


def to_device(params: Params) -> Params:
    """The params in the memory that their devices compute in."""
    return _in_memory(params, "device")


def _in_memory(params: Params, kind: str) -> Params:
    lies = jax.tree.map(lambda x: x.sharding.with_memory_kind(kind), params)
    return jax.device_put(params, lies)


def placed(x: Array, *axes: str | None) -> Array:
    """`x`, told how it lies on the mesh that is set; itself where none is."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, partition(axes, x.shape, mesh))


def by_row(x: Array) -> Array:
    """`x`, whose first axis is the batch: its rows are spread, each is whole."""
    return placed(x, "batch", *[None] * (x.ndim - 1))


def everywhere(x: Array) -> Array:
    """`x`, whole on every device: what the host of every process may read."""
    return placed(x, *[None] * x.ndim)


def spread(params: Params, table: Sequence[Parameter]) -> Params:
    """The params where the table's axes put them; as they are without a mesh."""
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        return params
    return jax.jit(lambda tree: tree, out_shardings=param_shardings(table, mesh))(
        params
    )


def put(tables: Tree) -> Tree:
    """The host's arrays on the devices, rows spread over the mesh that is set.

    Every process has the whole tables and hands over what its own devices hold. What
    is on the devices already stays as it is.
    """
    mesh = jax.sharding.get_mesh()

    def one(x: Any) -> Array:
        if isinstance(x, jax.Array):
            return x
        if mesh.empty:  # `jnp.asarray` would compile a program for every shape
            return jax.device_put(x)
        x = np.asarray(x, jax.dtypes.canonicalize_dtype(x.dtype))
        axes = ("batch", *[None] * (x.ndim - 1))[: x.ndim]
        lies = NamedSharding(mesh, partition(axes, x.shape, mesh))
        return jax.make_array_from_callback(x.shape, lies, x.__getitem__)

    return jax.tree.map(one, tables)


def on_host(tree: Tree, *, at_most: int = 2**30) -> Tree:
    """All of it as numpy arrays, in every process, wherever it lies.

    What other processes hold passes through the devices, `at_most` bytes at a time.
    """
    leaves, structure = jax.tree.flatten(tree)
    together: list[int] = []

    def bring() -> None:
        found = _everywhere([leaves[place] for place in together]) if together else []
        for place, leaf in zip(together, jax.device_get(found), strict=True):
            leaves[place] = leaf
        together.clear()

    for place, leaf in enumerate(leaves):
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
            continue
        if leaf.nbytes > at_most:
            leaves[place] = _in_parts(leaf, at_most)
            continue
        if sum(leaves[i].nbytes for i in together) + leaf.nbytes > at_most:
            bring()
        together.append(place)
    bring()
    return structure.unflatten(jax.device_get(leaves))


def _in_parts(x: Array, at_most: int) -> np.ndarray:
    """Some rows of the first axis at a time."""
    rows = max(len(x) * at_most // x.nbytes, 1)
    parts = []
    for start in range(0, len(x), rows):
        (part,) = _everywhere([x[start : start + rows]])
        parts.append(jax.device_get(part))
    return np.concatenate(parts)


@jax.jit
def _everywhere(tree: Tree) -> Tree:
    return jax.tree.map(everywhere, tree)
