"""Small models, pictures and prompts, all from NumPy's frozen legacy generator."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from vrl_jax.models import front_end
from vrl_jax.models.policy import Params
from vrl_jax.models.qwen_vl.families import QWEN2_VL, QWEN3_VL
from vrl_jax.models.qwen_vl.images import lay_out, merged_grid, packed_patches
from vrl_jax.models.qwen_vl.parameters import parameter_table
from vrl_jax.models.qwen_vl.policy import policy
from vrl_jax.models.qwen_vl.positions import image_prompt_positions
from vrl_jax.models.qwen_vl.spec import QwenSpec, TextSpec, VisionSpec
from vrl_jax.types import Images, Prompts

SPECIAL = {
    "image_token": 120,
    "video_token": 121,
    "vision_start_token": 122,
    "vision_end_token": 123,
}
# Windows of 2 x 2 and 4 x 4 merged tokens; full blocks first, last and in between;
# grouped, single and plain key-value heads.
SPECS = {
    "tied": QwenSpec(
        VisionSpec(4, 64, 4, 96, (1, 3), patch=4, window=32),
        TextSpec(2, 64, 128, 4, 2, 128, rope_sections=(2, 3, 3)),
        tied=True,
        **SPECIAL,
    ),
    "untied": QwenSpec(
        VisionSpec(2, 80, 2, 100, (1,), window=112),
        TextSpec(3, 96, 160, 6, 2, 128, rope_sections=(2, 3, 3), eps=1e-5),
        tied=False,
        **SPECIAL,
    ),
    "one_pair": QwenSpec(
        VisionSpec(3, 128, 8, 64, (0,), patch=4, window=16),
        TextSpec(4, 128, 96, 4, 1, 128, rope_theta=5e4, rope_sections=(4, 6, 6)),
        tied=False,
        **SPECIAL,
    ),
    "qwen2": QwenSpec(
        VisionSpec(3, 64, 4, 128, patch=4),
        TextSpec(2, 64, 96, 4, 2, 128, rope_sections=(2, 3, 3)),
        tied=True,
        family=QWEN2_VL,
        **SPECIAL,
    ),
    # A table smaller than some pictures, two levels for three layers, and queries
    # wider than the model.
    "qwen3": QwenSpec(
        VisionSpec(4, 64, 4, 96, patch=4, table_side=5, deepstack=(0, 2)),
        TextSpec(3, 48, 96, 4, 2, 128, 5e5, (4, 2, 2), head_width=16),
        tied=False,
        family=QWEN3_VL,
        **SPECIAL,
    ),
}


def small_spec() -> QwenSpec:
    return SPECS["tied"]


def random_params(spec: QwenSpec, seed: int) -> Params:
    """Weights large enough that every part shows in the logits."""
    random = np.random.RandomState(seed)
    flat = {
        row.path: random.randn(*row.stacked_shape) * (row.scale or 0.1) + row.fill
        for row in parameter_table(spec)
    }
    tree: Params = {}
    for path, array in flat.items():
        *folders, last = path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[last] = jnp.asarray(array, jnp.float32)
    return tree


def picture(seed: int, height: int, width: int) -> Image.Image:
    random = np.random.RandomState(seed)
    return Image.fromarray(random.randint(0, 256, (height, width, 3), np.uint8))


class Row(NamedTuple):
    tokens: list[int]
    pictures: list[Image.Image]


def row(spec: QwenSpec, seed: int, grids: list[tuple[int, int]], text: int = 4) -> Row:
    """Text, then each picture (merged grids) between its marks, text after each."""
    random = np.random.RandomState(seed)
    tokens = random.randint(0, 100, text).tolist()
    pictures = []
    for number, (rows, columns) in enumerate(grids):
        factor = spec.vision.factor
        pictures.append(picture(seed + 100 + number, rows * factor, columns * factor))
        tokens += [spec.vision_start_token]
        tokens += [spec.image_token] * (rows * columns)
        tokens += [spec.vision_end_token, *random.randint(0, 100, text).tolist()]
    return Row(tokens, pictures)


def grids(spec: QwenSpec, given: Row) -> list[tuple[int, int]]:
    return [merged_grid(p.height, p.width, spec) for p in given.pictures]


def budget_of(spec: QwenSpec, rows: list[Row]) -> int:
    need = max(
        sum(packed_patches(p.height, p.width, spec) for p in r.pictures) for r in rows
    )
    return max(need, spec.vision.window_patches)


def pack_images(
    pictures: list[Image.Image], spec: QwenSpec, *, budget: int
) -> front_end.PackedImages:
    return front_end.pack(
        [lay_out(picture, spec) for picture in pictures],
        budget=budget,
        group=spec.vision.group,
        patch_values=spec.vision.patch_values,
    )


class Packed(NamedTuple):
    prompts: Prompts
    next_position: np.ndarray
    merged_index: list[tuple[np.ndarray, ...]]


def pack(
    spec: QwenSpec, rows: list[Row], *, length: int = 0, budget: int = 0
) -> Packed:
    length = length or max(len(r.tokens) for r in rows)
    packs = [
        pack_images(r.pictures, spec, budget=budget or budget_of(spec, rows))
        for r in rows
    ]
    shape = (len(rows), length)
    tokens, slots = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    mask, positions = np.zeros(shape, bool), np.zeros((*shape, 3), np.int32)
    next_position = np.zeros(len(rows), np.int32)
    for i, (given, packed) in enumerate(zip(rows, packs, strict=True)):
        size = len(given.tokens)
        tokens[i, :size], mask[i, :size] = given.tokens, True
        positions[i, :size], next_position[i] = image_prompt_positions(
            given.tokens, grids(spec, given), spec.image_token
        )
        if packed.merged_index:
            places = np.flatnonzero(np.array(given.tokens) == spec.image_token)
            slots[i, places] = np.concatenate(packed.merged_index) + 1
    images = Images(
        *(
            np.stack([getattr(packed, name) for packed in packs])
            for name in ("patches", "coordinates", "frames")
        )
    )
    prompts = Prompts(tokens, mask, positions, slots, images)
    return Packed(prompts, next_position, [packed.merged_index for packed in packs])


def two_rows(spec: QwenSpec, seed: int) -> list[Row]:
    """Two pictures of different shapes in one prompt, beside a row of text alone."""
    return [row(spec, seed, [(3, 5), (4, 2)]), row(spec, seed + 1, [], text=9)]


def responses(seed: int, shape: tuple[int, int, int]) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 100, shape)


class Outputs(NamedTuple):
    features: list[np.ndarray]  # of each picture [1 + levels, merged tokens, H]
    prompt_logits: list[np.ndarray]  # of each row, its real tokens
    response_logits: np.ndarray  # [P G T V], each position's next token


@functools.lru_cache
def _compiled(spec: QwenSpec):
    whole = policy(spec)

    @jax.jit
    def run(params, prompts, next_position, tokens):
        features = whole.encode_images(params, prompts.images)
        hidden, prompt_cache = whole.prefill(params, prompts, features)
        features = jnp.concatenate([features.main[:, None], features.levels], axis=1)
        P, G, T = tokens.shape
        steps = next_position[:, None, None] + jnp.arange(T)
        positions = jnp.broadcast_to(steps[..., None], (P, G, T, 3))
        cache = whole.init_cache(P, G, T, jnp.float32)
        extended, _ = whole.extend(
            params, prompt_cache, prompts.mask, cache, 0, tokens, positions
        )
        head = whole.head(params)
        return features, hidden @ head.T, extended @ head.T

    return run


def outputs(
    spec: QwenSpec, params: Params, packed: Packed, tokens: np.ndarray
) -> Outputs:
    prompts = packed.prompts
    features, logits, response_logits = map(
        np.asarray, _compiled(spec)(params, prompts, packed.next_position, tokens)
    )
    return Outputs(
        [
            features[prompt][:, index]
            for prompt, pictures in enumerate(packed.merged_index)
            for index in pictures
        ],
        [row[real] for row, real in zip(logits, prompts.mask, strict=True)],
        response_logits,
    )
