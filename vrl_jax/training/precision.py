"""Which numbers a policy is kept and trained in, by name.

The optimiser's state is float32 in all three: a second moment with decay 0.999 in
bfloat16 stands still, for a step of 1/1000 is below half its unit, 1/256.

                        policy      trained     bytes a trained parameter, with Adam
    float32             float32     float32     12
    bfloat16_master     bfloat16    float32     14
    bfloat16_stochastic bfloat16    bfloat16    10

Gradients and what is frozen come on top; what is frozen has the policy's dtype.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, BFloat16, Float, Int, Key

from vrl_jax.models.trained import Trains, everything, float32_master

Optimizer = optax.GradientTransformation


class Precision(NamedTuple):
    """The policy's dtype, what of it is trained, and what that asks of an optimiser."""

    dtype: jnp.dtype
    trains: Trains
    optimizer: Callable[[Optimizer, Key[Array, ""]], Optimizer]


class Rounded(NamedTuple):
    """The state of `stochastic`."""

    inner: optax.OptState
    count: Int[Array, ""]


def stochastic_round(
    key: Key[Array, ""], x: Float[Array, "*shape"]
) -> BFloat16[Array, "*shape"]:
    """float32 to one of its two bfloat16 neighbours, so that E[rounded] = x.

    The upper one with probability (x - lower) / (upper - lower): 16 random bits are
    added below the last kept one. https://arxiv.org/abs/1502.02551, section 3.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    kept = (bits + noise) & jnp.uint32(0xFFFF0000)
    rounded = jax.lax.bitcast_convert_type(kept, jnp.float32)
    return jnp.where(jnp.isfinite(x), rounded, x).astype(jnp.bfloat16)


def stochastic(optimizer: Optimizer, key: Key[Array, ""]) -> Optimizer:
    """`optimizer` in float32 for bfloat16 parameters, which are rounded at random.

    An update below half a parameter's unit would be lost by plain rounding; here it
    moves the parameter that seldom: p <- round(p + u). Step and leaf are folded into
    `key`. https://arxiv.org/abs/2010.06192, section 4.
    """

    def init(params: Any) -> Rounded:
        return Rounded(optimizer.init(_wide(params)), jnp.int32(0))

    def update(grads: Any, state: Rounded, params: Any) -> tuple[Any, Rounded]:
        wide = _wide(params)
        updates, inner = optimizer.update(_wide(grads), state.inner, wide)
        leaves, tree = jax.tree.flatten(optax.apply_updates(wide, updates))
        keys = jax.random.split(jax.random.fold_in(key, state.count), len(leaves))
        rounded = tree.unflatten(map(stochastic_round, keys, leaves))
        # The learner adds this to the parameters in float32, where it is exact.
        steps = jax.tree.map(jnp.subtract, _wide(rounded), wide)
        return steps, Rounded(inner, state.count + 1)

    return optax.GradientTransformation(init, update)


def _wide(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)


def _as_it_is(optimizer: Optimizer, key: Key[Array, ""]) -> Optimizer:
    del key
    return optimizer


PRECISIONS = {
    "float32": Precision(jnp.float32, everything, _as_it_is),
    "bfloat16_master": Precision(jnp.bfloat16, float32_master, _as_it_is),
    "bfloat16_stochastic": Precision(jnp.bfloat16, everything, stochastic),
}


def precision(name: str) -> Precision:
    """The precision of this name: `params` are to be of its dtype.

    chosen = precision("bfloat16_master")
    trains = chain(only(language), chosen.trains)
    optimizer = chosen.optimizer(adamw(1e-6), key)
    """
    if name not in PRECISIONS:
        raise ValueError(
            f"there is no precision {name!r}; there are {', '.join(PRECISIONS)}."
        )
    return PRECISIONS[name]
