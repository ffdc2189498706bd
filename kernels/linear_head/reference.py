"""The obvious form: dense float32 logits. The oracle of the other backends."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

MASKED = -1e30  # finite, so that an online maximum never computes inf - inf


class HeadStats(NamedTuple):
    """Per token: log-probability of the id, and the entropy, in nats."""

    logprobs: Float[Array, " N"]
    entropy: Float[Array, " N"]


def linear_head(
    hidden: Float[Array, "N d"],
    weight: Float[Array, "V d"],
    ids: Int[Array, " N"],
    temperature: Float[Array, " N"],
    allowed: Bool[Array, " V"],
) -> HeadStats:
    """See the package; holds `[N, V]` float32 logits."""
    logits = jnp.einsum("nd,vd->nv", hidden, weight, preferred_element_type=jnp.float32)
    logits = logits / jax.lax.stop_gradient(temperature)[:, None]
    logprobs = jax.nn.log_softmax(jnp.where(allowed, logits, MASKED))
    plogp = jnp.where(allowed, jnp.exp(logprobs) * logprobs, 0.0)
    chosen = jnp.take_along_axis(logprobs, ids[:, None], axis=1)[:, 0]
    return HeadStats(chosen, -plogp.sum(axis=1))
