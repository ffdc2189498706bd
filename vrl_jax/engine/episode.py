"""What a program is and gives, and what is made of the episodes that it played."""

import contextlib
from collections.abc import Callable, Generator, Mapping, Sequence, Set
from typing import Any, NamedTuple

import numpy as np

from vrl_jax.engine.conversation import Ask
from vrl_jax.engine.decoding import Response
from vrl_jax.engine.desk import Limits
from vrl_jax.engine.processing import Transcript, question
from vrl_jax.models.front_end import LaidOut
from vrl_jax.types import Episode, Message, Sample, Turn

Answer = Turn | list[Turn]
Steps = Generator[Ask | Sequence[Ask], Answer, Any]
Program = Callable[[Sample], Steps]
Check = Callable[[Sample, Turn], bool]
"""Whether an answer will do."""


class Outcome(NamedTuple):
    """What a program may return: turns for the rewards, numbers for the log.

    A fact `ended/...` says why it went no further: the episode is not finished. NaN is
    a number that is not known, and not in the mean that is logged.
    """

    turns: Sequence[Turn]
    facts: Mapping[str, float] = {}


class Said(NamedTuple):
    """An ask, what was read for it (with what was given), and what was written."""

    ask: Ask
    read: Transcript
    response: Response
    turn: Turn


class Row(NamedTuple):
    """One conversation with the policy: its prompt, and the asks that continue it."""

    prompt: Transcript
    said: tuple[Said, ...]

    @property
    def whole(self) -> Transcript:
        """All of it, the last answer too."""
        last = self.said[-1]
        tokens = np.concatenate([last.read.tokens, last.response.tokens])
        return last.read._replace(tokens=tokens)

    @property
    def pictures(self) -> tuple[LaidOut, ...]:
        """Those between the turns."""
        return self.said[-1].read.pictures[len(self.prompt.pictures) :]


class Played(NamedTuple):
    """An episode, and the rows that it is trained on."""

    episode: Episode
    rows: tuple[Row, ...]


def opening(program: Program, sample: Sample) -> tuple[Message, ...]:
    """What the program asks the policy first, the longest of several asks.

    The sample's question where that cannot be known: what is wrong is told by `play`.
    """
    found: list[tuple[Message, ...]] = []
    with contextlib.suppress(Exception), contextlib.closing(program(sample)) as steps:
        yielded = next(steps)
        asks = (yielded,) if isinstance(yielded, Ask) else tuple(yielded)
        found = [ask.context for ask in asks if ask.model == "policy"]
    whole = [one for one in found if all(isinstance(part, Message) for part in one)]
    return max(whole, key=_extent, default=()) or question(sample)


def _extent(messages: Sequence[Message]) -> tuple[int, int]:
    """Pictures, then letters."""
    return (
        sum(len(message.images) for message in messages),
        sum(len(message.text) for message in messages),
    )


def check_models(program: Program, sample: Sample, names: Set[str]) -> None:
    """That every model is there which the program asks for the sample.

    As far as it shows where all that the program hears is empty: no model is needed for
    it. Whom it asks later, `play` finds. `ValueError` names who is missing.
    """
    steps, heard, asked, count = program(sample), None, set(), 0
    with contextlib.suppress(Exception):  # what else is wrong is told by `play`
        while not asked - names and count < Limits().asks:
            yielded = steps.send(heard)
            several = not isinstance(yielded, Ask)
            asks = tuple(yielded) if several else (yielded,)
            asked = {ask.model for ask in asks}
            turns = [
                Turn("", (), chosen=ask.model == "policy", number=count + place)
                for place, ask in enumerate(asks)
            ]
            heard = turns if several else turns[0]
            count += max(len(asks), 1)
    with contextlib.suppress(Exception):
        steps.close()
    are_there(steps, sample, asked, names)


def are_there(steps: Steps, sample: Sample, asked: Set[str], names: Set[str]) -> None:
    """That all are there: without one no episode of the run could go on."""
    if missing := sorted(asked - names):
        one = missing[0]
        raise ValueError(
            f"{steps.__qualname__} of sample {sample.id} asks the model {one!r}, and "
            f"there is only {', '.join(map(repr, sorted(names)))}: name its folder, "
            f"--frozen {one}=FOLDER or finetune(frozen={{{one!r}: FOLDER}}), or its "
            f"actor, models={{{one!r}: actor}}."
        )
