"""A running average of what is trained, kept beside the optimiser's state.

As a policy it is steadier than the newest parameters: for evaluation and export, or as
a reference that follows the policy slowly.
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
