"""What a model must know to search a picture, as rows with demonstrations.

The data of GeoViS, https://arxiv.org/abs/2512.02715: four tasks, each an ask of
`programs.region_search`. Labels follow from the column `gt_box`; what yes means, and
about which regions is asked, is our reading.
"""

import dataclasses
import random
from collections.abc import Callable, Iterator

from vrl_jax.engine.episode import Steps
from vrl_jax.programs.region_search import (
    WORDS,
    Words,
    check_asked,
    claims,
    locate_asked,
    zoom_asked,
)
from vrl_jax.programs.region_tree import (
    CELLS,
    NUMBERS,
    OUT,
    WHOLE,
    moved,
    picture_size,
    to_local,
)
from vrl_jax.programs.regions import (
    Box,
    ReadBox,
    asked_closely,
    cut,
    in_unit_square,
    spelled_box,
    unit_box,
)
from vrl_jax.rewards.columns import column
from vrl_jax.types import Message, Sample

SpellBox = Callable[[Box], str]


def target(sample: Sample) -> Box:
    """The column `gt_box`; a ValueError names a row without one."""
    what = "[left, top, right, bottom] in parts of the picture's sides, from 0 to 1"
    given = column(sample, "gt_box", list | tuple, what)
    box = in_unit_square(given)
    if box is None:
        raise ValueError(
            f"{sample.id} needs the column 'gt_box', {what}, with an area; got {given}."
        )
    return box


def holds(region: Box, box: Box) -> bool:
    """Whether all of the box lies in the region, up to rounding."""
    left, top, right, bottom = to_local(box, region)
    return min(left, top) >= -1e-9 and max(right, bottom) <= 1 + 1e-9


def cell_of(box: Box, region: Box) -> str:
    """The number of the cell that holds the middle of the box, or is nearest to it."""
    left, top, right, bottom = to_local(box, region)
    place, row = (
        min(max(int(CELLS * middle), 0), CELLS - 1)
        for middle in ((left + right) / 2, (top + bottom) / 2)
    )
    return NUMBERS[row * CELLS + place]


def way_to(box: Box, size: tuple[int, int], *, depth: int = 5) -> list[Box]:
    """The whole picture, then cell in cell as long as all of the box is in view.

    At most `depth` cells; `size` is the picture's in pixels.
    """
    regions = [WHOLE]
    while len(regions) <= depth:
        closer = moved(regions[-1], cell_of(box, regions[-1]), size)
        if closer is None or not holds(closer, box):
            break
        regions.append(closer)
    return regions


def atomic_samples(
    sample: Sample,
    *,
    depth: int = 5,
    factor: float = 1.5,
    words: Words = WORDS,
    spell_box: SpellBox = spelled_box,
    read_box: ReadBox = unit_box,
) -> list[Sample]:
    """The four tasks as rows for `recipes.sft`, in the words of the search.

    Asked about are the regions of `way_to` and, of each, the way out, the cell that
    holds the middle of the target, and another cell, drawn by the row's id:

        geovis/check    a row for each claim: yes where all of the target is there
        geovis/locate   the target's box in a region that holds all of it
        geovis/zoom     the cell of such a region, if it is large enough to zoom
        geovis/ground   that box again, given the whole picture and the question

    A ValueError names a row without a picture, and one whose box cannot be spelled.
    """
    box, size = target(sample), picture_size(sample)
    asked = [
        (region, *one)
        for region in _regions_about(sample, box, size, depth, factor)
        for one in _asked_about(sample, region, box, words, spell_box, read_box)
    ]
    return [
        Sample(
            id=f"{sample.id}/{number}",
            source=f"geovis/{task}",
            question=message.text,
            images=message.images,
            answer=said,
            annotations={"demonstration": said, "region": list(region)},
        )
        for number, (region, task, message, said) in enumerate(asked)
    ]


def _regions_about(
    sample: Sample, box: Box, size: tuple[int, int], depth: int, factor: float
) -> list[Box]:
    """Each once: the way, and beside it what shows more, less, or something else."""
    drawn, found = random.Random(sample.id), []
    for region in way_to(box, size, depth=depth):
        cell = cell_of(box, region)
        other = drawn.choice([number for number in NUMBERS if number != cell])
        steps = [
            moved(region, move, size, factor=factor) for move in (OUT, cell, other)
        ]
        found += [region, *filter(None, steps)]
    return [*dict.fromkeys(found)]


def _asked_about(
    sample: Sample,
    region: Box,
    box: Box,
    words: Words,
    spell_box: SpellBox,
    read_box: ReadBox,
) -> Iterator[tuple[str, Message, str]]:
    """Name, ask and answer of each task that the region is good for."""
    crop, there = cut(sample, region), holds(region, box)
    if crop is None:
        raise ValueError(
            f"{sample.id} has no picture that could be cut: leave the row out."
        )
    for claim in claims(sample):
        asked = check_asked(sample, crop, claim, words=words)
        yield "check", asked, "yes" if there else "no"
    if there:
        local = _spelled(sample, box, region, spell_box, read_box)
        yield "locate", locate_asked(sample, crop, words=words), local
        cell = cell_of(box, region)
        if moved(region, cell, picture_size(sample)) is not None:
            zoom = zoom_asked(sample, crop, words=words)
            yield "zoom", zoom, f"<zoom>{cell}</zoom>"
        yield "ground", asked_closely(sample, crop, words.ground), local


def unjudged(sample: Sample, region: Box) -> Steps:
    """A region is worth 0, and nothing is asked: for recitals of a path alone."""
    del sample, region
    yield from ()
    return 0.0


def with_way(
    sample: Sample,
    *,
    depth: int = 5,
    spell_box: SpellBox = spelled_box,
    read_box: ReadBox = unit_box,
) -> Sample:
    """The row with a good path of `recipes.geovis` as its `demonstration`.

    It zooms in by `way_to`, then answers. Its program is recited with worth=`unjudged`,
    or the checks of each part would have to be demonstrated too.
    """
    box = target(sample)
    way = way_to(box, picture_size(sample), depth=depth)
    answer = _spelled(sample, box, way[-1], spell_box, read_box)
    zooms = [f"<zoom>{cell_of(box, region)}</zoom>" for region in way[:-1]]
    said = [*zooms, f"<answer>{answer}</answer>"]
    annotations = {**sample.annotations, "demonstration": said}
    return dataclasses.replace(sample, annotations=annotations)


def _spelled(
    sample: Sample, box: Box, region: Box, spell_box: SpellBox, read_box: ReadBox
) -> str:
    """The box in parts of the region's sides, in words that can be read again."""
    left, top, right, bottom = (
        min(max(edge, 0.0), 1.0) for edge in to_local(box, region)
    )
    text = spell_box((left, top, right, bottom))
    if read_box(text) is None:
        raise ValueError(
            f"the 'gt_box' of {sample.id} is too small to be spelled as {text}: give a "
            "spell_box with more decimals, or leave the row out."
        )
    return text
