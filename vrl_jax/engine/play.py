"""Episodes: programs ask, slots write, and what was asked becomes rows to train on.

A program is a generator for one sample, written as if it were alone:

    def describe_then_answer(sample):
        seen = yield Ask((user(f"<image>Describe: {sample.question}", sample.images),))
        answer = yield Ask((user(ANSWER.format(seen.text, sample.question)),))
        return seen, answer

It yields one `Ask` and gets a `Turn`, or several and gets a list; it returns the turns
that rewards shall see (None: all that the policy wrote). `play` interleaves all
episodes over the slots of each model. The key of an answer is folded from (key, sample,
rollout, number of the ask), so neither slots nor order change what is sampled.

What a program does is bounded: a context that has no room, too many asks, or an
exception end the episode, which is counted under its reason. Only a program that never
comes to its next ask is waited for; slow work belongs into a tool, which has its time.
"""

import dataclasses
import functools
import itertools
import logging
import zlib
from collections import deque
from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, UInt32

from vrl_jax.engine.actor import Actor
from vrl_jax.engine.conversation import (
    Ask,
    Context,
    conversation,
    identity,
    ids_of,
    one_token,
)
from vrl_jax.engine.decoding import Contexts, Request, Response, Rule, decode
from vrl_jax.engine.packing import Room, Unpadded, blocks_of, first_fit, packed
from vrl_jax.engine.processing import Transcript, unpadded
from vrl_jax.engine.sampling import row_keys
from vrl_jax.models.front_end import LaidOut
from vrl_jax.types import Episode, Message, Sample, Turn

Answer = Turn | list[Turn]
Steps = Generator[Ask | Sequence[Ask], Answer, Any]
Program = Callable[[Sample], Steps]

LOG = logging.getLogger(__name__)


def ignore(number: int, group: list["Played"]) -> None:
    """The observer that looks away."""


def nothing() -> None:
    """What is done while the device works."""


BATCHES = (1, 4, 16, 64)
"""Numbers of contexts that are read together."""


class OutOfRoom(Exception):
    """Raised inside a program whose next ask does not fit the budgets."""


class Limits(NamedTuple):
    """Bounds of one episode.

    `row_tokens`: the answers of one conversation with what is said between them;
    `blocks`: of patches, for the pictures of one context. None: the actor's
    max_new_tokens, and the most blocks that its processor has for a prompt. `asks`
    bounds the programs that never end.
    """

    row_tokens: int | None = None
    blocks: int | None = None
    asks: int = 64

    def room(self, actor: Actor) -> Room:
        """The sizes of its contexts: those of prompts, and one that holds a row too."""
        room = actor.processor.room
        longest = room.prompt_tokens[-1] + (self.row_tokens or actor.max_new_tokens)
        more = (self.blocks,) if self.blocks and self.blocks > room.blocks[-1] else ()
        return room._replace(
            prompt_tokens=(*room.prompt_tokens, longest), blocks=room.blocks + more
        )


class Outcome(NamedTuple):
    """What a program may return: turns for the rewards, numbers for the log."""

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
) -> list[list[Played]]:
    """Plays the program `group_size` times for each sample; a list for each sample.

    `models` are the others that it may ask, by name: each an actor with its own policy,
    tokenizer, budgets and slots. `ended` is told of each group as its last episode
    ends, with the sample's number; `meanwhile` is called while a device is at work.
    """
    limits = limits or Limits()
    numbers = np.array([zlib.crc32(s.id.encode()) for s in samples], np.uint32)
    keys = row_keys(key, jnp.asarray(numbers), group_size)
    keys = np.asarray(jax.random.key_data(keys))
    everyone = {**(models or {}), "policy": actor}
    desks = {name: _Desk(one, limits, meanwhile) for name, one in everyone.items()}
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

    def go_on(episode: _Playing, answer: Answer | None) -> None:
        episode.go_on(answer, desks)
        group = groups[episode.number]
        if all(one.over for one in group):
            played[episode.number] = [one.played(actor) for one in group]
            ended(episode.number, played[episode.number])

    for episode in itertools.chain(*groups):
        go_on(episode, None)
    while any(desk.waiting for desk in desks.values()):
        for desk in desks.values():
            for response in desk.run():
                episode, place = response.request.tag
                episode.hear(place, response, desk)
                if len(episode.heard) == len(episode.asked):
                    go_on(episode, episode.answer())
    return [played[number] for number in range(len(groups))]


class _Desk:
    """Where the asks to one model wait, and are answered."""

    def __init__(
        self, actor: Actor, limits: Limits, meanwhile: Callable[[], None]
    ) -> None:
        self.processor = actor.processor
        self.actor = actor
        self.stops = tuple(np.asarray(actor.stop_ids).tolist())
        self.row_tokens = limits.row_tokens or actor.max_new_tokens
        self.room = limits.room(actor)._replace(prompts_per_pack=1)
        self.waiting = 0
        self.known: dict[Hashable, Transcript] = {}
        self.fresh: dict[Hashable, tuple[Transcript, list[dict[str, Any]]]] = {}
        self.queue: deque[Request] = deque()
        model = actor.model()._replace(limit=self.row_tokens)
        self.answers = decode(model, self.queue, meanwhile)

    def conversation(self, context: Context) -> Transcript:
        """The context as ids and pictures."""
        return conversation(self.processor, context, self.known)

    def text(self, tokens: Sequence[int]) -> str:
        """The tokens in words. Stop tokens are not shown."""
        return self.processor.tokenizer.decode(tokens, skip_special_tokens=True)

    def limit(self, ask: Ask, read: Transcript, prompt: Transcript) -> int:
        """How many tokens the answer may have. Raises `OutOfRoom` if none."""
        longest, blocks = self.room.prompt_tokens[-1], self.room.blocks[-1]
        left = self.row_tokens - (len(read.tokens) - len(prompt.tokens))
        sizes = [len(picture.patches) for picture in read.pictures]
        need = blocks_of(first_fit(sizes, self.room.block), self.room.block)
        if left < 1 or len(read.tokens) > longest or need > blocks:
            raise OutOfRoom(
                f"a context of {len(read.tokens)} tokens and {need} blocks of patches "
                f"leaves {left} tokens to write; it may have {longest} tokens and "
                f"{blocks} blocks, and {self.row_tokens} tokens may follow the prompt."
            )
        if max(sizes, default=0) > self.room.block:
            raise OutOfRoom(
                f"a picture needs {max(sizes)} patches, a block has {self.room.block}."
            )
        return min(ask.max_new_tokens or self.actor.max_new_tokens, left)

    def order(self, ask: Ask) -> dict[str, Any]:
        """How its answer is drawn: what it says, else what the actor says."""
        allowed = ask.allowed
        if allowed is not None:
            allowed = tuple(one_token(self.processor, text) for text in allowed)

        def own(name: str) -> Any:
            value = getattr(ask, name)
            return getattr(self.actor, name) if value is None else value

        names = ("temperature", "top_k", "top_p")
        how = {name: own(name) for name in names}
        if not how["temperature"] > 0 or how["top_k"] < 0 or not 0 < how["top_p"] <= 1:
            raise ValueError(
                "an answer needs temperature > 0 (top_k=1 is greedy), top_k >= 0 and "
                f"top_p in (0, 1], got {how}."
            )
        rule = Rule(self.stops, allowed)
        return {"rule": rule, "stop_strings": ask.stops, **how}

    def ask(self, ask: Ask, read: Transcript, **order: Any) -> None:
        """Queues the ask; those that read the same share what is read."""
        key = (identity(ask.context), ask.given)
        self.fresh.setdefault(key, (read, []))[1].append(order)
        self.waiting += 1

    def run(self) -> list[Response]:
        """What has been answered after another run of the slots."""
        if not self.waiting:
            return []
        self._queue_fresh()
        responses = next(self.answers)
        self.waiting -= len(responses)
        return responses

    def _queue_fresh(self) -> None:
        """Contexts of similar size become tables together, in a few sizes."""
        sizes: dict[tuple[int, int], list] = {}
        for read, orders in self.fresh.values():
            alone = unpadded(self.processor, read)
            sizes.setdefault(self._size(alone), []).append((alone, orders))
        self.fresh = {}
        most = max(size for size in BATCHES if size <= max(4, self.actor.slots // 4))
        for contexts in sizes.values():
            for start in range(0, len(contexts), most):
                part = contexts[start : start + most]
                count = next(size for size in BATCHES if size >= len(part))
                rows = [alone for alone, _ in part]
                rows += rows[-1:] * (count - len(rows))
                together = Contexts(packed(self.room, self.processor.front_end, rows))
                self.queue.extend(
                    Request(contexts=together, row=row, **order)
                    for row, (_, orders) in enumerate(part)
                    for order in orders
                )

    def _size(self, alone: Unpadded) -> tuple[int, int]:
        """Which tokens and blocks the tables have that it goes into."""
        need = blocks_of(first_fit(alone.sizes, self.room.block), self.room.block)
        return (
            next(n for n in self.room.prompt_tokens if n >= len(alone.tokens)),
            next(n for n in self.room.blocks if n >= need),
        )


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

    def goes_on(self, context: Context) -> bool:
        """Whether the context is this conversation and something more."""
        last = self.said[-1]
        before = identity((*last.ask.context, last.turn))
        return identity(context[: len(before)]) == before


@dataclasses.dataclass(eq=False)
class _Playing:
    """One episode under way."""

    sample: Sample
    key: UInt32[np.ndarray, " 2"]
    program: Generator
    most: int
    number: int
    count: int = 0
    several: bool = False
    asked: list[_Asked] = dataclasses.field(default_factory=list)
    heard: dict[int, Said] = dataclasses.field(default_factory=dict)
    said: list[Said] = dataclasses.field(default_factory=list)
    rows: list[_OpenRow] = dataclasses.field(default_factory=list)
    returned: Any = None
    ended: str = ""
    over: bool = False

    def go_on(self, answer: Answer | None, desks: Mapping[str, _Desk]) -> None:
        """Runs the program to its next ask and hands that in, or ends the episode."""
        step = functools.partial(self.program.send, answer)
        self.over = True
        while True:
            try:
                yielded = step()
                self.several = not isinstance(yielded, Ask)
                asks = tuple(yielded) if self.several else (yielded,)
            except StopIteration as end:
                self.returned = end.value
                return
            except Exception as error:  # a user's program: counted, told, not fatal
                self.ended = type(error).__name__
                if not isinstance(error, OutOfRoom):
                    LOG.warning("sample %s: %r", self.sample.id, error, exc_info=error)
                return
            if self.count + len(asks) > self.most:
                self.ended = "TooManyAsks"
                self.program.close()
                return
            try:
                self._hand_in(asks, desks)
                self.over = False
                return
            except Exception as error:  # it hears what is wrong, and may ask otherwise
                self.count += 1
                step = functools.partial(self.program.throw, error)

    def _hand_in(self, asks: Sequence[Ask], desks: Mapping[str, _Desk]) -> None:
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
            if ask.model == "policy" and ask.trained:
                free = (row for row in self.rows if row not in taken)
                row = next((row for row in free if row.goes_on(ask.context)), None)
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
            desks[ask.model].ask(ask, read, key=self.key, tag=(self, place), **order)
        self.rows += [row for row in taken if not row.said]
        self.asked, self.heard = asked, {}
        self.count += len(asks)

    def hear(self, place: int, response: Response, desk: _Desk) -> None:
        """An answer to one of the asks that were yielded last."""
        ask, read, _ = self.asked[place]
        given = ids_of(desk.processor, ask.given)
        tokens = (*given.tolist(), *response.tokens.tolist())
        turn = Turn(
            text=desk.text(tokens),
            tokens=tokens,
            chosen=ask.model == "policy",
            given=len(given),
            finished=response.finished,
            facts={} if ask.model == "policy" else {"model": ask.model},
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
        if turns is None:
            turns = _all_turns(self.said)
        if not all(isinstance(turn, Turn) for turn in turns):
            raise TypeError(f"a program returns turns, got {turns!r}.")
        own = [said for said in self.said if said.turn.chosen]
        first = own[0].read if own else Transcript("", np.zeros(0, np.int32), (), ())
        ended = {f"ended/{self.ended}": 1.0} if self.ended else {}
        # An answer that was awaited when the program ended is no part of it.
        rows = tuple(Row(row.prompt, tuple(row.said)) for row in self.rows if row.said)
        return Played(
            Episode(
                sample=self.sample,
                prompt=first.text,
                turns=tuple(turns) or (Turn("", ()),),
                finished=not self.ended and all(s.turn.finished for s in own[-1:]),
                image_sizes=first.image_sizes,
                step=actor.step,
                total_steps=actor.total_steps,
                facts={"asks": float(self.count), **facts, **ended},
            ),
            rows,
        )


def _all_turns(said: Sequence[Said]) -> tuple[Turn, ...]:
    """What was written, and before it what was said since the turn before."""
    turns: list[Turn] = []
    for one in said:
        context = one.ask.context
        back = itertools.takewhile(lambda p: isinstance(p, Message), reversed(context))
        new = [*back][::-1]
        if len(new) < len(context):
            turns += map(_told, new)
        turns.append(one.turn)
    return tuple(turns)


def _told(message: Message) -> Turn:
    return Turn(message.text, (), chosen=False, images=message.images)
