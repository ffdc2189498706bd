"""Chat text and pictures to static-shape tables, on the host.

Every shape is chosen here: a prompt has `prompt_tokens` tokens, and its pictures
together `patches` patches. What does not fit is told before training, and never cut.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int
from transformers import PreTrainedTokenizerBase

from vrl_jax.models.qwen_vl.images import (
    PackedImages,
    load_image,
    merged_grid,
    pack_images,
    resize_image,
)
from vrl_jax.models.qwen_vl.positions import image_prompt_positions
from vrl_jax.models.qwen_vl.spec import QwenSpec
from vrl_jax.types import (
    PLACEHOLDER,
    Images,
    ImageSize,
    Prompts,
    Sample,
    text_pieces,
)


@dataclasses.dataclass(frozen=True)
class Processor:
    """What turning samples into tables depends on.

    `prompt_tokens` and `patches` are the budgets of one prompt; `min_pixels` and
    `max_pixels` bound the area of one picture after resizing.
    """

    tokenizer: PreTrainedTokenizerBase
    spec: QwenSpec
    prompt_tokens: int
    patches: int
    min_pixels: int = 56 * 56
    max_pixels: int = 1280 * 28 * 28


class EncodedPrompt(NamedTuple):
    """One prompt before padding to the token budget."""

    text: str
    tokens: Int[np.ndarray, " tokens"]
    positions: Int[np.ndarray, "tokens 3"]
    slots: Int[np.ndarray, " tokens"]
    images: PackedImages
    image_sizes: tuple[ImageSize, ...]


class Encoded(NamedTuple):
    """Device tables of some prompts, and what the host remembers of each."""

    prompts: Prompts
    texts: tuple[str, ...]
    image_sizes: tuple[tuple[ImageSize, ...], ...]


def chat_text(processor: Processor, sample: Sample) -> str:
    """The sample as the user's turn of the chat template, ready for the answer.

    An annotation `system` is the system message; without one the template's applies.
    """
    pieces = text_pieces(sample.question)
    if len(pieces) - 1 != len(sample.images):
        raise ValueError(
            f"{len(pieces) - 1} {PLACEHOLDER} in the question and "
            f"{len(sample.images)} pictures: {sample.question[:80]!r}."
        )
    parts = [{"type": "text", "text": pieces[0]}]
    for piece in pieces[1:]:
        parts += [{"type": "image"}, {"type": "text", "text": piece}]
    user = {"role": "user", "content": [p for p in parts if p.get("text") != ""]}
    system = sample.annotations.get("system")
    before = [{"role": "system", "content": system}] if system else []
    return processor.tokenizer.apply_chat_template(
        [*before, user],
        tokenize=False,
        add_generation_prompt=True,
    )


def encode_one(processor: Processor, sample: Sample) -> EncodedPrompt:
    """The tables of one prompt. Raises `ValueError`, with its id, if it cannot be."""
    try:
        return _encode_one(processor, sample)
    except ValueError as error:
        raise ValueError(f"Sample {sample.id}: {error}") from error


def _encode_one(processor: Processor, sample: Sample) -> EncodedPrompt:
    spec = processor.spec
    bounds = {
        "min_pixels": processor.min_pixels,
        "max_pixels": processor.max_pixels,
    }
    originals = [load_image(image) for image in sample.images]
    pictures = [resize_image(picture, spec, **bounds) for picture in originals]
    images = pack_images(pictures, spec, budget=processor.patches)
    grids = [merged_grid(picture.height, picture.width, spec) for picture in pictures]

    text = chat_text(processor, sample)
    once = np.array(
        processor.tokenizer(text, add_special_tokens=False)["input_ids"], np.int32
    )
    if (once == spec.image_token).sum() != len(pictures):
        raise ValueError(
            f"The question spells out the image token itself: {sample.question[:80]!r}."
            f" Write {PLACEHOLDER} where a picture belongs."
        )
    repeats = np.ones(len(once), int)
    repeats[once == spec.image_token] = [height * width for height, width in grids]
    tokens = np.repeat(once, repeats)
    if len(tokens) > processor.prompt_tokens:
        raise ValueError(
            f"The prompt has {len(tokens)} tokens, the budget is "
            f"{processor.prompt_tokens}. Raise prompt_tokens or lower max_pixels."
        )
    positions, _ = image_prompt_positions(tokens, grids, spec.image_token)
    slots = np.zeros(len(tokens), np.int32)
    if pictures:
        slots[tokens == spec.image_token] = np.concatenate(images.merged_index) + 1
    sizes = tuple(
        ImageSize(before.height, before.width, after.height, after.width)
        for before, after in zip(originals, pictures, strict=True)
    )
    return EncodedPrompt(text, tokens, positions, slots, images, sizes)


def encode(processor: Processor, samples: Sequence[Sample]) -> Encoded:
    """Right-padded tables of the samples' prompts, on the device."""
    rows = [encode_one(processor, sample) for sample in samples]

    def padded(column: str) -> np.ndarray:
        values = [getattr(row, column) for row in rows]
        table = np.zeros(
            (len(rows), processor.prompt_tokens, *values[0].shape[1:]), np.int32
        )
        for line, value in zip(table, values, strict=True):
            line[: len(value)] = value
        return table

    lengths = np.array([len(row.tokens) for row in rows])
    prompts = Prompts(
        tokens=padded("tokens"),
        mask=np.arange(processor.prompt_tokens) < lengths[:, None],
        positions=padded("positions"),
        slots=padded("slots"),
        images=Images(
            patches=np.stack([row.images.patches for row in rows]),
            coordinates=np.stack([row.images.coordinates for row in rows]),
            frames=np.stack([row.images.frames for row in rows]),
        ),
    )
    return Encoded(
        prompts=jax.tree.map(jnp.asarray, prompts),
        texts=tuple(row.text for row in rows),
        image_sizes=tuple(row.image_sizes for row in rows),
    )


class Fitting(NamedTuple):
    """The samples that can be used, the longest of their prompts, and the others."""

    samples: list[Sample]
    longest: int
    dropped: list[str]


def fitting(processor: Processor, samples: Sequence[Sample]) -> Fitting:
    """Encodes every sample once, so that training meets no surprise.

    `dropped` says for each unusable sample why. Raises `ValueError` if none is left.
    """
    kept, dropped, longest = [], [], 0
    for sample in samples:
        try:
            longest = max(longest, len(encode_one(processor, sample).tokens))
        except ValueError as error:
            dropped.append(str(error))
        else:
            kept.append(sample)
    if not kept:
        raise ValueError(f"No sample can be used. {' '.join(dropped[:3])}")
    return Fitting(kept, longest, dropped)
