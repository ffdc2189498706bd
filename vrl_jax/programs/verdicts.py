"""Verdicts of one token: how sure a model is of one word rather than the other."""

import math
from collections.abc import Generator, Sequence

from vrl_jax.engine.conversation import Ask, Context
from vrl_jax.engine.desk import OutOfRoom
from vrl_jax.engine.episode import Answer
from vrl_jax.types import Turn

Words = tuple[str, str]
"""What is said where something is so, and where it is not: a token each."""


def verdict(
    context: Context,
    *,
    words: Words,
    model: str = "policy",
    trained: bool = False,
    given: str = "",
) -> Ask:
    """Asks for one of two words, behind what is `given`.

    Drawn at temperature 1 from both: `probability` reads how likely it was.
    """
    return Ask(
        context,
        model=model,
        trained=trained,
        max_new_tokens=1,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        allowed=words,
        given=given,
    )


def said_first(said: Turn, words: Words) -> bool:
    """Whether a verdict is the first word. `ValueError` where it is neither."""
    found = [word for word in words if said.text.endswith(word)]
    if not found:
        raise ValueError(
            f"a verdict is {words[0]!r} or {words[1]!r}, got {said.text!r}: choose "
            "words of one token each; special tokens are not shown as text."
        )
    return max(found, key=len) == words[0]


def probability(said: Turn, words: Words) -> float:
    """e^a / (e^a + e^b) of the two words' logits, whichever of them was said.

    It was drawn from these two alone, at temperature 1 and not greedily: the other has
    what is left of 1. `rewards.steps.right_token_probability` is the same of logits.
    """
    drawn = math.exp(said.logprob)
    return drawn if said_first(said, words) else 1 - drawn


def those_that_fit(
    asks: Sequence[Ask],
) -> Generator[Ask | Sequence[Ask], Answer, list[Turn | None]]:
    """All at once; where there is no room each half so, and None for one alone.

    One of n that does not fit costs about log2(n) waits more. A program's
    `said = yield from those_that_fit(asks)`.
    """
    if not asks:
        return []
    try:
        return (yield asks)
    except OutOfRoom:
        if len(asks) == 1:
            return [None]
    middle = len(asks) // 2
    first = yield from those_that_fit(asks[:middle])
    return first + (yield from those_that_fit(asks[middle:]))
