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

from vrl_jax.models.front_end import FrontEnd, PackedImages, pack
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

    `front_end` is what the model's family provides; `prompt_tokens` and `patches` are
    the budgets of one prompt.
    """

    tokenizer: PreTrainedTokenizerBase
    front_end: FrontEnd
    prompt_tokens: int
    patches: int

    def __post_init__(self) -> None:
        unit = self.front_end.granularity
        if self.patches % unit:
            raise ValueError(
                f"The patch budget must be a multiple of {unit}, what pictures are "
                f"laid out in, got {self.patches}."
            )


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
    front_end = processor.front_end
    originals = [front_end.load(image) for image in sample.images]
    pictures = [front_end.resize(picture) for picture in originals]
    laid_out = [front_end.lay_out(picture) for picture in pictures]
    images = pack(
        laid_out,
        budget=processor.patches,
        group=front_end.group,
        patch_values=front_end.patch_values,
    )
    text = chat_text(processor, sample)
    tokens = _tokens(processor, text, [len(p.merged_index) for p in laid_out])
    if len(tokens) > processor.prompt_tokens:
        raise ValueError(
            f"The prompt has {len(tokens)} tokens, the budget is "
            f"{processor.prompt_tokens}. Raise prompt_tokens or lower max_pixels."
        )
    slots = np.zeros(len(tokens), np.int32)
    if pictures:
        places = np.concatenate(images.merged_index)
        slots[tokens == front_end.image_token] = places + 1
    sizes = tuple(
        ImageSize(before.height, before.width, after.height, after.width)
        for before, after in zip(originals, pictures, strict=True)
    )
    positions = front_end.positions(tokens, [picture.grid for picture in laid_out])
    return EncodedPrompt(text, tokens, positions, slots, images, sizes)


def _tokens(
    processor: Processor, text: str, counts: Sequence[int]
) -> Int[np.ndarray, " tokens"]:
    """The chat text as ids, with an image token for each merged token."""
    spelled = processor.tokenizer.convert_ids_to_tokens
    front_end = processor.front_end
    first, *rest = text.split(spelled(front_end.placeholder))
    image = spelled(front_end.image_token)
    if len(rest) != len(counts) or any(image in piece for piece in (first, *rest)):
        raise ValueError(
            "The question spells out the image token itself. Write "
            f"{PLACEHOLDER} where a picture belongs."
        )
    whole = first + "".join(
        front_end.written(count, spelled) + piece
        for count, piece in zip(counts, rest, strict=True)
    )
    ids = processor.tokenizer(whole, add_special_tokens=False)["input_ids"]
    return np.array(ids, np.int32)


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
