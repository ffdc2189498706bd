"""What flows between the host, the sampler and the learner.

Host side: `Sample` -> `Episode` -> scores. Device side: frozen dataclasses of
arrays, registered as pytrees. Axis names, everywhere in the library:

    P  distinct prompts            B  responses, B = P * G, those of a prompt together
    E  episodes                       of one response each, unless they say otherwise
    G  responses of one prompt     T  response tokens (right-padded)
    L  prompt tokens               K  packs, each of P / K consecutive prompts
    N  image patches of one pack   M  merged image tokens of a pack, N / 4
    C  values of one flattened patch
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Bool, Float, Int, Shaped

PLACEHOLDER = "<image>"
"""Stands for a picture in a question; a backslash before it makes it mere text."""

MARKS = (
    "<|",
    "<start_of_turn>",
    "<end_of_turn>",
    "<start_of_image>",
    "<end_of_image>",
    "<image_soft_token>",
)
"""What the names of tokens for turns and pictures begin with: Qwen's, then Gemma's."""

ImageRef = bytes | str
"""An encoded picture (PNG, JPEG, ...) or the path of one; decoded when it is used."""


def _pytree(cls: type) -> type:
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls))


def _static(default: int) -> Any:
    """A field that is part of the shape: jit compiles for each of its values."""
    return dataclasses.field(default=default, metadata={"static": True})


@dataclasses.dataclass(frozen=True)
class Sample:
    """One row of a data set: a question about pictures, and its answer.

    `question` holds one `<image>` for each picture, in order. `annotations`
    carries every other column of the row, so that rewards and logs see it.
    """

    id: str
    source: str
    question: str
    images: tuple[ImageRef, ...]
    answer: str
    annotations: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def text_pieces(question: str) -> list[str]:
    r"""The text before, between and after the placeholders; `\<image>` is unescaped."""
    pieces = re.split(rf"(?<!\\){PLACEHOLDER}", question)
    return [piece.replace(rf"\{PLACEHOLDER}", PLACEHOLDER) for piece in pieces]


def wording(question: str) -> str:
    r"""The text of a question without its placeholders; `\<image>` is unescaped."""
    return "".join(text_pieces(question)).strip()


def taken_apart(text: str, marks: Iterable[str]) -> str:
    """With a blank behind the first character of each mark: it is mere text."""
    for mark in marks:
        text = text.replace(mark, f"{mark[:1]} {mark[1:]}")
    return text


def plain(text: str) -> str:
    """Text that spells no token of a turn or a picture, for a model's own mouth."""
    return taken_apart(text, MARKS)


def literal(text: str) -> str:
    r"""The same for a message, `\<image>` too: what a model or a tool wrote.

    Nothing in it ends a turn, begins one or stands for a picture. Other words in angle
    brackets, such as `<think>` or `<tool_call>`, stay as they are.
    """
    return plain(text).replace(PLACEHOLDER, f"\\{PLACEHOLDER}")


@dataclasses.dataclass(frozen=True)
class Message:
    """What is said to a model: text with one `<image>` for each picture, in order.

    The `role` is that of a chat template, or `tools`: what tells of tools, under the
    system message or, where there is none, the template's own.
    """

    text: str
    images: tuple[ImageRef, ...] = ()
    role: str = "user"


class ImageSize(NamedTuple):
    """Pixels of a picture as it came, and as the model sees it."""

    original_height: int
    original_width: int
    height: int
    width: int


@dataclasses.dataclass(frozen=True)
class Turn:
    """One stretch of an episode: what the policy wrote, or what it was told.

    The first `given` tokens of what it wrote were put into its mouth. `finished` is
    False where the token budget ended it. `logprob` is the sum of log q over the tokens
    that were drawn, q being what they were drawn from: with `allowed` ids, among those.
    `read` counts all tokens before the first of these. `number` is that of its ask in
    the episode, by which the engine knows it again, also with other facts or text; None
    where nobody was asked. `told` is what was new in that ask, behind the turn before
    or in a context of its own; the prompt of the episode is not.
    """

    text: str
    tokens: tuple[int, ...]
    chosen: bool = True
    given: int = 0
    finished: bool = True
    images: tuple[ImageRef, ...] = ()
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    logprob: float = dataclasses.field(default=0.0, compare=False)
    number: int | None = dataclasses.field(default=None, compare=False)
    read: int = dataclasses.field(default=0, compare=False)
    told: tuple[Message, ...] = dataclasses.field(default=(), compare=False)


@dataclasses.dataclass(frozen=True)
class Episode:
    """What happened for one sample: the prompt as text, then turns.

    `finished` is False where the token budget ended the last turn, or where a fact
    `ended/...` says why it went no further. `step` counts the training steps before
    this one, of `total_steps`; both are 0 in an evaluation. `facts` are those of the
    whole episode: numbers that are logged, NaN where unknown, and why it ended.
    """

    sample: Sample
    prompt: str
    turns: tuple[Turn, ...]
    finished: bool
    image_sizes: tuple[ImageSize, ...] = ()
    step: int = 0
    total_steps: int = 0
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def text(self) -> str:
        """The policy's last words: what most rewards read; "" where it said nothing."""
        return next((turn.text for turn in reversed(self.turns) if turn.chosen), "")


@_pytree
class Images:
    """The patches of the pictures of consecutive prompts, a pack a row.

    `frames` numbers the pictures of a pack from 1; 0 marks padding. `coordinates` are
    (row, column) in patches. Patches lie in window order, four of a merged token
    together, and each picture whole in one of the stretches of `block` patches; 0 is
    one stretch. `origins` says where a patch comes from: (prompt of the pack from 0,
    picture of that prompt from 1, place among that prompt's patches), -1 for none; it
    is None for the pictures of a prompt alone, in their order, as views see them.
    """

    patches: Float[Array, "K N C"]
    coordinates: Int[Array, "K N 2"]
    frames: Int[Array, "K N"]
    origins: Int[Array, "K N 3"] | None = None
    block: int = _static(0)


@_pytree
class Prompts:
    """Right-padded prompts.

    `positions` are the (time, height, width) positions of mRoPE. `slots` is 0 for
    text and m + 1 where merged image token m of the prompt's pack stands.
    """

    tokens: Int[Array, "P L"]
    mask: Bool[Array, "P L"]
    positions: Int[Array, "P L 3"]
    slots: Int[Array, "P L"]
    images: Images


@_pytree
class Shown:
    """Pictures that stand in the responses, between turns.

    As in `Prompts`, but each response has its own.
    """

    slots: Int[Array, "B T"]
    images: Images


@_pytree
class Rollout:
    """Sampled responses with what the sampler and the rewards said of them.

    `mask` is True where the policy chose the token; where it is not, before the
    response's last token, stands what the policy was told between its turns.
    `temperature` is what the sampler divided the logits by; scoring divides by it
    again. `log_kept` is the log of the mass that top-k, top-p and a request's allowed
    ids left of the policy; scoring subtracts it, None is 0. `shown` are the pictures
    between turns. `views` are other pictures for the same prompts, where a loss looks
    at them itself. `states` are the final hidden states that predicted the tokens,
    where the actor notes them; `divergences` are of the whole next-token distribution,
    from another view's. `extra` is whatever else `credit` needs for each token: what a
    critic says of its state, or a row of its action.

    Rewards and group are those of E episodes. An episode with several contexts has as
    many rows: row b belongs to episode `episode[b]`, and is its row number `place[b]`.
    Where both are None, row b is episode b. `facts` are numbers that the engine and the
    program noted of an episode: turns, calls, errors.
    """

    prompts: Prompts
    tokens: Int[Array, "B T"]
    positions: Int[Array, "B T 3"]
    mask: Bool[Array, "B T"]
    temperature: Float[Array, " B"]
    old_logprobs: Float[Array, "B T"]
    extra_logprobs: dict[str, Float[Array, "B T"]]
    rewards: Float[Array, " E"]
    reward_parts: dict[str, Float[Array, " E"]]
    group: Int[Array, " E"]
    log_kept: Float[Array, "B T"] | None = None
    states: Float[Array, "B T H"] | None = None
    shown: Shown | None = None
    episode: Int[Array, " B"] | None = None
    place: Int[Array, " B"] | None = None
    facts: dict[str, Float[Array, " E"]] = dataclasses.field(default_factory=dict)
    views: dict[str, Images] = dataclasses.field(default_factory=dict)
    divergences: dict[str, Float[Array, "B T"]] = dataclasses.field(
        default_factory=dict
    )
    extra: dict[str, Shaped[Array, "B T"]] = dataclasses.field(default_factory=dict)


@_pytree
class Batch:
    """What a loss reads: the tokens to score, and what `credit` said of them.

    `extra` is whatever else the loss of one method needs for each token: log-probs of
    another policy or view, or whose tokens they are.
    """

    prompts: Prompts
    tokens: Int[Array, "B T"]
    positions: Int[Array, "B T 3"]
    mask: Bool[Array, "B T"]
    temperature: Float[Array, " B"]
    old_logprobs: Float[Array, "B T"]
    advantages: Float[Array, "B T"]
    extra: dict[str, Shaped[Array, "B T"]] = dataclasses.field(default_factory=dict)
    log_kept: Float[Array, "B T"] | None = None
    shown: Shown | None = None
    views: dict[str, Images] = dataclasses.field(default_factory=dict)


class Likelihood(NamedTuple):
    """Per-token log-probability and exact entropy in nats; 0 on padding.

    `values` is what each critic of the policy says of the state that predicts the
    token, having read all before it; 0 on padding, and empty without critics.
    """

    logprobs: Float[Array, "B T"]
    entropy: Float[Array, "B T"]
    values: Mapping[str, Float[Array, "B T"]] = {}


class Mean(NamedTuple):
    """A sum and what it must be divided by, kept apart until the learner divides."""

    total: Float[Array, ""]
    weight: Float[Array, ""]


class Max(NamedTuple):
    """The largest of what is never negative."""

    value: Float[Array, ""]
