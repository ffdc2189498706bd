"""What the engine asks of a model, whichever family it is of."""

from collections.abc import Callable
from typing import Any, NamedTuple

Params = dict[str, Any]
"""A nested dict of arrays; those of layers are stacked on axis 0."""


class Policy(NamedTuple):
    """Pure functions of `params`; the family's spec is already applied.

    encode_images(params, images)          -> features, a pytree of [K ...]
    prefill(params, prompts, features)     -> hidden [P L H], prompt cache
    extend(params, prompt_cache, prompt_mask, cache, offset, tokens, positions)
                                           -> hidden [P G S H], cache
    init_cache(P, G, T, dtype)             -> cache for T tokens of P * G responses
    head(params)                           -> [V H]

    What the features are is the family's own business; the engine hands them from the
    one function to the other. A pack of pictures serves P / K consecutive prompts.
    `hidden` is after the final norm: logits are hidden @ head.T.
    """

    encode_images: Callable
    prefill: Callable
    extend: Callable
    init_cache: Callable
    head: Callable
