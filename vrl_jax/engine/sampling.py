"""Sampling: prompts are prefilled once, responses are decoded in one loop."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key
from vrl_kernels.linear_head.state import MASKED

from vrl_jax.engine.likelihood import first_positions, last_hidden
from vrl_jax.models.policy import Params, Policy
from vrl_jax.types import Prompts

Choose = Callable[[Key[Array, ""], Float[Array, " V"]], Int[Array, ""]]


class Sampled(NamedTuple):
    """Responses of a group lie together; `mask` includes the stop token.

    `finished` is False where the token budget ended the response.
    """

    tokens: Int[Array, "B T"]
    positions: Int[Array, "B T 3"]
    mask: Bool[Array, "B T"]
    logprobs: Float[Array, "B T"]
    finished: Bool[Array, " B"]


def greedy(key: Key[Array, ""], logits: Float[Array, " V"]) -> Int[Array, ""]:
    """The most likely token; the key is not used."""
    del key
    return jnp.argmax(logits)


def generate(
    policy: Policy,
    params: Params,
    prompts: Prompts,
    keys: Key[Array, " B"],
    temperature: Float[Array, " B"],
    allowed: Bool[Array, " V"],
    stop_ids: Int[Array, " S"],
    *,
    max_new_tokens: int,
    choose: Choose = jax.random.categorical,
) -> Sampled:
    """y_t ~ softmax(logits / temperature) over the allowed ids, until a stop id.

    B / P responses are sampled for each prompt. Token t of row i is drawn with
    fold_in(keys[i], t), so it does not depend on the other rows. The loop ends when
    every response has ended. `logprobs` are those of the sampled distribution.
    """
    count = prompts.tokens.shape[0]
    batch = keys.shape[0]
    group = batch // count
    features = policy.encode_images(params, prompts.images)
    hidden, prompt_cache = policy.prefill(params, prompts, features)
    states = jnp.repeat(last_hidden(hidden, prompts.mask), group, axis=0)
    start = jnp.repeat(first_positions(prompts), group)
    positions = response_positions(start, max_new_tokens)
    head = policy.head(params)

    def sample(carry, states):
        step, cache, done, tokens, mask, logprobs = carry
        logits = jnp.einsum(
            "bh,vh->bv", states, head, preferred_element_type=jnp.float32
        )
        logits = jnp.where(allowed, logits / temperature[:, None], MASKED)
        step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, step)
        token = jax.vmap(choose)(step_keys, logits).astype(jnp.int32)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), token[:, None], axis=1)
        tokens = tokens.at[:, step].set(jnp.where(done, stop_ids[0], token))
        mask = mask.at[:, step].set(~done)
        logprobs = logprobs.at[:, step].set(jnp.where(done, 0.0, chosen[:, 0]))
        done = done | jnp.isin(token, stop_ids)
        return step + 1, cache, done, tokens, mask, logprobs

    def running(carry):
        step, _, done, *_ = carry
        return (step < max_new_tokens) & ~done.all()

    def decode(carry):
        step, cache, done, tokens, mask, logprobs = carry
        hidden, cache = policy.extend(
            params,
            prompt_cache,
            prompts.mask,
            cache,
            step - 1,
            tokens[:, step - 1].reshape(count, group, 1),
            positions[:, step - 1].reshape(count, group, 1, 3),
        )
        carry = (step, cache, done, tokens, mask, logprobs)
        return sample(carry, hidden.reshape(batch, -1))

    shape = (batch, max_new_tokens)
    empty = (
        jnp.int32(0),
        policy.init_cache(count, group, max_new_tokens, states.dtype),
        jnp.zeros(batch, bool),
        jnp.full(shape, stop_ids[0], jnp.int32),
        jnp.zeros(shape, bool),
        jnp.zeros(shape, jnp.float32),
    )
    carry = jax.lax.while_loop(running, decode, sample(empty, states))
    _, _, done, tokens, mask, logprobs = carry
    return Sampled(tokens, positions, mask, logprobs, done)


def response_positions(start: Int[Array, " B"], length: int) -> Int[Array, "B T 3"]:
    """start, start + 1, ... on all three axes: the positions of response text."""
    positions = start[:, None] + jnp.arange(length)
    return jnp.broadcast_to(positions[..., None], (*positions.shape, 3))


def row_keys(
    key: Key[Array, ""], samples: Int[Array, " P"], group_size: int
) -> Key[Array, " B"]:
    """One key per response, folded from the sample's number and the rollout's index.

    Never from the row: neither the order nor the company of a sample changes what is
    drawn for it.
    """

    def rows(sample):
        fold = functools.partial(jax.random.fold_in, jax.random.fold_in(key, sample))
        return jax.vmap(fold)(jnp.arange(group_size))

    return jax.vmap(rows)(samples).reshape(-1)
