"""Sums by a backend, gradients by `gradient`: one differentiable function."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from . import gradient
from .backend import Backend
from .state import HeadStats, PairState, PairStats, State, finish


class Engine(NamedTuple):
    """The two halves of the head: `sums` of all columns, and `gradients` from them."""

    sums: Callable
    gradients: Callable


@functools.cache
def on_one_device(backend: Backend) -> Engine:
    """Every column on the device that asks."""
    return Engine(functools.partial(sums, backend), gradient.gradients)


def sums(
    backend: Backend, streams: tuple[Float[Array, "N d"], ...], *rest: Array
) -> State | PairState:
    """The backend's function for this many streams."""
    one_or_two = backend.states if len(streams) == 1 else backend.pair_states
    return one_or_two(*streams, *rest)


def checked(
    streams: tuple[Float[Array, "N d"], ...],
    weight: Float[Array, "V d"],
    ids: Int[Array, " N"],
    temperature: Float[Array, " N"] | float,
    allowed: Bool[Array, " V"] | None,
) -> tuple[Array, Array, Array, Array]:
    """weight, ids, temperature [N] and allowed [V]; raises where shapes do not fit."""
    hidden = streams[0]
    if (
        any(other.shape != hidden.shape for other in streams)
        or hidden.shape[1] != weight.shape[1]
        or hidden.shape[0] != ids.shape[0]
    ):
        raise ValueError(
            "hidden [N, d], weight [V, d] and ids [N] must agree, got "
            f"{', '.join(str(x.shape) for x in (*streams, weight))} and {ids.shape}."
        )
    exact = jnp.promote_types(hidden.dtype, jnp.float32)
    temperature = jnp.broadcast_to(jnp.asarray(temperature, exact), ids.shape)
    if allowed is None:
        allowed = jnp.ones(weight.shape[0], bool)
    return weight, ids, temperature, allowed


def not_negative(stats: PairStats) -> PairStats:
    """The divergences cut off at 0."""
    return stats._replace(
        kl=jnp.maximum(stats.kl, 0), reverse_kl=jnp.maximum(stats.reverse_kl, 0)
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def head(
    engine: Engine,
    streams: tuple[Float[Array, "N d"], ...],
    weight: Float[Array, "V d"],
    ids: Int[Array, " N"],
    temperature: Float[Array, " N"],
    allowed: Bool[Array, " V"],
) -> HeadStats | PairStats:
    """See the package."""
    return finish(engine.sums(streams, weight, ids, temperature, allowed))


def _forward(engine, *inputs):
    state = engine.sums(*inputs)
    return finish(state), (inputs, state)


def _backward(engine, residuals, cotangents):
    inputs, state = residuals
    streams, weight, *_ = inputs
    dtypes = tuple(h.dtype for h in streams), weight.dtype
    dstreams, dweight = engine.gradients(*inputs, state, cotangents, dtypes)
    return dstreams, dweight, None, None, None


head.defvjp(_forward, _backward)
