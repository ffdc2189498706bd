"""The SigLIP tower and the projector: patches in, features of each token out.

A picture is a whole number of rows of the layout (`images.lay_out`), so attention
within a picture is a reshape, and the average over the patches of a token another.
SigLIP, https://arxiv.org/abs/2303.15343; Gemma 3, section 2.1 of
https://arxiv.org/abs/2503.19786.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vrl_jax.models.attention import attend_within
from vrl_jax.models.gemma3.layers import rms_norm
from vrl_jax.models.gemma3.spec import Gemma3Spec, VisionSpec
from vrl_jax.models.layers import as_heads, layer_norm, linear, tanh_gelu_mlp
from vrl_jax.models.policy import Params
from vrl_jax.models.remat import Remat, everything
from vrl_jax.models.sharding import by_row
from vrl_jax.types import Images


def encode_images(
    params: Params, spec: Gemma3Spec, images: Images, *, remat: Remat = everything
) -> Float[Array, "K M H"]:
    """Features of the tokens in packed order; 0 where there is only padding."""
    vision, tower = spec.vision, params["vision"]
    if not images.frames.size:  # a batch of text alone
        return jnp.zeros((images.frames.shape[0], 0, spec.text.width))
    real = images.frames > 0
    # Padding may hold anything; what enters the tower from it is 0.
    patches = jnp.where(real[..., None], images.patches, 0)
    row, column = jnp.moveaxis(jnp.where(real[..., None], images.coordinates, 0), -1, 0)
    hidden = linear(
        tower["patch_embed"], patches.astype(tower["patch_embed"]["kernel"].dtype)
    )
    hidden = hidden + tower["positions"][row * vision.side + column]

    def block(
        x: Float[Array, "I N D"], weights: Params
    ) -> tuple[Float[Array, "I N D"], None]:
        normed = layer_norm(weights["norm1"], x, vision.eps)
        attended = _attention(weights, normed, pictures, vision)
        x = x + linear(weights["out"], attended)
        normed = layer_norm(weights["norm2"], x, vision.eps)
        return by_row(x + tanh_gelu_mlp(weights, normed)), None

    pictures = images.frames.reshape(-1, vision.patches)
    by_picture = hidden.reshape(*pictures.shape, vision.width)
    by_picture, _ = jax.lax.scan(remat(block), by_picture, tower["blocks"])
    hidden = layer_norm(tower["norm"], by_picture, vision.eps)
    merger = tower["merger"]
    averaged = hidden.reshape(real.shape[0], -1, vision.group, vision.width).mean(2)
    features = rms_norm(merger["norm"], averaged, vision.eps) @ merger["kernel"]
    return jnp.where(real[:, :: vision.group, None], features, 0)


def _attention(
    weights: Params,
    x: Float[Array, "I N D"],
    pictures: Int[Array, "I N"],
    vision: VisionSpec,
) -> Float[Array, "I N D"]:
    """Each patch attends to its picture."""
    queries, keys, values = (
        as_heads(linear(weights[part], x), "vision_heads", vision.head_dim)
        for part in ("query", "key", "value")
    )
    # Else the attention weights, patches^2 of every head, stay for the backward pass.
    attended = jax.checkpoint(attend_within)(queries, keys, values, pictures)
    return attended.reshape(x.shape)
