"""Where the generations of Qwen-VL choose: activations, and who owns a frequency."""

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from vrl_jax.models.layers import two_layers
from vrl_jax.models.policy import Params


def quick_gelu_mlp(params: Params, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
    """W_down quick_gelu(W_up x), quick_gelu(h) = h sigmoid(1.702 h)."""
    return two_layers(params, x, lambda h: h * jax.nn.sigmoid(1.702 * h))


def exact_gelu_mlp(params: Params, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
    """W_down gelu(W_up x), GELU by the error function: the mergers."""
    return two_layers(params, x, lambda h: jax.nn.gelu(h, approximate=False))


def contiguous_sections(sections: tuple[int, int, int]) -> Int[np.ndarray, " half"]:
    """The axis that owns each rotary frequency: time's first, then height's, width's.

    https://arxiv.org/abs/2409.12191, section 2.1
    """
    return np.repeat(np.arange(3), sections)


def interleaved_sections(sections: tuple[int, int, int]) -> Int[np.ndarray, " half"]:
    """Height owns 1, 4, 7, ..., width 2, 5, 8, ..., time all others.

    Every axis gets high and low frequencies: https://arxiv.org/abs/2511.21631,
    section 2.
    """
    _, height, width = sections
    owner = np.zeros(sum(sections), int)
    owner[1 : 3 * height : 3] = 1
    owner[2 : 3 * width : 3] = 2
    return owner
