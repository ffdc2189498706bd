"""A reward is a function of one group of episodes; functions make it from others."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence

from vrl_jax.types import Episode

Score = float | Mapping[str, float]
"""A number, or named numbers of which `overall` is the reward."""

Reward = Callable[[Sequence[Episode]], Sequence[Score]]
"""Sees all responses of one prompt and gives one score each, in order."""

_log = logging.getLogger(__name__)


def per_response(score: Callable[[Episode], Score]) -> Reward:
    """The reward that looks at one response at a time."""
    return lambda episodes: [score(episode) for episode in episodes]


def weighted(parts: Mapping[str, tuple[Reward, float]]) -> Reward:
    """overall = sum_k weight_k * overall_k; each part is kept under its name.

    What a part itself calls `x` becomes `<part>_x`.
    """

    def reward(episodes: Sequence[Episode]) -> list[dict[str, float]]:
        combined = [{"overall": 0.0} for _ in episodes]
        for name, (part, weight) in parts.items():
            for total, score in zip(combined, part(episodes), strict=True):
                named = as_parts(score)
                total["overall"] += weight * named["overall"]
                total[name] = named.pop("overall")
                total |= {f"{name}_{key}": value for key, value in named.items()}
        return combined

    return reward


def as_parts(score: Score) -> dict[str, float]:
    """A score as named numbers."""
    if isinstance(score, Mapping):
        return {name: float(value) for name, value in score.items()}
    return {"overall": float(score)}


def call_safely(reward: Reward, episodes: Sequence[Episode]) -> list[dict[str, float]]:
    """Scores a group; a reward that fails is counted and logged, never fatal.

    Each result has `overall` and `errors`. A reward that raises, or does not give one
    finite `overall` for each episode, scores the whole group 0 with `errors` 1:
    equal scores teach nothing, whereas a 0 for one response would teach against it.
    """
    try:
        scores = [as_parts(score) for score in reward(episodes)]
        _check(scores, len(episodes))
    except Exception:
        _log.exception("the reward of sample %r failed: 0", episodes[0].sample.id)
        return [{"overall": 0.0, "errors": 1.0} for _ in episodes]
    return [{**score, "errors": 0.0} for score in scores]


def _check(scores: Sequence[Mapping[str, float]], expected: int) -> None:
    if len(scores) != expected or not all(
        math.isfinite(score.get("overall", math.nan)) for score in scores
    ):
        raise ValueError(
            f"a reward gives one score with a finite `overall` for each of the "
            f"{expected} episodes, got {scores}."
        )
