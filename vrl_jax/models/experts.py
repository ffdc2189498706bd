"""A mixture of experts: each token goes through a few of many MLPs.

    p = softmax(R x),   T = the k largest of p,   g_e = p_e / sum_{e in T} p_e
    y = sum_{e in T} g_e W_down,e (silu(W_gate,e x) * W_up,e x)

The MLPs of Qwen3's larger models: section 2 of https://arxiv.org/abs/2505.09388. Every
token reaches all of its experts, however many others do: rows are sorted by expert, and
a product with the experts' matrices is one of consecutive rows with each.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from vrl_jax.models.policy import Params
from vrl_jax.models.sharding import partition

KERNEL = "xla_tpu_enable_ragged_dot_kernel"
"""libtpu's flag for a kernel of `ragged_dot`: LIBTPU_INIT_ARGS=--...=true.

Without it libtpu 0.0.52 multiplies densely on v5e, v6e and v7x, not on v5p.
"""


def are_in(spec: Any) -> bool:
    """Whether a model of the spec, of any family, has experts."""
    return getattr(spec.text, "experts", 0) > 0


def mixture(
    params: Params, x: Float[Array, "*B H"], *, chosen: int
) -> Float[Array, "*B H"]:
    """y of every token, each sent to `chosen` experts.

    On a mesh each device sorts its own tokens. It has all experts, `tensor` splits
    their inner width: one sum over its devices adds up what they found.
    """

    def local(params: Params, x: Float[Array, "*b H"]) -> Float[Array, "*b H"]:
        y = _tokens(params, x.reshape(-1, x.shape[-1]), chosen)
        if cut:
            y = jax.lax.psum(y, cut)
        return y.astype(x.dtype).reshape(x.shape)

    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        cut = None
        return local(params, x)
    rows = partition(("batch", *[None] * (x.ndim - 1)), x.shape, mesh)
    [cut] = partition(("mlp",), params["gate"].shape[-1:], mesh)
    wide, long = PartitionSpec(None, None, cut), PartitionSpec(None, cut, None)
    experts = {"router": PartitionSpec(), "gate": wide, "up": wide, "down": long}
    return jax.shard_map(
        local, in_specs=(experts, rows), out_specs=rows, check_vma=False
    )(params, x)


def route(
    router: Float[Array, "E H"], x: Float[Array, "N H"], chosen: int
) -> tuple[Float[Array, "N k"], Int[Array, "N k"]]:
    """g of the k experts of each token, and which they are; softmax in float32."""
    logits = x @ router.T
    probabilities = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
    largest, experts = jax.lax.top_k(probabilities, chosen)
    shares = largest / largest.sum(-1, keepdims=True)
    return shares.astype(logits.dtype), experts


def _tokens(params: Params, x: Float[Array, "N H"], chosen: int) -> Float[Array, "N H"]:
    """y, added up in float32."""
    shares, experts = route(params["router"], x, chosen)
    order = jnp.argsort(experts.reshape(-1))
    back = jnp.argsort(order)
    count = len(params["gate"])
    sizes = (experts[..., None] == jnp.arange(count)).sum((0, 1), dtype=jnp.int32)
    rows = _permuted(jnp.repeat(x, chosen, axis=0), order, back)
    gate, up = (product(rows, params[part], sizes) for part in ("gate", "up"))
    found = product(jax.nn.silu(gate) * up, params["down"], sizes)
    found = _permuted(found, back, order).reshape(*experts.shape, -1)
    return jnp.einsum("nk,nkh->nh", shares, found, preferred_element_type=jnp.float32)


def product(
    rows: Float[Array, "R K"], matrices: Float[Array, "E K N"], sizes: Int[Array, " E"]
) -> Float[Array, "R N"]:
    """The first sizes[0] rows times matrices[0], the next sizes[1] times the next, ...

    A kernel of libtpu's on TPUs. XLA multiplies `ragged_dot` densely elsewhere: 128
    experts would make 128 products of every row.
    """
    return jax.lax.platform_dependent(
        rows, matrices, sizes, tpu=jax.lax.ragged_dot, default=in_blocks
    )


def in_blocks(
    rows: Float[Array, "R K"], matrices: Float[Array, "E K N"], sizes: Int[Array, " E"]
) -> Float[Array, "R N"]:
    """The same as products of blocks of equally many rows, each of one expert.

    The last block of an expert is filled up with zeros. A block has at most half as
    many rows as an expert gets on average, and more than a quarter: that makes at most
    half as much work again, and three to five times as many blocks, and copies of
    matrices, as there are experts. With gradients it is 1.7 to 3.3 times the work, for
    8192 to 1024 tokens that each go to 8 of 128 experts: those of the copies add up by
    a product with who owns which.
    """
    count, experts = len(rows), len(sizes)
    block = 1 << max((count // (2 * experts)).bit_length() - 1, 0)
    most = (count + min(count, experts) * (block - 1)) // block
    blocks = -(-sizes // block)
    # Of each row: its expert, its place among the expert's, its slot in a block.
    mine = jnp.repeat(jnp.arange(experts), sizes, total_repeat_length=count)
    place = jnp.arange(count) - (jnp.cumsum(sizes) - sizes)[mine]
    slot = ((jnp.cumsum(blocks) - blocks) * block)[mine] + place
    owner = jnp.repeat(jnp.arange(experts), blocks, total_repeat_length=most)
    filled = jnp.zeros((most * block, rows.shape[1]), rows.dtype)
    filled = filled.at[slot].set(rows, unique_indices=True)
    found = jnp.einsum(
        "tbk,tkn->tbn", filled.reshape(most, block, -1), _copies(matrices, owner)
    )
    return found.reshape(most * block, -1).at[slot].get(unique_indices=True)


@jax.custom_vjp
def _copies(
    matrices: Float[Array, "E K N"], owner: Int[Array, " T"]
) -> Float[Array, "T K N"]:
    """matrices[owner]; the gradient adds up in one order, and in float32."""
    return matrices[owner]


def _copies_forward(matrices: Array, owner: Array) -> tuple[Array, Array]:
    whose = jax.nn.one_hot(owner, len(matrices), axis=0, dtype=matrices.dtype)
    return _copies(matrices, owner), whose


def _copies_backward(whose: Array, given: Array) -> tuple[Array, None]:
    return jnp.tensordot(whose, given, 1), None


_copies.defvjp(_copies_forward, _copies_backward)


@jax.custom_vjp
def _permuted(
    rows: Float[Array, "N H"], order: Int[Array, " N"], back: Int[Array, " N"]
) -> Float[Array, "N H"]:
    """rows[order]; `back` is the order that undoes it.

    The gradient is read in that order: as a scatter it would be slow on TPUs, and on
    GPUs not the same each time.
    """
    del back
    return rows[order]


def _permuted_forward(
    rows: Array, order: Array, back: Array
) -> tuple[Array, tuple[Array, Array]]:
    return _permuted(rows, order, back), (order, back)


def _permuted_backward(
    kept: tuple[Array, Array], given: Array
) -> tuple[Array, None, None]:
    order, back = kept
    return _permuted(given, back, order), None, None


_permuted.defvjp(_permuted_forward, _permuted_backward)
