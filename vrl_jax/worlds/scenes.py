"""Large pictures with one small thing to read: land from above, and a sign.

Made small enough for a few tokens, such a picture still shows where the sign stands and
no longer what is on it: who answers must look closer. On the sign are scans of
`worlds.digits`, with their split.
"""

import itertools

import numpy as np
from jaxtyping import UInt8

from vrl_jax.types import Sample
from vrl_jax.worlds.digits import Split, choose_scans, enlarged, generator
from vrl_jax.worlds.writing import png_bytes

NUMBER = "<image>Which number is on the sign?"


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
