"""Episodes as arrays: the rows that scoring and updates read."""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vrl_jax.engine.actor import Actor
from vrl_jax.engine.desk import Limits
from vrl_jax.engine.episode import Played, Row
from vrl_jax.engine.packing import Room, Unpadded, packed
from vrl_jax.engine.processing import Processor, unpadded
from vrl_jax.models.sharding import put
from vrl_jax.types import Prompts, Rollout, Shown


def as_rollout(
    actor: Actor,
    groups: Sequence[Sequence[Played]],
    scores: Sequence[Mapping[str, float]],
    *,
    rows: int = 1,
    limits: Limits | None = None,
) -> Rollout:
    """The episodes' rows, at most `rows` each, with the episodes' scores.

    Rows lie by sample, then by place in the episode, then by episode, so that episodes
    which read the same prompt lie together and share it. Where some did not, no two
    rows share a prompt. A row that an episode does not have is empty.
    """
    limits = limits or Limits()
    played = [one for group in groups for one in group]
    lines = _lines(groups, rows)
    flat = [row for line in lines for row in line]
    shared = all(len({id(row.prompt) for row in line if row}) <= 1 for line in lines)
    room = limits.room(actor)
    readers = lines if shared else [[row] for row in flat]
    prompts = _prompts(actor.processor, readers, room)
    length = limits.row_tokens or actor.max_new_tokens
    noted = next(row for row in flat if row).said[0].response.noted
    written = [
        _written(actor, row, length, noted.shape[1], noted.dtype) for row in flat
    ]
    stacked = _Written(*(np.stack(column) for column in zip(*written, strict=True)))

    sizes = (len(groups), rows, len(groups[0]))
    sample, place, rollout = np.unravel_index(np.arange(len(flat)), sizes)
    parts = sorted({name for score in scores for name in score} - {"overall"})
    facts = [one.episode.facts for one in played]

    def column(name: str) -> Float[Array, " E"]:
        return jnp.array([score.get(name, jnp.nan) for score in scores], jnp.float32)

    def fact(name: str) -> Float[Array, " E"]:
        return jnp.array([known.get(name, 0.0) for known in facts], jnp.float32)

    anything = any(row.pictures for row in flat if row) or limits.pictures
    return Rollout(
        prompts=put(prompts),
        tokens=put(stacked.tokens),
        positions=put(stacked.positions),
        mask=put(stacked.mask),
        temperature=put(stacked.temperature),
        old_logprobs=put(stacked.logprobs),
        extra_logprobs={},
        rewards=column("overall"),
        reward_parts={name: column(name) for name in parts},
        group=jnp.repeat(jnp.arange(sizes[0]), sizes[2]),
        log_kept=put(stacked.log_kept) if stacked.log_kept.any() else None,
        states=put(stacked.states) if noted.shape[1] else None,
        shown=_shown(actor, flat, stacked, room) if anything else None,
        episode=jnp.asarray(sample * sizes[2] + rollout) if rows > 1 else None,
        place=jnp.asarray(place) if rows > 1 else None,
        facts={name: fact(name) for name in sorted(set(itertools.chain(*facts)))},
    )


def _lines(groups: Sequence[Sequence[Played]], rows: int) -> list[list[Row | None]]:
    """For each sample and place, the row of each of its episodes, if it has one."""
    most = max(len(one.rows) for group in groups for one in group)
    if most > rows:
        raise ValueError(
            f"an episode has {most} conversations with the policy, and rows={rows}: "
            "raise rows, or ask with trained=False what is not to be trained."
        )
    if not most:
        ends = {name for group in groups for one in group for name in one.episode.facts}
        raise RuntimeError(
            f"no program got an answer of the policy; of the episodes is known: {ends}."
        )
    return [
        [one.rows[place] if place < len(one.rows) else None for one in group]
        for group in groups
        for place in range(rows)
    ]


def _prompts(
    processor: Processor, lines: Sequence[Sequence[Row | None]], room: Room
) -> Prompts:
    """The prompt of each line; where nobody read one, some prompt."""
    found = [next((row.prompt for row in line if row), None) for line in lines]
    some = next(prompt for prompt in found if prompt is not None)
    rows = [unpadded(processor, some if prompt is None else prompt) for prompt in found]
    return packed(room, processor.front_end, rows)


def _shown(
    actor: Actor, rows: Sequence[Row | None], written: "_Written", room: Room
) -> Shown:
    """The pictures between turns, packed as if responses were prompts, in one size."""
    pictures = [row.pictures if row else () for row in rows]
    length, blocks = written.tokens.shape[1], room.blocks[-1]
    room = Room(prompt_tokens=(length,), block=room.block, blocks=(blocks,))
    alone = [
        Unpadded(tokens, positions, shown)
        for tokens, positions, shown in zip(
            written.tokens, written.positions, pictures, strict=True
        )
    ]
    tables = packed(room, actor.processor.front_end, alone)
    return put(Shown(tables.slots, tables.images))


class _Written(NamedTuple):
    """One row, or all of them."""

    tokens: Int[np.ndarray, " T"]
    positions: Int[np.ndarray, "T 3"]
    mask: Bool[np.ndarray, " T"]
    logprobs: Float[np.ndarray, " T"]
    log_kept: Float[np.ndarray, " T"]
    states: Float[np.ndarray, "T H"]
    temperature: Float[np.ndarray, ""]


def _written(
    actor: Actor, row: Row | None, length: int, width: int, dtype: np.dtype
) -> _Written:
    """What follows the row's prompt, padded to `length`."""
    tokens = np.full(length, int(actor.stop_ids[0]), np.int32)
    mask = np.zeros(length, bool)
    logprobs, log_kept = np.zeros((2, length), np.float32)
    states = np.zeros((length, width), dtype)
    if row is None:
        places = np.zeros((length, 3), np.int32)
        one = np.float32(1)
        return _Written(tokens, places, mask, logprobs, log_kept, states, one)
    start, whole = len(row.prompt.tokens), row.whole
    count = len(whole.tokens) - start
    tokens[:count] = whole.tokens[start:]
    for said in row.said:
        first = len(said.read.tokens) - start
        here = slice(first, first + len(said.response.tokens))
        mask[here] = True
        logprobs[here] = said.response.logprobs
        log_kept[here] = said.response.log_kept
        states[here] = said.response.noted
    known = unpadded(actor.processor, whole).positions
    after = known.max() + 1 + np.arange(length - count)
    places = np.concatenate([known[start:], np.repeat(after[:, None], 3, axis=1)])
    temperature = np.float32(row.said[0].response.request.temperature)
    return _Written(tokens, places, mask, logprobs, log_kept, states, temperature)
