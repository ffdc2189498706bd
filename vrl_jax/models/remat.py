"""What a layer keeps for its backward pass, by name; the rest is computed again.

Layers are scanned over, so what one keeps is there as many times as there are layers.
Given to a family's `policy(spec, remat)`; values and gradients stay the same.

                  kept of a decoder layer               computed again in the backward
    everything    all, attention logits too             nothing
    dots          inputs, products with weights         attention, norms, activations
    nothing       its input                             the layer
"""

import functools
from collections.abc import Callable, Mapping

import jax

Remat = Callable[[Callable], Callable]
"""Turns the body of a scan over layers into one that keeps less."""


def everything(layer: Callable) -> Callable:
    """Keeps whatever the backward pass reads."""
    return layer


dots: Remat = functools.partial(
    jax.checkpoint,
    policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    prevent_cse=False,  # a scan's body needs no barrier
)
nothing: Remat = functools.partial(
    jax.checkpoint,
    policy=jax.checkpoint_policies.nothing_saveable,
    prevent_cse=False,
)

REMATS: Mapping[str, Remat] = {
    "everything": everything,
    "dots": dots,
    "nothing": nothing,
}
