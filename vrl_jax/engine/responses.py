"""Responses to a batch of prompts, all sampled in one way: `decoding` for groups."""

import functools
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from vrl_jax.engine.decoding import Contexts, Model, Request, Rule, decode
from vrl_jax.engine.likelihood import first_positions
from vrl_jax.engine.sampling import response_positions
from vrl_jax.types import Prompts


class Sampled(NamedTuple):
    """Responses of a group lie together; `mask` includes the stop token.

    `finished` is False where the token budget ended the response. `noted` is what the
    model notes of the states that predicted the tokens.
    """

    tokens: Int[Array, "B T"]
    positions: Int[Array, "B T 3"]
    mask: Bool[Array, "B T"]
    logprobs: Float[Array, "B T"]
    log_kept: Float[Array, "B T"]
    noted: Float[Array, "B T K"]
    finished: Bool[Array, " B"]


def sample(
    model: Model,
    prompts: Prompts,
    keys: Key[Array, " B"],
    stops: Sequence[int],
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Sampled:
    """y_t ~ softmax(logits / temperature) over the model's ids, until a stop id.

    B / P responses are sampled for each prompt, as `sampling.draw` says. Token t of row
    i depends on keys[i] and t, not on the other rows or on the number of slots.
    """
    count, batch = len(prompts.tokens), len(keys)
    group = batch // count
    contexts = pieces(prompts, max(1, model.slots // group))
    size = count // len(contexts)
    data = np.asarray(jax.random.key_data(keys))
    rule = Rule(tuple(map(int, stops)))
    queue = deque(
        Request(
            contexts=contexts[row // group // size],
            row=row // group % size,
            key=data[row],
            limit=model.limit,
            rule=rule,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            tag=row,
        )
        for row in range(batch)
    )
    shape = (batch, model.limit)
    tokens = np.full(shape, stops[0], np.int32)
    mask = np.zeros(shape, bool)
    logprobs, log_kept = np.zeros((2, *shape), np.float32)
    noted = None
    finished = np.zeros(batch, bool)
    left = batch
    for ended in decode(model, queue):
        for response in ended:
            row, written = response.request.tag, slice(len(response.tokens))
            tokens[row, written] = response.tokens
            mask[row, written] = True
            logprobs[row, written] = response.logprobs
            log_kept[row, written] = response.log_kept
            if noted is None:
                one = response.noted
                noted = np.zeros((*shape, one.shape[1]), one.dtype)
            noted[row, written] = response.noted
            finished[row] = response.finished
        left -= len(ended)
        if not left:
            break
    positions = _response_positions(prompts, group, model.limit)
    arrays = map(jnp.asarray, (tokens, mask, logprobs, log_kept, noted, finished))
    first, *rest = arrays
    return Sampled(first, positions, *rest)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _response_positions(
    prompts: Prompts, group: int, length: int
) -> Int[Array, "B T 3"]:
    return response_positions(jnp.repeat(first_positions(prompts), group), length)


def pieces(prompts: Prompts, most: int) -> list[Contexts]:
    """The prompts in equal parts of at most `most`, or of one pack, in order."""
    count, packs = len(prompts.tokens), len(prompts.images.frames)
    fewest = min(-(-count // most), packs)
    parts = next(n for n in range(fewest, packs + 1) if packs % n == 0)
    if parts == 1:
        return [Contexts(lambda: prompts)]
    piece = functools.partial(_piece, prompts, parts=parts)
    return [Contexts(functools.partial(piece, number)) for number in range(parts)]


@functools.partial(jax.jit, static_argnames="parts")
def _piece(prompts: Prompts, number: Int[Array, ""], parts: int) -> Prompts:
    return jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:])[number], prompts)
