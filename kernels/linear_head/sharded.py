"""The head with the vocabulary spread over a mesh axis, under `jax.shard_map`.

Each device has V / n consecutive rows of the weight and computes the sums over them;
one `pmax` and one `psum` of a few numbers per token make them the sums over all. An id
that another device holds is nowhere on this one. The backward pass needs one `psum` of
dhidden; dweight stays where its rows are.

`axis` names the mesh axis of the vocabulary and `rows` that of the tokens, or those, if
they are spread too (then dweight is summed over them). Every axis that is not named
sees the same values. Make the mesh with axis types `Auto`, and `jax.jit` moves arrays
to where they belong; with `Explicit`, what `jax.make_mesh` defaults to, every argument
must be given and its type must say that it lies so.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import AbstractMesh, Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Bool, Float, Int

from . import gradient, jensen_shannon
from .backend import Backend, choose
from .head import Engine, checked, head, not_negative, sums
from .state import HeadStats, PairStats, merge_across


def linear_head(
    hidden: Float[Array, "N d"],
    weight: Float[Array, "V d"],
    ids: Int[Array, " N"],
    *,
    mesh: Mesh | AbstractMesh,
    axis: str,
    rows: str | tuple[str, ...] | None = None,
    temperature: Float[Array, " N"] | float = 1.0,
    allowed: Bool[Array, " V"] | None = None,
    backend: str | Backend | None = None,
) -> HeadStats:
    """`linear_head` of a weight whose rows are spread over `axis`."""
    streams = (hidden,)
    inputs = checked(streams, weight, ids, temperature, allowed)
    return head(_engine(mesh, axis, rows, backend, streams, weight), streams, *inputs)


def linear_head_pair(
    hidden: Float[Array, "N d"],
    other: Float[Array, "N d"],
    weight: Float[Array, "V d"],
    ids: Int[Array, " N"],
    *,
    mesh: Mesh | AbstractMesh,
    axis: str,
    rows: str | tuple[str, ...] | None = None,
    temperature: Float[Array, " N"] | float = 1.0,
    allowed: Bool[Array, " V"] | None = None,
    backend: str | Backend | None = None,
) -> PairStats:
    """`linear_head_pair` of a weight whose rows are spread over `axis`."""
    streams = (hidden, other)
    inputs = checked(streams, weight, ids, temperature, allowed)
    engine = _engine(mesh, axis, rows, backend, streams, weight)
    return not_negative(head(engine, streams, *inputs))


def js_divergence(
    hidden: Float[Array, "N d"],
    other: Float[Array, "N d"],
    weight: Float[Array, "V d"],
    *,
    mesh: Mesh | AbstractMesh,
    axis: str,
    rows: str | tuple[str, ...] | None = None,
    temperature: Float[Array, " N"] | float = 1.0,
    allowed: Bool[Array, " V"] | None = None,
    backend: str | Backend | None = None,
) -> Float[Array, " N"]:
    """`js_divergence` of a weight whose rows are spread over `axis`."""
    hidden, other, weight = jax.lax.stop_gradient((hidden, other, weight))
    streams = (hidden, other)
    # From the rows, so that it lies on the devices as they do.
    nowhere = 0 * hidden[:, 0].astype(jnp.int32) - 1
    inputs = checked(streams, weight, nowhere, temperature, allowed)
    engine = _engine(mesh, axis, rows, backend, streams, weight)
    state = engine.sums(streams, *inputs)

    def local(streams, weight, temperature, allowed, state):
        part = jensen_shannon.divergence(*streams, weight, temperature, allowed, state)
        return jax.lax.psum(part, axis)

    weight, _, temperature, allowed = inputs
    over = _mapped(local, mesh, (P(rows), P(axis), P(rows), P(axis), P(rows)), P(rows))
    return jnp.maximum(over(streams, weight, temperature, allowed, state), 0)


def _engine(mesh, axis, rows, backend, streams, weight):
    count = mesh.shape[axis]
    over = (rows,) if isinstance(rows, str) else rows or ()
    tokens = math.prod(mesh.shape[name] for name in over)
    if backend == "reference":
        raise ValueError("backend 'reference' holds dense logits on one device only.")
    if weight.shape[0] % count or streams[0].shape[0] % tokens:
        raise ValueError(
            "the vocabulary must divide over its axis and the tokens over theirs, got "
            f"V = {weight.shape[0]} on {count} and N = {streams[0].shape[0]} on "
            f"{tokens} devices."
        )
    # The shapes that one device sees decide which backend can run.
    shapes = tuple(jax.ShapeDtypeStruct(_part(h, tokens), h.dtype) for h in streams)
    part = jax.ShapeDtypeStruct(_part(weight, count), weight.dtype)
    return _spread(mesh, axis, rows, choose(backend, shapes, part))


def _part(x, count):
    return (x.shape[0] // count, *x.shape[1:])


@functools.cache
def _spread(mesh, axis, rows, backend):
    inputs = (P(rows), P(axis), P(rows), P(rows), P(axis))

    def local_ids(ids, weight):
        return ids - jax.lax.axis_index(axis) * weight.shape[0]

    def local_sums(streams, weight, ids, temperature, allowed):
        ids = local_ids(ids, weight)
        state = sums(backend, streams, weight, ids, temperature, allowed)
        return merge_across(state, axis)

    def local_gradients(
        streams, weight, ids, temperature, allowed, state, cotangents, *, dtypes
    ):
        # What is still to be added up stays in float32.
        stream_dtypes, dtype = dtypes
        exact = tuple(jnp.promote_types(x, jnp.float32) for x in stream_dtypes)
        found, dweight = gradient.gradients(
            streams,
            weight,
            local_ids(ids, weight),
            temperature,
            allowed,
            state,
            cotangents,
            (exact, dtype if rows is None else jnp.promote_types(dtype, jnp.float32)),
        )
        if rows is not None:
            dweight = jax.lax.psum(dweight, rows).astype(dtype)
        found = jax.lax.psum(found, axis)
        return jax.tree.map(jnp.astype, found, stream_dtypes), dweight

    def gradients(*arguments):
        *arrays, dtypes = arguments
        local = functools.partial(local_gradients, dtypes=dtypes)
        specs = (*inputs, P(rows), P(rows))
        return _mapped(local, mesh, specs, (P(rows), P(axis)))(*arrays)

    return Engine(_mapped(local_sums, mesh, inputs, P(rows)), gradients)


def _mapped(local, mesh, inputs, outputs):
    # The gradients are ours on both sides: nothing to infer from which values vary.
    return jax.shard_map(
        local, mesh=mesh, in_specs=inputs, out_specs=outputs, check_vma=False
    )
