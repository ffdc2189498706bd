"""The obvious form: dense float32 logits, differentiated by JAX itself.

What the others are compared with, and what small vocabularies may use.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from . import tiles
from .state import HeadStats, PairStats


def linear_head(
    hidden: Float[Array, "N d"],
    weight: Float[Array, "V d"],
    ids: Int[Array, " N"],
    temperature: Float[Array, " N"],
    allowed: Bool[Array, " V"],
) -> HeadStats:
    """See the package; holds `[N, V]` float32 logits."""
    logp = _log_softmax(hidden, weight, temperature, allowed)
    return HeadStats(_at(logp, ids), -_mean(logp, logp, allowed))


def linear_head_pair(
    hidden: Float[Array, "N d"],
    other: Float[Array, "N d"],
    weight: Float[Array, "V d"],
    ids: Int[Array, " N"],
    temperature: Float[Array, " N"],
    allowed: Bool[Array, " V"],
) -> PairStats:
    """See the package; holds the logits of both streams."""
    logp = _log_softmax(hidden, weight, temperature, allowed)
    logq = _log_softmax(other, weight, temperature, allowed)
    return PairStats(
        _at(logp, ids),
        -_mean(logp, logp, allowed),
        _at(logq, ids),
        _mean(logp, logp - logq, allowed),
        _mean(logq, logq - logp, allowed),
    )


def jensen_shannon(
    hidden: Float[Array, "N d"],
    other: Float[Array, "N d"],
    weight: Float[Array, "V d"],
    temperature: Float[Array, " N"],
    allowed: Bool[Array, " V"],
) -> Float[Array, " N"]:
    """See the package; holds the logits of both streams."""
    logp = _log_softmax(hidden, weight, temperature, allowed)
    logq = _log_softmax(other, weight, temperature, allowed)
    middle = jnp.logaddexp(logp, logq) - jnp.log(2.0)
    apart = _mean(logp, logp - middle, allowed) + _mean(logq, logq - middle, allowed)
    return apart / 2


def _log_softmax(hidden, weight, temperature, allowed):
    temperature = jax.lax.stop_gradient(temperature)
    return jax.nn.log_softmax(tiles.logits(hidden, weight, temperature, allowed))


def _at(logp, ids):
    hit = tiles.hits(ids, 0, logp.shape[1])
    return jnp.where(hit, logp, 0).sum(axis=1)


def _mean(logp, values, allowed):
    return jnp.where(allowed, jnp.exp(logp) * values, 0).sum(axis=1)
