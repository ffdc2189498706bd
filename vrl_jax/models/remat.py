"""What a layer keeps for its backward pass, by name; the rest is computed again.

Layers are scanned over, so what one keeps is there as many times as there are layers.
Given to a family's `policy(spec, remat)`; values and gradients stay the same.

                  kept of a decoder layer               computed again in the backward
    everything    all, attention logits too             nothing
    dots          inputs, products with weights         attention, norms, activations,
                                                        experts
    nothing       its input                             the layer
    split         its input, each device of `tensor`    the layer, after its input is
                  a part of the width                   gathered
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jaxtyping import Array

from vrl_jax.models.sharding import by_row, placed

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


def split(layer: Callable) -> Callable:
    """As `nothing`, but for a mesh with `tensor`, whose devices all have the same rows.

    Between layers each of them keeps a part of the width, which is gathered before the
    next layer: what is sent grows a little (BENCHMARKS.md), what is kept shrinks by the
    size of `tensor`. Layers that hand on more than one array, those of a tower, keep
    theirs whole. Sequence parallelism, https://arxiv.org/abs/2205.05198 section 4.2.2,
    cut along the width, which divides where lengths do not.
    """

    def apart(x: Array) -> Array:
        return placed(x, "batch", *[None] * (x.ndim - 2), "kept")

    @nothing
    def gathering(x: Array, scanned: Any) -> tuple[Array, Any]:
        x, kept = layer(by_row(x), scanned)
        return apart(x), kept

    def body(x: Array | tuple, scanned: Any) -> tuple[Any, Any]:
        if not isinstance(x, jax.Array):
            return nothing(layer)(x, scanned)
        return gathering(apart(x), scanned)

    return body


REMATS: Mapping[str, Remat] = {
    "everything": everything,
    "dots": dots,
    "nothing": nothing,
    "split": split,
}
