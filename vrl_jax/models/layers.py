"""What towers and decoders of several families are made of."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vrl_jax.models.policy import Params
from vrl_jax.models.sharding import by_row, placed


def rms_norm(
    params: Params, x: Float[Array, "... D"], eps: float
) -> Float[Array, "... D"]:
    """scale * x / sqrt(mean(x^2) + eps), the mean and division in float32.

    https://arxiv.org/abs/1910.07467
    """
    wide = x.astype(jnp.float32)
    factor = jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + eps)
    return params["scale"] * (wide * factor).astype(x.dtype)


def layer_norm(
    params: Params, x: Float[Array, "... D"], eps: float
) -> Float[Array, "... D"]:
    """scale * (x - mean(x)) / sqrt(var(x) + eps) + bias, in float32.

    https://arxiv.org/abs/1607.06450
    """
    wide = x.astype(jnp.float32)
    centred = wide - wide.mean(-1, keepdims=True)
    factor = jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + eps)
    return (params["scale"] * (centred * factor) + params["bias"]).astype(x.dtype)


def linear(params: Params, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
    """X W (+ b)."""
    # As one plain matrix: XLA on CPU takes twice as long for W's gradient otherwise.
    out = (x.reshape(-1, x.shape[-1]) @ params["kernel"]).reshape(*x.shape[:-1], -1)
    return out + params["bias"] if "bias" in params else out


def embed(table: Float[Array, "V H"], tokens: Int[Array, "*B"]) -> Array:
    """The rows of the tokens."""
    # On a mesh each device looks among its own rows, which must be whole for that.
    return by_row(placed(table, "vocabulary", None)[tokens])


def as_heads(states: Float[Array, "*B W"], axis: str, head_dim: int) -> Array:
    """[*B heads D], heads spread over the mesh as the logical `axis` says."""
    heads = states.reshape(*states.shape[:-1], -1, head_dim)
    return placed(heads, "batch", *[None] * (heads.ndim - 3), axis, None)


def inner(states: Float[Array, "*B W"]) -> Array:
    """What is between the matrices of an MLP, spread over the mesh by its width."""
    return placed(states, "batch", *[None] * (states.ndim - 2), "mlp")


def swiglu(params: Params, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
    """W_down (silu(W_gate x) * W_up x). https://arxiv.org/abs/2002.05202."""
    gated = jax.nn.silu(linear(params["gate"], x)) * linear(params["up"], x)
    return linear(params["down"], inner(gated))


def tanh_gelu_mlp(params: Params, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
    """W_down gelu(W_up x), GELU by its tanh formula."""
    return two_layers(params, x, lambda h: jax.nn.gelu(h, approximate=True))


def two_layers(
    params: Params, x: Float[Array, "... D"], activation: Callable[[Array], Array]
) -> Float[Array, "... E"]:
    """W_down activation(W_up x)."""
    return linear(params["down"], inner(activation(linear(params["up"], x))))


class Rotary(NamedTuple):
    """What positions do to heads: a pair of angles' cosines and sines."""

    cos: Float[Array, "*B half"]
    sin: Float[Array, "*B half"]


def rotary(angles: Float[Array, "*B half"]) -> Rotary:
    """Taken once for all layers and heads: small models would notice their cost."""
    return Rotary(jnp.cos(angles), jnp.sin(angles))


def rotate(x: Float[Array, "*B heads D"], turns: Rotary) -> Float[Array, "*B heads D"]:
    """Turns the pairs (x_k, x_{k + D/2}) by angle k, in float32.

    Rotary positions, https://arxiv.org/abs/2104.09864, with pairs half a head apart.
    """
    cos, sin = (part[..., None, :] for part in turns)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate(
        [first * cos - second * sin, second * cos + first * sin], axis=-1
    )
    return turned.astype(x.dtype)
