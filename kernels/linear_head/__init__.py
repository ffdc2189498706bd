"""Log-probability, entropy and divergence from hidden states and the head's weight.

With z_v = <hidden, weight_v> / temperature over the allowed ids v, p = softmax(z), and
q the same for a second stream of hidden states:

    logprobs = log p[id]      entropy = -sum_v p_v log p_v      (nats)
    kl = sum_v p_v (log p_v - log q_v)      reverse_kl = KL(q||p)

in one pass over the weight, without `[tokens, vocabulary]` in memory unless
`backend="reference"` asks for it. Differentiable in the hidden states and the weight;
`temperature` is a recorded fact of the sampler and gets no gradient. Tokens without a
cotangent cost nothing in the backward pass. See README.md beside this package.

`backend` is a name, "reference", "xla", "pallas_tpu" or "pallas_mgpu", which raises
where it cannot run; or a `backend.Backend`, used as it is; or None, which takes the
best that can run and logs it (`backend.chosen()`).
"""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from . import jensen_shannon, reference
from .backend import Backend, choose
from .head import checked, head, not_negative, on_one_device, sums
from .state import HeadStats, PairStats


def linear_head(
    hidden: Float[Array, "N d"],
    weight: Float[Array, "V d"],
    ids: Int[Array, " N"],
    *,
    temperature: Float[Array, " N"] | float = 1.0,
    allowed: Bool[Array, " V"] | None = None,
    backend: str | Backend | None = None,
) -> HeadStats:
    """Per-token statistics of softmax(hidden weight^T / temperature).

    Ids that are not `allowed` have probability 0 and carry no gradient; the result
    is float32 for any input type of at most its precision. Raises `ValueError` for an
    unknown backend, one that cannot run, and for shapes that do not fit.
    """
    streams = (hidden,)
    inputs = checked(streams, weight, ids, temperature, allowed)
    if backend == "reference":
        return reference.linear_head(hidden, *inputs)
    return head(on_one_device(choose(backend, streams, weight)), streams, *inputs)


def linear_head_pair(
    hidden: Float[Array, "N d"],
    other: Float[Array, "N d"],
    weight: Float[Array, "V d"],
    ids: Int[Array, " N"],
    *,
    temperature: Float[Array, " N"] | float = 1.0,
    allowed: Bool[Array, " V"] | None = None,
    backend: str | Backend | None = None,
) -> PairStats:
    """`linear_head` of both streams, and how far their softmaxes are apart.

    The divergences are at least 0: a rounding error below it is cut off, and has no
    gradient. Where both streams are equal they are exactly 0.
    """
    streams = (hidden, other)
    inputs = checked(streams, weight, ids, temperature, allowed)
    if backend == "reference":
        stats = reference.linear_head_pair(*streams, *inputs)
    else:
        engine = on_one_device(choose(backend, streams, weight))
        stats = head(engine, streams, *inputs)
    return not_negative(stats)


def js_divergence(
    hidden: Float[Array, "N d"],
    other: Float[Array, "N d"],
    weight: Float[Array, "V d"],
    *,
    temperature: Float[Array, " N"] | float = 1.0,
    allowed: Bool[Array, " V"] | None = None,
    backend: str | Backend | None = None,
) -> Float[Array, " N"]:
    """(KL(p||a) + KL(q||a)) / 2, a = (p + q) / 2: at most log 2.

    Two passes, twice the work of `linear_head_pair`; a score without gradient.
    """
    hidden, other, weight = jax.lax.stop_gradient((hidden, other, weight))
    streams = (hidden, other)
    nowhere = jnp.full(hidden.shape[:1], -1)
    inputs = checked(streams, weight, nowhere, temperature, allowed)
    weight, _, temperature, allowed = inputs
    if backend == "reference":
        score = reference.jensen_shannon(*streams, weight, temperature, allowed)
    else:
        state = sums(choose(backend, streams, weight), streams, *inputs)
        score = jensen_shannon.divergence(*streams, weight, temperature, allowed, state)
    return jax.lax.stop_gradient(jnp.maximum(score, 0))
