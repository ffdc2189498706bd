"""GRPO: the group of responses is its own baseline.

DeepSeekMath, Shao et al., 2024, https://arxiv.org/abs/2402.03300. The paper stays near
a reference, anchor=near(reference, weight=0.04); the default is TRL's, without one.

    act     y_1..y_G ~ pi_old(. | image, q);  R_i = reward(y_i)
    score   log pi_ref(y_i | image, q), with an anchor
    credit  A_it = (R_i - mean(R)) / (std(R) + 1e-6)
    loss    clipped surrogate (0.2, 0.2) + weight k3(l_it, l_ref_it), mean over each
            response, then over responses
"""

import functools

from vrl_jax import advantages, objectives, reductions
from vrl_jax.engine.reference import Anchor, free
from vrl_jax.programs.single_turn import single_turn
from vrl_jax.training.clipped_recipe import clipped_recipe
from vrl_jax.training.iteration import Recipe


def grpo(*, group_size: int = 8, clip: float = 0.2, anchor: Anchor = free) -> Recipe:
    """`clip` is epsilon of equation 3, `anchor` its last term."""
    act = functools.partial(single_turn, group_size=group_size)
    return clipped_recipe(
        act,
        advantage=functools.partial(advantages.group_zscore, group_size=group_size),
        surrogate=objectives.clipped_surrogate,
        reduction=reductions.sequence_mean,
        anchor=anchor,
        clip_low=clip,
        clip_high=clip,
    )
