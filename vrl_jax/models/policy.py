"""What the engine asks of a model, whichever family it is of."""

import functools
from collections.abc import Callable, Hashable
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


def applied(
    spec: Hashable,
    *,
    encode_images: Callable,
    prefill: Callable,
    extend: Callable,
    init_cache: Callable,
    head: Callable,
) -> Policy:
    """A family's functions of (params, spec, ...), with its spec.

    `init_cache` takes the spec first. A family caches what this gives: the same spec
    must give the same functions, so that jit finds what it compiled.
    """

    def with_spec(function: Callable) -> Callable:
        return lambda params, *rest: function(params, spec, *rest)

    return Policy(
        encode_images=with_spec(encode_images),
        prefill=with_spec(prefill),
        extend=with_spec(extend),
        init_cache=functools.partial(init_cache, spec),
        head=with_spec(head),
    )
