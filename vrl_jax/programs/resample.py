"""Answers again until one is accepted: the whole of it, or its opening."""

import math

from vrl_jax.engine.conversation import Ask
from vrl_jax.engine.desk import OutOfRoom
from vrl_jax.engine.episode import Check, Outcome, Steps
from vrl_jax.engine.processing import question
from vrl_jax.programs.search import Value
from vrl_jax.types import Sample


def gated_resample(sample: Sample, *, accept: Check, tries: int = 4) -> Steps:
    """Fresh answers to the question, up to `tries`; the rewards see the last.

    Each is a row: an episode has up to `tries` of them.
    """
    said, accepted = [], False
    while len(said) < tries and not accepted:
        said.append((yield Ask(question(sample))))
        accepted = accept(sample, said[-1])
    return Outcome(said[-1:], {"tries": len(said), "accepted": accepted})


def gated_opening(
    sample: Sample,
    *,
    value: Value,
    threshold: float,
    closing: str,
    tries: int = 3,
    opening_tokens: int | None = None,
) -> Steps:
    """An answer whose opening is drawn again until it is worth going on with.

    The opening is what comes up to `closing`. Of at most `tries`, the first with a
    value of `threshold` or more is taken, else the best, the first of equal ones. The
    answer goes on from its very tokens, so that both are one row; the others are not
    trained. A value that is NaN is worse than any other; where none is a number, the
    fact `opening` is NaN. An opening that its model or its budget ended unclosed is all
    there is.
    """
    fresh = Ask(
        question(sample),
        tentative=True,
        stops=(closing,),
        max_new_tokens=opening_tokens,
    )
    opened, values = [], []
    while not opened or (len(opened) < tries and max(values) < threshold):
        opened.append((yield fresh))
        worth = float(value(sample, opened[-1]))
        values.append(-math.inf if math.isnan(worth) else worth)
    best = max(values)
    opening = opened[values.index(best)]
    facts = {
        "tries": len(opened),
        "opening": best if best > -math.inf else math.nan,
        "accepted": int(best >= threshold),
    }
    if closing not in opening.text:
        return Outcome((opening,), {**facts, "ended/opening was not closed": 1})
    try:
        said = yield Ask(question(sample), given=opening)
    except OutOfRoom:
        return Outcome((opening,), {**facts, "ended/opening left no room": 1})
    return Outcome((said,), facts)
