"""Where asks wait for a model, and are answered: from conversations to requests."""

import functools
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
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
from vrl_jax.engine.decoding import Contexts, Model, Request, Response, Rule
from vrl_jax.engine.packing import Room, Unpadded, blocks_of, first_fit, packed
from vrl_jax.engine.processing import Transcript, unpadded

Write = Callable[[Model, deque[Request], Callable[[], None]], Iterator[list[Response]]]
"""How what is queued is answered: `decoding.decode`, or something like it."""

BATCHES = (1, 4, 16, 64)
"""Numbers of contexts that are read together."""


class OutOfRoom(Exception):
    """Raised inside a program whose next ask does not fit the budgets."""


class TooManyAsks(Exception):
    """Raised inside a program that asks for more than it may; it may only return."""


class Limits(NamedTuple):
    """Bounds of one episode.

    `row_tokens`: the answers of one conversation with what is said between them;
    `blocks`: of patches, for the pictures of one context. None: the actor's
    max_new_tokens, and the most blocks that its processor has for a prompt. `asks`
    bounds the programs that never end: what is asked beyond is not answered, and a
    program that asks again after it has heard so is closed.
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
        self.fresh: dict[Hashable, tuple[Transcript, list[dict[str, Any]]]] = {}
        self.queue: deque[Request] = deque()
        model = actor.model()._replace(limit=self.row_tokens)
        self.answers = write(model, self.queue, meanwhile)

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
        given = tuple(ids_of(self.processor, ask.given).tolist())
        key = (identity(ask.context), given)
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
        bound = min(max(4, self.actor.slots // 4), self.actor.prompts_per_pass)
        most = max(size for size in BATCHES if size <= bound)
        for contexts in sizes.values():
            for start in range(0, len(contexts), most):
                part = contexts[start : start + most]
                count = next(size for size in BATCHES if size >= len(part))
                rows = [alone for alone, _ in part]
                rows += rows[-1:] * (count - len(rows))
                pack = functools.partial(packed, self.room, self.processor.front_end)
                together = Contexts(functools.partial(pack, rows))
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
