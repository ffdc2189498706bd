"""Large pictures with small things: land from above, and a sign, or things on it.

Made small enough for a few tokens, such a picture still shows where the sign stands and
no longer what is on it: who answers must look closer. On the sign are scans of
`worlds.digits`, with their split.
"""

import itertools
import json

import numpy as np
from jaxtyping import UInt8

from vrl_jax.types import Sample
from vrl_jax.worlds.digits import Split, choose_scans, enlarged, generator
from vrl_jax.worlds.shapes import COLOURS, SHAPES, Thing, direction, drawn_on
from vrl_jax.worlds.writing import png_bytes

NUMBER = "<image>Which number is on the sign?"
TARGET = "<image>Where is the {object} at the {position}, {relation}?"


def signs(
    count: int,
    *,
    split: Split,
    seed: int,
    cells: int = 6,
    cell_pixels: int = 84,
    digits: int = 1,
    digit_pixels: int = 28,
) -> list[Sample]:
    """Land, and in the middle of one of cells x cells squares a sign with a number.

    The answer is the number with all its digits, `07` for two of them; half a digit of
    white is around it. The annotation `boxes` holds the sign's box in pixels, `digits`
    what it says.
    """
    margin = digit_pixels // 2
    across, down = digits * digit_pixels + 2 * margin, digit_pixels + 2 * margin
    if min(cells, digits, digit_pixels) < 1 or max(across, down) > cell_pixels:
        raise ValueError(
            f"a sign of {across} x {down} pixels, {digits} digits with a margin, must "
            f"fit one of {cells} x {cells} cells of {cell_pixels} pixels."
        )
    samples = []
    for index in range(count):
        rng = generator(seed, split, index, task=2)
        shown = [int(digit) for digit in rng.integers(0, 10, digits)]
        chosen = choose_scans(shown, split, rng)
        column, row = map(int, rng.integers(0, cells, 2))
        left = column * cell_pixels + (cell_pixels - across) // 2
        top = row * cell_pixels + (cell_pixels - down) // 2
        picture = _land(cells * cell_pixels, rng)
        number = np.hstack([enlarged(digit_pixels)[scan] for scan in chosen])
        sign = np.pad(number, margin, constant_values=255)
        picture[top : top + down, left : left + across] = sign[..., None]
        samples.append(
            Sample(
                id=f"scenes-signs-{cells}-{digits}-{split}-{seed}-{index}",
                source="scenes/signs",
                question=NUMBER,
                images=(png_bytes(picture),),
                answer="".join(map(str, shown)),
                annotations={
                    "digits": shown,
                    "scans": chosen,
                    "boxes": [[left, top, left + across, top + down]],
                },
            )
        )
    return samples


def targets(
    count: int,
    *,
    split: Split,
    seed: int,
    cells: int = 6,
    cell_pixels: int = 84,
    thing_pixels: int = 28,
    things: int = 6,
) -> list[Sample]:
    """Land, and coloured things in some of cells x cells squares: where is one of them?

    Each is somewhere in a square of its own, and no two have one name. The columns are
    those that `recipes.geovis` reads: `gt_box`, which is the answer too, in parts of
    the picture's sides, and `context`, the object's name, the quarter of the picture
    that it is in, and where it is, seen from another thing. `boxes` and `objects` are
    all things, in pixels, the target first.
    """
    most = min(cells**2, len(COLOURS) * len(SHAPES))
    if not 2 <= things <= most or not 1 <= thing_pixels <= cell_pixels:
        raise ValueError(
            f"there can be 2 to {most} things of 1 to {cell_pixels} pixels, each with "
            f"a name and one of {cells} x {cells} cells of its own; got {things} of "
            f"{thing_pixels} pixels."
        )
    samples = []
    for index in range(count):
        rng = generator(seed, split, index, task=5)
        seen: list[tuple[Thing, str]] = []
        while not seen:  # nothing is clearly left, right, above or below
            drawn = _scattered(things, cells, cell_pixels, thing_pixels, rng)
            target, *others = drawn
            seen = [(one, where) for one in others if (where := direction(target, one))]
        other, where = seen[int(rng.integers(len(seen)))]
        pixels = cells * cell_pixels
        picture = drawn_on(_land(pixels, rng), drawn)
        left, top, right, bottom = target.box
        joined = f"{where} of" if where in ("left", "right") else where
        context = {
            "object": target.name,
            "position": f"{'top' if top + bottom < pixels else 'bottom'} "
            f"{'left' if left + right < pixels else 'right'}",
            "relation": f"{joined} the {other.name}",
        }
        box = [edge / pixels for edge in target.box]
        samples.append(
            Sample(
                id=f"scenes-targets-{cells}-{things}-{split}-{seed}-{index}",
                source="scenes/targets",
                question=TARGET.format(**context),
                images=(png_bytes(picture),),
                answer=json.dumps(box),
                annotations={
                    "gt_box": box,
                    "context": context,
                    "boxes": [list(thing.box) for thing in drawn],
                    "objects": [
                        {"colour": t.colour, "shape": t.shape, "box": list(t.box)}
                        for t in drawn
                    ],
                },
            )
        )
    return samples


def _scattered(
    things: int, cells: int, cell: int, side: int, rng: np.random.Generator
) -> list[Thing]:
    """Things of different names, each anywhere in a cell of its own."""
    names = [*itertools.product(COLOURS, SHAPES)]
    kinds = rng.choice(len(names), things, replace=False)
    drawn = []
    places = rng.choice(cells**2, things, replace=False)
    for kind, place in zip(kinds.tolist(), places.tolist(), strict=True):
        row, column = divmod(place, cells)
        x, y = rng.integers(0, cell - side + 1, 2).tolist()
        left, top = column * cell + x, row * cell + y
        drawn.append(Thing(*names[kind], (left, top, left + side, top + side)))
    return drawn


def _land(
    pixels: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "pixels pixels 3"]:
    """Fields whose colours change from left to right and from top to bottom.

    So a colour tells a place: with rotary positions alone a tiny policy hardly learns
    to say where in a picture something is.
    """
    down, across = np.mgrid[0:pixels, 0:pixels] / pixels
    colour = np.stack([60 + 120 * across, 60 + 120 * down, 170 - 50 * (across + down)])
    shade = np.empty((pixels, pixels))
    for top, bottom in _cut(pixels, rng):
        for left, right in _cut(pixels, rng):
            shade[top:bottom, left:right] = rng.integers(-8, 9)
    return (colour + shade).transpose(1, 2, 0).round().astype(np.uint8)


def _cut(pixels: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """A length in three to six parts, none under a tenth."""
    least, parts = pixels // 10, int(rng.integers(3, 7))
    spare = pixels - parts * least
    cuts = np.sort(rng.integers(0, spare + 1, parts - 1)) + least * np.arange(1, parts)
    ends = [0, *map(int, cuts), pixels]
    return [*itertools.pairwise(ends)]
