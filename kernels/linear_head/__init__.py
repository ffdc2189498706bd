"""Log-probability and exact entropy from hidden states and the head's weight.

With z_v = <hidden, weight_v> / temperature over the allowed ids v and p = softmax(z):

    logprobs = z[id] - logsumexp(z)          entropy = -sum_v p_v log p_v    (nats)

`[tokens, vocabulary]` is never in memory unless `backend="reference"` asks for it.
Differentiable in `hidden` and `weight`; `temperature` is a recorded fact of the
sampler and gets no gradient.
"""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from . import reference, xla
from .reference import HeadStats

BACKENDS = {"reference": reference.linear_head, "xla": xla.linear_head}


def linear_head(
    hidden: Float[Array, "N d"],
    weight: Float[Array, "V d"],
    ids: Int[Array, " N"],
    *,
    temperature: Float[Array, " N"] | float = 1.0,
    allowed: Bool[Array, " V"] | None = None,
    backend: str = "xla",
) -> HeadStats:
    """Per-token statistics of softmax(hidden weight^T / temperature).

    Ids that are not `allowed` have probability 0 and carry no gradient; the result
    is float32 for any input type. Raises `ValueError` for an unknown backend and for
    shapes that do not fit.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {sorted(BACKENDS)}, got {backend!r}.")
    if hidden.shape[1] != weight.shape[1] or hidden.shape[0] != ids.shape[0]:
        raise ValueError(
            "hidden [N, d], weight [V, d] and ids [N] must agree, got "
            f"{hidden.shape}, {weight.shape} and {ids.shape}."
        )
    if allowed is None:
        allowed = jnp.ones(weight.shape[0], bool)
    temperature = jnp.broadcast_to(
        jnp.asarray(temperature, jnp.float32), hidden.shape[:1]
    )
    return BACKENDS[backend](hidden, weight, ids, temperature, allowed)
