"""Play until enough groups carry a signal."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Key

from vrl_jax.engine.actor import Actor
from vrl_jax.filters import mixed_groups
from vrl_jax.types import Rollout, Sample

Act = Callable[[Actor, Iterator[Sequence[Sample]], Key[Array, ""]], Rollout]
Keep = Callable[[Rollout], Bool[Array, " P"]]


def mixed_accuracy(
    rollout: Rollout, *, low: float = 0.01, high: float = 0.99
) -> Bool[Array, " P"]:
    """low < mean of the reward part `accuracy` < high, per group: EasyR1's filter."""
    if "accuracy" not in rollout.reward_parts:
        raise ValueError(
            "dynamic sampling filters by the reward part `accuracy`, and the reward "
            f"returned {sorted(rollout.reward_parts)}; name it, or pass another `keep`."
        )
    accuracy = rollout.reward_parts["accuracy"]
    group_size = len(accuracy) // len(rollout.prompts.tokens)
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

    Surplus groups are cut. Raises `RuntimeError` after `max_rounds` batches. DAPO,
    equation 11, https://arxiv.org/abs/2503.14476; the limit is EasyR1's.
    """
    rounds: list[Rollout] = []
    chosen: list[np.ndarray] = []
    for number in range(max_rounds):
        rollout = act(actor, batches, jax.random.fold_in(key, number))
        rounds.append(rollout)
        chosen.append(np.asarray(keep(rollout)))
        wanted = len(chosen[0])
        if sum(map(np.sum, chosen)) >= wanted:
            return _take(rounds, np.flatnonzero(np.concatenate(chosen))[:wanted])
    kept = int(sum(map(np.sum, chosen)))
    raise RuntimeError(
        f"dynamic sampling kept {kept} of {wanted * max_rounds} groups in {max_rounds} "
        f"rounds and needs {wanted}: the questions are too easy or too hard for the "
        "policy. Change the data or the bounds of `keep`, or raise max_rounds."
    )


def _take(rounds: list[Rollout], groups: np.ndarray) -> Rollout:
    """The given groups of all rounds together, renumbered."""
    rollout = jax.tree.map(lambda *x: jnp.concatenate(x), *rounds)
    total = rollout.prompts.tokens.shape[0]
    size = rollout.tokens.shape[0] // total
    rows = (groups[:, None] * size + np.arange(size)).reshape(-1)
    taken = jax.tree.map(lambda x: x[groups if x.shape[0] == total else rows], rollout)
    return dataclasses.replace(taken, group=jnp.repeat(jnp.arange(len(groups)), size))
