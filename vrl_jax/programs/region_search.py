"""Search a large picture for the region to look at, then the box from there.

The inference of GeoViS, https://arxiv.org/abs/2512.02715: a tree of regions, grown by
zooming in and out, in which one model says what a region is worth, where to zoom, and
at last, shown the whole picture and the region that was found, where the thing is. What
it says of a region is in parts of the region's sides.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from vrl_jax import geometry
from vrl_jax.engine.conversation import Ask, user
from vrl_jax.engine.episode import Outcome, Steps
from vrl_jax.programs.region_tree import (
    NUMBERS,
    OUT,
    WHOLE,
    Node,
    backed_up,
    best,
    expanded,
    moved,
    picture_size,
    selected,
    to_global,
)
from vrl_jax.programs.regions import (
    Box,
    ReadBox,
    asked_closely,
    cut,
    in_unit_square,
    unit_box,
)
from vrl_jax.rewards.answers import yes_no
from vrl_jax.rewards.columns import column
from vrl_jax.rewards.parse import first_tag, read_json
from vrl_jax.types import Message, Sample, Turn, literal

CENTRE: Box = (0.25, 0.25, 0.75, 0.75)
"""Half as wide and half as high, in the middle: where a good region has its thing."""

Worth = Callable[[Sample, Box], Steps]
"""What a region is worth: a program that returns a number, such as `region_reward`."""

Search = Callable[[Sample], Steps]
"""A program that returns a tree of regions, such as `search`."""


class Words(NamedTuple):
    """What a model is asked in each of the four tasks."""

    check: str = """\
<image><image>The second picture is a part of the first. Does it show all of this: \
{wanted}? Answer yes or no."""
    locate: str = """\
<image>Where is this: {wanted}? Give the box as [left, top, right, bottom], in parts \
of the width and the height from 0 to 1."""
    zoom: str = """\
<image>The picture is cut into 3 x 3 cells, numbered row by row from 1 to 9. In which \
of them is this: {wanted}? Give its number as <zoom>number</zoom>."""
    ground: str = """\
{question}

<image>This is a part of the picture, closer. Give the box in this part, as [left, \
top, right, bottom], in parts of its width and its height from 0 to 1."""


WORDS = Words()


def sought(sample: Sample) -> dict[str, str]:
    """The parts of the column `context` that there are: object, position, relation.

    A ValueError names a row without an object, or with a part that is no text.
    """
    what = "a dict with the query's object and, if it says them, position and relation"
    given = column(sample, "context", dict, what)
    parts = {name: given.get(name) or "" for name in ("object", "position", "relation")}
    if not parts["object"] or not all(isinstance(p, str) for p in parts.values()):
        raise ValueError(
            f"{sample.id} needs the column 'context', {what}, as text; got {given!r}."
        )
    return {name: literal(part) for name, part in parts.items() if part}


def claims(sample: Sample) -> list[str]:
    """What is asked of a region: the object, with its position, with its relation."""
    thing, *more = sought(sample).values()
    return [thing, *(f"{thing}, {part}" for part in more)]


def check_asked(
    sample: Sample, crop: bytes, claim: str, *, words: Words = WORDS
) -> Message:
    """Is it there? The whole picture, the region, and one of the `claims`."""
    return user(words.check.format(wanted=claim), (sample.images[0], crop))


def locate_asked(sample: Sample, crop: bytes, *, words: Words = WORDS) -> Message:
    """Where is the object? The region alone."""
    return user(words.locate.format(wanted=sought(sample)["object"]), (crop,))


def zoom_asked(sample: Sample, crop: bytes, *, words: Words = WORDS) -> Message:
    """In which cell is it? The region, and all that is `sought`."""
    return user(words.zoom.format(wanted=", ".join(sought(sample).values())), (crop,))


def region_score(
    positive: int, asked: int, found: Box | None, *, alpha: float = 0.1
) -> float:
    """alpha positive / asked + (1 - alpha) IoU(found, CENTRE); no box has IoU 0."""
    overlap = 0.0
    if found is not None:
        overlap = float(geometry.iou(np.array(found), np.array(CENTRE)))
    return alpha * positive / asked + (1 - alpha) * overlap


def region_reward(
    sample: Sample,
    region: Box,
    *,
    alpha: float = 0.1,
    words: Words = WORDS,
    read_box: ReadBox = unit_box,
) -> Steps:
    """`region_score` by what the model itself says of the region, greedily.

    All `claims` are checked and the object's box in the region is asked for, in flight
    together and never trained. What cannot be read is no yes, and no box.
    """
    crop = cut(sample, region)
    if crop is None:
        return 0.0
    made = claims(sample)
    messages = [check_asked(sample, crop, claim, words=words) for claim in made]
    messages.append(locate_asked(sample, crop, words=words))
    *checks, located = yield [
        Ask((message,), trained=False, top_k=1) for message in messages
    ]
    positive = sum(yes_no(turn.text, "yes") for turn in checks)
    return region_score(positive, len(made), read_box(located.text), alpha=alpha)


def search(
    sample: Sample,
    *,
    worth: Worth = region_reward,
    simulations: int = 10,
    depth: int = 5,
    factor: float = 1.5,
    explore: float = 1.0,
    words: Words = WORDS,
) -> Steps:
    """The tree after so many simulations; nothing that is asked is trained.

    Each follows `selected`. A place that is known grows its moves, the cell that the
    model names and the way out, and goes on to the first; a new place is asked what it
    is worth. That is returned to all places on the way, and again each time when a
    place is reached that leads nowhere: `depth` moves from the root, out or in, is as
    far as it goes. At most 5 asks a simulation. `worth` has its own `words`.
    """
    size, tree = picture_size(sample), (Node(WHOLE),)
    for _ in range(simulations):
        place = selected(tree, explore=explore)
        known = place == 0 or tree[place].worth is not None
        if known and tree[place].children is None:
            regions = []
            if tree[place].depth < depth:
                regions = yield from _moves(
                    sample, tree[place].region, size, factor, words
                )
            tree = expanded(tree, place, regions)
            place = selected(tree, explore=explore)
        if place == 0:
            break  # there is nowhere to go
        reward = tree[place].worth
        if reward is None:
            reward = yield from worth(sample, tree[place].region)
            here = tree[place]._replace(worth=reward)
            tree = (*tree[:place], here, *tree[place + 1 :])
        tree = backed_up(tree, place, reward)
    return tree


def _moves(
    sample: Sample, region: Box, size: tuple[int, int], factor: float, words: Words
) -> Steps:
    """The cell that the model names, if it names one, and the way out."""
    inside, outside = None, moved(region, OUT, size, factor=factor)
    large = moved(region, NUMBERS[0], size) is not None
    crop = cut(sample, region) if large else None
    if crop is not None:
        asked = zoom_asked(sample, crop, words=words)
        said = yield Ask((asked,), trained=False)
        move = first_tag(said.text, "zoom")
        inside = moved(region, move, size) if move in NUMBERS else None
    return [new for new in (inside, outside) if new is not None]


def search_then_ground(
    sample: Sample,
    *,
    search: Search = search,
    words: Words = WORDS,
    read_box: ReadBox = unit_box,
) -> Steps:
    """The best region of `search`, then the box, asked with picture and region: a row.

    `search` may be partial(search, simulations=20), say, and has its own `words`. See
    `placed` for what rewards read. The facts say how much was searched: `regions` that
    were asked about, and of the best its `depth`, `value` and `share` of the picture's
    area.
    """
    tree = yield from search(sample)
    node = tree[best(tree)]
    crop = cut(sample, node.region)
    said = yield Ask((asked_closely(sample, crop, words.ground),))
    left, top, right, bottom = node.region
    facts = {
        "regions": sum(one.worth is not None for one in tree),
        "depth": node.depth,
        "value": node.value,
        "share": (right - left) * (bottom - top),
    }
    return placed((said,), read_box(said.text), node.region, facts)


def placed(
    said: Sequence[Turn], found: Box | None, region: Box, facts: Mapping[str, float]
) -> Outcome:
    """What was said and, told behind it, the box in parts of the whole picture.

    `found` is in parts of the region; without one nothing is told, and the fact `box`
    is 0. `told_box` reads it.
    """
    if found is None:
        return Outcome(said, {**facts, "box": 0})
    told = Turn(json.dumps(to_global(found, region)), (), chosen=False)
    return Outcome((*said, told), {**facts, "box": 1})


def told_box(turns: Sequence[Turn]) -> Box | None:
    """The box that `placed` tells behind what was said; None where there is none."""
    last = turns[-1]
    written = last.chosen or last.tokens  # by a model, where an episode ended early
    return None if written else in_unit_square(read_json(last.text))
