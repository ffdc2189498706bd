"""What the tower and the decoder share."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vrl_jax.models.policy import Params


def rms_norm(
    x: Float[Array, "... D"], weight: Float[Array, " D"], eps: float
) -> Float[Array, "... D"]:
    """weight * x / sqrt(mean(x^2) + eps), the mean and division in float32.

    https://arxiv.org/abs/1910.07467
    """
    wide = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + eps)
    return weight * (wide * scale).astype(x.dtype)


def linear(params: Params, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
    """X W (+ b)."""
    # As one plain matrix: XLA on CPU takes twice as long for W's gradient otherwise.
    out = (x.reshape(-1, x.shape[-1]) @ params["kernel"]).reshape(*x.shape[:-1], -1)
    return out + params["bias"] if "bias" in params else out


def swiglu(params: Params, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
    """W_down (silu(W_gate x) * W_up x). https://arxiv.org/abs/2002.05202."""
    gated = jax.nn.silu(linear(params["gate"], x)) * linear(params["up"], x)
    return linear(params["down"], gated)


def rotate(
    x: Float[Array, "*B heads D"], angles: Float[Array, "*B half"]
) -> Float[Array, "*B heads D"]:
    """Turns the pairs (x_k, x_{k + D/2}) by angle k, in float32.

    Rotary positions, https://arxiv.org/abs/2104.09864, with pairs half a head apart.
    """
    cos, sin = jnp.cos(angles)[..., None, :], jnp.sin(angles)[..., None, :]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate(
        [first * cos - second * sin, second * cos + first * sin], axis=-1
    )
    return turned.astype(x.dtype)
