"""Chat text and pictures to static-shape tables, on the host.

Every shape is one of the few of the processor's `room`. What does not fit is told
before training, and never cut.
"""

import dataclasses
from collections.abc import Callable, MutableMapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int
from transformers import PreTrainedTokenizerBase

from vrl_jax.engine.packing import Room, Unpadded, blocks_of, first_fit, packed
from vrl_jax.models.front_end import FrontEnd, LaidOut
from vrl_jax.models.sharding import put
from vrl_jax.types import (
    PLACEHOLDER,
    ImageRef,
    ImageSize,
    Message,
    Prompts,
    Sample,
    text_pieces,
)

TOOLS = "tools"
"""The role of what tells of tools."""

AT_A_TIME = 32
"""Samples whose pictures are in memory at once while all are measured."""


class Picture(NamedTuple):
    """One picture, ready to be packed."""

    laid_out: LaidOut
    size: ImageSize


@dataclasses.dataclass(frozen=True)
class Processor:
    """What turning samples into tables depends on.

    `front_end` is what the model's family provides, `room` the sizes of the tables.
    `prepared` holds pictures that others are preparing ahead; each is used once.
    """

    tokenizer: PreTrainedTokenizerBase
    front_end: FrontEnd
    room: Room
    prepared: MutableMapping[ImageRef, Future[Picture]] = dataclasses.field(
        default_factory=dict, compare=False
    )

    def __post_init__(self) -> None:
        unit, room = self.front_end.granularity, self.room
        if room.block % unit:
            raise ValueError(
                f"A block of patches must be a multiple of {unit}, what pictures are "
                f"laid out in, got {room.block}."
            )
        for sizes, least in ((room.prompt_tokens, 1), (room.blocks, 0)):
            if not sizes or min(sizes) < least or sorted({*sizes}) != list(sizes):
                raise ValueError(
                    f"Budgets must be ascending, from {least} on, got {sizes}."
                )
        if room.prompts_per_pack < 1:
            raise ValueError(
                f"A pack serves at least 1 prompt, got {room.prompts_per_pack}."
            )


class EncodedPrompt(NamedTuple):
    """One prompt before packing."""

    text: str
    unpadded: Unpadded
    image_sizes: tuple[ImageSize, ...]


class Encoded(NamedTuple):
    """Device tables of some prompts, and what the host remembers of each."""

    prompts: Prompts
    texts: tuple[str, ...]
    image_sizes: tuple[tuple[ImageSize, ...], ...]


def question(sample: Sample) -> tuple[Message, ...]:
    """The sample as messages: annotations `system` and `tools_message`, its question.

    Of the first two those that it has.
    """
    told = (("system", "system"), ("tools_message", TOOLS))
    known = [(sample.annotations.get(name), role) for name, role in told]
    before = [Message(text, role=role) for text, role in known if text]
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
        [turn(message) for message in _joined(processor.tokenizer, messages)],
        tokenize=False,
        add_generation_prompt=True,
    )


def _joined(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]
) -> list[Message]:
    """With one system message of it and what tells of tools, where anything does."""
    tools = [message.text for message in messages if message.role == TOOLS]
    if not tools:
        return [*messages]
    system = [message.text for message in messages if message.role == "system"]
    texts = filter(None, [*(system or [own_system(tokenizer)]), *tools])
    others = [one for one in messages if one.role not in ("system", TOOLS)]
    return [Message("\n\n".join(texts), role="system"), *others]


def own_system(tokenizer: PreTrainedTokenizerBase) -> str:
    """The system message that the chat template puts in where none is; "" for none."""
    mark, ask = "(a system message)", {"role": "user", "content": "?"}
    given = {"role": "system", "content": mark}
    whole = tokenizer.apply_chat_template([given, ask], tokenize=False)
    alone = tokenizer.apply_chat_template([ask], tokenize=False)
    before, _, after = whole.partition(mark)
    if not (alone.startswith(before) and alone.endswith(after)):
        return ""
    return alone[len(before) : len(alone) - len(after)]


def encode_one(
    processor: Processor, sample: Sample, opening: Sequence[Message] | None = None
) -> EncodedPrompt:
    """The tables of one prompt. Raises `ValueError`, with its id, if it cannot be.

    Of the sample's question, unless it has another `opening`. Whatever the template,
    the tokenizer or a decoder makes of an odd row is one too.
    """
    name = sample.id.encode(errors="backslashreplace").decode()
    try:
        sample.id.encode()  # draws are keyed by it
        return _encode_one(processor, opening or question(sample))
    except ValueError as error:
        raise ValueError(f"Sample {name}: {error}") from error
    except Exception as error:
        raise ValueError(f"Sample {name}: {type(error).__name__}: {error}") from error


def _encode_one(processor: Processor, opening: Sequence[Message]) -> EncodedPrompt:
    written = transcript(processor, opening)
    alone = unpadded(processor, written)
    check_room(processor.room, alone)
    return EncodedPrompt(written.text, alone, written.image_sizes)


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
    pictures = []
    for image in (image for message in messages for image in message.images):
        ahead = processor.prepared.pop(image, None)
        pictures.append(ahead.result() if ahead else prepare(processor, image))
    laid_out = tuple(picture.laid_out for picture in pictures)
    tokens = _tokens(processor, text, [len(p.merged_index) for p in laid_out])
    return Transcript(text, tokens, laid_out, tuple(p.size for p in pictures))


def prepare(processor: Processor, image: ImageRef) -> Picture:
    """Decoded, resized and laid out: most of what reading a prompt costs the host."""
    front_end = processor.front_end
    before = front_end.load(image)
    after = front_end.resize(before)
    size = ImageSize(before.height, before.width, after.height, after.width)
    return Picture(front_end.lay_out(after), size)


def unpadded(processor: Processor, written: Transcript) -> Unpadded:
    """What is packed of it: each token has its place."""
    grids = [picture.grid for picture in written.pictures]
    positions = processor.front_end.positions(written.tokens, grids)
    return Unpadded(written.tokens, positions, written.pictures)


def check_room(room: Room, prompt: Unpadded) -> None:
    """That the largest budgets hold the prompt, were it alone; else `ValueError`."""
    if len(prompt.tokens) > room.prompt_tokens[-1]:
        raise ValueError(
            f"The prompt has {len(prompt.tokens)} tokens, the budget is "
            f"{room.prompt_tokens[-1]}. Raise prompt_tokens or lower max_pixels."
        )
    if max(prompt.sizes, default=0) > room.block:
        raise ValueError(
            f"A picture needs {max(prompt.sizes)} patches, a block has {room.block}. "
            "Raise the block or lower max_pixels."
        )
    need = blocks_of(first_fit(prompt.sizes, room.block), room.block)
    if need > room.blocks[-1]:
        raise ValueError(
            f"{len(prompt.pictures)} pictures need {need} blocks of {room.block} "
            f"patches, the budget is {room.blocks[-1]}. Raise blocks or lower "
            "max_pixels."
        )


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
    alone = [row.unpadded for row in rows]
    try:
        tables = packed(processor.room, processor.front_end, alone)
    except ValueError as error:
        ids = ", ".join(sample.id for sample in samples)
        raise ValueError(f"Samples {ids}: {error}") from error
    return Encoded(
        prompts=put(tables),
        texts=tuple(row.text for row in rows),
        image_sizes=tuple(row.image_sizes for row in rows),
    )


class Size(NamedTuple):
    """The tokens of a prompt, and the patches of each picture in it.

    Of a conversation `row_tokens` follow its prompt, and pictures of `shown` patches.
    Where it opens without some picture of its sample, `later` are those of all of its
    own: another context may show them.
    """

    tokens: int
    pictures: list[int]
    row_tokens: int = 0
    shown: Sequence[int] = ()
    later: Sequence[int] = ()


Measure = Callable[[Processor, Sample], Size]
"""How large a sample is; raises `ValueError`, with its id, if it cannot be used."""


def prompt_size(
    processor: Processor,
    sample: Sample,
    opening: Callable[[Sample], Sequence[Message]] = question,
) -> Size:
    """That of the sample's question, or of what else is the `opening`."""
    messages = opening(sample)
    prompt = encode_one(processor, sample, messages).unpadded
    later = []
    if not {*sample.images} <= {image for one in messages for image in one.images}:
        later = [_patches(processor, sample, image) for image in sample.images]
    return Size(len(prompt.tokens), prompt.sizes, later=later)


def _patches(processor: Processor, sample: Sample, image: ImageRef) -> int:
    """Of one picture. `ValueError`, with the sample, where it cannot be read."""
    ahead = processor.prepared.get(image)
    try:
        picture = ahead.result() if ahead else prepare(processor, image)
        return len(picture.laid_out.patches)
    except Exception as error:  # as in `encode_one`
        raise ValueError(f"Sample {sample.id}: {error}") from error


class Fitting(NamedTuple):
    """The samples that can be used, how large they are, and why others cannot.

    Of each that can: the tokens of its prompt, and the patches of each picture; and of
    what follows or may come later, as in `Size`.
    """

    samples: list[Sample]
    tokens: list[int]
    pictures: list[list[int]]
    dropped: list[str]
    row_tokens: Sequence[int] = ()
    shown: Sequence[Sequence[int]] = ()
    later: Sequence[list[int]] = ()


def fitting(
    processor: Processor, samples: Sequence[Sample], *, measure: Measure = prompt_size
) -> Fitting:
    """Measures every sample once, so that training meets no surprise.

    Pictures are decoded in threads, some samples' at a time. `dropped` says for each
    unusable sample why. Raises `ValueError` if none is left.
    """
    sizes: list[Size] = []
    used: list[Sample] = []
    dropped: list[str] = []
    with ThreadPoolExecutor() as threads:
        for start in range(0, len(samples), AT_A_TIME):
            some = samples[start : start + AT_A_TIME]
            images = dict.fromkeys(image for sample in some for image in sample.images)
            prepared = {i: threads.submit(prepare, processor, i) for i in images}
            ahead = dataclasses.replace(processor, prepared=prepared)
            for sample in some:
                try:
                    sizes.append(measure(ahead, sample))
                except ValueError as error:
                    dropped.append(str(error))
                else:
                    used.append(sample)
    if not used:
        raise ValueError(f"No sample can be used. {' '.join(dropped[:3])}")
    tokens, pictures, *behind = map(list, zip(*sizes, strict=True))
    return Fitting(used, tokens, pictures, dropped, *behind)
