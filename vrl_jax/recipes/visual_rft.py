"""Visual-RFT: answers about a picture that a rule can check.

"Visual-RFT: Visual Reinforcement Fine-Tuning", Liu et al., 2025,
https://arxiv.org/abs/2503.01785; code https://github.com/Liuziyu77/Visual-RFT.

    act     y_1..y_G ~ pi_old(. | image, q);  R_i = format(y_i) + one of
            detection       sum of matched IoU / max(predicted, gold) + confidence
            classification  1 if the name contains the gold name, or the other way
            grounding       GIoU + 1
    score   log pi_ref(y_i | image, q), with an anchor
    credit  A_it = (R_i - mean(R)) / (std(R) + 1e-4)
    loss    clipped surrogate (0.2, 0.2) + weight k3(l_it, l_ref_it), mean over each
            response, then over responses

The code's anchor is near(reference, weight=0.04), and its one update a batch clips
nothing. Detection follows the code: the paper divides by the predicted boxes alone, so
that what is missed costs nothing. Boxes are in thousandths of the picture. Other than
in the code, a picture without the object may be answered, "No Objects", an empty name
is not in every name, and no answer is tried as mathematics first. Of a list that was
cut off or holds other things the readable boxes count; one without confidence is sure.
"""

import functools
import re
from collections.abc import Sequence

import numpy as np

from vrl_jax import advantages, geometry, objectives, reductions
from vrl_jax.engine.reference import Anchor, free
from vrl_jax.programs.single_turn import single_turn
from vrl_jax.rewards.answers import contains_either_way
from vrl_jax.rewards.combine import Reward, with_format
from vrl_jax.rewards.detection import detection_reward
from vrl_jax.rewards.format import think_then_answer
from vrl_jax.rewards.parse import answer_or_rest, first_tag
from vrl_jax.training.clipped_recipe import clipped_recipe
from vrl_jax.training.iteration import Recipe
from vrl_jax.types import Episode

_CORNERS = re.compile(r"\((\d{1,4}),\s*(\d{1,4})\),\s*\((\d{1,4}),\s*(\d{1,4})\)")


def checked(accuracy: Reward) -> Reward:
    """accuracy + format: a think block, then an answer block, and nothing else."""
    return with_format(accuracy, think_then_answer)


detection = detection_reward()
"""R_IoU + R_conf, in thousandths of the picture on either side."""


def classification(episodes: Sequence[Episode]) -> list[float]:
    """1 where the name in the answer block contains the row's answer, or is in it."""
    return [
        float(contains_either_way(first_tag(e.text, "answer"), e.sample.answer))
        for e in episodes
    ]


def grounding(episodes: Sequence[Episode]) -> list[float]:
    """GIoU + 1 of `(x1,y1),(x2,y2)`, in [0, 2]; 0 for what is not a box."""
    gold = _corners(episodes[0].sample.answer)
    if gold is None:
        return [float("nan")] * len(episodes)
    given = [_corners(answer_or_rest(episode.text)) for episode in episodes]
    boxes = np.array([one or (0, 0, 0, 0) for one in given], np.float32) / 1000
    found = geometry.giou(boxes, np.array(gold, np.float32) / 1000) + 1
    return np.where([one is not None for one in given], found, 0).tolist()


def visual_rft(
    *, group_size: int = 8, clip: float = 0.2, anchor: Anchor = free
) -> Recipe:
    """The actor's reward is `checked` of one of the three above."""
    act = functools.partial(single_turn, group_size=group_size)
    return clipped_recipe(
        act,
        advantage=functools.partial(
            advantages.group_zscore, group_size=group_size, eps=1e-4
        ),
        surrogate=objectives.clipped_surrogate,
        reduction=reductions.sequence_mean,
        anchor=anchor,
        clip_low=clip,
        clip_high=clip,
    )


def _corners(text: str) -> tuple[int, ...] | None:
    found = _CORNERS.search(text)
    return tuple(map(int, found.groups())) if found else None
