"""The device side of sampling: slots that are filled, written in, moved, and read.

B slots are written side by side, all in the same physical column at a time, so that a
step stores its keys and values by one slice. The columns of a slot are L for what it
was given (its context) and W for what it writes (the window). Slots begin at different
times: `index` says which token of its own sequence a column holds, -1 for none, and
attention needs nothing else. The host fills slots between runs, and moves them to
another number of slots or columns; all shapes come from a few sizes.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from vrl_jax.engine.likelihood import first_positions, last_hidden
from vrl_jax.engine.sampling import draw, must_sort
from vrl_jax.models.policy import Params, Policy, SlotCache
from vrl_jax.models.sharding import by_row, everywhere, placed
from vrl_jax.types import Prompts


def _pytree(cls: type) -> type:
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls))


class Read(NamedTuple):
    """Prompts after prefill: what slots take over, and where they go on."""

    cache: SlotCache
    states: Float[Array, "P H"]
    lengths: Int[Array, " P"]
    positions: Int[Array, " P"]


class Orders(NamedTuple):
    """How a response is to be drawn, a row each.

    `number` is its row of the tables of allowed and stop ids; token t is drawn with
    fold_in(fold_in(key, turn), t), the key as its data.
    """

    key: UInt32[Array, "B 2"]
    turn: Int[Array, " B"]
    left: Int[Array, " B"]
    temperature: Float[Array, " B"]
    top_k: Int[Array, " B"]
    top_p: Float[Array, " B"]
    number: Int[Array, " B"]


class Tables(NamedTuple):
    """Allowed and stop ids: of the actor, and of each kind of request."""

    base: Bool[Array, " V"]
    allowed: Bool[Array, "A V"]
    stops: Bool[Array, "A V"]


@_pytree
class Slots:
    """B sequences being written. A slot is live while `orders.left` > 0.

    `states` predict the next token, which is number `written` of the response, `length`
    of the sequence, and stands at `position` on all three axes.
    """

    cache: SlotCache
    index: Int[Array, "B C"]
    states: Float[Array, "B H"]
    written: Int[Array, " B"]
    length: Int[Array, " B"]
    position: Int[Array, " B"]
    stopped: Bool[Array, " B"]
    orders: Orders


class Weights(NamedTuple):
    """What a run reads at every token."""

    decoder: Params
    head: Float[Array, "V H"]


class Writing(NamedTuple):
    """What a run wrote: `count` tokens in each slot, from the left.

    `noted` is what was kept of the states that predicted them.
    """

    tokens: Int[Array, "B S"]
    logprobs: Float[Array, "B S"]
    log_kept: Float[Array, "B S"]
    noted: Float[Array, "B S K"]
    count: Int[Array, " B"]


def _laid(slots: Slots) -> Slots:
    """As slots lie on a mesh: memories spread, what the host counts with everywhere."""

    def column(axis: int, x: Array) -> Array:
        del axis  # of the columns: they lie together
        return placed(x, "batch", "kv_heads", *[None] * (x.ndim - 2))

    cache = _moved(slots.cache, column, by_row)
    rest = dataclasses.replace(slots, cache=(), states=())
    rest = jax.tree.map(everywhere, rest)
    return dataclasses.replace(rest, cache=cache, states=by_row(slots.states))


@functools.partial(jax.jit, static_argnums=0)
def read(policy: Policy, params: Params, prompts: Prompts) -> Read:
    """Encodes pictures and reads prompts, once for all that will be asked of them."""
    features = policy.encode_images(params, prompts.images)
    hidden, cache = policy.prefill(params, prompts, features)
    return Read(
        policy.as_slots(cache),
        last_hidden(hidden, prompts.mask),
        prompts.mask.sum(axis=1),
        first_positions(prompts),
    )


@functools.partial(jax.jit, static_argnums=3)
def keep(
    slots: Slots, rows: Int[Array, " P"], lengths: Int[Array, " P"], columns: int
) -> SlotCache:
    """The first `lengths` tokens of these rows, in order, in so many columns."""
    index = slots.index[rows]
    there = (index >= 0) & (index < lengths[:, None])
    order = jnp.argsort(jnp.where(there, index, jnp.iinfo(index.dtype).max), axis=1)
    order = order[:, :columns]
    order = jnp.pad(order, ((0, 0), (0, columns - order.shape[1])))

    def column(axis: int, x: Array) -> Array:
        return _taken(x[rows], order, axis)

    return _moved(slots.cache, column, lambda x: x[rows])


@functools.partial(jax.jit, static_argnums=0)
def read_on(
    policy: Policy,
    params: Params,
    kept: SlotCache,
    lengths: Int[Array, " P"],
    prompts: Prompts,
) -> Read:
    """What `read` would give of what is `kept` with the prompts behind it.

    Only the prompts are read, and their pictures, if they have any.
    """
    features = None
    if prompts.images is not None:
        features = policy.encode_images(params, prompts.images)
    columns = jnp.arange(_columns(kept))
    before = columns < lengths[:, None]
    hidden, cache = policy.resume(params, kept, before, prompts, features)
    new = policy.as_slots(cache)
    behind = jnp.maximum(columns - lengths[:, None], 0)

    def column(axis: int, old: Array, x: Array) -> Array:
        shape = [1] * old.ndim
        shape[0], shape[axis] = before.shape
        return jnp.where(before.reshape(shape), old, _taken(x, behind, axis))

    return Read(
        _moved(kept, column, lambda old, x: old, new),
        last_hidden(hidden, prompts.mask),
        lengths + prompts.mask.sum(axis=1),
        first_positions(prompts),
    )


def _columns(cache: SlotCache) -> int:
    """How many there are."""
    return jax.tree.leaves(cache.columns)[0].shape[2]


def _taken(x: Array, order: Int[Array, "P C"], axis: int) -> Array:
    """Of each row the columns in this order; beyond the last one, that one."""
    return jax.vmap(lambda one, to: jnp.take(one, to, axis - 1, mode="clip"))(x, order)


@functools.partial(jax.jit, static_argnums=0)
def unstack(policy: Policy, params: Params) -> Weights:
    """Each layer by itself: a copy, made once for many runs."""
    head = placed(policy.head(params), "vocabulary", None)
    return Weights(policy.unstack(params), head)


@functools.partial(jax.jit, static_argnums=(1, 2))
def empty(like: Read, count: int, columns: int) -> Slots:
    """Slots that hold nothing, for prompts such as these."""

    def room(axis: int, x: Array) -> Array:
        shape = (count, *x.shape[1:axis], columns, *x.shape[axis + 1 :])
        return jnp.zeros(shape, x.dtype)

    def row(x: Array) -> Array:
        return jnp.zeros((count, *x.shape[1:]), x.dtype)

    numbers = jnp.zeros(count, jnp.int32)
    slots = Slots(
        cache=_moved(like.cache, room, row),
        index=jnp.full((count, columns), -1, jnp.int32),
        states=row(like.states),
        written=numbers,
        length=numbers,
        position=numbers,
        stopped=jnp.zeros(count, bool),
        orders=Orders(
            key=jnp.zeros((count, 2), jnp.uint32),
            turn=numbers,
            left=numbers,
            temperature=jnp.ones(count),
            top_k=numbers,
            top_p=jnp.ones(count),
            number=numbers,
        ),
    )
    return _laid(slots)


@functools.partial(jax.jit, donate_argnums=0)
def fill(
    slots: Slots,
    new: Read,
    prompts: Int[Array, " B"],
    taken: Bool[Array, " B"],
    orders: Orders,
) -> Slots:
    """The slots that are `taken` begin after prompt `prompts[slot]` of `new`.

    Their columns hold the prompt and nothing else.
    """
    length = new.lengths[prompts]
    columns = jnp.arange(slots.index.shape[1])

    def pick(now: Array, old: Array) -> Array:
        return jnp.where(taken.reshape(-1, *[1] * (old.ndim - 1)), now, old)

    def row(old: Array, found: Array) -> Array:
        return pick(found[prompts].astype(old.dtype), old)

    def column(axis: int, old: Array, found: Array) -> Array:
        begun = row(jax.lax.slice_in_dim(old, 0, found.shape[axis], axis=axis), found)
        return jax.lax.dynamic_update_slice_in_dim(old, begun, 0, axis)

    index = jnp.where(columns < length[:, None], columns, -1)
    slots = Slots(
        cache=_moved(slots.cache, column, row, new.cache),
        index=pick(index, slots.index),
        states=row(slots.states, new.states),
        written=pick(jnp.zeros_like(slots.written), slots.written),
        length=pick(length, slots.length),
        position=row(slots.position, new.positions),
        stopped=slots.stopped & ~taken,
        orders=Orders(*(pick(n, o) for n, o in zip(orders, slots.orders, strict=True))),
    )
    return _laid(slots)


@functools.partial(jax.jit, static_argnums=(4, 5, 6))
def move(
    slots: Slots,
    rows: Int[Array, " B"],
    live: Bool[Array, " B"],
    shift: Int[Array, ""],
    context: int,
    new_context: int,
    window: int,
) -> Slots:
    """Slots `rows`, in this order, with other room for contexts and windows.

    The window loses its first `shift` columns. Of copies, at most one may be `live`.
    """

    def column(axis: int, x: Array, empty: int = 0) -> Array:
        def padded(part: Array, size: int) -> Array:
            wide = [(0, 0)] * x.ndim
            wide[axis] = (0, max(0, size - part.shape[axis]))
            return jnp.pad(part, wide, constant_values=empty)

        x = x[rows]
        old, rest = jnp.split(x, [context], axis=axis)
        rest = padded(rest, rest.shape[axis] + window)
        rest = jax.lax.dynamic_slice_in_dim(rest, shift, window, axis)
        return jnp.concatenate([padded(old, new_context), rest], axis=axis)

    def row(x: Array) -> Array:
        return x[rows]

    cache = _moved(slots.cache, column, row)
    index = column(1, slots.index, -1)
    rest = jax.tree.map(row, dataclasses.replace(slots, cache=(), index=()))
    return end(dataclasses.replace(rest, cache=cache, index=index), ~live)


def _moved(
    cache: SlotCache, column: Callable, row: Callable, *others: SlotCache
) -> SlotCache:
    """`column(axis of the columns, array, ...)` of every array that has columns."""

    def every(function: Callable, part: str) -> Any:
        return jax.tree.map(function, *(getattr(c, part) for c in (cache, *others)))

    return SlotCache(
        columns=every(functools.partial(column, 2), "columns"),
        rows=every(row, "rows"),
        turned=every(functools.partial(column, 3), "turned"),
    )


@functools.partial(jax.jit, donate_argnums=0)
def end(slots: Slots, these: Bool[Array, " B"]) -> Slots:
    """Nothing more is written in these."""
    left = jnp.where(these, 0, slots.orders.left)
    return _laid(dataclasses.replace(slots, orders=slots.orders._replace(left=left)))


def nothing(states: Float[Array, "B H"]) -> Float[Array, "B 0"]:
    """Of the states that predict tokens, none is kept."""
    return states[:, :0]


def states(states: Float[Array, "B H"]) -> Float[Array, "B H"]:
    """They are kept as they are."""
    return states


@functools.partial(jax.jit, static_argnums=(0, 5, 8), donate_argnums=3)
def run(
    policy: Policy,
    weights: Weights,
    tables: Tables,
    slots: Slots,
    column: Int[Array, ""],
    most: int,
    steps: Int[Array, ""],
    patience: Int[Array, ""],
    note: Callable = nothing,
) -> tuple[Slots, Writing]:
    """Writes up to `steps` tokens in every live slot, from `column` on.

    Ends sooner when `patience` responses have ended, or all. `most` bounds `steps`.
    `note` says what is kept of the final hidden states, [B H] -> [B K].
    """
    alive = (slots.orders.left > 0).sum()
    count = slots.written.shape[0]
    sorts = must_sort(slots.orders.top_k, slots.orders.top_p)
    put = jax.lax.dynamic_update_slice_in_dim

    def running(carry: tuple[Array, Slots, Writing]) -> Bool[Array, ""]:
        step, slots, _ = carry
        left = (slots.orders.left > 0).sum()
        return (step < steps) & (left > 0) & (alive - left < patience)

    def write(carry: tuple[Array, Slots, Writing]) -> tuple[Array, Slots, Writing]:
        step, slots, writing = carry
        orders = slots.orders
        logits = jnp.einsum(
            "bh,vh->bv",
            slots.states,
            weights.head,
            preferred_element_type=jnp.float32,
        )
        drawn = draw(
            jax.vmap(_token_key)(orders.key, orders.turn, slots.written),
            logits,
            base=tables.base,
            allowed=tables.allowed[orders.number],
            temperature=orders.temperature,
            top_k=orders.top_k,
            top_p=orders.top_p,
            sorts=sorts,
        )
        live = orders.left > 0
        ended = live & tables.stops[orders.number, drawn.tokens]
        here = column + step
        index = put(slots.index, slots.length[:, None], here, 1)
        positions = jnp.broadcast_to(slots.position[:, None], (count, 3))
        states, cache = policy.decode(
            weights.decoder, slots.cache, here, index, drawn.tokens, positions
        )
        new = (jnp.where(live, x, 0) for x in drawn)
        kept = zip(writing[:4], (*new, note(slots.states)), strict=True)
        # Not `.at`: a scatter would gather the rows of all devices at every step.
        writing = Writing(
            *(put(old, x[:, None], step, 1) for old, x in kept), writing.count + live
        )
        slots = Slots(
            cache=cache,
            index=index,
            states=states,
            written=slots.written + live,
            length=slots.length + live,
            position=slots.position + live,
            stopped=slots.stopped | ended,
            orders=orders._replace(
                left=jnp.where(ended, 0, orders.left - live.astype(jnp.int32))
            ),
        )
        return step + 1, slots, writing

    noted = jax.eval_shape(note, slots.states)
    blank = Writing(
        jnp.zeros((count, most), jnp.int32),
        jnp.zeros((count, most)),
        jnp.zeros((count, most)),
        jnp.zeros((count, most, *noted.shape[1:]), noted.dtype),
        jnp.zeros(count, jnp.int32),
    )
    _, slots, writing = jax.lax.while_loop(running, write, (jnp.int32(0), slots, blank))
    return _laid(slots), jax.tree.map(everywhere, writing)


def _token_key(
    data: UInt32[Array, " 2"], turn: Int[Array, ""], number: Int[Array, ""]
) -> Key[Array, ""]:
    key = jax.random.fold_in(jax.random.wrap_key_data(data), turn)
    return jax.random.fold_in(key, number)
