"""Vision-SR1: a description is good if the question can be answered from it alone.

"Self-Rewarding Vision-Language Model via Reasoning Decomposition", Li et al., 2025,
https://arxiv.org/abs/2508.19652; after the released code,
https://github.com/zli12321/Vision-SR1.

    act     y_i = description, thought, box ~ pi_old(. | image, q), i = 1..G;
            z_i ~ pi_old(. | description of y_i, q), without the image, not trained;
            R_i = 0.9 accuracy(y_i) + 0.1 format(y_i) + right(z_i): see `self_reward`
    score   log pi_ref(y_i | image, q), with an anchor
    credit  A_it = (R_i - mean(R)) / (std(R) + 1e-6)
    loss    dual-clipped surrogate (0.2, 0.3, 3) + weight KL(l_it, l_ref_it), mean over
            all tokens

The question asks for the layout of y_i, `READ` for that of z_i. The code's anchor is
near(reference, weight=0.01, divergence=divergences.low_var_kl); it grades both answers
by mathruler, where `boxed_right` compares texts, and counts what cannot be graded as
wrong, where ours is unscored and counted. The paper's second version trains z_i too,
with an advantage of its own, and says two things about which tokens get which; the code
trains y_i alone.
"""

import functools

from vrl_jax import advantages, objectives, reductions
from vrl_jax.engine.desk import Limits
from vrl_jax.engine.episode import Check
from vrl_jax.engine.reference import Anchor, free
from vrl_jax.programs.acting import act as play
from vrl_jax.programs.describe_then_answer import answer_and_reread
from vrl_jax.rewards.boxed import boxed_right
from vrl_jax.rewards.combine import Reward, fact, of_text, weighted
from vrl_jax.rewards.format import described_then_boxed
from vrl_jax.training.clipped_recipe import clipped_recipe
from vrl_jax.training.iteration import Recipe

READ = """\
A picture is described so:

{seen}

{question}

Think between <think> and </think>, then write a short answer in \\boxed{{}}."""


def self_reward(accuracy: Reward) -> Reward:
    """0.9 accuracy + 0.1 format + 1.0 for a reader of the description who is right.

    The actor's reward, for `vision_sr1` plays what tells the last of them.
    """
    return weighted(
        {
            "accuracy": (accuracy, 0.9),
            "format": (of_text(described_then_boxed), 0.1),
            "reread": (fact("reread"), 1.0),
        }
    )


def vision_sr1(
    *,
    group_size: int = 8,
    right: Check = boxed_right,
    read: str = READ,
    anchor: Anchor = free,
    limits: Limits | None = None,
    clip_low: float = 0.2,
    clip_high: float = 0.3,
) -> Recipe:
    """`read` asks the reader, `right` judges its answer.

    The actor's reward is a `self_reward`.
    """
    act = functools.partial(
        play,
        program=functools.partial(answer_and_reread, right=right, answer=read),
        group_size=group_size,
        limits=limits,
    )
    return clipped_recipe(
        act,
        advantage=functools.partial(advantages.group_zscore, group_size=group_size),
        surrogate=objectives.dual_clipped_surrogate,
        reduction=reductions.token_mean,
        anchor=anchor,
        clip_low=clip_low,
        clip_high=clip_high,
    )
