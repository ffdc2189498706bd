"""Arrays that are not: shape, dtype, and where they lie on a mesh."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from vrl_jax.models.sharding import partition
from vrl_jax.types import Batch, Images, Prompts, Rollout, Shown


class Sizes(NamedTuple):
    """How large a step is. `patches` are those of one prompt's pictures.

    `pictures` are shown to each response between its turns, each as large as all of the
    prompt's; `response_tokens` are those of all turns and of what stands between them.
    """

    prompts: int = 128
    group: int = 8
    prompt_tokens: int = 2048
    response_tokens: int = 2048
    patches: int = 4096
    pictures: int = 0


def images_of(front_end: Any, sizes: Sizes, packs: int, blocks: int = 1) -> Images:
    """Packs of so many blocks, of which each holds the pictures of one prompt."""
    struct = jax.ShapeDtypeStruct
    block = -(-sizes.patches // front_end.granularity) * front_end.granularity
    pack = (packs, blocks * block)
    return Images(
        struct((*pack, front_end.patch_values), jnp.float32),
        struct((*pack, 2), jnp.int32),
        struct(pack, jnp.int32),
        struct((*pack, 3), jnp.int32),
        block=block,
    )


def prompts_of(front_end: Any, sizes: Sizes, count: int) -> Prompts:
    """So many prompts, each with its pictures."""
    struct, table = jax.ShapeDtypeStruct, (count, sizes.prompt_tokens)
    return Prompts(
        struct(table, jnp.int32),
        struct(table, bool),
        struct((*table, 3), jnp.int32),
        struct(table, jnp.int32),
        images_of(front_end, sizes, count),
    )


def rollout_of(front_end: Any, sizes: Sizes) -> Rollout:
    """What sampling hands over: every response at its full length."""
    struct = jax.ShapeDtypeStruct
    number, real = jnp.int32, jnp.float32
    rows = (sizes.prompts * sizes.group, sizes.response_tokens)
    shown = None
    if sizes.pictures:  # in the room of a whole context, as `engine.rows` packs them
        between = images_of(front_end, sizes, rows[0], 1 + sizes.pictures)
        shown = Shown(struct(rows, number), between)
    return Rollout(
        prompts=prompts_of(front_end, sizes, sizes.prompts),
        tokens=struct(rows, number),
        positions=struct((*rows, 3), number),
        mask=struct(rows, bool),
        temperature=struct(rows[:1], real),
        old_logprobs=struct(rows, real),
        extra_logprobs={},
        rewards=struct(rows[:1], real),
        reward_parts={},
        group=struct(rows[:1], number),
        shown=shown,
    )


def part(data: Batch | Prompts, pieces: int) -> Batch | Prompts:
    """One of so many equal pieces."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((x.shape[0] // pieces, *x.shape[1:]), x.dtype),
        data,
    )


def lying(x: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    """Of the shape and dtype of `x`, there."""
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def by_row(tree: Any, mesh: Mesh | AbstractMesh) -> Any:
    """Rows spread over the mesh, as `models.sharding.put` lays them."""

    def one(x: Any) -> jax.ShapeDtypeStruct:
        axes = ("batch", *[None] * (len(x.shape) - 1))[: len(x.shape)]
        return lying(x, NamedSharding(mesh, partition(axes, x.shape, mesh)))

    return jax.tree.map(one, tree)


def lying_like(
    tree: Any, params: Any, shardings: Any, mesh: Mesh | AbstractMesh
) -> Any:
    """What has the path and shape of a parameter lies as it does; the rest is whole."""
    where = {
        tuple(key.key for key in path): (leaf.shape, sharding)
        for (path, leaf), sharding in zip(
            jax.tree_util.tree_leaves_with_path(params),
            jax.tree.leaves(shardings),
            strict=True,
        )
    }

    def one(path: tuple, x: Any) -> jax.ShapeDtypeStruct:
        names = tuple(getattr(key, "key", None) for key in path)
        for start in range(len(names)):
            shape, sharding = where.get(names[start:], (None, None))
            if shape == x.shape:
                return lying(x, sharding)
        return lying(x, NamedSharding(mesh, PartitionSpec()))

    return jax.tree_util.tree_map_with_path(one, tree)


def bytes_of(tree: Any) -> int:
    """Of one device."""
    return sum(
        x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape))
        for x in jax.tree.leaves(tree)
    )
