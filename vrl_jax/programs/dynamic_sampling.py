"""Play until enough groups carry a signal."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Key

from vrl_jax.engine.actor import Actor
from vrl_jax.engine.packing import packed, unpacked
from vrl_jax.filters import mixed_groups
from vrl_jax.models.sharding import on_host, put
from vrl_jax.training.iteration import Act
from vrl_jax.types import Rollout, Sample

Keep = Callable[[Rollout], Bool[Array, " P"]]


class TooFewGroups(RuntimeError):
    """The policy is right, or wrong, on nearly every question."""


def mixed_accuracy(
    rollout: Rollout, *, low: float = 0.01, high: float = 0.99
) -> Bool[Array, " P"]:
    """low < mean of the reward part `accuracy` < high, per group: EasyR1's filter.

    Of the reward itself where it has no parts. No group where the reward failed for
    every one. `ValueError` where it has parts, and none of this name.
    """
    parts, count = rollout.reward_parts, groups_of(rollout)
    if "accuracy" not in parts and np.all(parts.get("errors", 0)):
        return jnp.zeros(count, bool)
    if not parts.keys() - {"errors", "unscored"}:
        parts = {"accuracy": rollout.rewards}
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
    return jnp.ones(groups_of(rollout), bool)


def groups_of(rollout: Rollout) -> int:
    """How many samples were played."""
    return int(rollout.group[-1]) + 1


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
    kept: list[tuple[Rollout, np.ndarray]] = []
    held = 0
    for number in range(max_rounds):
        rollout = act(actor, batches, jax.random.fold_in(key, number))
        wanted = groups_of(rollout)
        found = np.flatnonzero(on_host(keep(rollout)))[: wanted - held]
        if len(found):
            kept.append((on_host(rollout), found))
            held += len(found)
        if held == wanted:
            return _together(actor, kept)
    raise TooFewGroups(
        f"dynamic sampling kept {held} of {wanted * max_rounds} groups in {max_rounds} "
        f"rounds and needs {wanted}: the questions are too easy or too hard for the "
        "policy. Change the data or the bounds of `keep`, or raise max_rounds."
    )


def _same_parts(*rollouts: Rollout) -> list[Rollout]:
    """With the reward parts and facts of all, as if they were one batch.

    A part that one was not told is NaN, which is unknown; a fact is 0.
    """

    def filled(rollout: Rollout, field: str, value: float) -> dict[str, np.ndarray]:
        names = {name for other in rollouts for name in getattr(other, field)}
        nothing = np.full_like(rollout.rewards, value)
        own = getattr(rollout, field)
        return {name: own.get(name, nothing) for name in sorted(names)}

    return [
        dataclasses.replace(
            rollout,
            reward_parts=filled(rollout, "reward_parts", np.nan),
            facts=filled(rollout, "facts", 0),
        )
        for rollout in rollouts
    ]


def _together(
    actor: Actor, kept: Sequence[tuple[Rollout, Int[np.ndarray, " groups"]]]
) -> Rollout:
    """The given groups of each rollout, renumbered.

    On the host: their prompts are packed anew, in the smallest sizes that hold them.
    """
    room, front_end = actor.processor.room, actor.processor.front_end
    rollouts = _same_parts(*(rollout for rollout, _ in kept))
    alone, parts = [], []
    for rollout, (_, groups) in zip(rollouts, kept, strict=True):
        count = groups_of(rollout)

        def take(x: Any, groups: np.ndarray = groups, count: int = count) -> Any:
            """What belongs to the groups: prompts, rows, episodes or pictures."""
            return x.reshape(count, -1, *x.shape[1:])[groups]

        each = unpacked(front_end, rollout.prompts)
        per_group = len(each) // count
        alone += [each[g * per_group + i] for g in groups for i in range(per_group)]
        parts.append(jax.tree.map(take, dataclasses.replace(rollout, prompts=None)))
    longest = max(len(row.tokens) for row in alone)
    if longest > room.prompt_tokens[-1]:
        room = room._replace(prompt_tokens=(*room.prompt_tokens, longest))
    joined = jax.tree.map(lambda *x: np.concatenate(x), *parts)
    number = np.arange(len(joined.group))[:, None]
    group = number + 0 * joined.group
    episode = joined.episode
    if episode is not None:
        size = joined.group.shape[1]
        episode = episode % size + number * size
    flat = jax.tree.map(
        lambda x: x.reshape(-1, *x.shape[2:]),
        dataclasses.replace(joined, group=group, episode=episode),
    )
    prompts = packed(room, front_end, alone)
    return put(dataclasses.replace(flat, prompts=prompts))
