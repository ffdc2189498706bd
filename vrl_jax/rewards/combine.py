"""A reward is a function of one group of episodes; functions make it from others."""

import functools
import logging
import math
import operator
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Array

from vrl_jax.types import Episode

Score = float | Mapping[str, float] | None
"""A number, or named numbers of which `overall` is the reward.

NaN is a reward that could not be had: the response is unscored and takes no part in
its group's statistics. None is a reward that does not apply to the row.
"""

Reward = Callable[[Sequence[Episode]], Sequence[Score]]
"""Sees all responses of one prompt and gives one score each, in order.

An episode has the row with all its columns, the pictures and their sizes, the prompt,
the turns with text and tokens, whether it ended by itself, step and total steps.
"""

Parts = Mapping[str, tuple[Reward, float]]

_log = logging.getLogger(__name__)


def per_response(score: Callable[[Episode], Score]) -> Reward:
    """The reward that looks at one response at a time."""
    return lambda episodes: [score(episode) for episode in episodes]


def of_text(rule: Callable[[str], float]) -> Reward:
    """rule(the policy's last words): a layout of `format`, or any rule of `text`."""
    return per_response(lambda episode: float(rule(episode.text)))


def per_group(rule: Callable[..., Array], *columns: Reward) -> Reward:
    """rule(column_1, ..., column_k) of arrays [G]: `length.kimi` and its like.

    Responses with an unscored column stay unscored, and the rule does not see them.
    """

    def reward(episodes: Sequence[Episode]) -> list[float]:
        given = [
            [as_parts(s)["overall"] for s in column(episodes)] for column in columns
        ]
        table = np.array(given, np.float32)
        known = ~np.isnan(table).any(axis=0)
        scores = np.full(len(episodes), np.nan, np.float32)
        if known.any():
            scores[known] = rule(*table[:, known])
        return scores.tolist()

    return reward


def response_length(episode: Episode) -> float:
    """Tokens that the policy chose, in all turns."""
    return float(sum(len(turn.tokens) for turn in episode.turns if turn.chosen))


def fact(name: str) -> Reward:
    """What the program found out itself: the number `name` of the episode's facts.

    An episode without it, and one whose program broke off, is a ValueError that names
    what there is: `call_safely` counts it.
    """

    def found(episode: Episode) -> float:
        if name in episode.facts:
            return float(episode.facts[name])
        raise ValueError(
            f"the episode of {episode.sample.id} has no fact {name!r}, only "
            f"{sorted(episode.facts)}: play it with a program that tells it."
        )

    return per_response(found)


def weighted(parts: Parts) -> Reward:
    """overall = sum_k weight_k * overall_k; each part is kept under its name.

    What a part itself calls `x` becomes `<part>_x`. Parts that do not apply are left
    out; where none applies the response is unscored. A weight of 0 only logs.
    """

    def add(values: Sequence[float]) -> float:
        used = [(v, w) for v, (_, w) in zip(values, parts.values(), strict=True) if w]
        applies = [v * w for v, w in used if v is not None]
        return sum(applies) if applies or not used else math.nan

    return _combined({name: part for name, (part, _) in parts.items()}, add)


def with_format(
    accuracy: Reward,
    layout: Callable[[str], float],
    *,
    weight: float = 1.0,
    format_weight: float = 1.0,
) -> Reward:
    """weight accuracy + format_weight layout(text): what R1 and its kin pay.

    DeepSeek-R1, section 2.2.2, https://arxiv.org/abs/2501.12948. Parts: `accuracy`,
    `format`.
    """
    return weighted(
        {"accuracy": (accuracy, weight), "format": (of_text(layout), format_weight)}
    )


def product(parts: Mapping[str, Reward]) -> Reward:
    """overall = product of the parts; any of them can veto. Parts are kept."""
    return _combined(
        parts, lambda values: functools.reduce(operator.mul, _applying(values))
    )


def geometric_mean(parts: Mapping[str, Reward]) -> Reward:
    """overall = (product of max(part, 0))^(1 / parts). Parts are kept.

    The editing reward of PaCo-RL, https://arxiv.org/abs/2512.04784, has two.
    """

    def mean(values: Sequence[float]) -> float:
        positive = [math.nan if math.isnan(v) else max(v, 0) for v in _applying(values)]
        # Roots first: the product of large parts may leave the floats.
        return math.prod(value ** (1 / len(positive)) for value in positive)

    return _combined(parts, mean)


def paid_if(condition: Reward, reward: Reward, *, above: float = 0.5) -> Reward:
    """`reward` where `condition` scores above a bound, else 0: paid only if right.

    Where the condition is unscored, so is the response. Parts: `condition`, `reward`.
    """

    def choose(values: Sequence[float]) -> float:
        test, paid = (math.nan if value is None else value for value in values)
        if math.isnan(test):
            return math.nan
        return paid if test > above else 0.0

    return _combined({"condition": condition, "reward": reward}, choose)


def from_step(reward: Reward, *, start: int) -> Reward:
    """`reward`, with an overall of 0 before step `start`: accuracy first.

    The warm-up of Kimi k1.5's length reward, https://arxiv.org/abs/2501.12599, which
    does not say how long. An evaluation is at step 0. Parts are kept.
    """

    def later(episodes: Sequence[Episode]) -> list[Score]:
        return [
            None if score is None else _scaled(as_parts(score), episode.step >= start)
            for score, episode in zip(reward(episodes), episodes, strict=True)
        ]

    return later


def _scaled(parts: Mapping[str, float], scale: float) -> dict[str, float]:
    return {**parts, "overall": parts["overall"] * scale}


def log_tamed(reward: Reward) -> Reward:
    """log(1 + R), for R > -1; a smaller one is an error of the reward.

    PaCo-RL, https://arxiv.org/abs/2512.04784, tames a reward whose spread
    over a batch is large against its mean: `groups.log_tame_noisy` decides by that.
    """
    return _combined({"raw": reward}, lambda values: math.log1p(_applying(values)[0]))


def _combined(
    parts: Mapping[str, Reward], combine: Callable[[Sequence[float]], float]
) -> Reward:
    """Each part under its name, and `overall` of them all."""

    def reward(episodes: Sequence[Episode]) -> list[dict[str, float]]:
        columns = [part(episodes) for part in parts.values()]
        return [one(scores) for scores in zip(*columns, strict=True)]

    def one(scores: Sequence[Score]) -> dict[str, float]:
        named = [None if score is None else as_parts(score) for score in scores]
        values = [None if part is None else part["overall"] for part in named]
        found = {"overall": combine(values)}
        for name, part in zip(parts, named, strict=True):
            for key, value in (part or {}).items():
                found[name if key == "overall" else f"{name}_{key}"] = value
        return found

    return reward


def _applying(values: Sequence[float | None]) -> list[float]:
    """The parts that apply; unscored where none does."""
    return [value for value in values if value is not None] or [math.nan]


def as_parts(score: Score) -> dict[str, float]:
    """A score as named numbers; None, and any value None, is unscored."""
    if isinstance(score, Mapping):
        return {
            name: math.nan if value is None else float(value)
            for name, value in score.items()
        }
    return {"overall": math.nan if score is None else float(score)}


def call_safely(reward: Reward, episodes: Sequence[Episode]) -> list[dict[str, float]]:
    """Scores a group; a reward that fails is counted and logged, never fatal.

    Each result has `overall`, `unscored` (1 where that is NaN) and `errors`. A reward
    that raises, or gives no number for some episode, leaves the whole group unscored
    with `errors` 1: a 0 for a response that nobody judged would teach against it.
    """
    try:
        scores = score_group(reward, episodes)
    except Exception:  # a user's reward may raise anything, and a run must go on
        _log.exception("the reward of sample %r failed", episodes[0].sample.id)
        failed = {"overall": math.nan, "unscored": 1.0, "errors": 1.0}
        return [dict(failed) for _ in episodes]
    return [
        {**score, "unscored": float(math.isnan(score["overall"])), "errors": 0.0}
        for score in scores
    ]


def score_group(reward: Reward, episodes: Sequence[Episode]) -> list[dict[str, float]]:
    """The scores as named numbers.

    Raises what the reward raises, and `ValueError` where it does not give one score
    with an `overall`, finite or NaN for unscored, for each of the episodes.
    """
    scores = [as_parts(score) for score in reward(episodes)]
    if len(scores) != len(episodes) or any(
        math.isinf(score.get("overall", math.inf)) for score in scores
    ):
        raise ValueError(
            f"a reward gives one score with an `overall`, finite or NaN for unscored, "
            f"for each of the {len(episodes)} episodes, got {scores}."
        )
    return scores
