"""One episode under way: what its program asks, hears and returns becomes rows."""

import dataclasses
import functools
import itertools
import logging
from collections.abc import Callable, Generator, Mapping, Sequence, Set
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt32

from vrl_jax.engine.actor import Actor
from vrl_jax.engine.conversation import (
    Ask,
    Context,
    identity,
    ids_of,
    is_begun_by,
)
from vrl_jax.engine.decoding import Response
from vrl_jax.engine.desk import Desk, OutOfRoom, TooManyAsks
from vrl_jax.engine.episode import Answer, Outcome, Played, Row, Said, are_there
from vrl_jax.engine.processing import Transcript
from vrl_jax.types import Episode, ImageRef, Message, Sample, Turn

LOG = logging.getLogger(__name__)


class _Asked(NamedTuple):
    """An ask under way; `row` is where its answer goes, if it is trained on."""

    ask: Ask
    read: Transcript
    row: "_OpenRow | None"


@dataclasses.dataclass(eq=False)
class _OpenRow:
    """A row that is being written."""

    prompt: Transcript
    said: list[Said] = dataclasses.field(default_factory=list)

    def goes_on(self, ask: Ask) -> bool:
        """Whether the ask is this conversation and something more."""
        if self.is_given(ask):
            return True
        last = self.said[-1]
        return is_begun_by(ask.context, (*last.ask.context, last.turn))

    def is_given(self, ask: Ask) -> bool:
        """Whether the ask goes on in the middle of the last answer."""
        if not self.said or not isinstance(ask.given, Turn):
            return False
        last, given = self.said[-1], ask.given
        if (given.number, given.tokens) != (last.turn.number, last.turn.tokens):
            return False
        whole = len(ask.context) == len(last.ask.context)
        return whole and is_begun_by(ask.context, last.ask.context)

    def up_to(self, numbers: Set[int | None]) -> Row:
        """It as far as its last answer to one of these asks."""
        ends = [n for n, said in enumerate(self.said, 1) if said.turn.number in numbers]
        return Row(self.prompt, tuple(self.said[: max(ends, default=0)]))


@dataclasses.dataclass(eq=False)
class Playing:
    """One episode under way."""

    sample: Sample
    key: UInt32[np.ndarray, " 2"]
    program: Generator
    most: int
    number: int
    count: int = 0
    opening: Context = ()
    several: bool = False
    asked: list[_Asked] = dataclasses.field(default_factory=list)
    heard: dict[int, Said] = dataclasses.field(default_factory=dict)
    said: list[Said] = dataclasses.field(default_factory=list)
    rows: list[_OpenRow] = dataclasses.field(default_factory=list)
    laid: list[tuple[str, ImageRef]] = dataclasses.field(default_factory=list)
    refused: list[str] = dataclasses.field(default_factory=list)
    returned: Any = None
    ended: str = ""
    over: bool = False

    def step(self, answer: Answer | None, desks: Mapping[str, Desk]) -> Any:
        """What the program yields next; what it shows after an answer is laid out.

        It may run beside the steps of other episodes.
        """
        yielded = self.program.send(answer)
        asks = yielded if isinstance(yielded, list | tuple) else (yielded,)
        for ask in asks if answer is not None else ():
            if isinstance(ask, Ask) and ask.model in desks:
                laid = desks[ask.model].lay_out(ask)
                self.laid += [(ask.model, image) for image in laid]
        return yielded

    def go_on(self, step: Callable[[], Any], desks: Mapping[str, Desk]) -> None:
        """Hands in what the step gives, or ends the episode."""
        self._go_on(step, desks)
        for name, image in self.laid:  # what nobody read
            desks[name].processor.prepared.pop(image, None)
        self.laid = []

    def _go_on(self, step: Callable[[], Any], desks: Mapping[str, Desk]) -> None:
        self.over, refused = True, False
        while True:
            try:
                yielded = step()
                self.several = not isinstance(yielded, Ask)
                asks = tuple(yielded) if self.several else (yielded,)
            except StopIteration as end:
                self.returned = end.value
                return
            except Exception as error:  # a user's program: counted, told, not fatal
                self.ended = _reason(error)
                if not isinstance(error, OutOfRoom | TooManyAsks):
                    self._warn(error)
                return
            if refused:
                self.ended = TooManyAsks.__name__
                self._close()
                return
            if self.count + len(asks) > self.most:
                refused = True
                error = TooManyAsks(
                    f"{self.count} asks, and {len(asks)} more, of {self.most} at most."
                )
                step = functools.partial(self.program.throw, error)
                continue
            asked = {ask.model for ask in asks if isinstance(ask, Ask)}
            are_there(self.program, self.sample, asked, desks.keys())
            try:
                self._hand_in(asks, desks)
                self.over = False
                return
            except Exception as error:  # it hears what is wrong, and may ask otherwise
                self.count += 1
                if isinstance(error, OutOfRoom) and error.model != "policy":
                    self.refused.append(error.model)
                step = functools.partial(self.program.throw, error)

    def _close(self) -> None:
        try:
            self.program.close()
        except Exception as error:  # as above
            self._warn(error)

    def _warn(self, error: Exception) -> None:
        LOG.warning("sample %s: %r", self.sample.id, error, exc_info=error)

    def _hand_in(self, asks: Sequence[Ask], desks: Mapping[str, Desk]) -> None:
        """Every ask goes to the desk of its model, or none does."""
        if not asks:
            raise ValueError("a program yielded no ask.")
        asked, orders, taken = [], [], []
        for place, ask in enumerate(asks):
            desk = desks[ask.model]
            context = desk.conversation(ask.context)
            given = ids_of(desk.processor, ask.given)
            read = context.then(Transcript("", given, (), ()))
            row = None
            if _is_trained(ask):
                free = (row for row in self.rows if row not in taken)
                row = next((row for row in free if row.goes_on(ask)), None)
                row = row or _OpenRow(context)
                taken.append(row)
            order = desk.order(ask)
            warmth = order["temperature"]
            if row and row.said:
                before = row.said[0].response.request.temperature
                if warmth != before:
                    raise ValueError(
                        "a conversation is scored at one temperature: its first answer "
                        f"was drawn at {before}, the next would be at {warmth}."
                    )
            order["limit"] = desk.limit(ask, read, row.prompt if row else context)
            asked.append(_Asked(ask, read, row))
            orders.append({**order, "turn": self.count + place})
        for place, ((ask, read, _), order) in enumerate(
            zip(asked, orders, strict=True)
        ):
            last = self._just_heard(ask) if len(asked) == 1 else None
            desks[ask.model].ask(
                ask, read, last, key=self.key, tag=(self, place), **order
            )
        self.opening = self.opening or asks[0].context
        self.rows += [row for row in taken if not row.said]
        self.asked, self.heard = asked, {}
        self.count += len(asks)

    def _just_heard(self, ask: Ask) -> tuple[Transcript, Response] | None:
        """What its model read and wrote last, if nothing else was asked with it.

        Of several answers some came earlier, in slots that others may have by now.
        """
        if len(self.asked) != 1 or self.asked[0].ask.model != ask.model:
            return None
        said = self.heard[0]
        return said.read, said.response

    def hear(self, place: int, response: Response, desk: Desk) -> None:
        """An answer to one of the asks that were yielded last."""
        ask, read, row = self.asked[place]
        given = ids_of(desk.processor, ask.given)
        tokens = (*given.tolist(), *response.tokens.tolist())
        own = row is not None and row.is_given(ask)
        again = identity(ask.context) == identity(self.opening)
        before = ask.given.logprob if own else 0.0
        turn = Turn(
            text=desk.text(tokens),
            tokens=tokens,
            chosen=ask.model == "policy",
            given=ask.given.given if own else len(given),
            finished=response.finished,
            facts={} if ask.model == "policy" else {"model": ask.model},
            logprob=before + float(response.logprobs.sum()),
            number=response.request.turn,
            read=ask.given.read if own else len(read.tokens),
            told=() if again else _new(ask.context),
        )
        self.heard[place] = Said(ask, read, response, turn)

    def answer(self) -> Answer:
        """What the program is sent, in the order in which it asked."""
        heard = [self.heard[place] for place in range(len(self.asked))]
        for one, (_, _, row) in zip(heard, self.asked, strict=True):
            self.said.append(one)
            if row is not None:
                row.said.append(one)
        turns = [one.turn for one in heard]
        return turns if self.several else turns[0]

    def played(self, actor: Actor) -> Played:
        """The episode as the rewards see it, and its rows."""
        turns, facts = self.returned, {}
        if isinstance(turns, Outcome):
            turns, facts = turns
        if isinstance(turns, Turn):
            turns = (turns,)
        returned = turns or ()
        if turns is None:
            turns = _all_turns(self.said)
        if not all(isinstance(turn, Turn) for turn in turns):
            raise TypeError(f"a program returns turns, got {turns!r}.")
        own = [said for said in self.said if said.turn.chosen]
        first = own[0].read if own else Transcript("", np.zeros(0, np.int32), (), ())
        ended = {f"ended/{self.ended}": 1.0} if self.ended else {}
        refused = {
            f"no_room/{model}": float(self.refused.count(model))
            for model in self.refused
        }
        facts = {"asks": float(self.count), **refused, **facts, **ended}
        stopped = any(facts[name] for name in facts if name.startswith("ended/"))
        last = [turn for turn in turns if turn.chosen][-1:]
        return Played(
            Episode(
                sample=self.sample,
                prompt=first.text,
                turns=tuple(turns) or (Turn("", ()),),
                finished=not stopped and all(turn.finished for turn in last),
                image_sizes=first.image_sizes,
                step=actor.step,
                total_steps=actor.total_steps,
                facts=facts,
            ),
            self._trained(returned),
        )

    def _trained(self, returned: Sequence[Turn]) -> tuple[Row, ...]:
        """The rows without what was only tried, at the end of each or all of it.

        A tentative answer counts where the program returned it, or where an answer that
        counts goes on with it. An answer that was awaited when the program ended is no
        part of its row.
        """
        counts = {turn.number for turn in returned}
        for ask, _, _, turn in reversed(self.said):  # what goes on with it comes later
            if _is_trained(ask) and (not ask.tentative or turn.number in counts):
                read = (*ask.context, ask.given)
                counts |= {part.number for part in read if isinstance(part, Turn)}
                counts.add(turn.number)
        rows = [row.up_to(counts) for row in self.rows]
        return tuple(row for row in rows if row.said)


def _reason(error: Exception) -> str:
    """By which an episode's end is counted."""
    name = type(error).__name__
    elsewhere = isinstance(error, OutOfRoom) and error.model != "policy"
    return f"{name} of {error.model}" if elsewhere else name


def _is_trained(ask: Ask) -> bool:
    """Whether its answer goes into a row."""
    return ask.model == "policy" and ask.trained


def _all_turns(said: Sequence[Said]) -> tuple[Turn, ...]:
    """What was written, and before it what was said since the turn before."""
    turns: list[Turn] = []
    for one in said:
        new = _new(one.ask.context)
        if len(new) < len(one.ask.context):
            turns += map(_told, new)
        turns.append(one.turn)
    return tuple(turns)


def _new(context: Context) -> tuple[Message, ...]:
    """The messages since the turn before."""
    back = itertools.takewhile(lambda p: isinstance(p, Message), reversed(context))
    return (*back,)[::-1]


def _told(message: Message) -> Turn:
    return Turn(message.text, (), chosen=False, images=message.images)
