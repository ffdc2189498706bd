"""Play until enough groups carry a signal."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Key

from vrl_jax.engine.actor import Actor
from vrl_jax.engine.packing import packed, unpacked
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
    kept: list[tuple[Rollout, np.ndarray]] = []
    held = 0
    for number in range(max_rounds):
        rollout = act(actor, batches, jax.random.fold_in(key, number))
        wanted = len(rollout.prompts.tokens)
        found = np.flatnonzero(keep(rollout))[: wanted - held]
        if len(found):
            kept.append((jax.device_get(rollout), found))
            held += len(found)
        if held == wanted:
            return _together(actor, kept)
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
                name: rollout.reward_parts.get(name, np.zeros_like(rollout.rewards))
                for name in names
            },
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
        each = unpacked(front_end, rollout.prompts)
        alone += [each[group] for group in groups]
        size = len(rollout.tokens) // len(each)
        rows = (groups[:, None] * size + np.arange(size)).reshape(-1)
        bare = dataclasses.replace(rollout, prompts=None)
        parts.append(jax.tree.map(lambda x, rows=rows: x[rows], bare))
    together = dataclasses.replace(
        jax.tree.map(lambda *x: np.concatenate(x), *parts),
        prompts=packed(room, front_end, alone),
        group=np.repeat(np.arange(len(alone)), size),
    )
    return jax.tree.map(jnp.asarray, together)
