"""Q-Insight: judge how good a picture is, from ratings and names of distortions alone.

"Q-Insight: Understanding Image Quality via Visual Reinforcement Learning", Li et al.,
2025, https://arxiv.org/abs/2503.22679; code https://github.com/bytedance/Q-Insight.

    act     y_1..y_G ~ pi_old(. | image, q);  R_i = format(y_i) + by the row's task
            score        1 if |rating - gold| < 0.35
            degradation  0.25 for the distortion, 1 with its severity
            comparison   1 for the same one of "Image A", "Image B", "Similar"
    score   log pi_ref(y_i | image, q), with an anchor
    credit  A_it = (R_i - mean(R)) / (std(R) + 1e-4)
    loss    clipped surrogate (0.2, 0.2) + weight k3(l_it, l_ref_it), mean over each
            response, then over responses

The code's anchor is near(reference, weight=0.001). Ratings and degradations are trained
together, by rows of one stream; comparisons after them, from the checkpoint. What is
wrong with a picture is read as JSON, in any order and with null for "null"; the code's
pattern wants quotes, and the distortion first.
"""

import functools
from collections.abc import Callable, Sequence

from vrl_jax import advantages, objectives, reductions
from vrl_jax.engine.reference import Anchor, free
from vrl_jax.programs.single_turn import single_turn
from vrl_jax.rewards.answers import number
from vrl_jax.rewards.columns import chosen, column
from vrl_jax.rewards.combine import per_response, with_format
from vrl_jax.rewards.format import think_then_any_answer, think_then_json_answer
from vrl_jax.rewards.parse import first_tag
from vrl_jax.rewards.quality import degradation_score, rating_of
from vrl_jax.training.clipped_recipe import clipped_recipe
from vrl_jax.training.iteration import Recipe
from vrl_jax.types import Episode

BAND = 0.35


def _score(episode: Episode) -> float:
    rating, gold = rating_of(episode.text), number(episode.sample.answer)
    if gold is None:
        raise ValueError(
            f"{episode.sample.id} needs its rating, a number, as its answer; got "
            f"{episode.sample.answer!r}."
        )
    # In float64: 3.35 is not within the band of 3.
    return float(rating is not None and abs(rating - gold) < BAND)


def _degradation(episode: Episode) -> float:
    names = ("distortion_class", "severity")
    columns = (
        column(episode.sample, name, str | None, "a text, or null") for name in names
    )
    gold = ("null" if given is None else given for given in columns)
    return degradation_score(episode.text, *gold)


def _comparison(episode: Episode) -> float:
    return float(first_tag(episode.text, "answer") == episode.sample.answer)


TASKS: dict[str, tuple[Callable[[Episode], float], Callable[[str], bool]]] = {
    "score": (_score, think_then_json_answer),
    "degradation": (_degradation, think_then_json_answer),
    "comparison": (_comparison, think_then_any_answer),
}
"""What the row's `annotations["task"]` may be: its accuracy and its layout."""


def quality_reward(episodes: Sequence[Episode]) -> list[dict[str, float]]:
    """accuracy + format of the row's task, at most 2.

    The rating is the row's answer; `distortion_class` and `severity` are columns.
    """
    sample = episodes[0].sample
    task = sample.annotations.get("task")
    accuracy, layout = chosen(sample, "the column 'task'", task, TASKS)
    return with_format(per_response(accuracy), layout)(episodes)


def q_insight(
    *, group_size: int = 8, clip: float = 0.2, anchor: Anchor = free
) -> Recipe:
    """The actor's reward is `quality_reward`."""
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
