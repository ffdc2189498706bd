"""What a backend is, and which one runs.

A backend computes partial sums and nothing else; gradients, merging, vocabulary shards
and the choice are shared. Its module provides three functions:

    states(hidden, weight, ids, temperature, allowed) -> State
    pair_states(hidden, other, weight, ids, temperature, allowed) -> PairState
    obstacle(streams, rows, width, vocabulary, dtype) -> str | None

for hidden, other [N, d], weight [V, d], ids [N], temperature [N] float32 and allowed
[V] bool, to sums [N] float32 (see `state`):

    z_v = <hidden, weight_v> / temperature, both steps in float32

over the allowed v only: the others contribute nothing, selected before any arithmetic.
An id outside [0, V) is nowhere: g = g2 = 0. An id that is not allowed has g = `MASKED`.
`obstacle` says why these shapes cannot run on the present devices, None if they can.
It may import nothing that jax 0.10.2 does not have.
"""

import functools
import importlib
import logging
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

LOG = logging.getLogger(__name__)
NAMES = ("xla", "pallas_tpu", "pallas_mgpu")
ORDER = {"tpu": ("pallas_tpu", "xla"), "gpu": ("pallas_mgpu", "xla")}
_chosen: dict[tuple, str] = {}


class Backend(NamedTuple):
    """Functions that compute sums; those of a module, or a composition of them."""

    states: Callable
    pair_states: Callable


def choose(
    backend: "str | Backend | None",
    streams: tuple[Float[Array, "N d"], ...],
    weight: Float[Array, "V d"],
) -> Backend:
    """What `backend` means for these inputs: see the package."""
    if isinstance(backend, Backend):
        return backend
    shape = (*streams[0].shape, weight.shape[0])
    dtype = jnp.promote_types(streams[0].dtype, weight.dtype).name
    if backend is None:
        return _automatic(len(streams), shape, dtype)
    if backend not in NAMES:
        names = ["reference", *NAMES]
        raise ValueError(f"backend must be one of {names}, got {backend!r}.")
    why = _module(backend).obstacle(len(streams), *shape, dtype)
    if why is not None:
        raise ValueError(f"backend {backend!r} cannot run here: {why}")
    return _functions(backend)


def _automatic(streams, shape, dtype):
    """The first backend without an obstacle; logs it once per shape, with the reasons.

    The order is the platform's: its own kernel, then `xla`.
    """
    key = (streams, shape, dtype)
    if key not in _chosen:
        for name in ORDER.get(jax.default_backend(), ("xla",)):
            why = _module(name).obstacle(streams, *shape, dtype)
            if why is None:
                break
            LOG.warning("linear head %s: not %s: %s", key, name, why)
        _chosen[key] = name
        LOG.info("linear head %s: %s", key, name)
    return _functions(_chosen[key])


def chosen() -> dict[tuple, str]:
    """What was chosen so far: (streams, (N, d, V), dtype) -> name."""
    return dict(_chosen)


def _module(name):
    # Late: the Hopper kernel needs a newer jax than this package does.
    return importlib.import_module(f".{name}", __package__)


@functools.cache
def _functions(name):
    return Backend(_module(name).states, _module(name).pair_states)
