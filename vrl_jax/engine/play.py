"""Episodes: programs ask, slots write, and what was asked becomes rows to train on.

A program is a generator for one sample, written as if it were alone:

    def describe_then_answer(sample):
        seen = yield Ask((user(f"<image>Describe: {sample.question}", sample.images),))
        answer = yield Ask((user(ANSWER.format(seen.text, sample.question)),))
        return seen, answer

It yields one `Ask` and gets a `Turn`, or several and gets a list; it returns the turns
that rewards shall see (None: all that the policy wrote). `play` interleaves all
episodes over the slots of each model; with the actor's `program_threads` those whose
answers came together go on at once, in threads. The key of an answer is folded from
(key, sample, rollout, number of the ask), so neither slots nor order change what is
sampled.

What a program does is bounded: a context that has no room, too many asks, or an
exception end the episode, which is counted under its reason; asks for which another
model had no room are counted under its name too, `no_room/...`, whatever the program
makes of it. The program hears of the first two, `OutOfRoom` and `TooManyAsks`, and may
return what it has. Only a program that never comes to its next ask is waited for; slow
work belongs into a tool, which has its time. A model that is not there, and a return
that is no turn, end the whole run.

Of several processes each plays every episode. Programs and their tools must therefore
be deterministic, the same in all processes: one that depends on the clock or on the
machine makes their asks differ, and they then wait for each other on the mesh until the
run ends.
"""

import contextlib
import dataclasses
import functools
import itertools
import logging
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, UInt32

from vrl_jax.engine.actor import Actor
from vrl_jax.engine.conversation import (
    Ask,
    Context,
    identity,
    ids_of,
    is_begun_by,
)
from vrl_jax.engine.decoding import Response, decode
from vrl_jax.engine.desk import (
    Desk,
    Limits,
    OutOfRoom,
    TooManyAsks,
    Write,
    nothing,
)
from vrl_jax.engine.processing import Transcript, question
from vrl_jax.engine.sampling import row_keys
from vrl_jax.models.front_end import LaidOut
from vrl_jax.types import Episode, ImageRef, Message, Sample, Turn

Answer = Turn | list[Turn]
Steps = Generator[Ask | Sequence[Ask], Answer, Any]
Program = Callable[[Sample], Steps]
Check = Callable[[Sample, Turn], bool]
"""Whether an answer will do."""

LOG = logging.getLogger(__name__)


def ignore(number: int, group: list["Played"]) -> None:
    """The observer that looks away."""


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


def play(
    actor: Actor,
    program: Program,
    samples: Sequence[Sample],
    key: Key[Array, ""],
    *,
    group_size: int = 1,
    models: Mapping[str, Actor] | None = None,
    limits: Limits | None = None,
    ended: Callable[[int, list[Played]], None] = ignore,
    meanwhile: Callable[[], None] = nothing,
    write: Write = decode,
) -> list[list[Played]]:
    """Plays the program `group_size` times for each sample; a list for each sample.

    `models` are the others that it may ask, by name: each an actor with its own policy,
    tokenizer, budgets and slots. `ended` is told of each group as its last episode
    ends, with the sample's number; `meanwhile` is called while a device is at work.
    `write` answers what is queued, as `decoding.decode` does: it yields the responses
    that are ready, again and again. `ValueError` if a model is asked that is not there.
    """
    limits = limits or Limits()
    numbers = np.array([zlib.crc32(s.id.encode()) for s in samples], np.uint32)
    keys = row_keys(key, jnp.asarray(numbers), group_size)
    keys = np.asarray(jax.random.key_data(keys))
    everyone = {**(models or {}), "policy": actor}
    desks = {
        name: Desk(one, limits, meanwhile, write) for name, one in everyone.items()
    }
    groups = [
        [
            _Playing(
                sample,
                keys[row * group_size + rollout],
                program(sample),
                limits.asks,
                row,
            )
            for rollout in range(group_size)
        ]
        for row, sample in enumerate(samples)
    ]
    played: dict[int, list[Played]] = {}

    def go_on(heard: Sequence[tuple[_Playing, Answer | None]]) -> None:
        steps = [begun(one.step, answer, desks) for one, answer in heard]
        for (episode, _), step in zip(heard, steps, strict=True):
            episode.go_on(step, desks)
            group = groups[episode.number]
            if all(one.over for one in group):
                played[episode.number] = [one.played(actor) for one in group]
                ended(episode.number, played[episode.number])

    with _at_once(actor.program_threads) as begun:
        go_on([(episode, None) for episode in itertools.chain(*groups)])
        while any(desk.waiting for desk in desks.values()):
            for desk in desks.values():
                heard = []
                for response in desk.run():
                    episode, place = response.request.tag
                    episode.hear(place, response, desk)
                    if len(episode.heard) == len(episode.asked):
                        heard.append((episode, episode.answer()))
                go_on(heard)
    return [played[number] for number in range(len(groups))]


@contextlib.contextmanager
def _at_once(count: int) -> Iterator[Callable[..., Callable[[], Any]]]:
    """begun(function, *arguments)() is what the function gives, or raises.

    So many are run at once, in the order in which they are begun; with none, each runs
    when it is asked for what it gives.
    """
    if not count:
        yield functools.partial
        return
    threads = ThreadPoolExecutor(count)
    try:
        yield lambda *what: threads.submit(*what).result
    finally:
        threads.shutdown(cancel_futures=True)


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
class _Playing:
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
            _check_models(self.program, self.sample, asked, desks.keys())
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
    _check_models(steps, sample, asked, names)


def _check_models(
    steps: Steps, sample: Sample, asked: Set[str], names: Set[str]
) -> None:
    """That all are there: without one no episode of the run could go on."""
    if missing := sorted(asked - names):
        one = missing[0]
        raise ValueError(
            f"{steps.__qualname__} of sample {sample.id} asks the model {one!r}, and "
            f"there is only {', '.join(map(repr, sorted(names)))}: name its folder, "
            f"--frozen {one}=FOLDER or finetune(frozen={{{one!r}: FOLDER}}), or its "
            f"actor, models={{{one!r}: actor}}."
        )


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
