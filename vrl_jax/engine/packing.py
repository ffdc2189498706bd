"""Consecutive prompts share a pack of patches; packs and prompts have few sizes.

A pack is some blocks of rows, and each picture lies whole in one block, for the tower's
attention never leaves a block. k prompts share a pack, so a batch may be cut between
packs. All of it on the host, in NumPy.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from vrl_jax.models.front_end import FrontEnd, LaidOut, pack
from vrl_jax.types import Images, Prompts


class Unpadded(NamedTuple):
    """One prompt by itself."""

    tokens: Int[np.ndarray, " tokens"]
    positions: Int[np.ndarray, "tokens 3"]
    pictures: tuple[LaidOut, ...]

    @property
    def sizes(self) -> list[int]:
        """Rows that each picture takes."""
        return [len(picture.patches) for picture in self.pictures]

    def after(self, tokens: int, pictures: int) -> "Unpadded":
        """It without its first tokens, and the pictures in them."""
        if not tokens:
            return self
        return Unpadded(
            self.tokens[tokens:], self.positions[tokens:], self.pictures[pictures:]
        )


class Room(NamedTuple):
    """The sizes that batches may have; ascending, a batch takes the smallest it can.

    `prompt_tokens` of a prompt, `blocks` of a pack, `block` rows of a block. A pack has
    the pictures of `prompts_per_pack` prompts, or of fewer where a batch's size is no
    multiple.
    """

    prompt_tokens: tuple[int, ...]
    block: int
    blocks: tuple[int, ...] = (1,)
    prompts_per_pack: int = 1


def first_fit(sizes: Iterable[int], block: int) -> list[int]:
    """The row where each begins: in the first block with room, behind what is there."""
    filled: list[int] = []
    starts = []
    for size in sizes:
        free = (i for i, used in enumerate(filled) if used + size <= block)
        number = next(free, len(filled))
        if number == len(filled):
            filled.append(0)
        starts.append(number * block + filled[number])
        filled[number] += size
    return starts


def blocks_of(starts: Iterable[int], block: int) -> int:
    """How many blocks are begun."""
    return max((start // block + 1 for start in starts), default=0)


def pack_starts(prompts: Sequence[Sequence[int]], block: int) -> list[list[int]]:
    """The row where each picture of each prompt begins in their pack, by first fit.

    First fit may need one block more with more pictures before; where blocks of their
    own serve the prompts better, they have them. So a pack never needs more blocks
    than its prompts need alone.
    """
    together = first_fit((size for sizes in prompts for size in sizes), block)
    apart: list[int] = []
    for sizes in prompts:
        before = blocks_of(apart, block) * block
        apart += [before + start for start in first_fit(sizes, block)]
    best = iter(min(together, apart, key=lambda starts: blocks_of(starts, block)))
    return [[next(best) for _ in sizes] for sizes in prompts]


def packed(room: Room, front_end: FrontEnd, rows: Sequence[Unpadded]) -> Prompts:
    """Right-padded tables of the prompts, in the smallest sizes that hold them.

    Raises `ValueError` if even the largest do not.
    """
    per_pack = math.gcd(len(rows), room.prompts_per_pack)
    packs = [rows[i : i + per_pack] for i in range(0, len(rows), per_pack)]
    starts = [pack_starts([row.sizes for row in one], room.block) for one in packs]
    need = [blocks_of(chain(*each), room.block) for each in starts]
    blocks = _smallest(room.blocks, max(need), f"blocks for {per_pack} prompts")
    longest = max(len(row.tokens) for row in rows)
    length = _smallest(room.prompt_tokens, longest, "tokens for a prompt")
    tables = [
        _pack(one, where, blocks * room.block, front_end)
        for one, where in zip(packs, starts, strict=True)
    ]

    def padded(columns: Sequence[np.ndarray]) -> np.ndarray:
        table = np.zeros((len(rows), length, *columns[0].shape[1:]), np.int32)
        for line, column in zip(table, columns, strict=True):
            line[: len(column)] = column
        return table

    lengths = np.array([len(row.tokens) for row in rows])
    images, slots = zip(*tables, strict=True)
    return Prompts(
        tokens=padded([row.tokens for row in rows]),
        mask=np.arange(length) < lengths[:, None],
        positions=padded([row.positions for row in rows]),
        slots=padded([*chain(*slots)]),
        images=Images(
            *(
                np.stack([getattr(one, name) for one in images])
                for name in ("patches", "coordinates", "frames", "origins")
            ),
            block=room.block,
        ),
    )


def _smallest(sizes: Sequence[int], need: int, what: str) -> int:
    for size in sizes:
        if size >= need:
            return size
    raise ValueError(
        f"The largest budget is {sizes[-1]} {what}, and {need} are needed. Raise it."
    )


def _pack(
    rows: Sequence[Unpadded],
    starts: Sequence[Sequence[int]],
    budget: int,
    front_end: FrontEnd,
) -> tuple[Images, list[Int[np.ndarray, " tokens"]]]:
    """One pack's tables without the leading axis, and the slots of its prompts."""
    images = pack(
        [picture for row in rows for picture in row.pictures],
        budget=budget,
        group=front_end.group,
        patch_values=front_end.patch_values,
        starts=[*chain(*starts)],
    )
    origins = np.full((budget, 3), -1, np.int32)
    index, slots = iter(images.merged_index), []
    for number, (row, where) in enumerate(zip(rows, starts, strict=True)):
        place = 0
        for picture, (start, size) in enumerate(zip(where, row.sizes, strict=True), 1):
            origins[start : start + size, :2] = number, picture
            origins[start : start + size, 2] = place + np.arange(size)
            place += size
        own = [next(index) + 1 for _ in row.pictures]
        table = np.zeros(len(row.tokens), np.int32)
        if own:
            table[row.tokens == front_end.image_token] = np.concatenate(own)
        slots.append(table)
    return Images(images.patches, images.coordinates, images.frames, origins), slots


def unpacked(front_end: FrontEnd, prompts: Prompts) -> list[Unpadded]:
    """Each prompt by itself: what `packed` was given. Arrays are NumPy's."""
    per_pack = len(prompts.tokens) // len(prompts.images.frames)
    rows = []
    for number, mask in enumerate(prompts.mask):
        slots = prompts.slots[number, mask]
        rows.append(
            Unpadded(
                prompts.tokens[number, mask],
                prompts.positions[number, mask],
                _pictures(
                    front_end,
                    prompts.images,
                    *divmod(number, per_pack),
                    slots[slots > 0] - 1,
                ),
            )
        )
    return rows


def _pictures(
    front_end: FrontEnd,
    images: Images,
    one: int,
    prompt: int,
    merged: Int[np.ndarray, " tokens"],
) -> tuple[LaidOut, ...]:
    """The pictures of a prompt of pack `one`; its merged tokens are `merged` there."""
    owner, number, _ = images.origins[one].T
    side, used, found = math.isqrt(front_end.group), 0, []
    for picture in range(1, number[owner == prompt].max(initial=0) + 1):
        rows = np.flatnonzero((owner == prompt) & (number == picture))
        real = images.frames[one, rows] > 0
        coordinates = images.coordinates[one, rows]
        height, width = (coordinates[real].max(axis=0) + 1) // side
        own = merged[used : used + height * width]
        used += height * width
        found.append(
            LaidOut(
                images.patches[one, rows],
                coordinates,
                real,
                own - rows[0] // front_end.group,
                (int(height), int(width)),
            )
        )
    return tuple(found)
