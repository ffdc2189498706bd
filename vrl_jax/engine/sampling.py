"""Drawing a token: temperature, top-k, top-p, allowed ids, and what was kept.

A request narrows the policy's distribution, softmax(logits / temperature) over the ids
that the actor allows: to its own allowed ids, to the top k, to the top p of mass. The
token is drawn from what is kept, renormalised,

    log q(y) = log pi(y) - log sum_{v kept} pi(v),

and the second term is recorded as `log_kept`, 0 where nothing was left out. Scoring
subtracts it again: the ratio is exactly 1 before an update, and stays the ratio of pi
for the same token after it. To choose the kept ids anew from the updated policy would
give some sampled tokens probability 0; to remember them would take [T, V].
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Integer, Key
from vrl_kernels.linear_head.state import MASKED


class Drawn(NamedTuple):
    """A token a row, with its log q and what q's normaliser was under the policy."""

    tokens: Int[Array, " B"]
    logprobs: Float[Array, " B"]
    log_kept: Float[Array, " B"]


def draw(
    keys: Key[Array, " B"],
    logits: Float[Array, "B V"],
    *,
    base: Bool[Array, " V"],
    allowed: Bool[Array, "B V"],
    temperature: Float[Array, " B"],
    top_k: Int[Array, " B"],
    top_p: Float[Array, " B"],
    sorts: Bool[Array, ""],
) -> Drawn:
    """y ~ softmax(logits / temperature) over `base`, narrowed as above.

    `sorts` is `must_sort(top_k, top_p)`, which a loop over tokens asks once.
    One uniform number a row, and the first id at which the cumulated probability
    exceeds it: for a vocabulary of 150 000, as many numbers less than Gumbel noise.
    """
    scaled = jnp.where(base, logits.astype(jnp.float32) / temperature[:, None], MASKED)
    top = scaled.max(axis=1, keepdims=True)
    odds = jnp.exp(scaled - top)
    narrowed = jnp.where(allowed, scaled, MASKED)
    kept = (
        base & allowed & (narrowed >= threshold(narrowed, top_k, top_p, sorts)[:, None])
    )
    # The largest that is kept is 1: what is kept may all be unlikely.
    best = narrowed.max(axis=1, keepdims=True)
    cumulated = jnp.cumsum(jnp.where(kept, jnp.exp(narrowed - best), 0), axis=1)
    total = cumulated[:, -1:]
    point = jax.vmap(jax.random.uniform)(keys)[:, None] * total
    beyond = kept & (cumulated > point)
    # Rounding may leave nothing beyond the point; then it is the likeliest.
    tokens = jnp.where(
        beyond.any(axis=1), beyond.argmax(axis=1), narrowed.argmax(axis=1)
    ).astype(jnp.int32)
    log_all = jnp.log(odds.sum(axis=1)) + top[:, 0]
    log_some = jnp.log(total[:, 0]) + best[:, 0]
    everything = (kept == base).all(axis=1)
    normaliser = jnp.where(everything, log_all, log_some)
    chosen = jnp.take_along_axis(scaled, tokens[:, None], axis=1)[:, 0]
    return Drawn(tokens, chosen - normaliser, normaliser - log_all)


def must_sort(top_k: Int[Array, " B"], top_p: Float[Array, " B"]) -> Bool[Array, ""]:
    """Whether a row is narrowed by more than its largest logit tells."""
    return ((top_k > 1) | (top_p < 1)).any()


def threshold(
    logits: Float[Array, "B V"],
    top_k: Int[Array, " B"],
    top_p: Float[Array, " B"],
    sorts: Bool[Array, ""],
) -> Float[Array, " B"]:
    """The smallest logit of a row that is kept.

    First the `top_k` largest (0: all), then, of their renormalised probabilities, the
    largest whose sum reaches `top_p`, at least one (https://arxiv.org/abs/1904.09751).
    Ties with the smallest are kept.
    """

    def sort() -> Float[Array, " B"]:
        ordered = -jnp.sort(-logits, axis=1)
        size = logits.shape[1]
        count = jnp.where(top_k > 0, jnp.minimum(top_k, size), size)
        inside = jnp.arange(size) < count[:, None]
        odds = jnp.where(inside, jnp.exp(ordered - ordered[:, :1]), 0)
        before = jnp.cumsum(odds, axis=1) - odds
        kept = inside & (before < top_p[:, None] * odds.sum(axis=1, keepdims=True))
        last = jnp.maximum(kept.sum(axis=1), 1) - 1
        return jnp.take_along_axis(ordered, last[:, None], axis=1)[:, 0]

    def largest() -> Float[Array, " B"]:
        return jnp.where(top_k == 1, logits.max(axis=1), -jnp.inf)

    return jax.lax.cond(sorts, sort, largest)


def response_positions(start: Int[Array, " B"], length: int) -> Int[Array, "B T 3"]:
    """start, start + 1, ... on all three axes: the positions of response text."""
    positions = start[:, None] + jnp.arange(length)
    return jnp.broadcast_to(positions[..., None], (*positions.shape, 3))


def row_keys(
    key: Key[Array, ""], samples: Integer[Array, " P"], group_size: int
) -> Key[Array, " B"]:
    """One key per response, folded from the sample's number and the rollout's index.

    Never from the row: neither the order nor the company of a sample changes what is
    drawn for it.
    """

    def rows(sample):
        fold = functools.partial(jax.random.fold_in, jax.random.fold_in(key, sample))
        return jax.vmap(fold)(jnp.arange(group_size))

    return jax.vmap(rows)(samples).reshape(-1)
