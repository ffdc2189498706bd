"""VACoT: the policy may have the picture changed while it answers, where that helps.

"VACoT: Rethinking Visual Data Augmentation with VLMs", 2025,
https://arxiv.org/abs/2512.02361. Only the abstract is public: a conditional reward for
augmentations that are necessary, and against many words. What stands here is our
reading of it, with weights of our own.

    act     y_1..y_G ~ pi_old(. | image, q), with calls of tools that give another
            picture;  R_i = c_i + 0.1 f_i + 0.5 c_i [n_i >= 1] (1 - p0)
                            - 0.2 c_i clip((L_i - 256) / (1024 - 256), 0, 1)
              c   right       n   pictures from calls that were looked at
              f   all calls could be run       L   tokens that the policy wrote
              p0  share of right answers among those of the group with n = 0, or 0
    score   log pi_ref(y_i), with an anchor
    credit  A_it = (R_i - mean(R)) / (std(R) + 1e-6), on what the policy wrote in all
            turns
    loss    clipped surrogate (0.2, 0.28) + weight KL(l_it, l_ref_it), mean over all
            tokens

So a call pays where the picture as it was is not enough, and words are charged where
they were not needed: a wrong answer is not taught to be short. Simpler rules stand
beside it: `whenever_right` and `brief`. Three stages in the paper: supervised on traces
of calls, then degraded pictures, then these and clean ones. Which augmentations it has
is not said; here they are the engine's tools, and any function of one's own.
"""

import functools
from collections.abc import Callable, Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vrl_jax import advantages, masked, objectives, reductions
from vrl_jax.engine.desk import Limits
from vrl_jax.engine.reference import Anchor, free
from vrl_jax.engine.tools import PICTURE_TOOLS, Tool
from vrl_jax.programs.acting import act as play
from vrl_jax.programs.tool_turns import tool_turns
from vrl_jax.rewards.combine import Reward, as_parts, response_length
from vrl_jax.training.clipped_recipe import clipped_recipe
from vrl_jax.training.iteration import Recipe
from vrl_jax.types import Episode


def necessary(
    correct: Bool[Array, "*P G"],
    calls: Int[Array, "*P G"],
    lengths: Float[Array, "*P G"],
    *,
    bonus: float = 0.5,
    cost: float = 0.2,
) -> Float[Array, "*P G"]:
    """bonus c [n >= 1] (1 - p0) - cost c `too_long`."""
    enough = masked.mean(correct.astype(jnp.float32), calls == 0, -1)[..., None]
    helped = bonus * (calls > 0) * (1 - enough)
    return correct * (helped - cost * too_long(lengths))


def whenever_right(
    correct: Bool[Array, "*P G"],
    calls: Int[Array, "*P G"],
    lengths: Float[Array, "*P G"],
    *,
    bonus: float = 0.5,
    cost: float = 0.2,
) -> Float[Array, "*P G"]:
    """bonus c [n >= 1] - cost c `too_long`: whether it was necessary or not."""
    return correct * (bonus * (calls > 0) - cost * too_long(lengths))


def brief(
    correct: Bool[Array, "*P G"],
    calls: Int[Array, "*P G"],
    lengths: Float[Array, "*P G"],
    *,
    cost: float = 0.2,
) -> Float[Array, "*P G"]:
    """-cost `too_long`, right or wrong: nothing for a call."""
    del correct, calls
    return -cost * too_long(lengths)


def too_long(
    lengths: Float[Array, "*P G"], *, free_tokens: float = 256, most: float = 1024
) -> Float[Array, "*P G"]:
    """clip((L - free) / (most - free), 0, 1)."""
    return jnp.clip((lengths - free_tokens) / (most - free_tokens), 0, 1)


def augmentation_reward(
    answer: Reward,
    *,
    rule: Callable[..., Float[Array, " G"]] = necessary,
    format_weight: float = 0.1,
) -> Reward:
    """`answer` right, calls in order, and what the `rule` says of one group.

    Parts: `accuracy` (more than 0.5 of `answer` is right), `format`, `augmented`. After
    `tool_turns`; where it broke off, or `answer` cannot be had, the response is
    unscored and no part of its group.
    """

    def reward(episodes: Sequence[Episode]) -> list[dict[str, float]]:
        facts = [episode.facts for episode in episodes]
        given = np.array([as_parts(s)["overall"] for s in answer(episodes)])
        known = ~np.isnan(given) & ["calls" in told for told in facts]
        pictures = np.array([told.get("images", 0) for told in facts])
        tidy = np.array(
            [told.get("calls") == told.get("calls/valid") for told in facts]
        )
        lengths = np.array([response_length(e) for e in episodes], np.float32)
        right, extra = np.full((2, len(episodes)), np.nan)
        if known.any():
            right[known] = given[known] > 0.5
            of_known = (given[known] > 0.5, pictures[known], lengths[known])
            extra[known] = rule(*map(jnp.asarray, of_known))
        return [
            {
                "overall": float(one + format_weight * well + more),
                "accuracy": float(one),
                "format": float(well),
                "augmented": float(more),
            }
            for one, well, more in zip(right, tidy, extra, strict=True)
        ]

    return reward


def vacot(
    *,
    group_size: int = 8,
    available: Mapping[str, Tool] = PICTURE_TOOLS,
    turns: int = 5,
    images: int = 4,
    anchor: Anchor = free,
    limits: Limits | None = None,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
) -> Recipe:
    """At most `turns` answers and `images` pictures from the `available` tools.

    The actor's reward is `augmentation_reward` of how answers are judged.
    """
    program = functools.partial(
        tool_turns, available=available, turns=turns, images=images
    )
    act = functools.partial(play, program=program, group_size=group_size, limits=limits)
    return clipped_recipe(
        act,
        advantage=functools.partial(advantages.group_zscore, group_size=group_size),
        surrogate=objectives.clipped_surrogate,
        reduction=reductions.token_mean,
        anchor=anchor,
        clip_low=clip_low,
        clip_high=clip_high,
    )
