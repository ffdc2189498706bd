"""Rewards of a response that depend on the others to the same prompt: pure jnp.

The last axis is the group. What only needs lengths is in `vrl_jax.rewards.length`.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vrl_jax import geometry, masked
from vrl_jax.rewards.boxes import Boxes, overlaps

Group = Float[Array, "*P G"]


def tool_preference(
    correct: Bool[Array, "*P G"],
    used_tool: Bool[Array, "*P G"],
    has_format: Bool[Array, "*P G"],
) -> Group:
    """Look closer only where the first look fails: AGAR of Chain-of-Focus.

    Some direct answer right: direct right 1, with tool right 0.8, with tool wrong 0.5.
    Only answers with a tool right: right 1, with tool wrong 0.5. None right: with tool
    0.5. A direct wrong one 0.1 if it kept the format, else 0. Replaces the reward;
    groups of one should be left alone. https://arxiv.org/abs/2505.15436.
    """
    direct_right = (correct & ~used_tool).any(-1, keepdims=True)
    right = jnp.where(used_tool & direct_right, 0.8, 1.0)
    wrong = jnp.where(used_tool, 0.5, jnp.where(has_format, 0.1, 0.0))
    return jnp.where(correct, right, wrong)


def tool_curiosity(
    calls: Int[Array, "*P G"],
    *,
    wanted_share: float = 0.3,
    alpha: float = 0.25,
    divisor: float = 2.0,
    cost: float = 0.05,
) -> Group:
    """alpha max(wanted - q, 0) / (divisor q) - cost (n - 1), 0 without a call.

    q is the share of the group that called a tool, n the response's calls: a bonus
    while tools are rare, to add to the answer's reward whether right or wrong. RaPR of
    Pixel-Reasoner, https://arxiv.org/abs/2505.15966; divisor 1.5 for video.
    """
    share = (calls > 0).mean(-1, keepdims=True)
    bonus = alpha * jnp.maximum(wanted_share - share, 0)
    bonus = bonus / jnp.maximum(divisor * share, 1e-9)
    return jnp.where(calls > 0, bonus - cost * (calls - 1), 0)


def agreement(answers: Int[Array, "*P G"]) -> Group:
    """The share of the group with the same answer; -1 is no answer and gets 0.

    `answers` numbers equal answers equally. Self-consistency as a reward, without gold.
    """
    same = (answers[..., :, None] == answers[..., None, :]) & (answers >= 0)[..., None]
    return same.mean(-1)


def majority(answers: Int[Array, "*P G"]) -> Group:
    """1 for the most frequent answer, of equal ones the first given; -1 gets 0.

    The pseudo-label of TTRL, https://arxiv.org/abs/2504.16084.
    """
    leader = jnp.argmax(agreement(answers), -1, keepdims=True)
    winner = jnp.take_along_axis(answers, leader, -1)
    return ((answers == winner) & (answers >= 0)).astype(jnp.float32)


def matched_gold_iou(
    predicted: Boxes, gold: Boxes, *, iou_threshold: float = 0.5
) -> Float[Array, " M"]:
    """For each gold box, its IoU in the Hungarian matching; 0 below the threshold."""
    scores = overlaps(predicted, gold).T
    found = geometry.matched_scores(scores, geometry.hungarian_match(scores))
    return jnp.where(found >= iou_threshold, found, 0)


def disagreement_look(
    answers: Boxes,
    looks: Boxes,
    gold: Boxes,
    size: Float[Array, " 2"],
    answered: Bool[Array, " G"],
    *,
    iou_threshold: float = 0.5,
    cover: float = 0.5,
    free_area: float = 0.5,
) -> Float[Array, " G"]:
    """sum_j w_j [a look box of i covers gold j] psi(area_i): look where answers differ.

    w_j is the variance of gold j's matched IoU over the responses that have `answered`,
    divided by the sum. A look box covers what it shares at least `cover` of the area
    with. psi is 1 up to `free_area` of the picture and falls linearly to 0 at all of
    it. Where all answers agree: 1 for an empty look list, else psi / 2. `answers` and
    `looks` have a leading axis G. A reading of DIP-R1,
    https://arxiv.org/abs/2505.23179, whose abstract leaves the formula open.

    A box over half the picture costs nothing and need not be near what it covers: where
    all that is unsure lies in one half, it earns 1. A smaller `free_area` prices it.
    """
    look_boxes, look_mask = jnp.asarray(looks.boxes), jnp.asarray(looks.mask)
    found = jax.vmap(lambda a: matched_gold_iou(a, gold, iou_threshold=iou_threshold))(
        answers
    )
    variance = jnp.where(gold.mask, _variance(found, answered), 0)
    total = variance.sum()
    weights = variance / jnp.maximum(total, 1e-12)
    a, b = geometry.pairwise(look_boxes, jnp.asarray(gold.boxes))
    shared = geometry.area(geometry.intersection(a, b))
    enough = (shared > 0) & (shared >= cover * geometry.area(gold.boxes))
    covers = (enough & look_mask[..., None] & gold.mask).any(1)
    used = jax.vmap(geometry.union_area)(look_boxes, look_mask)
    share = used / jnp.maximum(size[0] * size[1], 1)
    psi = jnp.clip((1 - share) / (1 - free_area), 0, 1)
    agreed = jnp.where(look_mask.any(-1), 0.5 * psi, 1.0)
    return jnp.where(total > 1e-9, (covers * weights).sum(-1) * psi, agreed)


def spread_look(
    answers: Boxes,
    looks: Boxes,
    gold: Boxes,
    size: Float[Array, " 2"],
    answered: Bool[Array, " G"],
    *,
    cells: int = 32,
) -> Float[Array, " G"]:
    """Share of the variance that lies in look boxes - share of the picture that does.

    Of the picture's cells x cells parts, each has the variance, over the responses that
    have `answered`, of the share of it that answer boxes cover, evenly spread over the
    cell: a look at a thing smaller than its cell earns only its part of the cell's
    variance, so let cells be as small as things. In [-1, 1); a look at no part of the
    picture gets 0, and any other less than 0 where all answers agree. `answers` and
    `looks` have a leading axis G. Another reading of DIP-R1,
    https://arxiv.org/abs/2505.23179, than `disagreement_look`.
    """
    del gold  # not asked; all looks are called with the same arguments

    def shares(given: Boxes) -> Float[Array, "G X Y"]:
        cover = functools.partial(geometry.coverage, size=size, cells=cells)
        return jax.vmap(cover)(jnp.asarray(given.boxes), jnp.asarray(given.mask))

    variance, seen = _variance(shares(answers), answered), shares(looks)
    total = variance.sum()
    inside = (seen * variance).sum((1, 2)) / jnp.maximum(total, 1e-10)
    # What rounding makes of equal answers is not theirs.
    return jnp.where(total > 1e-10, inside, 0) - seen.mean((1, 2))


def _variance(
    x: Float[Array, " G *K"], counted: Bool[Array, " G"]
) -> Float[Array, "*K"]:
    """Population variance over the group's counted rows; 0 without any."""
    rows = jnp.expand_dims(counted, tuple(range(1, x.ndim)))
    return masked.mean(jnp.square(x - masked.mean(x, rows, 0)), rows, 0)


def log_tame_noisy(
    rewards: Float[Array, " B"], *, threshold: float = 0.2
) -> Float[Array, " B"]:
    """log(1 + R) where std(R) / mean(R) over the batch is above the threshold, else R.

    Population std, NaN left out and left NaN; R > -1. PaCo-RL,
    https://arxiv.org/abs/2512.04784.
    """
    known = ~jnp.isnan(rewards)
    mean = masked.mean(rewards, known)
    spread = jnp.sqrt(masked.mean(jnp.square(rewards - mean), known))
    noisy = spread / (mean + 1e-6) > threshold
    return jnp.where(noisy, jnp.log1p(jnp.maximum(rewards, -1 + 1e-6)), rewards)
