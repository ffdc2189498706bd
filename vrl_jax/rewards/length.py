"""Rewards for the length of a response."""

import numpy as np
from jaxtyping import Float, Int


def soft_overlong(
    length: Int[np.ndarray, "*B"], *, max_length: int, buffer: int
) -> Float[np.ndarray, "*B"]:
    """clip((max_length - buffer - length) / buffer, -1, 0), to add to a reward.

    0 up to max_length - buffer tokens, then linear down to -1 at max_length. DAPO,
    section 3.4, https://arxiv.org/abs/2503.14476 (max_length 20480, buffer 4096). TRL
    and EasyR1 agree; verl has no floor, which a response cut at max_length never meets.
    """
    if not 0 < buffer <= max_length:
        raise ValueError(
            "buffer must lie between 1 and max_length, got "
            f"buffer={buffer} and max_length={max_length}."
        )
    return np.clip((max_length - buffer - np.asarray(length)) / buffer, -1.0, 0.0)
