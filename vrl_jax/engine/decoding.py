"""The host side of sampling: which request is in which slot, and when slots move.

Between runs of the device, slots whose response has ended take the next requests. When
no request waits, the live slots move together into fewer; a full window grows to hold
the age of the oldest. All sizes come from short lists, so that few programs are
compiled: at most `len(row_sizes) * len(window_sizes)` for each width of contexts. What
goes on with a response that has just ended is read before anything moves, from where
its slot stands.
"""

import dataclasses
import functools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from vrl_jax.engine import slots as device
from vrl_jax.engine.slots import Orders, Read, Slots, Tables
from vrl_jax.models.policy import Params, Policy
from vrl_jax.models.sharding import put
from vrl_jax.types import Prompts

STEPS = 32
"""Steps between two looks of the host, at most."""
STEPS_WITH_STRINGS = 8
"""The same where a stop string must be looked for."""


class Behind(NamedTuple):
    """Where the responses stand that each of some prompts follows.

    `tokens` of each were read and written in its slot; with the prompt they have room
    in `columns`.
    """

    slots: tuple[int, ...]
    tokens: tuple[int, ...]
    columns: int


@dataclasses.dataclass(eq=False)
class Contexts:
    """Prompts that are packed and read together, when the first of them is needed.

    Those `behind` responses that have just ended are queued before anything else, so
    that the slots still hold these: they need not be read again.
    """

    pack: Callable[[], Prompts]
    behind: Behind | None = None
    read: Read | None = None

    @functools.cached_property
    def prompts(self) -> Prompts:
        """What `pack` gives: pictures that nobody reads are not packed."""
        return self.pack()

    @property
    def columns(self) -> int:
        """How many a slot needs for one of them, with what it follows."""
        return self.behind.columns if self.behind else self.prompts.tokens.shape[1]


class Rule(NamedTuple):
    """Which ids may be drawn (None: all of the actor's), and which end a response."""

    stops: tuple[int, ...]
    allowed: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """One response to be written: to row `row` of `contexts`.

    `top_k` 0 and `top_p` 1 leave nothing out. `tag` is the caller's.
    """

    contexts: Contexts
    row: int
    key: UInt32[np.ndarray, " 2"]
    limit: int
    rule: Rule
    turn: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    stop_strings: tuple[str, ...] = ()
    tag: Any = None


class Response(NamedTuple):
    """What was written. `finished` is False where the limit ended it.

    Its `slot` keeps it until the next run; None where it was not written in one.
    """

    request: Request
    tokens: Int[np.ndarray, " n"]
    logprobs: Float[np.ndarray, " n"]
    log_kept: Float[np.ndarray, " n"]
    noted: Float[np.ndarray, "n K"]
    finished: bool
    slot: int | None = None


class Model(NamedTuple):
    """What decoding depends on: `limit` bounds every request's.

    `note` says what is kept of the final hidden states, `weights` how what is read at
    every token lies.
    """

    policy: Policy
    params: Params
    base: Bool[Array, " V"]
    limit: int
    slots: int
    tokenizer: Any = None
    note: Callable = device.nothing
    weights: Callable[[Policy, Params], device.Weights] = device.unstack


def row_sizes(slots: int) -> list[int]:
    """Numbers of slots: all, 3/4, half, a quarter, an eighth, but no fewer than 8."""
    sizes = {max(slots * eighths // 8, min(slots, 8)) for eighths in (8, 6, 4, 2, 1)}
    return sorted(sizes)


def window_sizes(limit: int) -> list[int]:
    """Columns of a window: the limit, halved down to STEPS, and 3/4 of long ones."""
    sizes = [limit]
    while limit > STEPS:
        if limit > 2 * STEPS:
            sizes.append(-(-limit * 3 // 4))
        limit = -(-limit // 2)
        sizes.append(limit)
    return sorted(sizes)


@dataclasses.dataclass(eq=False)
class _Writer:
    """A request in a slot, since the window was `begun` columns full."""

    request: Request
    begun: int
    parts: list[tuple[np.ndarray, ...]] = dataclasses.field(default_factory=list)
    count: int = 0


def decode(
    model: Model,
    queue: deque[Request],
    meanwhile: Callable[[], None] = lambda: None,
) -> Iterator[list[Response]]:
    """Yields the responses that ended, run after run, and for ever: [] when idle.

    The caller may add to the queue between two of them; what goes on `behind` a
    response that has just ended, to its front. `meanwhile` is called once a run, with
    the device at work.
    """
    slots, context, window, column = None, 0, 0, 0
    weights = None
    writers: list[_Writer | None] = []
    rules = _Rules(model)
    while True:
        live = [row for row, writer in enumerate(writers) if writer]
        wanted = min(model.slots, len(live) + len(queue))
        if not wanted:
            slots = weights = None  # frees the memory
            yield []
            continue
        size = _at_least(row_sizes(model.slots), wanted)
        new = [queue.popleft() for _ in range(max(0, wanted - len(live)))]
        for request in new:
            if request.contexts.read is None:
                request.contexts.read = _read(model, request.contexts, slots)
        if weights is None:
            weights = model.weights(model.policy, model.params)
        left = [writers[row].request.limit - writers[row].count for row in live]
        steps = min(STEPS, max([*left, *(request.limit for request in new)]))
        if live:
            shift = min(writers[row].begun for row in live)
        else:
            shift, context = column, 0
        age = column - shift
        wider = max([context, *(request.contexts.columns for request in new)])
        if slots is None or not live:
            window = _at_least(window_sizes(model.limit), steps)
            slots = device.empty(new[0].contexts.read, size, wider + window)
            writers, column = [None] * size, 0
        elif size != len(writers) or wider != context or column == window:
            sizes = window_sizes(model.limit)
            window = _at_least(sizes, min(age + steps, sizes[-1]))
            rows = np.resize(live, size)
            slots = device.move(
                slots,
                rows,
                np.arange(size) < len(live),
                shift,
                context,
                wider,
                window,
            )
            writers = [writers[row] for row in live] + [None] * (size - len(live))
            for writer in writers[: len(live)]:
                writer.begun -= shift
            column = age
        context = wider
        steps = min(steps, window - column)
        free = iter([row for row, writer in enumerate(writers) if not writer])
        placed = [(next(free), request) for request in new]
        for row, request in placed:
            writers[row] = _Writer(request, column)
        slots = _filled(slots, placed, rules, size)
        waiting = {id(request.contexts) for request in queue}
        for request in new:
            if id(request.contexts) not in waiting:
                request.contexts.read = None  # frees the memory
        strings = any(w and w.request.stop_strings for w in writers)
        if strings:
            steps = min(steps, STEPS_WITH_STRINGS)
        slots, writing = device.run(
            model.policy,
            weights,
            rules.tables,
            slots,
            context + column,
            STEPS,
            steps,
            _patience(row_sizes(model.slots), size, len(live) + len(new), len(queue)),
            model.note,
        )
        meanwhile()
        *parts, counts, stopped, remaining = jax.device_get(
            (*writing, slots.stopped, slots.orders.left)
        )
        column += int(counts.max())
        ended = []
        cut = np.zeros(size, bool)
        for row, writer in enumerate(writers):
            if writer is None:
                continue
            count = int(counts[row])
            writer.parts.append(tuple(part[row, :count] for part in parts))
            writer.count += count
            response = _response(writer, bool(stopped[row]), int(remaining[row]), model)
            if response is not None:
                ended.append(response._replace(slot=row))
                cut[row] = remaining[row] > 0
                writers[row] = None
        if cut.any():
            slots = device.end(slots, cut)
        yield ended


def _read(model: Model, contexts: Contexts, slots: Slots | None) -> Read:
    """The prompts, behind what the slots hold where that is what they follow."""
    prompts = put(contexts.prompts)
    if contexts.behind is None:
        return device.read(model.policy, model.params, prompts)
    rows, tokens, columns = contexts.behind
    lengths = np.array(tokens, np.int32)
    kept = device.keep(slots, np.array(rows, np.int32), lengths, columns)
    return device.read_on(model.policy, model.params, kept, lengths, prompts)


def _response(
    writer: _Writer, stopped: bool, remaining: int, model: Model
) -> Response | None:
    """The response, if it has ended: by a stop id, a stop string, or its limit."""
    strings = writer.request.stop_strings
    if remaining and not strings:
        return None
    columns = [np.concatenate(part) for part in zip(*writer.parts, strict=True)]
    tokens = columns[0]
    cut = _string_end(model.tokenizer, tokens, strings) if strings else None
    if cut is not None:
        return Response(writer.request, *(x[:cut] for x in columns), finished=True)
    if remaining:
        return None
    return Response(writer.request, *columns, finished=stopped)


def _string_end(
    tokenizer: Any, tokens: Int[np.ndarray, " n"], strings: Sequence[str]
) -> int | None:
    """The fewest first tokens whose text holds one of the strings."""

    def holds(count: int) -> bool:
        text = tokenizer.decode(tokens[:count])
        return any(string in text for string in strings)

    if not holds(len(tokens)):
        return None
    return next(count for count in range(1, len(tokens) + 1) if holds(count))


def _filled(
    slots: Slots,
    placed: Sequence[tuple[int, Request]],
    rules: "_Rules",
    size: int,
) -> Slots:
    """The requests begin in their slots, those of the same prompts at once."""
    batches: dict[int, list[tuple[int, Request]]] = {}
    for row, request in placed:
        batches.setdefault(id(request.contexts), []).append((row, request))
    for batch in batches.values():
        prompts = np.zeros(size, np.int32)
        taken = np.zeros(size, bool)
        orders = Orders(
            key=np.zeros((size, 2), np.uint32),
            turn=np.zeros(size, np.int32),
            left=np.zeros(size, np.int32),
            temperature=np.ones(size, np.float32),
            top_k=np.zeros(size, np.int32),
            top_p=np.ones(size, np.float32),
            number=np.zeros(size, np.int32),
        )
        for row, request in batch:
            prompts[row], taken[row] = request.row, True
            orders.key[row] = request.key
            orders.turn[row] = request.turn
            orders.left[row] = request.limit
            orders.temperature[row] = request.temperature
            orders.top_k[row] = request.top_k
            orders.top_p[row] = request.top_p
            orders.number[row] = rules.number(request.rule)
        new = batch[0][1].contexts.read
        slots = device.fill(slots, new, prompts, taken, orders)
    return slots


def _patience(sizes: Sequence[int], size: int, live: int, waiting: int) -> int:
    """How many responses end before the host looks again.

    While requests wait, an eighth of the slots; then, as many as make the next smaller
    size do.
    """
    if waiting:
        return max(1, size // 8)
    smaller = [other for other in sizes if other < size]
    return max(1, live - smaller[-1]) if smaller else size + 1


def _at_least(sizes: Sequence[int], wanted: int) -> int:
    return next(size for size in sizes if size >= wanted)


class _Rules:
    """Numbers the rules as they come, and keeps their tables on the device."""

    def __init__(self, model: Model) -> None:
        self.base = np.asarray(model.base)
        self.numbers: dict[Rule, int] = {}
        self.tables = Tables(model.base, *(jnp.zeros((1, len(self.base)), bool),) * 2)

    def number(self, rule: Rule) -> int:
        """The rule's row of the tables."""
        if rule not in self.numbers:
            self.numbers[rule] = len(self.numbers)
            self.tables = self._tables()
        return self.numbers[rule]

    def _tables(self) -> Tables:
        room = 1 << (len(self.numbers) - 1).bit_length()
        allowed = np.zeros((room, len(self.base)), bool)
        stops = np.zeros((room, len(self.base)), bool)
        for rule, number in self.numbers.items():
            stops[number, list(rule.stops)] = True
            if rule.allowed is None:
                allowed[number] = self.base
            else:
                allowed[number, list(rule.allowed)] = True
                allowed[number] &= self.base
            if not allowed[number].any():
                raise ValueError(
                    f"none of the allowed ids {rule.allowed} may be sampled: the "
                    "policy blocks vision placeholders and ids beyond its tokenizer."
                )
        return Tables(*map(jnp.asarray, (self.base, allowed, stops)))
