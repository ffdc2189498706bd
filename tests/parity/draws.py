"""Random small models of a family, and prompts for them, from a seed."""

from typing import NamedTuple

import numpy as np

from vrl_jax.models.families import FAMILIES as FUNCTIONS
from vrl_jax.models.families import Spec
from vrl_jax.models.gemma3 import spec as gemma3
from vrl_jax.models.gemma3.spec import Gemma3Spec
from vrl_jax.models.policy import Params
from vrl_jax.models.qwen_vl.families import FAMILIES, Family
from vrl_jax.models.qwen_vl.spec import QwenSpec, TextSpec, VisionSpec

from ..models.cases import SPECIAL, Row, random_params, responses, row

QWEN = {family.model_type: family for family in FAMILIES}
NAMES = tuple(FUNCTIONS)


class Draw(NamedTuple):
    spec: Spec
    params: Params
    rows: list[Row]
    tokens: np.ndarray  # [rows, 2, 3] responses
    seed: int


def draw(name: str, seed: int) -> Draw:
    """Even seeds give tied heads, odd ones untied; Gemma's are always tied."""
    random = np.random.RandomState(seed)
    if name == "gemma3":
        spec = _gemma3_spec(random)
        rows = _gemma3_rows(spec, random)
    else:
        spec = _spec(QWEN[name], random, tied=seed % 2 == 0)
        rows = _rows(spec, random)
    tokens = responses(seed, (len(rows), 2, 3))
    if name == "gemma3":  # torch gives the embedding of padding, 0, no gradient
        tokens = np.maximum(tokens, 1)
    return Draw(spec, random_params(spec, seed), rows, tokens, seed)


def _spec(family: Family, random: np.random.RandomState, *, tied: bool) -> QwenSpec:
    keys = dict(family.vision_keys)
    routed = "experts" in dict(family.mlp_keys)
    pick = picker(random)
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
            pick(28, 44) if routed else pick(96, 140),
            text_heads,
            pick(1, 2, text_heads),
            128,
            rope_theta=pick(1e4, 1e6, 5e6),
            rope_sections=pick((4, 2, 2), (3, 3, 2)),
            eps=pick(1e-6, 1e-5),
            head_width=16 if family.nested_text else 0,
            experts=pick(3, 8) if routed else 0,
            chosen=pick(1, 2, 3) if routed else 0,
        ),
        tied=tied,
        family=family,
        **SPECIAL,
    )


def picker(random: np.random.RandomState):
    return lambda *choices: choices[random.randint(len(choices))]


def _gemma3_spec(random: np.random.RandomState) -> Gemma3Spec:
    """Local and global layers; windows shorter than a picture, or than a prompt."""
    pick = picker(random)
    heads, text_heads, layers = pick(2, 4), pick(2, 4), pick(2, 3, 4)
    pool, patch = pick(1, 2, 4), pick(2, 4, 6)
    side = pool * pick(2, 3, 4)
    places = random.permutation(layers)[: pick(1, 1, layers - 1)]
    return Gemma3Spec(
        gemma3.VisionSpec(
            pick(1, 2, 3),
            heads * pick(8, 20),
            heads,
            pick(56, 100),
            image=side * patch,
            patch=patch,
            tokens=(side // pool) ** 2,
            eps=pick(1e-6, 1e-5),
        ),
        gemma3.TextSpec(
            layers,
            text_heads * pick(10, 16),
            pick(96, 140),
            text_heads,
            pick(1, 2, text_heads),
            pick(8, 16, 24),
            pick(8, 21, 24),
            128,
            tuple(sorted(places.tolist())),
            window=pick(3, 6, 11, 20),
            local_theta=pick(1e2, 1e4),
            global_theta=pick(1e4, 1e6),
            global_factor=pick(1.0, 2.0, 8.0),
            eps=pick(1e-6, 1e-5),
        ),
        image_token=120,
        start_token=122,
        end_token=123,
    )


def _gemma3_rows(spec: Gemma3Spec, random: np.random.RandomState) -> list[Row]:
    """One to three odd pictures, text alone, and one picture or none; words between."""
    seed = int(random.randint(10**6))
    shown = lambda least, most: [
        tuple(map(int, random.randint(1, 60, 2)))
        for _ in range(random.randint(least, most + 1))
    ]
    return [
        row(spec, seed, shown(2, 3)),
        row(spec, seed + 1, [], text=int(random.randint(2, 30))),
        row(spec, seed + 2, shown(1, 2), text=int(random.randint(0, 9))),
    ]


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
