"""Random small models of a family, and prompts for them, from a seed."""

from typing import NamedTuple

import numpy as np

from vrl_jax.models.policy import Params
from vrl_jax.models.qwen_vl.families import FAMILIES, Family
from vrl_jax.models.qwen_vl.spec import QwenSpec, TextSpec, VisionSpec

from ..models.cases import SPECIAL, Row, random_params, responses, row

BY_NAME = {family.model_type: family for family in FAMILIES}


class Draw(NamedTuple):
    spec: QwenSpec
    params: Params
    rows: list[Row]
    tokens: np.ndarray  # [rows, 2, 3] responses
    seed: int


def draw(name: str, seed: int) -> Draw:
    """Even seeds give tied heads, odd ones untied."""
    random = np.random.RandomState(seed)
    spec = _spec(BY_NAME[name], random, tied=seed % 2 == 0)
    rows = _rows(spec, random)
    return Draw(
        spec, random_params(spec, seed), rows, responses(seed, (len(rows), 2, 3)), seed
    )


def _spec(family: Family, random: np.random.RandomState, *, tied: bool) -> QwenSpec:
    keys = dict(family.vision_keys)
    pick = lambda *choices: choices[random.randint(len(choices))]
    depth, heads, layers = pick(2, 3, 4), pick(2, 4), pick(2, 3)
    width, patch = heads * pick(8, 16, 20), pick(2, 4)
    parts = {}
    if "window" in keys:
        full = random.permutation(depth)[: pick(1, 1, depth)]
        parts["full_blocks"] = tuple(sorted(full.tolist()))
        parts["window"] = 2 * patch * pick(1, 2, 3, 4)
    if "deepstack" in keys:
        blocks = random.permutation(depth)[: pick(1, 2, layers)]
        parts["deepstack"] = tuple(sorted(blocks.tolist()))
        parts["table_side"] = pick(3, 5, 8)
    text_heads = pick(2, 4, 6)
    text_width = text_heads * 16
    return QwenSpec(
        VisionSpec(
            depth,
            width,
            heads,
            width * pick(2, 4) if keys["mlp"] == "mlp_ratio" else pick(56, 100),
            patch=patch,
            **parts,
        ),
        TextSpec(
            layers,
            pick(40, 72) if family.nested_text else text_width,
            pick(96, 140),
            text_heads,
            pick(1, 2, text_heads),
            128,
            rope_theta=pick(1e4, 1e6, 5e6),
            rope_sections=pick((4, 2, 2), (3, 3, 2)),
            eps=pick(1e-6, 1e-5),
            head_width=16 if family.nested_text else 0,
        ),
        tied=tied,
        family=family,
        **SPECIAL,
    )


def _rows(spec: QwenSpec, random: np.random.RandomState) -> list[Row]:
    """Pictures of one merged token, of one row or column, odd ones and a large one.

    One to four to a prompt, beside a prompt of text alone.
    """

    def grid() -> tuple[int, int]:
        rows, columns = random.randint(1, 6, 2)
        return [(1, 1), (1, columns + 1), (rows + 1, 1), (rows, columns)][
            random.randint(4)
        ]

    seed = int(random.randint(10**6))
    many = [grid() for _ in range(random.randint(1, 5))]
    large = (int(random.randint(7, 12)), int(random.randint(5, 12)))
    return [
        row(spec, seed, many),
        row(spec, seed + 1, [], text=int(random.randint(2, 12))),
        row(spec, seed + 2, [large, grid()][: random.randint(1, 3)]),
    ]
