"""Questions about real handwritten digits: add two, or find the largest of three.

The 1797 scans are the 8 x 8 test part of "Optical Recognition of Handwritten Digits"
(Alpaydin and Kaynak, 1998), https://archive.ics.uci.edu/dataset/80, as they ship
inside scikit-learn. Training and test never share a scan, so they share no picture.
"""

import functools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image
from sklearn.datasets import load_digits

from vrl_jax.types import Sample
from vrl_jax.worlds.writing import add_noise, png_bytes

Split = Literal["train", "test"]

SUM = "<image>What is the sum of the two digits?"
LARGEST = "<image>Which digit is largest, and where?"


class Scans(NamedTuple):
    """Every scan, 0 blank to 16 ink, its digit, and whether it is held out."""

    ink: Float[np.ndarray, "S 8 8"]
    digit: Int[np.ndarray, " S"]
    held_out: Bool[np.ndarray, " S"]


@functools.cache
def scans() -> Scans:
    """The scans of scikit-learn; every fifth of each digit is held out.

    Counted within a digit, because the scans come in runs of 0 1 2 ... 9: every
    fifth of all would hold out two digits and no other.
    """
    ink, digit = load_digits().images, load_digits().target
    held_out = np.zeros(digit.shape, bool)
    for value in range(10):
        held_out[np.flatnonzero(digit == value)[4::5]] = True
    return Scans(ink, digit, held_out)


def sums(
    count: int,
    *,
    split: Split,
    seed: int,
    digit_pixels: int = 28,
    noise: float = 0.04,
) -> list[Sample]:
    r"""Two digits side by side; the answer is their sum.

    `annotations["demonstration"]` names the digits first: `4 + 9 = \boxed{13}`.
    """
    samples = []
    for index in range(count):
        rng = generator(seed, split, index, task=0)
        digits = [int(digit) for digit in rng.integers(0, 10, 2)]
        chosen = choose_scans(digits, split, rng)
        answer = str(sum(digits))
        samples.append(
            Sample(
                id=f"digits-sums-{split}-{seed}-{index}",
                source="digits/sums",
                question=SUM,
                images=(_drawn(chosen, digit_pixels, noise, rng),),
                answer=answer,
                annotations={
                    **_facts(digits, ("left", "right"), chosen, digit_pixels),
                    "demonstration": f"{digits[0]} + {digits[1]} = \\boxed{{{answer}}}",
                },
            )
        )
    return samples


def largest(
    count: int,
    *,
    split: Split,
    seed: int,
    digit_pixels: int = 28,
    noise: float = 0.04,
) -> list[Sample]:
    r"""Three digits in a row, one larger than the others; the answer is like `9 left`.

    `annotations["demonstration"]` names all of them: `9, 4, 2: \boxed{9 left}`.
    """
    places = ("left", "middle", "right")
    samples = []
    for index in range(count):
        rng = generator(seed, split, index, task=1)
        digits = [int(digit) for digit in rng.integers(0, 10, 3)]
        while digits.count(max(digits)) > 1:
            digits = [int(digit) for digit in rng.integers(0, 10, 3)]
        chosen = choose_scans(digits, split, rng)
        answer = f"{max(digits)} {places[digits.index(max(digits))]}"
        named = ", ".join(map(str, digits))
        samples.append(
            Sample(
                id=f"digits-largest-{split}-{seed}-{index}",
                source="digits/largest",
                question=LARGEST,
                images=(_drawn(chosen, digit_pixels, noise, rng),),
                answer=answer,
                annotations={
                    **_facts(digits, places, chosen, digit_pixels),
                    "demonstration": f"{named}: \\boxed{{{answer}}}",
                },
            )
        )
    return samples


def generator(seed: int, split: Split, index: int, *, task: int) -> np.random.Generator:
    """One a sample: the first n samples do not depend on how many follow."""
    return np.random.default_rng([seed, ("train", "test").index(split), task, index])


def choose_scans(
    digits: Sequence[int], split: Split, rng: np.random.Generator
) -> list[int]:
    """A scan of each digit, of those that the split may use."""
    allowed = scans().held_out == (split == "test")
    return [
        int(rng.choice(np.flatnonzero(allowed & (scans().digit == digit))))
        for digit in digits
    ]


def _drawn(
    chosen: Sequence[int], side: int, noise: float, rng: np.random.Generator
) -> bytes:
    row = np.concatenate([enlarged(side)[scan] for scan in chosen], axis=1)
    return png_bytes(add_noise(np.repeat(row[..., None], 3, axis=2), noise, rng))


def _facts(
    digits: list[int], places: Sequence[str], chosen: list[int], side: int
) -> dict[str, Any]:
    return {
        "digits": digits,
        "scans": chosen,
        "boxes": [
            [place * side, 0, (place + 1) * side, side] for place in range(len(digits))
        ],
        "facts": [
            f"the {place} digit is {digit}"
            for place, digit in zip(places, digits, strict=True)
        ],
    }


@functools.cache
def enlarged(side: int) -> UInt8[np.ndarray, "S side side"]:
    """Every scan as dark ink on white paper, enlarged smoothly."""
    paper = (255 * (1 - scans().ink / 16)).astype(np.float32)
    enlarged = [
        np.asarray(Image.fromarray(scan).resize((side, side), Image.Resampling.BICUBIC))
        for scan in paper
    ]
    return np.stack(enlarged).round().clip(0, 255).astype(np.uint8)


def sum_token_kinds(tokens: Sequence[str]) -> list[str | None]:
    r"""What each token of `4 + 9 = \boxed{13}` is.

    "seen": a digit before the equals sign, which only the picture tells. "derived": a
    digit after it, which follows from the text. None: the rest.
    """
    equals = next((i for i, token in enumerate(tokens) if "=" in token), len(tokens))
    return [
        ("seen" if i < equals else "derived") if token.strip().isdigit() else None
        for i, token in enumerate(tokens)
    ]


def thought_token_kinds(tokens: Sequence[str]) -> list[str | None]:
    """What each token of a response that thinks is: "seen" if a digit of a thought.

    "derived": a digit after it, which could follow from question and thought. None: the
    rest.
    """
    text, kinds = "", []
    for token in tokens:
        text += token
        kind = "derived" if "</think>" in text else "seen"
        kinds.append(kind if token.strip().isdigit() else None)
    return kinds
