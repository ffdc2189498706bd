"""Where asks wait for a model, and are answered: from conversations to requests."""

import contextlib
import dataclasses
import itertools
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

import numpy as np

from vrl_jax.engine.actor import Actor
from vrl_jax.engine.conversation import (
    Ask,
    Context,
    conversation,
    identity,
    ids_of,
    one_token,
)
from vrl_jax.engine.decoding import Behind, Contexts, Model, Request, Response, Rule
from vrl_jax.engine.packing import Room, Unpadded, blocks_of, first_fit, packed
from vrl_jax.engine.processing import Transcript, prepare, unpadded
from vrl_jax.types import ImageRef, Message, Prompts

Write = Callable[[Model, deque[Request], Callable[[], None]], Iterator[list[Response]]]
"""How what is queued is answered: `decoding.decode`, or something like it."""

BATCHES = (1, 4, 16, 64)
"""Numbers of contexts that are read together."""

FOLLOWING = (64, 256)
"""Tokens that may follow a response, besides the sizes of prompts."""


class OutOfRoom(Exception):
    """Raised inside a program whose next ask does not fit the budgets of its model."""

    def __init__(self, why: str = "", model: str = "policy") -> None:
        super().__init__(why if model == "policy" else f"of the model {model!r}: {why}")
        self.model = model


class TooManyAsks(Exception):
    """Raised inside a program that asks for more than it may; it may only return."""


class Limits(NamedTuple):
    """Bounds of one episode.

    `row_tokens`: the answers of one conversation with what is said between them; None
    is the actor's max_new_tokens. `pictures`: for so many there is room besides those
    of the prompt, a block of the processor's for each; several small ones may share
    one. `asks` bounds the programs that never end: what is asked beyond is not
    answered, and a program that asks again after it has heard so is closed.
    """

    row_tokens: int | None = None
    pictures: int = 0
    asks: int = 64

    def room(self, actor: Actor) -> Room:
        """The sizes of its contexts: those of prompts, and one that holds a row too."""
        room = actor.processor.room
        longest = room.prompt_tokens[-1] + (self.row_tokens or actor.max_new_tokens)
        blocks = -(-room.blocks[-1] // room.prompts_per_pack) + self.pictures
        more = (blocks,) if blocks > room.blocks[-1] else ()
        return room._replace(
            prompt_tokens=(*room.prompt_tokens, longest), blocks=room.blocks + more
        )


def nothing() -> None:
    """What is done while the device works."""


class Desk:
    """Where the asks to one model wait, and are answered."""

    def __init__(
        self,
        actor: Actor,
        limits: Limits,
        meanwhile: Callable[[], None],
        write: Write,
    ) -> None:
        self.processor = actor.processor
        self.actor = actor
        self.stops = tuple(np.asarray(actor.stop_ids).tolist())
        self.row_tokens = limits.row_tokens or actor.max_new_tokens
        self.room = limits.room(actor)._replace(prompts_per_pack=1)
        self.waiting = 0
        self.known: dict[Hashable, Transcript] = {}
        self.fresh: dict[Hashable, _Fresh] = {}
        self.queue: deque[Request] = deque()
        model = actor.model()._replace(limit=self.row_tokens)
        self.answers = write(model, self.queue, meanwhile)

    def conversation(self, context: Context) -> Transcript:
        """The context as ids and pictures."""
        return conversation(self.processor, context, self.known)

    def lay_out(self, ask: Ask) -> list[ImageRef]:
        """Lays out the pictures behind the last turn of the ask, before it is read.

        Those that were laid out by this are given; one that cannot be read is not.
        """
        prepared, laid = self.processor.prepared, []
        new = itertools.takewhile(
            lambda part: isinstance(part, Message), reversed(ask.context)
        )
        for image in dict.fromkeys(image for part in new for image in part.images):
            if image not in prepared:
                with contextlib.suppress(ValueError):  # reading it says so
                    done = Future()
                    done.set_result(prepare(self.processor, image))
                    prepared[image] = done
                    laid.append(image)
        return laid

    def text(self, tokens: Sequence[int]) -> str:
        """The tokens in words. Stop tokens are not shown."""
        return self.processor.tokenizer.decode(tokens, skip_special_tokens=True)

    def limit(self, ask: Ask, read: Transcript, prompt: Transcript) -> int:
        """How many tokens the answer may have. Raises `OutOfRoom` if none."""
        longest, blocks = self.room.prompt_tokens[-1], self.room.blocks[-1]
        left = self.row_tokens - (len(read.tokens) - len(prompt.tokens))
        sizes = [len(picture.patches) for picture in read.pictures]
        if max(sizes, default=0) > self.room.block:
            raise OutOfRoom(
                f"a picture needs {max(sizes)} patches, a block has {self.room.block}.",
                ask.model,
            )
        need = blocks_of(first_fit(sizes, self.room.block), self.room.block)
        if left < 1 or len(read.tokens) > longest or need > blocks:
            raise OutOfRoom(
                f"a context of {len(read.tokens)} tokens and {need} blocks of patches "
                f"leaves {left} tokens to write; it may have {longest} tokens and "
                f"{blocks} blocks, and {self.row_tokens} tokens may follow the prompt.",
                ask.model,
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

    def ask(
        self,
        ask: Ask,
        read: Transcript,
        last: tuple[Transcript, Response] | None = None,
        **order: Any,
    ) -> None:
        """Queues the ask; those that read the same share what is read.

        `last` is what was read and written for the same program just now, if the ask
        may go on with it.
        """
        given = tuple(ids_of(self.processor, ask.given).tolist())
        fresh = _Fresh(read, [])
        if last and self._goes_on(read, *last):
            before, said = last
            tokens = len(before.tokens) + len(said.tokens)
            fresh = _Fresh(read, [], said.slot, tokens, len(before.pictures))
        key = (identity(ask.context), given, fresh.slot)
        self.fresh.setdefault(key, fresh).orders.append(order)
        self.waiting += 1

    def _goes_on(self, read: Transcript, before: Transcript, said: Response) -> bool:
        """Whether it begins with what the slot of the response holds, and is longer."""
        if self.actor.policy.resume is None or said.slot is None:
            return False
        held = np.concatenate([before.tokens, said.tokens])
        shown = read.pictures[: len(before.pictures)]
        return (
            len(read.tokens) > len(held)
            and np.array_equal(read.tokens[: len(held)], held)
            and [*map(id, shown)] == [*map(id, before.pictures)]
        )

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
        sizes: dict[_Size, list[tuple[Unpadded, _Fresh]]] = {}
        for fresh in self.fresh.values():
            whole = unpadded(self.processor, fresh.read)
            new = whole.after(fresh.tokens, fresh.pictures)
            sizes.setdefault(self._size(whole, new), []).append((new, fresh))
        self.fresh = {}
        bound = min(max(4, self.actor.slots // 4), self.actor.prompts_per_pass)
        most = max(size for size in BATCHES if size <= bound)
        for size, contexts in sizes.items():
            for start in range(0, len(contexts), most):
                part = contexts[start : start + most]
                together = self._together(size, part)
                requests = [
                    Request(contexts=together, row=row, **order)
                    for row, (_, fresh) in enumerate(part)
                    for order in fresh.orders
                ]
                if size.columns:  # while the slots hold what these go on with
                    self.queue.extendleft(requests)
                else:
                    self.queue.extend(requests)

    def _together(
        self, size: "_Size", part: Sequence[tuple[Unpadded, "_Fresh"]]
    ) -> Contexts:
        """Tables of this size, the last context again where there are too few."""
        count = next(number for number in BATCHES if number >= len(part))
        rows, fresh = zip(*part, *part[-1:] * (count - len(part)), strict=True)
        room = self.room
        if size.columns:
            room = room._replace(prompt_tokens=(size.tokens,))

        def pack() -> Prompts:
            tables = packed(room, self.processor.front_end, rows)
            if size.blocks or not size.columns:  # what is read afresh has a table
                return tables
            return dataclasses.replace(tables, images=None)

        if not size.columns:
            return Contexts(pack)
        slots = tuple(one.slot for one in fresh)
        tokens = tuple(one.tokens for one in fresh)
        return Contexts(pack, Behind(slots, tokens, size.columns))

    def _size(self, whole: Unpadded, new: Unpadded) -> "_Size":
        """Of the tables that what is new goes into."""
        need = blocks_of(first_fit(new.sizes, self.room.block), self.room.block)
        blocks = _at_least(self.room.blocks, need)
        columns = _at_least(self.room.prompt_tokens, len(whole.tokens))
        if new is whole:
            return _Size(columns, blocks, 0)
        shorter = [size for size in FOLLOWING if size < self.room.prompt_tokens[0]]
        tokens = _at_least([*shorter, *self.room.prompt_tokens], len(new.tokens))
        return _Size(tokens, blocks if need else 0, columns)


def _at_least(sizes: Sequence[int], need: int) -> int:
    return next(size for size in sizes if size >= need)


class _Size(NamedTuple):
    """Of tables: `columns` is that of slots, 0 where nothing stands in them yet."""

    tokens: int
    blocks: int
    columns: int


class _Fresh(NamedTuple):
    """What is to be read behind what a slot holds, and the orders for it.

    Of `read`, the first `tokens` and `pictures` stand in the slot, if there is one.
    """

    read: Transcript
    orders: list[dict[str, Any]]
    slot: int | None = None
    tokens: int = 0
    pictures: int = 0
