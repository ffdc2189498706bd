"""Chat text and pictures to static-shape tables, on the host.

Every shape is chosen here: a prompt has `prompt_tokens` tokens, and its pictures
together `patches` patches. What does not fit is told before training, and never cut.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int
from transformers import PreTrainedTokenizerBase

from vrl_jax.models.front_end import FrontEnd, LaidOut, PackedImages, pack
from vrl_jax.types import (
    PLACEHOLDER,
    Images,
    ImageSize,
    Message,
    Prompts,
    Sample,
    Shown,
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


def question(sample: Sample) -> tuple[Message, ...]:
    """The sample as messages: its annotation `system`, if any, and its question."""
    system = sample.annotations.get("system")
    before = (Message(system, role="system"),) if system else ()
    return (*before, Message(sample.question, sample.images))


def turn(message: Message) -> dict[str, Any]:
    """The message as a turn of the chat template."""
    if not message.images and message.role != "user":
        return {"role": message.role, "content": message.text}
    pieces = text_pieces(message.text)
    if len(pieces) - 1 != len(message.images):
        raise ValueError(
            f"{len(pieces) - 1} {PLACEHOLDER} in the question and "
            f"{len(message.images)} pictures: {message.text[:80]!r}."
        )
    parts = [{"type": "text", "text": pieces[0]}]
    for piece in pieces[1:]:
        parts += [{"type": "image"}, {"type": "text", "text": piece}]
    content = [part for part in parts if part.get("text") != ""]
    return {"role": message.role, "content": content}


def chat_text(processor: Processor, messages: Sequence[Message]) -> str:
    """The messages in the chat template, ready for the answer.

    Without a system message the template's own applies.
    """
    return processor.tokenizer.apply_chat_template(
        [turn(message) for message in messages],
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
    written = transcript(processor, question(sample))
    if len(written.tokens) > processor.prompt_tokens:
        raise ValueError(
            f"The prompt has {len(written.tokens)} tokens, the budget is "
            f"{processor.prompt_tokens}. Raise prompt_tokens or lower max_pixels."
        )
    return encode_transcript(processor, written, processor.patches)


class Transcript(NamedTuple):
    """What a model reads: ids, and the pictures at their image tokens, in order."""

    text: str
    tokens: Int[np.ndarray, " tokens"]
    pictures: tuple[LaidOut, ...]
    image_sizes: tuple[ImageSize, ...]

    def then(self, other: "Transcript") -> "Transcript":
        """This, and the other behind it."""
        return Transcript(
            self.text + other.text,
            np.concatenate([self.tokens, other.tokens]),
            self.pictures + other.pictures,
            self.image_sizes + other.image_sizes,
        )


def transcript(processor: Processor, messages: Sequence[Message]) -> Transcript:
    """The opening of a conversation, ready for the answer."""
    return templated(processor, chat_text(processor, messages), messages)


def templated(
    processor: Processor, text: str, messages: Sequence[Message]
) -> Transcript:
    """Chat text that holds the pictures of the messages."""
    front_end = processor.front_end
    images = [image for message in messages for image in message.images]
    originals = [front_end.load(image) for image in images]
    pictures = [front_end.resize(picture) for picture in originals]
    laid_out = tuple(front_end.lay_out(picture) for picture in pictures)
    sizes = tuple(
        ImageSize(before.height, before.width, after.height, after.width)
        for before, after in zip(originals, pictures, strict=True)
    )
    tokens = _tokens(processor, text, [len(p.merged_index) for p in laid_out])
    return Transcript(text, tokens, laid_out, sizes)


def encode_transcript(
    processor: Processor, written: Transcript, patches: int
) -> EncodedPrompt:
    """Its tables, with its pictures in `patches` rows."""
    front_end = processor.front_end
    images = pack(
        written.pictures,
        budget=patches,
        group=front_end.group,
        patch_values=front_end.patch_values,
    )
    slots = np.zeros(len(written.tokens), np.int32)
    if written.pictures:
        places = np.concatenate(images.merged_index)
        slots[written.tokens == front_end.image_token] = places + 1
    return EncodedPrompt(
        written.text,
        written.tokens,
        positions(processor, written),
        slots,
        images,
        written.image_sizes,
    )


def positions(processor: Processor, written: Transcript) -> Int[np.ndarray, "tokens 3"]:
    """Where each token stands."""
    grids = [picture.grid for picture in written.pictures]
    return processor.front_end.positions(written.tokens, grids)


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
    return Encoded(
        prompts=jax.tree.map(jnp.asarray, tables(rows, processor.prompt_tokens)),
        texts=tuple(row.text for row in rows),
        image_sizes=tuple(row.image_sizes for row in rows),
    )


def tables(rows: Sequence[EncodedPrompt], length: int) -> Prompts:
    """The prompts padded on the right to `length` tokens, on the host."""

    def padded(column: str) -> np.ndarray:
        values = [getattr(row, column) for row in rows]
        table = np.zeros((len(rows), length, *values[0].shape[1:]), np.int32)
        for line, value in zip(table, values, strict=True):
            line[: len(value)] = value
        return table

    lengths = np.array([len(row.tokens) for row in rows])
    return Prompts(
        tokens=padded("tokens"),
        mask=np.arange(length) < lengths[:, None],
        positions=padded("positions"),
        slots=padded("slots"),
        images=stacked([row.images for row in rows]),
    )


def stacked(images: Sequence[PackedImages]) -> Images:
    """Packs of one budget, each a row."""
    names = ("patches", "coordinates", "frames")
    return Images(*(np.stack([getattr(pack, n) for pack in images]) for n in names))


def show(
    processor: Processor,
    tokens: Int[np.ndarray, "B T"],
    told: Bool[np.ndarray, "B T"],
    pictures: Sequence[Sequence[LaidOut]],
    patches: int,
) -> Shown:
    """The pictures of each response at the image tokens that it was told."""
    front_end = processor.front_end
    sizes = {"group": front_end.group, "patch_values": front_end.patch_values}
    packs = [pack(row, budget=patches, **sizes) for row in pictures]
    slots = np.zeros(tokens.shape, np.int32)
    places = told & (tokens == front_end.image_token)
    for line, here, packed in zip(slots, places, packs, strict=True):
        if packed.merged_index:
            line[here] = np.concatenate(packed.merged_index) + 1
    return jax.tree.map(jnp.asarray, Shown(slots, stacked(packs)))


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
