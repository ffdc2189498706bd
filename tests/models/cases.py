"""Small models, pictures and prompts, all from NumPy's frozen legacy generator."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from vrl_jax.models import front_end
from vrl_jax.models.families import Spec, family_of
from vrl_jax.models.front_end import LaidOut
from vrl_jax.models.gemma3 import spec as gemma3
from vrl_jax.models.gemma3.spec import Gemma3Spec
from vrl_jax.models.policy import Params
from vrl_jax.models.qwen_vl.families import QWEN2_VL, QWEN3_VL, QWEN3_VL_MOE
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
# Five experts, of which a token meets two; matrices that are nowhere square.
MIXTURE = {
    "qwen3_moe": QwenSpec(
        VisionSpec(2, 32, 2, 48, patch=4, table_side=5, deepstack=(1,)),
        TextSpec(
            2, 48, 40, 4, 2, 128, 5e5, (4, 2, 2), head_width=16, experts=5, chosen=2
        ),
        tied=False,
        family=QWEN3_VL_MOE,
        **SPECIAL,
    )
}
# Two local layers and a global one; a window that is shorter than a picture; queries
# wider than the model, and another scale of attention than theirs.
GEMMA3 = {
    "gemma3": Gemma3Spec(
        gemma3.VisionSpec(2, 48, 2, 80, image=32, patch=4, tokens=16),
        gemma3.TextSpec(3, 64, 96, 4, 2, 24, 20, 128, (1,), window=7),
        image_token=120,
        start_token=122,
        end_token=123,
    )
}
EVERY = SPECS | GEMMA3 | MIXTURE


def golden_name(name: str) -> str:
    """Of the file in tests/golden."""
    return name if name in GEMMA3 else f"qwen_vl_{name}"


def small_spec() -> QwenSpec:
    return SPECS["tied"]


def random_params(spec: Spec, seed: int) -> Params:
    """Weights large enough that every part shows in the logits."""
    random = np.random.RandomState(seed)
    flat = {
        row.path: random.randn(*row.stacked_shape) * (row.scale or 0.1) + row.fill
        for row in family_of(spec).parameter_table(spec)
    }
    tree: Params = {}
    for path, array in flat.items():
        *folders, last = path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[last] = jnp.asarray(array.astype(np.float32))
    return tree


def picture(seed: int, height: int, width: int) -> Image.Image:
    random = np.random.RandomState(seed)
    return Image.fromarray(random.randint(0, 256, (height, width, 3), np.uint8))


class Row(NamedTuple):
    tokens: list[int]
    pictures: list[Image.Image]


def picture_of(spec: Spec, seed: int, grid: tuple[int, int]) -> Image.Image:
    """Of the size that has this grid of merged tokens, or the one that there is."""
    if isinstance(spec, Gemma3Spec):
        return family_of(spec).front_end(spec).resize(picture(seed, *grid))
    height, width = (spec.vision.factor * side for side in grid)
    return picture(seed, height, width)


def row(spec: Spec, seed: int, grids: list[tuple[int, int]], text: int = 4) -> Row:
    """Text, then each picture (merged grids) between its marks, text after each."""
    random = np.random.RandomState(seed)
    gemma = isinstance(spec, Gemma3Spec)
    words = lambda: random.randint(1 if gemma else 0, 100, text).tolist()
    tokens, pictures = words(), []
    first = spec.start_token if gemma else spec.vision_start_token
    last = spec.end_token if gemma else spec.vision_end_token
    for number, grid in enumerate(grids):
        pictures.append(picture_of(spec, seed + 100 + number, grid))
        count = len(laid_out(spec, pictures[-1:])[0].merged_index)
        tokens += [first, *[spec.image_token] * count, last, *words()]
    return Row(tokens, pictures)


def laid_out(spec: Spec, pictures: list[Image.Image]) -> list[LaidOut]:
    lay_out = family_of(spec).front_end(spec).lay_out
    return [lay_out(picture) for picture in pictures]


def grids(spec: Spec, given: Row) -> list[tuple[int, int]]:
    return [picture.grid for picture in laid_out(spec, given.pictures)]


def budget_of(spec: Spec, rows: list[Row]) -> int:
    need = max(sum(len(p.patches) for p in laid_out(spec, r.pictures)) for r in rows)
    return max(need, family_of(spec).front_end(spec).granularity)


def pack_images(
    pictures: list[Image.Image], spec: Spec, *, budget: int
) -> front_end.PackedImages:
    whole = family_of(spec).front_end(spec)
    return front_end.pack(
        laid_out(spec, pictures),
        budget=budget,
        group=whole.group,
        patch_values=whole.patch_values,
    )


class Packed(NamedTuple):
    prompts: Prompts
    next_position: np.ndarray
    merged_index: list[tuple[np.ndarray, ...]]


def pack(spec: Spec, rows: list[Row], *, length: int = 0, budget: int = 0) -> Packed:
    length = length or max(len(r.tokens) for r in rows)
    packs = [
        pack_images(r.pictures, spec, budget=budget or budget_of(spec, rows))
        for r in rows
    ]
    shape = (len(rows), length)
    tokens, slots = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    mask, positions = np.zeros(shape, bool), np.zeros((*shape, 3), np.int32)
    next_position = np.zeros(len(rows), np.int32)
    place = family_of(spec).front_end(spec).positions
    for i, (given, packed) in enumerate(zip(rows, packs, strict=True)):
        size = len(given.tokens)
        tokens[i, :size], mask[i, :size] = given.tokens, True
        positions[i, :size] = place(np.array(given.tokens), grids(spec, given))
        next_position[i] = positions[i].max() + 1
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


def two_rows(spec: Spec, seed: int) -> list[Row]:
    """Two pictures of different shapes in one prompt, beside a row of text alone."""
    return [row(spec, seed, [(3, 5), (4, 2)]), row(spec, seed + 1, [], text=9)]


def responses(seed: int, shape: tuple[int, int, int]) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 100, shape)


def levels(features) -> jax.Array:
    """[P 1 + levels M H]: what enters the decoder, then what is added inside it."""
    if isinstance(features, jax.Array):
        return features[:, None]
    return jnp.concatenate([features.main[:, None], features.levels], axis=1)


class Outputs(NamedTuple):
    features: list[np.ndarray]  # of each picture [1 + levels, merged tokens, H]
    prompt_logits: list[np.ndarray]  # of each row, its real tokens
    response_logits: np.ndarray  # [P G T V], each position's next token


@functools.lru_cache
def _compiled(spec: Spec):
    whole = family_of(spec).policy(spec)

    @jax.jit
    def run(params, prompts, next_position, tokens):
        features = whole.encode_images(params, prompts.images)
        hidden, prompt_cache = whole.prefill(params, prompts, features)
        features = levels(features)
        P, G, T = tokens.shape
        steps = next_position[:, None, None] + jnp.arange(T)
        positions = jnp.broadcast_to(steps[..., None], (P, G, T, 3))
        extended = whole.extend(params, prompt_cache, prompts.mask, tokens, positions)
        head = whole.head(params)
        return features, hidden @ head.T, extended @ head.T

    return run


@functools.lru_cache
def token_by_token(spec: Spec):
    """Logits [P G T V] of responses that are read one token at a time, in slots.

    Columns that nobody wrote hold rubbish, and are not seen.
    """
    whole = family_of(spec).policy(spec)

    @jax.jit
    def run(params, prompts, next_position, tokens):
        features = whole.encode_images(params, prompts.images)
        _, prompt_cache = whole.prefill(params, prompts, features)
        P, G, T = tokens.shape
        L, room = prompts.tokens.shape[1], T + 2

        def slots(axis, x):
            wide = [(0, room if number == axis else 0) for number in range(x.ndim)]
            return jnp.repeat(jnp.pad(x, wide, constant_values=1e3), G, axis=0)

        cache = whole.as_slots(prompt_cache)
        cache = cache._replace(
            columns=jax.tree.map(functools.partial(slots, 2), cache.columns),
            turned=jax.tree.map(functools.partial(slots, 3), cache.turned),
        )
        index = jnp.where(prompts.mask, jnp.arange(L), -1)
        index = jnp.pad(index, ((0, 0), (0, room)), constant_values=-1)
        rows = index, prompts.mask.sum(axis=1), jnp.asarray(next_position)
        index, lengths, start = (jnp.repeat(x, G, axis=0) for x in rows)
        weights = whole.unstack(params)

        def step(state, number):
            cache, index = state
            index = index.at[:, L + number].set(lengths + number)
            positions = jnp.broadcast_to((start + number)[:, None], (P * G, 3))
            now = tokens.reshape(P * G, T)[:, number]
            hidden, cache = whole.decode(
                weights, cache, L + number, index, now, positions
            )
            return (cache, index), hidden

        _, hidden = jax.lax.scan(step, (cache, index), jnp.arange(T))
        logits = jnp.einsum("tbh,vh->btv", hidden, whole.head(params))
        return logits.reshape(P, G, T, -1)

    return run


def outputs(spec: Spec, params: Params, packed: Packed, tokens: np.ndarray) -> Outputs:
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
