"""Partial sums of a softmax over some of the vocabulary, and how they combine.

For logits z over any set of columns, with m = max z and all sums over the set,

    s = sum e^(z - m)       t = sum e^(z - m) (z - m)       g = z[id], 0 if not there

and, for a second stream z' of the same columns with m2 = max z',

    s2 = sum e^(z' - m2)      u = sum e^(z - m) [(z - m) - (z' - m2)]
    g2 = z'[id]               r = sum e^(z' - m2) [(z' - m2) - (z - m)]

Moving the maximum from m to M multiplies the sums by e^a, a = m - M, after adding a s
to t and (a - b) s to u, b = m2 - M2; sums with the same maximum add up. A backend, a
split or a device has to know no more of the others: online softmax, Milakov and
Gimelshein, https://arxiv.org/abs/1805.02867, with centred sums. Centred, they lose
nothing to an offset of the logits; sum p (z - z') - (lse - lse') would.
"""

from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

MASKED = -1e30
"""Logit of an id that is not allowed: finite, so that no maximum gives inf - inf."""


class State(NamedTuple):
    """Sums of one stream. Nothing seen yet: m is `MASKED`, the rest 0."""

    m: Float[Array, "*S N"]
    s: Float[Array, "*S N"]
    t: Float[Array, "*S N"]
    g: Float[Array, "*S N"]


class PairState(NamedTuple):
    """Sums of two streams over the same columns. Nothing seen yet: m, m2 `MASKED`."""

    m: Float[Array, "*S N"]
    s: Float[Array, "*S N"]
    t: Float[Array, "*S N"]
    g: Float[Array, "*S N"]
    m2: Float[Array, "*S N"]
    s2: Float[Array, "*S N"]
    g2: Float[Array, "*S N"]
    u: Float[Array, "*S N"]
    r: Float[Array, "*S N"]


Sums = TypeVar("Sums", State, PairState)


class HeadStats(NamedTuple):
    """Per token, in nats: log p[id], and the entropy of p."""

    logprobs: Float[Array, " N"]
    entropy: Float[Array, " N"]


class PairStats(NamedTuple):
    """Per token, in nats: log p[id], entropy of p, log q[id], KL(p||q), KL(q||p)."""

    logprobs: Float[Array, " N"]
    entropy: Float[Array, " N"]
    other_logprobs: Float[Array, " N"]
    kl: Float[Array, " N"]
    reverse_kl: Float[Array, " N"]


def empty(kind: type[Sums], rows: int, dtype: jnp.dtype = jnp.float32) -> Sums:
    """The sums over no column at all: what merging starts from."""
    start = {"m": MASKED, "m2": MASKED}
    return kind(*(jnp.full(rows, start.get(f, 0.0), dtype) for f in kind._fields))


def merge(states: Sums, axis: int = 0) -> Sums:
    """Sums over the union of disjoint sets of columns, stacked along `axis`."""
    tops = [jnp.expand_dims(m.max(axis), axis) for m in _maxima(states)]
    moved = _moved(states, *tops)
    joined = [x.sum(axis) for x in moved]
    return _with_maxima(type(states)(*joined), [x.squeeze(axis) for x in tops])


def merge_across(state: Sums, axis_name: str) -> Sums:
    """`merge` over the devices of a mesh axis: one `pmax`, one `psum`."""
    tops = jax.lax.pmax(jnp.stack(_maxima(state)), axis_name)
    moved = _moved(state, *tops)
    sums = [name for name in state._fields if name not in ("m", "m2")]
    total = jax.lax.psum(jnp.stack([getattr(moved, x) for x in sums]), axis_name)
    joined = state._replace(**dict(zip(sums, total, strict=True)))
    return _with_maxima(joined, tops)


def finish(state: State | PairState) -> HeadStats | PairStats:
    """Statistics of the whole vocabulary from its sums; `kl` is not clamped at 0.

    log p[id] = (g - m) - log s, entropy = log s - t / s,
    KL(p||q) = u / s - log s + log s2, KL(q||p) = r / s2 - log s2 + log s.
    """
    log_s = jnp.log(state.s)
    # (g - m) - log s, not g - lse: the offset of the logits cancels exactly.
    logprobs = (state.g - state.m) - log_s
    entropy = log_s - state.t / state.s
    if isinstance(state, State):
        return HeadStats(logprobs, entropy)
    log_s2 = jnp.log(state.s2)
    return PairStats(
        logprobs,
        entropy,
        (state.g2 - state.m2) - log_s2,
        state.u / state.s - log_s + log_s2,
        state.r / state.s2 - log_s2 + log_s,
    )


def _maxima(state):
    return [state.m] if isinstance(state, State) else [state.m, state.m2]


def _with_maxima(state, tops):
    return state._replace(**dict(zip(("m", "m2"), tops, strict=False)))


def _moved(state, top, top2=None):
    """The same sums with respect to larger maxima."""
    a = state.m - top
    scale = jnp.exp(a)
    one = State(top, scale * state.s, scale * (state.t + a * state.s), state.g)
    if isinstance(state, State):
        return one
    b = state.m2 - top2
    scale2 = jnp.exp(b)
    return PairState(
        *one,
        m2=top2,
        s2=scale2 * state.s2,
        g2=state.g2,
        u=scale * (state.u + (a - b) * state.s),
        r=scale2 * (state.r + (b - a) * state.s2),
    )
