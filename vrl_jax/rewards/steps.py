"""Scores of the steps of a solution, and what becomes of them: pure jnp.

`scores` are [..., S] probabilities that a step is right, `mask` is True on steps.
Nothing to score is 0: a record that could not be read earns nothing.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vrl_jax import masked

Steps = Float[Array, "*B S"]
Mask = Bool[Array, "*B S"]
Solutions = Float[Array, "*B"]


def as_table(
    scores: Sequence[Sequence[float]],
) -> tuple[Float[np.ndarray, "B S"], Bool[np.ndarray, "B S"]]:
    """Scores of solutions of some lengths as an array, and where it has any.

    On the host. S is a power of two, so that few programs serve all lengths.
    """
    longest = max(map(len, scores), default=0)
    width = 1 << max(longest - 1, 0).bit_length()
    mask = np.arange(width) < np.array([*map(len, scores)], int)[:, None]
    table = np.zeros(mask.shape, np.float32)
    table[mask] = np.array([score for row in scores for score in row], np.float32)
    return table, mask


def right_token_probability(
    right_logit: Float[Array, "*B"], wrong_logit: Float[Array, "*B"]
) -> Float[Array, "*B"]:
    """e^r / (e^r + e^w): a verdict from two logits, without sampling it.

    VL-PRM, https://arxiv.org/abs/2509.23250.
    """
    return jax.nn.sigmoid(right_logit - wrong_logit)


def mean_step(scores: Steps, mask: Mask) -> Solutions:
    """The mean over steps: GM-PRM's and VL-PRM's default."""
    return masked.mean(scores, mask, -1)


def worst_step(scores: Steps, mask: Mask) -> Solutions:
    """The minimum over steps: https://arxiv.org/abs/2305.20050."""
    return jnp.where(mask.any(-1), masked.min(scores, mask, -1), 0)


def product_of_steps(scores: Steps, mask: Mask) -> Solutions:
    """The probability that all are right: https://arxiv.org/abs/2305.20050."""
    return jnp.where(mask.any(-1), jnp.where(mask, scores, 1).prod(-1), 0)


def last_step(scores: Steps, mask: Mask) -> Solutions:
    """The score of the last step, given all before."""
    last = mask.shape[-1] - 1 - jnp.argmax(mask[..., ::-1], -1)
    found = jnp.take_along_axis(scores, last[..., None], -1)[..., 0]
    return jnp.where(mask.any(-1), found, 0)


def anchored_perception(
    right: Steps, place: Steps, mask: Mask, *, emphasis: float = 1.5
) -> Solutions:
    """max(0, 2 sum(w s) / sum(w) - 1), w = exp(emphasis place): guessing earns nothing.

    s says whether a claim about the picture was judged rightly after the prefix that
    ends at `place`, from 0 to 1 of the response. VAPO, https://arxiv.org/abs/2509.25848,
    as released: 0.1 of it is added to the reward of a right answer.
    """
    weight = jnp.where(mask, jnp.exp(emphasis * jnp.where(mask, place, 0)), 0)
    share = masked.sum(weight * right, mask, -1)
    total = weight.sum(-1)
    return jnp.maximum(2 * share / jnp.where(total > 0, total, 1) - 1, 0)


def first_error(
    scores: Steps, mask: Mask, *, threshold: float = 0.5
) -> Int[Array, "*B"]:
    """The number of the first step with score < threshold, from 0; S without one."""
    wrong = mask & (scores < threshold)
    return jnp.where(wrong.any(-1), jnp.argmax(wrong, -1), scores.shape[-1])


def share_to_go(scores: Steps, mask: Mask) -> Steps:
    """sum of scores from step t to the end / steps: what to credit step t with.

    A reading of GM-PRM, https://arxiv.org/abs/2508.04088; 0 on padding.
    """
    kept = jnp.where(mask, scores, 0)
    to_go = jnp.cumsum(kept[..., ::-1], -1)[..., ::-1]
    return jnp.where(mask, to_go / jnp.maximum(mask.sum(-1, keepdims=True), 1), 0)


def one_shot_score(
    right: Float[Array, "*B"],
    tokens: Int[Array, "*B"],
    *,
    power: float = 0.3,
    length_power: float = 0.6,
) -> Float[Array, "*B"]:
    """p^0.3 / tokens^0.6 where p >= 1/2, else -1: the solution as one step.

    `tokens` counts the whole input, picture tokens too. The code of VL-PRM,
    https://github.com/theogbrand/vlprm; the paper has neither power.
    """
    score = right**power / jnp.maximum(tokens, 1) ** length_power
    return jnp.where(right >= 0.5, score, -1.0)


def step_labels(
    rollout_scores: Steps, mask: Mask, judged_error: Int[Array, "*B"]
) -> Int[Array, "*B S"]:
    """1 before the first bad step, 0 at it, -1 (dropped) after it and on padding.

    The first bad step is the earlier of the judge's (S for none) and the first with a
    roll-out score of 0. A reading of VL-PRM, https://arxiv.org/abs/2509.23250; its two
    single sources are all-ones `rollout_scores`, and `judged_error` S.
    """
    places = jnp.arange(mask.shape[-1])
    found = first_error(jnp.where(rollout_scores > 0, 1.0, 0.0), mask)
    bad = jnp.minimum(found, judged_error)[..., None]
    labels = jnp.where(places < bad, 1, jnp.where(places == bad, 0, -1))
    return jnp.where(mask, labels, -1)


def outcome_and_process(
    correct: Solutions, process: Solutions, *, weight: float = 0.5
) -> Solutions:
    """c + weight S: GM-PRM as a reward, https://arxiv.org/abs/2508.04088."""
    return correct + weight * process


def fact_share(text_verdicts: Float[Array, "*B S"], mask: Mask) -> Solutions:
    """sum of verdicts / (count + 1e-6), each clipped to [0, 1]: Perception-R1.

    Of the facts for which a verdict was read; https://arxiv.org/abs/2506.07218.
    """
    kept = jnp.where(mask, jnp.clip(jnp.nan_to_num(text_verdicts), 0, 1), 0)
    return kept.sum(-1) / (mask.sum(-1) + 1e-6)
