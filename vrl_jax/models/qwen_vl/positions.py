"""Multimodal rotary positions of a prompt, on the host.

https://arxiv.org/abs/2409.12191, section 2.1 and figure 3.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int


def image_prompt_positions(
    token_ids: Sequence[int] | Int[np.ndarray, " L"],
    grids: Sequence[tuple[int, int]],
    image_token: int,
) -> tuple[Int[np.ndarray, "L 3"], int]:
    """(time, height, width) of each token, and the position of the next one.

    From a counter s = 0, 1, ...: text has (s, s, s) and s += 1; a picture of merged
    grid (h, w) has (s, s + row, s + column) and s += max(h, w). What follows the prompt
    is text: next_position, next_position + 1, ... on all three axes.
    """
    tokens = np.asarray(token_ids)
    is_image = tokens == image_token
    places = int(is_image.sum())
    need = sum(height * width for height, width in grids)
    if places != need:
        raise ValueError(
            f"The prompt has {places} image placeholders, its {len(grids)} pictures "
            f"need {need}. Each picture of merged grid (h, w) takes h * w of them."
        )
    positions = np.zeros((len(tokens), 3), np.int32)
    starts = np.flatnonzero(is_image)
    here, counter, used = 0, 0, 0
    for height, width in grids:
        start, size = int(starts[used]), height * width
        if not is_image[start : start + size].all():
            raise ValueError(
                f"The {size} placeholders of a picture must follow each other; those "
                f"from token {start} are interrupted."
            )
        text = start - here
        positions[here:start] = counter + np.arange(text)[:, None]
        counter += text
        row, column = np.indices((height, width)).reshape(2, -1)
        block = np.stack([np.zeros(size, int), row, column], axis=-1)
        positions[start : start + size] = counter + block
        counter += max(height, width)
        here, used = start + size, used + size
    rest = len(tokens) - here
    positions[here:] = counter + np.arange(rest)[:, None]
    return positions, counter + rest
