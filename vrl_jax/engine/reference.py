"""Staying near another policy: its log-probs, and what the distance from it costs."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from vrl_jax import divergences
from vrl_jax.engine.actor import Actor
from vrl_jax.models.policy import Params
from vrl_jax.types import Rollout

Divergence = Callable[[Float[Array, "B T"], Float[Array, "B T"]], Float[Array, "B T"]]


class Anchor(NamedTuple):
    """What keeps a policy near another one.

    `score` adds the other policy's log-probs to a rollout; `distance` reads them, with
    the policy's own, and `weight` times it is what a token pays.
    """

    score: Callable[[Actor, Rollout], Rollout]
    distance: Callable[
        [Float[Array, "B T"], Mapping[str, Float[Array, "B T"]]], Float[Array, "B T"]
    ]
    weight: float


def near(
    reference: Params,
    *,
    weight: float,
    divergence: Divergence = divergences.k3,
    fetch: Callable[[Params], Params] = lambda params: params,
) -> Anchor:
    """weight divergence(log pi, log pi_ref) for each token; the reference is frozen.

    It is `fetch`ed for each scoring: near(to_host(reference), fetch=to_device), with
    `models.sharding`, keeps it in the memory of the host meanwhile.

    As a loss: k3 with 0.04 is GRPO's, equation 3, https://arxiv.org/abs/2402.03300;
    `low_var_kl` with 0.01 that of EasyR1. Off the reward: `k1` with 0.05 is TRL's RLOO.
    """

    def score(actor: Actor, rollout: Rollout) -> Rollout:
        other = dataclasses.replace(actor, params=fetch(reference))
        seen = other.likelihood(rollout).logprobs
        extra = {**rollout.extra_logprobs, "reference": seen}
        return dataclasses.replace(rollout, extra_logprobs=extra)

    def distance(
        logprobs: Float[Array, "B T"], others: Mapping[str, Float[Array, "B T"]]
    ) -> Float[Array, "B T"]:
        return divergence(logprobs, others["reference"])

    return Anchor(score, distance, weight)


def measured_by(divergence: Divergence, anchor: Anchor) -> Anchor:
    """The same reference at another distance, such as `divergences.k1`; or `free`."""

    def distance(
        logprobs: Float[Array, "B T"], others: Mapping[str, Float[Array, "B T"]]
    ) -> Float[Array, "B T"]:
        return divergence(logprobs, others["reference"])

    return anchor if anchor is free else anchor._replace(distance=distance)


free = Anchor(
    score=lambda actor, rollout: rollout,
    distance=lambda logprobs, others: jnp.zeros_like(logprobs),
    weight=0.0,
)
"""No reference, in memory or in the loss."""
