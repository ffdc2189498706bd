"""A judge that is a model on the same mesh: compiled functions, static shapes.

It answers the same chat messages as the judge behind an endpoint, so that a reward
such as `vrl_jax.rewards.judge.same_answer` takes either. What it does not answer is
NaN: the response is then unscored.
"""

import base64
import binascii
import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vrl_jax.engine.decoding import Model
from vrl_jax.engine.likelihood import last_hidden
from vrl_jax.engine.packing import Room, blocks_of, first_fit
from vrl_jax.engine.processing import Processor, encode, encode_one
from vrl_jax.engine.responses import sample
from vrl_jax.models.policy import Params, Policy
from vrl_jax.models.sharding import on_host
from vrl_jax.rewards.judge import Message, ReadVerdict, yes_or_no
from vrl_jax.rewards.steps import right_token_probability
from vrl_jax.types import PLACEHOLDER, Prompts, Sample, literal, taken_apart


@dataclasses.dataclass(frozen=True)
class Frozen:
    """A model that is asked and never trained.

    It sees `rows` prompts at a time, short of that repeated ones. Each has the smallest
    sizes of the processor's room that hold it alone, so that its verdict depends on no
    other prompt, and as many programs are compiled as there are sizes in use.
    """

    policy: Policy
    params: Params
    processor: Processor
    rows: int = 8


Verdict = Callable[[Frozen, Prompts], Sequence[float | None]]
"""One verdict for each of the prompts, None where there is none."""


def yes_probability(
    *, yes: str = "yes", no: str = "no"
) -> Callable[[Frozen, Prompts], list[float]]:
    """P(yes) = e^y / (e^y + e^n) of the two tokens' logits at the answer's start.

    What the model says of other tokens does not matter. VL-PRM,
    https://arxiv.org/abs/2509.23250.
    """

    def verdict(model: Frozen, prompts: Prompts) -> list[float]:
        ids = jnp.array([_single_token(model, word) for word in (yes, no)])
        found = _yes_probability(model.policy, model.params, prompts, ids)
        return on_host(found).tolist()

    return verdict


@functools.partial(jax.jit, static_argnums=0)
def _yes_probability(
    policy: Policy, params: Params, prompts: Prompts, ids: Int[Array, " 2"]
) -> Float[Array, " P"]:
    features = policy.encode_images(params, prompts.images)
    hidden, _ = policy.prefill(params, prompts, features)
    states = last_hidden(hidden, prompts.mask)
    two = policy.head(params)[ids]
    logits = jnp.einsum("ph,vh->pv", states, two, preferred_element_type=jnp.float32)
    return right_token_probability(logits[:, 0], logits[:, 1])


def _single_token(model: Frozen, word: str) -> int:
    ids = model.processor.tokenizer(word, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise ValueError(
            f"a verdict is read off one token, and {word!r} has {len(ids)} here; "
            "name two words that are one token each."
        )
    return ids[0]


def written_verdict(
    allowed: Bool[Array, " V"],
    stop_ids: Int[Array, " S"],
    *,
    max_new_tokens: int = 64,
    read: ReadVerdict = yes_or_no,
) -> Callable[[Frozen, Prompts], list[float | None]]:
    """What `read` finds in the greedy reply; None in one that did not end in time."""

    def verdict(model: Frozen, prompts: Prompts) -> list[float | None]:
        rows = len(prompts.tokens)
        sampled = sample(
            Model(model.policy, model.params, allowed, max_new_tokens, rows),
            prompts,
            jax.random.split(jax.random.key(0), rows),  # greedy: nothing is drawn
            stop_ids,
            top_k=1,
        )
        tokens, mask, finished = map(
            np.asarray, (sampled.tokens, sampled.mask, sampled.finished)
        )
        written = [row[kept].tolist() for row, kept in zip(tokens, mask, strict=True)]
        replies = model.processor.tokenizer.batch_decode(
            written, skip_special_tokens=True
        )
        return [
            read(reply) if whole else None
            for reply, whole in zip(replies, finished, strict=True)
        ]

    return verdict


class ModelJudge:
    """Asks the model for verdicts; `counts` says what became of the questions.

    asked, too_long (more tokens than there is room for), unusable (pictures that do
    not decode or fit, other roles than one user turn) and unreadable (no verdict in the
    reply).
    """

    def __init__(self, model: Frozen, verdict: Verdict):
        if model.rows < 1:
            raise ValueError(f"a judge needs at least one row, got {model.rows}.")
        self._model = model
        self._verdict = verdict
        self.counts: collections.Counter[str] = collections.Counter()

    def verdicts(self, questions: Sequence[Sequence[Message]]) -> list[float]:
        """One number for each list of chat messages, NaN where there is none."""
        self.counts["asked"] += len(questions)
        verdicts = [math.nan] * len(questions)
        waiting: dict[Room, list[tuple[int, Sample]]] = {}
        for place, messages in enumerate(questions):
            try:
                sample = as_sample(self._model.processor, messages)
                room = _room(self._model.processor, sample)
            except (ValueError, OSError):
                self.counts["unusable"] += 1
                continue
            if room is None:
                self.counts["too_long"] += 1
            else:
                waiting.setdefault(room, []).append((place, sample))
        for room, asked in waiting.items():
            for place, verdict in self._answers(room, asked):
                if verdict is None or not math.isfinite(verdict):
                    self.counts["unreadable"] += 1
                else:
                    verdicts[place] = float(verdict)
        return verdicts

    def _answers(
        self, room: Room, asked: Sequence[tuple[int, Sample]]
    ) -> Iterator[tuple[int, float | None]]:
        rows = self._model.rows
        processor = dataclasses.replace(self._model.processor, room=room)
        for start in range(0, len(asked), rows):
            places, samples = zip(*asked[start : start + rows], strict=True)
            filler = samples[:1] * (rows - len(samples))  # keeps one shape
            prompts = encode(processor, [*samples, *filler]).prompts
            verdicts = self._verdict(self._model, prompts)
            yield from zip(places, verdicts[: len(places)], strict=True)


def _room(processor: Processor, sample: Sample) -> Room | None:
    """The smallest sizes that hold the prompt alone; None where it is too long.

    Raises `ValueError` where its pictures do not fit.
    """
    room = processor.room
    long = room._replace(prompt_tokens=(np.iinfo(np.int32).max,))
    prompt = encode_one(dataclasses.replace(processor, room=long), sample).unpadded
    tokens = next((n for n in room.prompt_tokens if len(prompt.tokens) <= n), None)
    need = blocks_of(first_fit(prompt.sizes, room.block), room.block)
    blocks = next(n for n in room.blocks if need <= n)
    if tokens is None:
        return None
    return Room((tokens,), room.block, (blocks,))


def as_sample(processor: Processor, messages: Sequence[Message]) -> Sample:
    """Chat messages, a user's turn and perhaps a system message before it, as a prompt.

    Content is text, or parts of text and of pictures in data URLs. A special token
    that a text spells out is taken apart: no response can end its turn and go on as
    the judge.
    """
    roles = [message["role"] for message in messages]
    if roles not in (["user"], ["system", "user"]):
        raise ValueError(f"a judge reads one user turn, got {roles}.")
    texts, images = [], []
    for message in messages:
        parts = message["content"]
        if isinstance(parts, str):
            parts = [{"type": "text", "text": parts}]
        pieces = []
        for part in parts:
            if part["type"] == "text":
                pieces.append(_mere(processor, part["text"]))
            else:
                pieces.append(PLACEHOLDER)
                images.append(_picture(part["image_url"]["url"]))
        texts.append("".join(pieces))
    return Sample(
        id="judged",
        source="judge",
        question=texts[-1],
        images=tuple(images),
        answer="",
        annotations={"system": texts[0]} if len(texts) > 1 else {},
    )


def _mere(processor: Processor, text: str) -> str:
    """Text that spells none of the tokenizer's added tokens, `<think>` neither."""
    return literal(taken_apart(text, processor.tokenizer.added_tokens_encoder))


def _picture(url: str) -> bytes:
    head, comma, body = url.partition(",")
    if not comma or not head.startswith("data:image/"):
        raise ValueError(f"pictures come as data URLs, got {url[:40]!r}.")
    try:
        return base64.b64decode(body, validate=True)
    except binascii.Error as error:
        raise ValueError(f"a picture does not decode: {error}.") from error
