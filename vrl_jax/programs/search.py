"""Several answers at once, or an answer grown step by step, and the best of them."""

from collections.abc import Callable, Sequence

from vrl_jax.engine.conversation import Ask
from vrl_jax.engine.play import Outcome, Steps
from vrl_jax.engine.processing import question
from vrl_jax.types import Sample, Turn

Value = Callable[[Sample, Turn], float]


def best_of_n(sample: Sample, *, n: int, value: Value) -> Steps:
    """n answers to one question; the rewards see the one of the highest value.

    Each answer is a row, trained with what the best one earned; for evaluation, or to
    distil the best, it does not matter.
    """
    said = yield [Ask(question(sample))] * n
    values = [value(sample, turn) for turn in said]
    best = values.index(max(values))
    return Outcome((said[best],), {"best": best, "value": values[best]})


def tree_search(
    sample: Sample,
    *,
    value: Value,
    width: int = 4,
    beam: int = 2,
    depth: int = 4,
    step_tokens: int = 64,
    step_ends: Sequence[str] = ("\n\n",),
) -> Steps:
    """An answer in up to `depth` steps, each tried `width` times from `beam` places.

    A step ends at one of `step_ends` or after `step_tokens`. `value` judges what has
    been written so far; the best `beam` of all go on, those that are finished as they
    are. Every step is a row of its own, its prefix given and not trained: at most
    width * (1 + beam * (depth - 1)) of them.
    """
    places: list[tuple[float, Turn]] = []
    for level in range(depth):
        growing = [turn for _, turn in places if not _over(turn, step_ends)]
        if level and not growing:
            break
        starts = [turn.tokens for turn in growing] if level else [()]
        tried = yield [
            Ask(
                question(sample),
                given=start,
                stops=tuple(step_ends),
                max_new_tokens=step_tokens,
            )
            for start in starts
            for _ in range(width)
        ]
        kept = [place for place in places if _over(place[1], step_ends)]
        kept += [(value(sample, turn), turn) for turn in tried]
        places = sorted(kept, key=lambda place: place[0], reverse=True)[:beam]
    best, turn = places[0]
    return Outcome((turn,), {"value": best, "steps": level + 1})


def _over(turn: Turn, step_ends: Sequence[str]) -> bool:
    """Whether the model itself ended the answer."""
    return turn.finished and not turn.text.endswith(tuple(step_ends))
