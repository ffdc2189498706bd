"""Several answers at once, or an answer grown step by step, and the best of them."""

import dataclasses
import math
from collections.abc import Callable, Generator, Sequence

from vrl_jax.engine.conversation import Ask
from vrl_jax.engine.desk import OutOfRoom, TooManyAsks
from vrl_jax.engine.episode import Answer, Outcome, Steps
from vrl_jax.engine.processing import question
from vrl_jax.types import Sample, Turn

Value = Callable[[Sample, Turn], float]
"""What an answer is worth."""

Judging = Generator[Ask | Sequence[Ask], Answer, list[float | None]]
Values = Callable[[Sample, Sequence[Turn]], Judging]
"""What answers to one question are worth, all together: it may ask models.

None is an answer that could not be judged: any other is better.
"""


def of_each(value: Value) -> Values:
    """Every answer by itself, and nobody is asked."""

    def values(sample: Sample, turns: Sequence[Turn]) -> Judging:
        yield from ()
        return [value(sample, turn) for turn in turns]

    return values


def best_of_n(
    sample: Sample, *, n: int, values: Values, tentative: bool = False
) -> Steps:
    """n answers to one question; the rewards see the one of the highest value.

    Each answer is a row, trained with what the best one earned; for evaluation, or to
    distil the best, it does not matter. If they are `tentative` the best is the only
    row. The fact `value` is its value, 0 where nothing could be judged, and `unjudged`
    says of how many that is so. With n = 1 a value is what a reward reads:
    `combine.fact("value")`.
    """
    said = yield [Ask(question(sample), tentative=tentative)] * n
    worth = yield from values(sample, said)
    best = first_best(worth)
    return Outcome((said[best],), {"best": best, **told(worth, worth[best])})


def first_best(values: Sequence[float | None]) -> int:
    """The place of the highest, the first of equal ones."""
    ranks = [*map(rank, values)]
    return ranks.index(max(ranks))


def rank(value: float | None) -> float:
    """What could not be judged, or is no number, comes last."""
    return float("-inf") if value is None or math.isnan(value) else value


def told(values: Sequence[float | None], best: float | None) -> dict[str, float]:
    """The facts `value` and `unjudged`."""
    return {"value": best or 0.0, "unjudged": values.count(None)}


def tree_search(
    sample: Sample,
    *,
    values: Values,
    width: int = 4,
    beam: int = 2,
    depth: int = 4,
    step_tokens: int = 64,
    step_ends: Sequence[str] = ("\n\n",),
    tentative: bool = False,
) -> Steps:
    """An answer in up to `depth` steps, each tried `width` times from `beam` places.

    A step ends at one of `step_ends` or after `step_tokens`. `values` judges what has
    been written so far; the best `beam` of all go on, those that are finished as they
    are. Every step is a row of its own, its prefix given and not trained: at most
    width * (1 + beam * (depth - 1)) of them. If they are `tentative` the last step of
    the best is the only row. `value` and `unjudged` are told as by `best_of_n`, of all
    steps that were judged. All asks count against the limits'; where the next step, or
    who judges it, has no room or may not be asked any more, the best so far is
    returned, which is told too. What a step goes on from is told to `values` as its
    fact `before`, for `says_more`.
    """
    places: list[tuple[float | None, Turn]] = []
    judged: list[float | None] = []
    facts = {"steps": 0}
    while facts["steps"] < depth:
        growing = [turn for _, turn in places if not _over(turn, step_ends)]
        if places and not growing:
            break
        before = growing or [Turn("", ())]
        asks = [
            Ask(
                question(sample),
                given=start.tokens,
                stops=tuple(step_ends),
                max_new_tokens=step_tokens,
                tentative=tentative,
            )
            for start in before
            for _ in range(width)
        ]
        try:
            tried = yield asks
            worth = yield from values(sample, _behind(before, tried))
        except (OutOfRoom, TooManyAsks) as error:
            if not places:
                raise
            many = isinstance(error, TooManyAsks)
            facts[f"ended/{'TooManyAsks' if many else 'step left no room'}"] = 1
            break
        facts["steps"] += 1
        kept = [place for place in places if _over(place[1], step_ends)]
        judged += worth
        kept += zip(worth, tried, strict=True)
        places = sorted(kept, key=lambda place: rank(place[0]), reverse=True)[:beam]
    best, turn = places[0]
    return Outcome((turn,), {**facts, **told(judged, best)})


def says_more(turn: Turn) -> bool:
    """Whether it says anything, or its step does behind what that goes on from.

    Blanks say nothing, nor does an end alone.
    """
    return turn.text.strip() != turn.facts.get("before", "").strip()


def _behind(before: Sequence[Turn], tried: Sequence[Turn]) -> list[Turn]:
    """The steps, as many from each place, with the fact `before`."""
    each = len(tried) // len(before)
    texts = [turn.text for turn in before for _ in range(each)]
    return [
        dataclasses.replace(turn, facts={**turn.facts, "before": text})
        for turn, text in zip(tried, texts, strict=True)
    ]


def _over(turn: Turn, step_ends: Sequence[str]) -> bool:
    """Whether the model itself ended the answer."""
    return turn.finished and not turn.text.endswith(tuple(step_ends))
