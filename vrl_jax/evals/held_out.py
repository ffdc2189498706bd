"""Accuracy on held-out samples, and whether the policy looks at the pictures."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Array, Key

from vrl_jax.engine.actor import Actor
from vrl_jax.programs.single_turn import single_turn
from vrl_jax.types import Sample


def accuracy(
    actor: Actor,
    samples: Sequence[Sample],
    key: Key[Array, ""],
    *,
    greedy: bool = True,
) -> float:
    """Mean reward of one response a sample, unscored left out."""
    actor = dataclasses.replace(actor, top_k=1) if greedy else actor
    size = min(actor.prompts_per_pass, len(samples))
    rewards: list[float] = []
    for start in range(0, len(samples), size):
        batch = samples[start : start + size]
        filler = samples[: size - len(batch)]  # keeps one shape; not counted
        rollout = single_turn(actor, iter([[*batch, *filler]]), key, group_size=1)
        rewards += np.asarray(rollout.rewards)[: len(batch)].tolist()
    return float(np.nanmean(rewards)) if not np.isnan(rewards).all() else math.nan


def shuffle_images(samples: Sequence[Sample]) -> list[Sample]:
    """Each question with the next sample's pictures.

    A policy that looks then answers another question, and is right by chance only.
    """
    return [
        dataclasses.replace(sample, images=other.images)
        for sample, other in zip(samples, [*samples[1:], samples[0]], strict=True)
    ]


def chance(samples: Sequence[Sample]) -> float:
    """sum_a p(a)^2 over the answers a: how often another sample's answer is right."""
    _, counts = np.unique([sample.answer for sample in samples], return_counts=True)
    return float(np.square(counts / len(samples)).sum())


def look_and_shuffle(
    actor: Actor, samples: Sequence[Sample], key: Key[Array, ""]
) -> dict[str, float]:
    """Accuracy with the right pictures and with those of other questions."""
    return {
        "val/accuracy": accuracy(actor, samples, key),
        "val/accuracy_shuffled_images": accuracy(actor, shuffle_images(samples), key),
        "val/count": len(samples),
    }
