"""A mixture of experts: each token goes through a few of many MLPs.

    p = softmax(R x),   T = the k largest of p,   g_e = p_e / sum_{e in T} p_e
    y = sum_{e in T} g_e W_down,e (silu(W_gate,e x) * W_up,e x)

The MLPs of Qwen3's larger models: section 2 of https://arxiv.org/abs/2505.09388. Every
token reaches all of its experts, however many others do: rows are sorted by expert, and
a product with the experts' matrices is one of consecutive rows with each.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from vrl_jax.models.policy import Params
from vrl_jax.models.sharding import partition

KERNEL = "xla_tpu_enable_ragged_dot_kernel"
"""Makes libtpu multiply rows with their own experts' matrices; v5p needs no telling.

Without it libtpu 0.0.52 multiplies densely for v5e, v6e and v7x.
"""

DENSE = (
    "this machine's compiler multiplies every token with the matrices of all experts; "
    f"on TPUs LIBTPU_INIT_ARGS=--{KERNEL}=true changes that"
)


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
    gate, up = (
        jax.lax.ragged_dot(rows, params[part], sizes) for part in ("gate", "up")
    )
    found = jax.lax.ragged_dot(jax.nn.silu(gate) * up, params["down"], sizes)
    found = _permuted(found, back, order).reshape(*experts.shape, -1)
    return jnp.einsum("nk,nkh->nh", shares, found, preferred_element_type=jnp.float32)


def multiplies_densely() -> bool:
    """Whether this machine's compiler multiplies rows with all experts' matrices.

    The result is the same, at the cost of as many products as there are experts. XLA
    does so on CPUs, and on TPUs that need `KERNEL` and were not told.
    """
    rows, count, width = 1024, 16, 256
    shapes = ((rows, width), (count, width, width))
    given = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes]
    sizes = jax.ShapeDtypeStruct((count,), jnp.int32)
    work = jax.jit(jax.lax.ragged_dot).lower(*given, sizes).compile().cost_analysis()
    return work.get("flops", 0) > 2 * (2 * rows * width**2)


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
