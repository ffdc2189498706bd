"""Play until enough groups carry a signal."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Key

from vrl_jax.engine.actor import Actor
from vrl_jax.filters import mixed_groups
from vrl_jax.types import Rollout, Sample

Act = Callable[[Actor, Iterator[Sequence[Sample]], Key[Array, ""]], Rollout]
Keep = Callable[[Rollout], Bool[Array, " P"]]


class TooFewGroups(RuntimeError):
    """The policy is right, or wrong, on nearly every question."""


def mixed_accuracy(
    rollout: Rollout, *, low: float = 0.01, high: float = 0.99
) -> Bool[Array, " P"]:
    """low < mean of the reward part `accuracy` < high, per group: EasyR1's filter.

    No group where the reward failed for every one.
    """
    parts, count = rollout.reward_parts, len(rollout.prompts.tokens)
    if "accuracy" not in parts and np.all(parts.get("errors", 0)):
        return jnp.zeros(count, bool)
    if "accuracy" not in parts:
        raise ValueError(
            "dynamic sampling filters by the reward part `accuracy`, and the reward "
            f"returned {sorted(parts)}; name it, or pass another `keep`."
        )
    accuracy = parts["accuracy"]
    group_size = len(accuracy) // count
    return mixed_groups(accuracy, group_size=group_size, low=low, high=high)


def every_group(rollout: Rollout) -> Bool[Array, " P"]:
    """No filter: one round is enough."""
    return jnp.ones(len(rollout.prompts.tokens), bool)


def dynamic_sampling(
    actor: Actor,
    batches: Iterator[Sequence[Sample]],
    key: Key[Array, ""],
    *,
    act: Act,
    keep: Keep,
    max_rounds: int = 20,
) -> Rollout:
    """Plays batch after batch with `act` until as many groups are kept as one has.

    Batches are of one size; surplus groups are cut. Raises `TooFewGroups` after
    `max_rounds` batches. DAPO, equation 11, https://arxiv.org/abs/2503.14476; the
    limit is EasyR1's.
    """
    kept, held = None, 0
    for number in range(max_rounds):
        rollout = act(actor, batches, jax.random.fold_in(key, number))
        wanted = len(rollout.prompts.tokens)
        found = wanted + np.flatnonzero(keep(rollout))
        groups = np.concatenate([np.arange(held), found])[:wanted]
        held = len(groups)
        groups = np.pad(groups, (0, wanted - held))  # one shape for every round
        kept = _take(*_same_parts(kept or rollout, rollout), groups)
        if held == wanted:
            return kept
    raise TooFewGroups(
        f"dynamic sampling kept {held} of {wanted * max_rounds} groups in {max_rounds} "
        f"rounds and needs {wanted}: the questions are too easy or too hard for the "
        "policy. Change the data or the bounds of `keep`, or raise max_rounds."
    )


def _same_parts(*rollouts: Rollout) -> list[Rollout]:
    """With the reward parts of all of them; a part that was not returned is 0."""
    names = sorted({name for rollout in rollouts for name in rollout.reward_parts})
    return [
        dataclasses.replace(
            rollout,
            reward_parts={
                name: rollout.reward_parts.get(name, jnp.zeros_like(rollout.rewards))
                for name in names
            },
        )
        for rollout in rollouts
    ]


@jax.jit
def _take(kept: Rollout, new: Rollout, groups: Int[Array, " P"]) -> Rollout:
    """The given groups of both rollouts together, renumbered."""
    count = len(groups)
    size = len(kept.tokens) // count
    rows = (groups[:, None] * size + jnp.arange(size)).reshape(-1)

    def take(one: Array, other: Array) -> Array:
        both = jnp.concatenate([one, other])
        return both[groups if len(one) == count else rows]

    taken = jax.tree.map(take, kept, new)
    return dataclasses.replace(taken, group=jnp.repeat(jnp.arange(count), size))
