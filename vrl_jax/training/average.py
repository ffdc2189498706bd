"""What follows the trained parameters slowly, as an optimiser moves them.

A running average of all of them, beside the optimiser's state: as a policy it is
steadier than the newest parameters, for evaluation and export, or as a reference. Or,
among the parameters, a copy of some: the target of a critic.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from vrl_jax.models.policy import Params
from vrl_jax.training.learner import Learner


class Averaged(NamedTuple):
    """The state of `averaged`."""

    inner: optax.OptState
    average: Any
    count: Int[Array, ""]


def ema(average: Any, params: Any, decay: float | Float[Array, ""]) -> Any:
    """decay * average + (1 - decay) * params, leaf by leaf, in float32.

    The mean teacher, https://arxiv.org/abs/1703.01780, section 2.
    """
    return jax.tree.map(lambda a, p: a + (1 - decay) * (_wide(p) - a), average, params)


def _wide(leaf: Array) -> Array:
    return leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))


def debiased(decay: float) -> optax.Schedule:
    """The decay of step n = 0, 1, ... that leaves no trace of the first parameters.

    The average of p_1 ... p_n then has weights proportional to decay^(n - i): Adam's
    bias correction, https://arxiv.org/abs/1412.6980, section 3.
    """

    def schedule(count: Int[Array, ""]) -> Float[Array, ""]:
        return decay * (1 - decay**count) / (1 - decay ** (count + 1))

    return schedule


def averaged(
    optimizer: optax.GradientTransformation, decay: float | optax.Schedule
) -> optax.GradientTransformation:
    """`optimizer`, and the average of the parameters that it makes.

    The average starts at the first parameters. Only what is trained has one: that of
    adapters is an average of their factors, not of the merged matrices.
    """
    at = decay if callable(decay) else lambda count: decay

    def init(params: Any) -> Averaged:
        # Copies: the learner's parameters and state are given up one by one.
        start = jax.tree.map(lambda p: jnp.copy(_wide(p)), params)
        return Averaged(optimizer.init(params), start, jnp.int32(0))

    def update(grads: Any, state: Averaged, params: Any) -> tuple[Any, Averaged]:
        updates, inner = optimizer.update(grads, state.inner, params)
        stepped = optax.apply_updates(params, updates)
        average = ema(state.average, stepped, at(state.count))
        return updates, Averaged(inner, average, state.count + 1)

    return optax.GradientTransformation(init, update)


def average_params(learner: Learner) -> Params:
    """The policy's params from the average, in the dtypes that they are trained in.

    The learner's optimiser is one of `averaged`.
    """
    if not isinstance(learner.opt_state, Averaged):
        raise ValueError(
            "this learner keeps no average; wrap its optimiser last: "
            "averaged(optimizer, decay)."
        )
    average = jax.tree.map(
        lambda a, p: a.astype(p.dtype), learner.opt_state.average, learner.trained
    )
    return learner.join(average, learner.fixed)


def following(
    optimizer: optax.GradientTransformation, leader: str, follower: str, *, rate: float
) -> optax.GradientTransformation:
    """`optimizer`, and follower <- (1 - rate) follower + rate leader after each update.

    Both are keys in the tree of what is trained, with the same beneath them, such as
    "q" and "target" among the critics; of a follower, gradient and decay count nothing.
    Polyak's average as in DDPG, https://arxiv.org/abs/1509.02971, algorithm 1. It wraps
    the others: what `optimizer` gives is the leader's last step. `ValueError` where the
    follower has nothing to follow.
    """
    own, other = (jax.tree_util.DictKey(name) for name in (follower, leader))

    def led(path: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(other if key == own else key for key in path)

    def init(params: Any) -> optax.OptState:
        paths = {path for path, _ in jax.tree_util.tree_leaves_with_path(params)}
        found = [path for path in paths if own in path]
        if not found or not all(led(path) in paths for path in found):
            raise ValueError(
                f"nothing that is trained is {follower!r} with a {leader!r} beside it: "
                "name the critics so, and train both, also(critic, ...)."
            )
        return optimizer.init(params)

    def update(
        grads: Any, state: optax.OptState, params: Any
    ) -> tuple[Any, optax.OptState]:
        updates, state = optimizer.update(grads, state, params)
        stepped = optax.apply_updates(params, updates)
        newest = dict(jax.tree_util.tree_leaves_with_path(stepped))

        def move(path: tuple[Any, ...], leaf: Array, step: Array) -> Array:
            return rate * (newest[led(path)] - leaf) if own in path else step

        return jax.tree_util.tree_map_with_path(move, params, updates), state

    return optax.GradientTransformation(init, update)
