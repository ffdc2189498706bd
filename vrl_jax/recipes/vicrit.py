"""ViCrit: one phrase of a long caption is wrong; which?

"ViCrit: A Verifiable Reinforcement Learning Proxy Task for Visual Perception in VLMs",
Wang et al., 2025, https://arxiv.org/abs/2506.10128. No training code is released.

    act     y_1..y_G ~ pi_old(. | image, caption with one phrase changed);
            R_i = 0.9 (the box holds the changed phrase) + 0.1 format
    score   log pi_ref(y_i | image, caption), with an anchor
    credit  A_it = R_i - mean(R)
    loss    clipped surrogate (0.2, 0.2) + weight k3(l_it, l_ref_it), mean over each
            response, then over responses

Words copied from around the phrase are tolerated, as in the paper, but no more than
ten: with the whole caption nothing would be found. Group size, clip and the mean are
GRPO's usual ones: what we read of the paper does not name its own.
"""

import functools

from vrl_jax import advantages, objectives, reductions
from vrl_jax.engine.reference import Anchor, free
from vrl_jax.programs.single_turn import single_turn
from vrl_jax.rewards.answers import span_in_caption
from vrl_jax.rewards.columns import column
from vrl_jax.rewards.combine import per_response, with_format
from vrl_jax.rewards.format import think_then_boxed
from vrl_jax.rewards.parse import first_boxed
from vrl_jax.training.clipped_recipe import clipped_recipe
from vrl_jax.training.iteration import Recipe
from vrl_jax.types import Episode


def found(episode: Episode) -> float:
    """1 where the first box holds the row's answer, the phrase as it was changed.

    The column `changed_caption` is the caption that the question shows.
    """
    given, phrase = first_boxed(episode.text), episode.sample.answer
    caption = column(
        episode.sample, "changed_caption", str, "the caption as it is shown"
    )
    if not span_in_caption(phrase, phrase, caption):
        raise ValueError(
            f"{episode.sample.id} needs a phrase of its changed_caption as its answer; "
            f"got {phrase!r}."
        )
    return float(given is not None and span_in_caption(given, phrase, caption))


critic_reward = with_format(
    per_response(found), think_then_boxed, weight=0.9, format_weight=0.1
)
"""The actor's reward: 0.9 for the phrase, 0.1 for thinking before a box."""


def vicrit(*, group_size: int = 8, clip: float = 0.2, anchor: Anchor = free) -> Recipe:
    """The actor's reward is `critic_reward`."""
    act = functools.partial(single_turn, group_size=group_size)
    return clipped_recipe(
        act,
        advantage=functools.partial(advantages.group_centered, group_size=group_size),
        surrogate=objectives.clipped_surrogate,
        reduction=reductions.sequence_mean,
        anchor=anchor,
        clip_low=clip,
        clip_high=clip,
    )
