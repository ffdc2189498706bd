"""Few sizes for all batches, from how large the samples are.

Which batches come together is drawn as in training, from a seed of its own; of each is
known how many tokens its longest prompt has and how many blocks its fullest pack.
"""

import math
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from vrl_jax.engine.desk import Limits
from vrl_jax.engine.packing import Room, blocks_of, first_fit, pack_starts
from vrl_jax.engine.processing import Fitting


class Budgets(NamedTuple):
    """The sizes, and which share of prompts and of packs is padding under them."""

    room: Room
    prompt_padding: float
    pack_padding: float

    def summary(self) -> str:
        """For the person who watches."""
        room = self.room
        return (
            f"prompts of {_listed(room.prompt_tokens)} tokens "
            f"({self.prompt_padding:.0%} padding); packs for {room.prompts_per_pack} "
            f"prompts of {_listed(room.blocks)} blocks of {room.block} patches "
            f"({self.pack_padding:.0%} padding); at most "
            f"{len(room.prompt_tokens) * len(room.blocks)} shapes"
        )


def _listed(sizes: Sequence[int]) -> str:
    return " or ".join(map(str, sizes))


def ladder(needs: Sequence[int], largest: int, *, most: int) -> tuple[int, ...]:
    """At most `most` sizes, the last of them `largest`, with the least padding.

    Each need takes the smallest size that holds it. Exact: the least padding with n
    sizes, the last at the j-th distinct need, is the best over where the one before is.
    """
    sizes, counts = np.unique(np.append(needs, largest), return_counts=True)
    counts[-1] -= 1  # `largest` was added; nothing may need it
    if len(sizes) <= most:
        return tuple(sizes.tolist())
    number = np.append(0, np.cumsum(counts))
    total = np.append(0, np.cumsum(counts * sizes))
    least = np.full(len(sizes) + 1, np.inf)  # of the needs before each, with n sizes
    least[0] = 0
    before = []
    for _ in range(most):
        now, chosen = np.full_like(least, np.inf), np.zeros(len(least), int)
        for end in range(1, len(least)):
            held = slice(0, end)
            padding = sizes[end - 1] * (number[end] - number[held])
            padding = least[held] + padding - (total[end] - total[held])
            chosen[end] = np.argmin(padding)
            now[end] = padding[chosen[end]]
        before.append(chosen)
        least = now
    ends = [len(sizes)]
    for chosen in reversed(before):
        ends.append(int(chosen[ends[-1]]))
    return tuple(int(sizes[end - 1]) for end in sorted({*ends} - {0}))


def budgets(
    fit: Fitting,
    *,
    prompts_per_step: int,
    prompts_per_pack: int = 1,
    block: int = 0,
    most: int = 3,
    batches: int = 500,
) -> Budgets:
    """At most `most` sizes of prompts and of packs for batches of the samples.

    The largest hold any of the samples that may come together, the same one several
    times too, whatever was drawn here. A `block` holds the largest picture if it is
    not given.
    """
    block = block or max((size for sizes in fit.pictures for size in sizes), default=0)
    per_pack = math.gcd(prompts_per_step, prompts_per_pack)
    drawn = _batches(len(fit.tokens), prompts_per_step, batches)
    tokens = np.array(fit.tokens)[drawn]
    need = np.array(
        [
            [
                blocks_of(chain(*pack_starts(pack, block)), block)
                for pack in _packs(fit.pictures, row, per_pack)
            ]
            for row in drawn
        ]
    ).max(axis=1)
    alone = max(blocks_of(first_fit(p, block), block) for p in fit.pictures)
    room = Room(
        ladder(tokens.max(axis=1), max(fit.tokens), most=most),
        block,
        ladder(need, prompts_per_pack * alone, most=most),
        prompts_per_pack,
    )
    patches = np.array([sum(sizes) for sizes in fit.pictures])[drawn]
    lengths = _taken(room.prompt_tokens, tokens.max(axis=1)) * prompts_per_step
    rows = _taken(room.blocks, need) * block * (prompts_per_step // per_pack)
    return Budgets(
        room,
        float(1 - tokens.sum() / lengths.sum()),
        float((rows.sum() - patches.sum()) / max(rows.sum(), 1)),
    )


def row_limits(fit: Fitting, room: Room) -> Limits:
    """The least room for what follows the prompts of these samples.

    `row_tokens` is that of the longest; `pictures` are the blocks that the pictures of
    one take by themselves or, where first fit needs more, behind those of its prompt.
    """
    prompts = -(-room.blocks[-1] // room.prompts_per_pack)

    def blocks(sizes: Sequence[int]) -> int:
        return blocks_of(first_fit(sizes, room.block), room.block)

    need = [
        max(blocks(shown), blocks([*before, *shown]) - prompts) if shown else 0
        for before, shown in zip(fit.pictures, fit.shown, strict=True)
    ]
    return Limits(row_tokens=max(fit.row_tokens), pictures=max(need))


def _batches(samples: int, size: int, count: int) -> Int[np.ndarray, "count size"]:
    """Which samples come together: every sample once, in another order each time."""
    random = np.random.default_rng(0)
    rounds = -(-size * count // samples)
    order = [random.permutation(samples) for _ in range(rounds)]
    return np.concatenate(order)[: size * count].reshape(count, size)


def _packs(
    pictures: Sequence[list[int]], row: Int[np.ndarray, " size"], prompts_per_pack: int
) -> list[list[list[int]]]:
    found = [pictures[i] for i in row]
    starts = range(0, len(found), prompts_per_pack)
    return [found[i : i + prompts_per_pack] for i in starts]


def _taken(sizes: Sequence[int], needs: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """The smallest size that holds each need."""
    return np.array(sizes)[np.searchsorted(sizes, needs)]
