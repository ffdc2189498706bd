"""What a model is asked, and how one exchange follows another in its token ids.

A context is messages and earlier turns, `(user(...), turn, user(...))`. Token in, token
out: only what is new is templated and appended; the ids of a turn stay those that the
model wrote, and are never made from its text again.
"""

import dataclasses
from collections.abc import Hashable, Sequence

import numpy as np
from jaxtyping import Int

from vrl_jax.engine.processing import (
    Processor,
    Transcript,
    templated,
    transcript,
    turn,
)
from vrl_jax.types import ImageRef, Message, Turn

Context = tuple[Message | Turn, ...]

MARK = "(what was written)"
"""Stands for an earlier answer while the template shows what follows one."""


@dataclasses.dataclass(frozen=True)
class Ask:
    """A request to a model: what it reads, and how its answer is drawn.

    `model` names it; only the `policy` is trained, and only where `trained`. A
    `tentative` answer is trained where the program returns it, also with other facts by
    `dataclasses.replace`, or where a trained answer goes on with it; else it was only
    tried, and is left out of training, while what came before it in the conversation
    stays. What is None is the actor's.

    The answer begins with `given`, text or ids, which are not drawn, or an earlier
    turn: where that was asked to be trained, after the same context, both are one row.
    Text of another's goes through `types.plain`: no token of a picture may be given.
    It ends at a stop id of the model, at one of the `stops` (texts, kept), or after
    `max_new_tokens`. `allowed` are the only tokens that may be drawn: texts of one
    token each, stop tokens too where the answer may end.
    """

    context: Context
    model: str = "policy"
    trained: bool = True
    tentative: bool = False
    max_new_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    stops: tuple[str, ...] = ()
    allowed: tuple[str, ...] | None = None
    given: str | tuple[int, ...] | Turn = ()


def user(text: str, images: Sequence[ImageRef] = ()) -> Message:
    """A message of the user's; `<image>` in the text for each picture."""
    return Message(text, tuple(images))


def conversation(
    processor: Processor, context: Context, known: dict[Hashable, Transcript]
) -> Transcript:
    """The context as ids and pictures, ready for the answer.

    Messages, then turns with messages between and after them. What is `known` is not
    made again, and what is made becomes known.
    """
    key = identity(context)
    if key in known:
        return known[key]
    turns = [place for place, part in enumerate(context) if isinstance(part, Turn)]
    last = turns[-1] if turns else -1
    new = context[last + 1 :]
    if not new or (turns and last == 0) or last - 1 in turns:
        kinds = " ".join(type(part).__name__ for part in context)
        raise ValueError(
            "a context is messages, then turns with messages between and after them; "
            f"got {kinds or 'nothing'}."
        )
    if turns:
        before = conversation(processor, context[:last], known)
        said = context[last]
        known[key] = answered(processor, before, said).then(
            following(processor, said.tokens, new)
        )
    else:
        known[key] = transcript(processor, new)
    return known[key]


def identity(context: Context) -> Hashable:
    """Equal where two contexts have the same tokens and pictures."""
    return tuple(part if isinstance(part, Message) else part.tokens for part in context)


def is_begun_by(context: Context, before: Context) -> bool:
    """Whether a context begins as another: the same tokens, pictures and turns.

    Turns of an episode are known by their numbers: two may be of equal words.
    """
    begins = context[: len(before)]
    if identity(begins) != identity(before):
        return False
    return all(_may_be(one, other) for one, other in zip(begins, before, strict=True))


def _may_be(one: Message | Turn, other: Message | Turn) -> bool:
    numbers = {part.number for part in (one, other) if isinstance(part, Turn)}
    return len(numbers - {None}) < 2


def answered(processor: Processor, before: Transcript, said: Turn) -> Transcript:
    """What was read, and the answer behind it."""
    return before.then(Transcript(said.text, ids_of(processor, said), (), ()))


def following(
    processor: Processor, said: Sequence[int], messages: Sequence[Message]
) -> Transcript:
    """What the template writes after an answer: its end, the messages, a new start.

    The end of the answer is left out where the model wrote it itself.
    """
    before = [{"role": "user", "content": "?"}, {"role": "assistant", "content": MARK}]
    text = processor.tokenizer.apply_chat_template(
        [*before, *map(turn, messages)], tokenize=False, add_generation_prompt=True
    )
    new = templated(processor, text.split(MARK, 1)[1], messages)
    closed = len(said) > 0 and len(new.tokens) > 0 and said[-1] == new.tokens[0]
    return new._replace(tokens=new.tokens[1:]) if closed else new


def ids_of(
    processor: Processor, given: str | Sequence[int] | Turn
) -> Int[np.ndarray, " n"]:
    """Text as ids; ids, and those of a turn, as they are.

    `ValueError` where one stands for a picture: a model writes none.
    """
    if isinstance(given, Turn):
        given = given.tokens
    if isinstance(given, str):
        given = processor.tokenizer(given, add_special_tokens=False)["input_ids"]
    if bad := sorted({*processor.front_end.unsampled}.intersection(map(int, given))):
        raise ValueError(
            "what a model writes, or is given as its own, holds no picture, got "
            f"{processor.tokenizer.convert_ids_to_tokens(bad)}. Show pictures in a "
            "message; types.plain takes such tokens apart where they are mere text."
        )
    return np.array(given, np.int32)


def one_token(processor: Processor, text: str) -> int:
    """The id of a text that is a single token."""
    (*ids,) = ids_of(processor, text)
    if len(ids) != 1:
        raise ValueError(
            f"an allowed answer must be one token, and {text!r} has {len(ids)}: "
            f"{processor.tokenizer.convert_ids_to_tokens(list(map(int, ids)))}."
        )
    return int(ids[0])
