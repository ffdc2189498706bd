"""Reinforcement learning of image generators: a denoising step as an action.

A generator that denoises in T steps is a policy whose action at step i is the next
latent, drawn from a Gaussian. What the other modules do with the log-probs of tokens
they do with these: x is [*B ...], `axes` are those of one latent, and log-probs and
distances are means over a latent's elements, not sums, as in the released codes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

Latents = Float[Array, "..."]
Axes = int | Sequence[int]


class Step(NamedTuple):
    """Where a denoising step leads: x' = mean + deviation * noise, noise ~ N(0, 1).

    `clean` is the latent without noise that the model predicts at this step.
    """

    mean: Latents
    deviation: Float[Array, "..."]
    clean: Latents


def flow_step(
    x: Latents,
    velocity: Latents,
    time: Float[Array, "..."] | float,
    next_time: Float[Array, "..."] | float,
    *,
    noise: float = 0.7,
    longest: float = 0.98,
) -> Step:
    """A step of a flow from `time` to `next_time` as one of the SDE with its marginals.

    dt = t' - t < 0, sigma = noise sqrt(t / (1 - t)),
    mean = x (1 + sigma^2 dt / (2 t)) + v (1 + sigma^2 (1 - t) / (2 t)) dt,
    deviation = sigma sqrt(-dt), clean = x - t v. Times are from 1, noise, to 0 and
    broadcast to x; at t = 1 sigma is that of t over 1 - `longest`. With noise = 0 it is
    the Euler step, and its density is a point's.

    Flow-GRPO, https://arxiv.org/abs/2505.05470; PaCo-RL, whose constants these are,
    https://arxiv.org/abs/2512.04784.
    """
    time, next_time = jnp.asarray(time), jnp.asarray(next_time)
    change = next_time - time
    sigma = noise * jnp.sqrt(time / (1 - jnp.where(time < 1, time, longest)))
    pull = sigma**2 / (2 * time)
    drift = velocity * (1 + pull * (1 - time)) * change
    mean = x * (1 + pull * change) + drift
    return Step(mean, sigma * jnp.sqrt(-change), x - time * velocity)


def ddim_step(
    x: Latents,
    predicted: Latents,
    kept: Float[Array, "..."] | float,
    next_kept: Float[Array, "..."] | float,
    *,
    eta: float = 1.0,
) -> Step:
    """A step of DDIM, of the noise that is `predicted` in x.

    a and a' are the shares of signal now and next (alpha bar, a <= a'):
    clean = (x - sqrt(1 - a) e) / sqrt(a),
    deviation = eta sqrt((1 - a') / (1 - a)) sqrt(1 - a / a'),
    mean = sqrt(a') clean + sqrt(1 - a' - deviation^2) e. With eta = 1 that is DDPM.

    Equations 12 and 16 of https://arxiv.org/abs/2010.02502.
    """
    kept, next_kept = jnp.asarray(kept), jnp.asarray(next_kept)
    clean = (x - jnp.sqrt(1 - kept) * predicted) / jnp.sqrt(kept)
    variance = (1 - next_kept) / (1 - kept) * (1 - kept / next_kept)
    deviation = eta * jnp.sqrt(variance)
    direction = jnp.sqrt(jnp.maximum(1 - next_kept - deviation**2, 0))
    mean = jnp.sqrt(next_kept) * clean + direction * predicted
    return Step(mean, deviation, clean)


def gaussian_logprob(
    x: Latents, mean: Latents, deviation: Float[Array, "..."], axes: Axes
) -> Float[Array, "*B"]:
    """Mean over a latent of -(x - mean)^2 / (2 d^2) - log d - log(2 pi) / 2.

    d > 0. A mean, not a sum: then ratios stay near 1, and clips are as narrow as 1e-4.
    DDPO, https://arxiv.org/abs/2305.13301.
    """
    constant = jnp.log(deviation) + 0.5 * jnp.log(2 * jnp.pi)
    return (-(((x - mean) / deviation) ** 2) / 2 - constant).mean(axes)


def gaussian_kl(
    mean: Latents, ref_mean: Latents, deviation: Float[Array, "..."], axes: Axes
) -> Float[Array, "*B"]:
    """Mean over a latent of (mean - ref_mean)^2 / (2 d^2), of two steps as wide.

    Flow-GRPO, https://arxiv.org/abs/2505.05470, divides by sigma without sqrt(-dt).
    """
    return (((mean - ref_mean) / deviation) ** 2 / 2).mean(axes)


def final_similarity(
    states: Float[Array, "*B T D"], final: Float[Array, "*B D"]
) -> Float[Array, "*B T+1"]:
    """cos(state_i, final) for each step, and 1 for the final state itself.

    States are flat: the clean latents that the steps predict or, of an episode of T
    turns, an embedding after each. A state without length is like nothing: 0.
    """
    scale = (
        jnp.linalg.norm(states, axis=-1) * jnp.linalg.norm(final, axis=-1)[..., None]
    )
    product = jnp.einsum("...td,...d->...t", states, final)
    cosine = jnp.where(scale > 0, product / jnp.where(scale > 0, scale, 1), 0)
    return jnp.concatenate([cosine, jnp.ones((*cosine.shape[:-1], 1))], -1)


def step_shares(
    similarity: Float[Array, "*B S"], *, window: int = 5
) -> Float[Array, "*B S-1"]:
    """What each of T = S - 1 steps adds to the likeness to the end, as shares of 1.

    m_k = mean of c over window k, c_1..c_W first; the gain of a window is
    g_0 = m_0 - c_0, g_k = m_k - m_{k-1}; its W steps share it evenly:
    w_i = g_{i // W} / (W sum(g)). Shares may be negative. Where the gains cancel, to
    1e-6, all are 1 / T. `ValueError` where T is not whole windows.

    CoCA, https://arxiv.org/abs/2505.19196, with `final_similarity`.
    """
    steps = similarity.shape[-1] - 1
    if window < 1 or steps < 1 or steps % window:
        raise ValueError(f"{steps} steps are not whole windows of window={window}.")
    first, rest = similarity[..., :1], similarity[..., 1:]
    means = rest.reshape(*rest.shape[:-1], -1, window).mean(-1)
    gains = jnp.diff(jnp.concatenate([first, means], -1), axis=-1)
    total = gains.sum(-1, keepdims=True)
    flat = jnp.abs(total) < 1e-6
    shares = gains / (window * jnp.where(flat, 1, total))
    return jnp.repeat(jnp.where(flat, 1 / steps, shares), window, axis=-1)


def even_shares(steps: int) -> Float[Array, " T"]:
    """1 / T each: CoCA's control, UCA."""
    return jnp.full(steps, 1 / steps)


def shares_to_go(
    advantages: Float[Array, "*B"],
    shares: Float[Array, "*B T"],
    *,
    alpha: float = 0.0,
) -> Float[Array, "*B T"]:
    """A (alpha + (1 - alpha) S_i), S_i = w_i + ... + w_T: what step i is credited with.

    alpha = 1 is DDPO, A at every step. CoCA clips A to [-5, 5] before, then takes
    z-scores of the credits of one prompt, `pooled_zscore`, and clips those too.
    https://arxiv.org/abs/2505.19196.
    """
    to_go = jnp.cumsum(shares[..., ::-1], -1)[..., ::-1]
    return advantages[..., None] * (alpha + (1 - alpha) * to_go)


def pooled_zscore(
    credits: Float[Array, "B T"], *, eps: float = 1e-6
) -> Float[Array, "B T"]:
    """(q - mean(q)) / (std(q) + eps) over all steps of all rows, divisor B T.

    Of one prompt's trajectories, or of a batch's. The released buffer of CoCA keeps two
    numbers of many; the paper's is this.
    """
    return (credits - credits.mean()) / (credits.std() + eps)
