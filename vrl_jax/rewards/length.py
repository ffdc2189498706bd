"""Rewards for the length of a response, in tokens: right answers in few words.

Arrays in, arrays out, pure jnp: `lengths` and `correct` (1 or 0) of one group, or of
groups as rows where a function says so. Each formula can stand alone, be added with a
weight (`combine.weighted`), or be paid to right answers only
(`combine.paid_if`). Survey of most of them: https://arxiv.org/abs/2503.21614.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vrl_jax import masked

Lengths = Int[Array, "*P G"]
Correct = Float[Array, "*P G"]
Scores = Float[Array, "*P G"]


def soft_overlong(
    length: Int[Array, "*B"], *, max_length: int, buffer: int
) -> Float[Array, "*B"]:
    """clip((max_length - buffer - length) / buffer, -1, 0), to add to a reward.

    0 up to max_length - buffer tokens, then linear down to -1 at max_length. DAPO,
    section 3.4, https://arxiv.org/abs/2503.14476 (max_length 20480, buffer 4096). TRL
    and EasyR1 agree; verl has no floor, which a response cut at max_length never meets.
    """
    if not 0 < buffer <= max_length:
        raise ValueError(
            "buffer must lie between 1 and max_length, got "
            f"buffer={buffer} and max_length={max_length}."
        )
    return jnp.clip((max_length - buffer - jnp.asarray(length)) / buffer, -1.0, 0.0)


def l1_exact(
    lengths: Lengths,
    correct: Correct,
    budget: Int[Array, "..."],
    *,
    alpha: float = 3e-4,
) -> Scores:
    """c - alpha |budget - L|: wrong responses are pulled to the budget as well.

    LCPO, https://arxiv.org/abs/2503.04697.
    """
    return correct - alpha * jnp.abs(budget - lengths)


def l1_max(
    lengths: Lengths,
    correct: Correct,
    budget: Int[Array, "..."],
    *,
    alpha: float = 3e-4,
    delta: float = 0.5,
) -> Scores:
    """c clip(alpha (budget - L) + delta, 0, 1): LCPO's budget as an upper bound.

    https://arxiv.org/abs/2503.04697; its code has alpha 1e-3.
    """
    return correct * jnp.clip(alpha * (budget - lengths) + delta, 0, 1)


def efficient_length(
    lengths: Lengths, *, budget: int, alpha: float = 5e-3, delta: float = 0.5
) -> Scores:
    """clip(alpha (budget - L) + delta, 0, 1), added whether right or wrong.

    ReVisual-R1, https://arxiv.org/abs/2506.04207; also (1e-3, 0.95).
    """
    return jnp.clip(alpha * (budget - lengths) + delta, 0, 1)


def kimi(lengths: Lengths, correct: Correct) -> Scores:
    """Right: lam = 0.5 - (L - min) / (max - min); wrong: min(0, lam). Of each group.

    All 0 in a group of one length. Kimi k1.5,
    https://arxiv.org/abs/2501.12599, which switches it on after a warm-up.
    """
    shortest = lengths.min(-1, keepdims=True)
    spread = jnp.ptp(lengths, axis=-1, keepdims=True)
    lam = 0.5 - (lengths - shortest) / jnp.maximum(spread, 1)
    return jnp.where(spread > 0, jnp.where(correct > 0, lam, jnp.minimum(lam, 0)), 0)


def o1_pruner(
    lengths: Lengths,
    correct: Correct,
    *,
    reference_length: float | Float[Array, "..."],
    reference_accuracy: float | Float[Array, "..."],
    lam: float = 2.0,
) -> Scores:
    """L_ref / L - 1 + lam (c - A_ref), from K samples of the reference policy.

    https://arxiv.org/abs/2501.12570; its code clips to [-2, 4].
    """
    return (
        reference_length / jnp.maximum(lengths, 1)
        - 1
        + lam * (correct - reference_accuracy)
    )


def dast(lengths: Lengths, correct: Correct, *, max_length: int) -> Scores:
    """Right: max(0.5 - 0.5 t, 0.1); wrong: min(0.9 t - 0.1, -0.1); t = (L - B) / B.

    B = p mean(L of right) + (1 - p) max_length with p the group's accuracy: the harder
    the question, the longer its budget. DAST, https://arxiv.org/abs/2503.04472.
    """
    right = correct > 0
    p = right.mean(-1, keepdims=True)
    of_right = _mean_where(lengths, right)
    budget = p * of_right + (1 - p) * max_length
    t = (lengths - budget) / jnp.maximum(budget, 1)
    return jnp.where(
        right, jnp.maximum(0.5 - 0.5 * t, 0.1), jnp.minimum(0.9 * t - 0.1, -0.1)
    )


def cosine(
    lengths: Lengths,
    correct: Correct,
    *,
    max_length: int,
    right: tuple[float, float] = (1.0, 2.0),
    wrong: tuple[float, float] = (-10.0, 0.0),
    exceeded: float = -10.0,
) -> Scores:
    """Right: lo + (hi - lo) (1 + cos(pi L / max)) / 2; wrong: from lo up to hi.

    Short right answers are best, short wrong ones worst; `exceeded` from max_length on.
    https://arxiv.org/abs/2502.03373. open-r1 has right (0.5, 1), wrong (-1, -0.5).
    """
    wave = (1 + jnp.cos(jnp.pi * lengths / max_length)) / 2
    good = right[0] + (right[1] - right[0]) * wave
    bad = wrong[1] + (wrong[0] - wrong[1]) * wave
    return jnp.where(lengths >= max_length, exceeded, jnp.where(correct > 0, good, bad))


def repeated_tokens(
    tokens: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    n: int = 40,
    penalty: float = -0.05,
) -> Float[Array, "B T"]:
    """`penalty` on every token inside an n-gram that occurred before in its response.

    A reward per token; https://arxiv.org/abs/2502.03373. n-grams are compared by two
    32-bit hashes.
    """
    width = tokens.shape[1]
    if width < n:
        return jnp.zeros(tokens.shape)

    def one(row: Int[Array, " T"], kept: Bool[Array, " T"]) -> Float[Array, " T"]:
        starts = jnp.arange(width - n + 1)
        windows = starts[:, None] + jnp.arange(n)
        whole = kept[windows].all(1)
        grams = row[windows].astype(jnp.uint32)
        places = jnp.arange(n, dtype=jnp.uint32)
        hashes = [
            (_mix(grams + seed + places * jnp.uint32(0x9E3779B9))).sum(1, jnp.uint32)
            for seed in (jnp.uint32(1), jnp.uint32(0x85EBCA6B))
        ]
        same = (hashes[0][:, None] == hashes[0]) & (hashes[1][:, None] == hashes[1])
        again = (same & whole[None] & (starts[None] < starts[:, None])).any(1) & whole
        inside = jnp.zeros(width, bool).at[windows].max(again[:, None])
        return jnp.where(inside, penalty, 0.0)

    return jax.vmap(one)(tokens, mask)


def _mix(x: Int[Array, "..."]) -> Int[Array, "..."]:
    """A 32-bit finaliser: neighbouring ids land far apart."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def think_prune(lengths: Lengths, correct: Correct, *, limit: int) -> Scores:
    """c where L <= limit, else 0; the limit shrinks from stage to stage.

    ThinkPrune, https://arxiv.org/abs/2504.01296.
    """
    return correct * (lengths <= limit)


def train_to_be_efficient(
    lengths: Lengths, correct: Correct, *, alpha: float = 0.2, eps: float = 1e-7
) -> Scores:
    """c (1 - alpha sigmoid((L - mean) / (std + eps))), statistics of the right ones.

    std with divisor n - 1; one right response is compared with itself (mean L, std 1),
    where the released code has mean 0. https://arxiv.org/abs/2502.04463.
    """
    right = correct > 0
    count = right.sum(-1, keepdims=True)
    mean = _mean_where(lengths, right)
    square = jnp.where(right, jnp.square(lengths - mean), 0).sum(-1, keepdims=True)
    std = jnp.where(count > 1, jnp.sqrt(square / jnp.maximum(count - 1, 1)), 1.0)
    return correct * (1 - alpha * jax.nn.sigmoid((lengths - mean) / (std + eps)))


def shorter_better(
    lengths: Lengths, correct: Correct, *, alpha: float = 2.0, beta: float = 1e-3
) -> Scores:
    """alpha c - beta |L - L*|, L* the shortest right length, else the group's mean.

    ShorterBetter, https://arxiv.org/abs/2504.21370.
    """
    right = correct > 0
    shortest = jnp.where(right, lengths, jnp.inf).min(-1, keepdims=True)
    mean = lengths.mean(-1, keepdims=True)
    best = jnp.where(jnp.isfinite(shortest), shortest, mean)
    return alpha * correct - beta * jnp.abs(lengths - best)


def laser(
    lengths: Lengths,
    correct: Correct,
    *,
    target: int | Int[Array, "..."],
    bonus: float = 0.5,
) -> Scores:
    """c + bonus c [L <= target]: a step instead of a slope.

    LASER, https://arxiv.org/abs/2505.15612.
    """
    return correct + bonus * correct * (lengths <= target)


def laser_penalty(
    lengths: Lengths,
    correct: Correct,
    *,
    target: int | Int[Array, "..."],
    penalty: float = 0.5,
) -> Scores:
    """c - penalty c [L > target]: `laser` that takes instead of giving.

    LASER's code, https://github.com/hkust-nlp/Laser, which calls it "penalty".
    """
    return correct - penalty * correct * (lengths > target)


def laser_hybrid(
    lengths: Lengths,
    correct: Correct,
    *,
    target: int | Int[Array, "..."],
    bonus: float = 0.5,
) -> Scores:
    """c + bonus c where L <= target, c - bonus c where not: "hybrid" of LASER's code.

    https://github.com/hkust-nlp/Laser
    """
    return correct + bonus * correct * jnp.where(lengths <= target, 1, -1)


def where_any_right(scores: Scores, correct: Correct) -> Scores:
    """The scores of groups with a right response, 0 of the others.

    With z-scores a term of length alone would rank the responses of a group in which
    all are wrong: this leaves such a group without a signal. The gate is ours.
    """
    return jnp.where((correct > 0).any(-1, keepdims=True), scores, 0)


def laser_targets(
    lengths: Int[Array, "P G"], correct: Float[Array, "P G"], grid: Int[Array, " K"]
) -> Int[Array, " 3"]:
    """LASER-D's targets for easy, medium and hard questions, from a monitor set.

    Questions with accuracy >= 2/3, >= 1/3, and the rest. Of each level the smallest
    grid length l at which floor(share of its right answers within l times n) >= 1, n =
    floor(2 G / 3), floor(G / 3), 1; without right answers the longest. The share is of
    responses that are right within l. https://arxiv.org/abs/2505.15612.
    """
    group = lengths.shape[1]
    level = difficulty(correct)
    within = (lengths[..., None] <= grid) & (correct[..., None] > 0)  # P G K
    wanted = jnp.array([2 * group // 3, group // 3, 1])

    def target(number: Int[Array, ""]) -> Int[Array, ""]:
        mine = (level == number)[:, None, None]
        right = mine & (correct[..., None] > 0)
        share = (mine & within).sum((0, 1)) / jnp.maximum(right.sum((0, 1)), 1)
        enough = jnp.floor(share * wanted[number] + 1e-6) >= 1
        return jnp.where(enough.any(), grid[jnp.argmax(enough)], grid[-1])

    return jax.vmap(target)(jnp.arange(3))


def difficulty(correct: Correct) -> Int[Array, "*P"]:
    """0 for groups with accuracy >= 2/3, 1 for >= 1/3, else 2."""
    right, group = (correct > 0).sum(-1), correct.shape[-1]
    return jnp.where(3 * right >= 2 * group, 0, jnp.where(3 * right >= group, 1, 2))


def adaptive_weight(
    weight: Float[Array, ""],
    accuracy: Float[Array, ""],
    *,
    reference: float,
    eta: float = 1e-4,
) -> Float[Array, ""]:
    """max(0, w + eta (accuracy - reference)): the next weight of a term -w L.

    The penalty grows only while accuracy holds: a Lagrangian of "be short, and no
    worse than `reference`". The idea of https://arxiv.org/abs/2505.18298; the form is
    ours.
    """
    return jnp.maximum(weight + eta * (accuracy - reference), 0)


def _mean_where(x: Array, chosen: Bool[Array, "*P G"]) -> Float[Array, "*P 1"]:
    return masked.mean(x.astype(jnp.float32), chosen, -1)[..., None]
