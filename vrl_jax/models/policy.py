"""What the engine asks of a model, whichever family it is of."""

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

from jaxtyping import Array, Float

Params = dict[str, Any]
"""A nested dict of arrays; those of layers are stacked on axis 0."""


class SlotCache(NamedTuple):
    """What decoding remembers of B sequences, one a slot.

    Leaves of `columns` are [B K C ...]: C columns, one a token. Leaves of `turned` are
    [B K D C], with the columns last. Leaves of `rows` are [B ...]. The engine moves
    slots and columns about; what they hold is the family's.
    """

    columns: Any
    rows: Any = ()
    turned: Any = ()


def no_values(params: Params, states: Float[Array, "B T H"]) -> dict[str, Any]:
    """Those of a policy without critics; `models.critic` gives it some."""
    del params, states
    return {}


class Policy(NamedTuple):
    """Pure functions of `params`; the family's spec is already applied.

    Scoring reads whole sequences:
    encode_images(params, images)          -> features, a pytree of [K ...]
    prefill(params, prompts, features)     -> hidden [P L H], prompt cache
    extend(params, prompt_cache, prompt_mask, tokens, positions, shown)
                                           -> hidden [P G T H], of whole responses
    head(params)                           -> [V H]
    values(params, hidden [B T H])         -> {name: [B T]}, of its critics, if any

    Sampling writes one token in every slot at a time:
    as_slots(prompt_cache)                 -> SlotCache with B = P, C = L
    unstack(params)                        -> weights, as decode reads them
    decode(weights, cache, column, index, tokens [B], positions [B 3])
                                           -> hidden [B H], cache
    resume(params, cache, mask [P C], prompts, features)
                                           -> hidden [P L H], prompt cache

    decode stores what is to be remembered of the tokens in `column`, the same for all
    slots. `index` [B C] says which token of its sequence (0, 1, ...) a column holds, -1
    for none; the new tokens are in it. A token sees the tokens that are there.

    resume is prefill of what follows: `cache` holds its sequences in order, the tokens
    of `mask`, and the prompts go on behind them, as do their positions. The cache that
    it gives is that of the prompts alone. `features` is None where they show nothing.
    A policy without it reads conversations anew at every turn.

    `shown` is None, or slots [P G T] as in `Prompts` and the features of the pictures
    in the responses. What features are is the family's own business; the engine hands
    them from the one function to the other. A pack of pictures serves P / K consecutive
    prompts, or responses. `hidden` is after the final norm: logits are hidden @ head.T.
    """

    encode_images: Callable
    prefill: Callable
    extend: Callable
    head: Callable
    as_slots: Callable
    unstack: Callable
    decode: Callable
    values: Callable = no_values
    resume: Callable | None = None


def applied(
    spec: Hashable,
    *,
    encode_images: Callable,
    prefill: Callable,
    extend: Callable,
    head: Callable,
    as_slots: Callable,
    unstack: Callable,
    decode: Callable,
    resume: Callable,
) -> Policy:
    """A family's functions of (params, spec, ...), with its spec.

    `as_slots` needs none. A family caches what this gives: the same spec must give the
    same functions, so that jit finds what it compiled.
    """

    def with_spec(function: Callable) -> Callable:
        return lambda params, *rest: function(params, spec, *rest)

    return Policy(
        encode_images=with_spec(encode_images),
        prefill=with_spec(prefill),
        extend=with_spec(extend),
        head=with_spec(head),
        as_slots=as_slots,
        unstack=with_spec(unstack),
        decode=with_spec(decode),
        resume=with_spec(resume),
    )
