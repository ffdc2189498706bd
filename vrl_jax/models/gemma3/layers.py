"""What Gemma does otherwise than the decoders of other families."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vrl_jax.models.layers import inner, linear
from vrl_jax.models.policy import Params


def rms_norm(
    params: Params, x: Float[Array, "... D"], eps: float
) -> Float[Array, "... D"]:
    """(1 + scale) * x / sqrt(mean(x^2) + eps), all in float32."""
    wide = x.astype(jnp.float32)
    factor = jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + eps)
    return ((1 + params["scale"].astype(jnp.float32)) * wide * factor).astype(x.dtype)


def geglu(params: Params, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
    """W_down (gelu(W_gate x) * W_up x), GELU by its tanh formula.

    https://arxiv.org/abs/2002.05202
    """
    gate = jax.nn.gelu(linear(params["gate"], x), approximate=True)
    return linear(params["down"], inner(gate * linear(params["up"], x)))
