"""The released models by name: https://huggingface.co/Qwen, from their config.json."""

import dataclasses
import functools
from collections.abc import Mapping

from vrl_jax.models.qwen_vl.families import (
    QWEN2_5_VL,
    QWEN2_VL,
    QWEN3_VL,
    QWEN3_VL_MOE,
    Family,
)
from vrl_jax.models.qwen_vl.spec import QwenSpec, TextSpec, VisionSpec


def _qwen2(text: TextSpec, *, tied: bool) -> QwenSpec:
    text = dataclasses.replace(text, max_positions=32_768)
    vision = VisionSpec(32, 1280, 16, 5120)
    return QwenSpec(vision, text, tied, family=QWEN2_VL)


def _qwen2_5(vision_mlp: int, text: TextSpec, *, tied: bool) -> QwenSpec:
    full = (7, 15, 23, 31)
    vision = VisionSpec(32, 1280, 16, vision_mlp, full, window=112)
    return QwenSpec(vision, text, tied, family=QWEN2_5_VL)


def _qwen3(
    vision: tuple[int, ...],
    text: tuple[int, ...],
    *,
    tied: bool,
    family: Family = QWEN3_VL,
    experts: int = 0,
    chosen: int = 0,
) -> QwenSpec:
    levels = (5, 11, 17) if vision[0] == 24 else (8, 16, 24)
    return QwenSpec(
        VisionSpec(*vision, patch=16, table_side=48, deepstack=levels),
        TextSpec(
            *text,
            vocabulary=151_936,
            rope_theta=5e6,
            rope_sections=(24, 20, 20),
            max_positions=262_144,
            head_width=128,
            experts=experts,
            chosen=chosen,
        ),
        tied,
        family=family,
    )


_routed = functools.partial(
    _qwen3,
    (27, 1152, 16, 4304),
    tied=False,
    family=QWEN3_VL_MOE,
    experts=128,
    chosen=8,
)

QWEN2_VL_2B = _qwen2(TextSpec(28, 1536, 8960, 12, 2, 151_936), tied=True)
QWEN2_VL_7B = _qwen2(TextSpec(28, 3584, 18_944, 28, 4, 152_064), tied=False)

QWEN2_5_VL_3B = _qwen2_5(3420, TextSpec(36, 2048, 11_008, 16, 2, 151_936), tied=True)
QWEN2_5_VL_7B = _qwen2_5(3420, TextSpec(28, 3584, 18_944, 28, 4, 152_064), tied=False)
QWEN2_5_VL_32B = _qwen2_5(3456, TextSpec(64, 5120, 27_648, 40, 8, 152_064), tied=False)
QWEN2_5_VL_72B = _qwen2_5(3456, TextSpec(80, 8192, 29_568, 64, 8, 152_064), tied=False)

QWEN3_VL_2B = _qwen3((24, 1024, 16, 4096), (28, 2048, 6144, 16, 8), tied=True)
QWEN3_VL_4B = _qwen3((24, 1024, 16, 4096), (36, 2560, 9728, 32, 8), tied=True)
QWEN3_VL_8B = _qwen3((27, 1152, 16, 4304), (36, 4096, 12_288, 32, 8), tied=False)
QWEN3_VL_32B = _qwen3((27, 1152, 16, 4304), (64, 5120, 25_600, 64, 8), tied=False)
QWEN3_VL_30B_A3B = _routed((48, 2048, 768, 32, 4))
QWEN3_VL_235B_A22B = _routed((94, 4096, 1536, 64, 4))

RELEASED: Mapping[str, QwenSpec] = {
    "qwen2-vl-2b": QWEN2_VL_2B,
    "qwen2-vl-7b": QWEN2_VL_7B,
    "qwen2.5-vl-3b": QWEN2_5_VL_3B,
    "qwen2.5-vl-7b": QWEN2_5_VL_7B,
    "qwen2.5-vl-32b": QWEN2_5_VL_32B,
    "qwen2.5-vl-72b": QWEN2_5_VL_72B,
    "qwen3-vl-2b": QWEN3_VL_2B,
    "qwen3-vl-4b": QWEN3_VL_4B,
    "qwen3-vl-8b": QWEN3_VL_8B,
    "qwen3-vl-32b": QWEN3_VL_32B,
    "qwen3-vl-30b-a3b": QWEN3_VL_30B_A3B,
    "qwen3-vl-235b-a22b": QWEN3_VL_235B_A22B,
}
