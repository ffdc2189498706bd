"""ERGO: a coarse look says where to look closely; the crop must be enough to answer.

"ERGO: Efficient High-Resolution Visual Understanding for Vision-Language Models",
2025, https://arxiv.org/abs/2509.21991; code https://github.com/nota-github/ERGO has
inference alone, so rewards and weights are the paper's as others report them.

    act     y_1..y_G ~ pi_old: a box on the picture of at most N tokens, then, shown
            that part of the original picture with as many, the answer
            R_i = region + 0.5 box + accuracy + format
              region    a frozen reader, shown the crop alone, answers right
              box       area(crop) <= 0.6 area(picture)
    score   log pi_ref(y_i), with an anchor
    credit  A_it = (R_i - mean(R)) / (std(R) + 1e-6), on what the policy wrote in both
            turns
    loss    clipped surrogate (0.2, 0.2) + weight KL(l_it, l_ref_it), mean over each
            response, then over responses

A box that cannot be read pays neither region, box nor format; the whole picture stands
for the crop, and the answer still counts. The words of the prompts are ours, after
those of the code; G, the anchor, and that N is one number are ours too: the paper may
draw it from 640 and 1280. Of several pictures the first is cropped; a row without one
has no box. A column `options` (a list) comes with the crop alone, as does `postfix`,
how to answer.
"""

import functools
import math
import re
from typing import NamedTuple

from PIL import Image

from vrl_jax import advantages, objectives, reductions
from vrl_jax.engine.actor import Actor
from vrl_jax.engine.conversation import Ask, user
from vrl_jax.engine.desk import Limits, OutOfRoom
from vrl_jax.engine.episode import Check, Outcome, Steps
from vrl_jax.engine.reference import Anchor, free
from vrl_jax.engine.tools import as_png, opened
from vrl_jax.programs.acting import act as play
from vrl_jax.rewards.answers import exact, letter_ergo
from vrl_jax.rewards.combine import Reward, fact, weighted
from vrl_jax.rewards.parse import answer_or_rest, first_tag
from vrl_jax.training.clipped_recipe import clipped_recipe
from vrl_jax.training.iteration import Recipe
from vrl_jax.types import ImageRef, Message, Sample, Turn, literal, wording

FIND = """\
{question}

The picture is shown at low resolution. Do not answer yet. Think in <think> and
</think> about where in it the answer is to be found, then give that region, in pixels
of what you see, as <zoom>[left, top, right, bottom]</zoom>."""

ZOOMED = """\
<image>This is the region, closer.

{question}

Write the answer in <answer> and </answer>."""

UNSEEN = """\
{question}

Write the answer in <answer> and </answer>."""

_FOUR = re.compile(r"\[\s*" + r"\s*,\s*".join([r"(\d{1,9})"] * 4) + r"\s*\]")

LONGEST = 200
"""How many times as long as wide a crop may be: what Qwen-VL takes."""

Box = tuple[int, int, int, int]


class Look(NamedTuple):
    """What is shown for a region, and whether it came from a box that could be read."""

    picture: bytes
    share: float
    """of the whole picture's area"""
    found: bool


def right_answer(sample: Sample, turn: Turn) -> bool:
    """A letter where the row's answer is one, else the same text in answer tags."""
    if _is_letter(sample.answer):
        return letter_ergo(turn.text, sample.answer)
    return exact(answer_or_rest(turn.text), sample.answer)


def _is_letter(answer: str) -> bool:
    return re.fullmatch("[A-Za-z]", answer.strip()) is not None


def coarse_to_fine(
    sample: Sample,
    *,
    right: Check = right_answer,
    tokens: int = 640,
    side: int = 28,
    share: float = 0.6,
    find: str = FIND,
    zoomed: str = ZOOMED,
) -> Steps:
    """Two turns with a crop between them; the facts region, box, accuracy and format.

    `tokens` bound each picture that is shown, `side` pixels each way a token: see
    `fitted`. A region for which there is no room earns nothing.
    """
    coarse = [shrunk(image, tokens, side) for image in sample.images]
    opening = user(find.format(question=sample.question), coarse)
    pointed = yield Ask((opening,))
    facts = {"region": 0, "box": 0, "accuracy": 0, "format": 0, "zoom/share": 1.0}
    look = closer(sample.images[0], pointed.text, tokens, side) if coarse else None
    shown = asked_closely(sample, look, zoomed)
    try:
        said = yield Ask((opening, pointed, shown))
    except OutOfRoom:
        return Outcome((pointed,), {**facts, "ended/crop did not fit": 1})
    facts["accuracy"] = int(right(sample, said))
    if look is not None and look.found:
        facts["zoom/share"] = look.share
        facts["box"] = int(look.share <= share)
        facts["format"] = int(_laid_out(pointed.text, said.text))
        try:
            reply = yield Ask((shown,), model="reader")
            facts["region"] = int(right(sample, reply))
        except OutOfRoom:
            facts["reader/crop did not fit"] = 1
    return Outcome((pointed, said), facts)


def ergo_reward(*, region: float = 1.0, box: float = 0.5) -> Reward:
    """region + box + accuracy + format, weighted: after `coarse_to_fine`."""
    weights = {"region": region, "box": box, "accuracy": 1.0, "format": 1.0}
    return weighted({name: (fact(name), weight) for name, weight in weights.items()})


def fitted(width: int, height: int, *, tokens: int, side: int = 28) -> tuple[int, int]:
    """Width and height in whole tokens, at least 4 and about `tokens` of them at most.

    A large picture is made smaller by the square root of its area, then each side is
    rounded to a multiple of `side`, halves to even, which may give a twentieth more
    than `tokens`. A small one grows, each side rounded up.
    """
    area, most, least = width * height, tokens * side**2, 4 * side**2
    scale, whole = math.sqrt(max(area / most, 1)), round
    if area < least:
        scale, whole = math.sqrt(area / least), _upwards
    across, down = (max(whole(x / scale / side), 1) * side for x in (width, height))
    return across, down


def _upwards(x: float) -> int:
    return math.ceil(x - 1e-9)  # what is whole but for rounding stays


@functools.lru_cache(maxsize=16)  # a group looks at one picture
def shrunk(image: ImageRef, tokens: int, side: int) -> bytes:
    """The picture in at most about `tokens` tokens."""
    return _png(opened(image), tokens, side)


def closer(image: ImageRef, text: str, tokens: int, side: int) -> Look:
    """The region that the text names in its zoom tag; the whole picture if it does not.

    The box is in pixels of what `shrunk` shows.
    """
    picture, box = opened(image), zoom_box(text)
    if box is not None:
        shown = fitted(picture.width, picture.height, tokens=tokens, side=side)
        cut = in_original(box, shown, picture.size)
        if _shows(cut[2] - cut[0], cut[3] - cut[1], tokens, side):
            part = picture.crop(cut)
            share = part.width * part.height / (picture.width * picture.height)
            return Look(_png(part, tokens, side), share, True)
    return Look(shrunk(image, tokens, side), 1.0, False)


def _shows(width: int, height: int, tokens: int, side: int) -> bool:
    """It has an area, and no model refuses it for being much longer than wide."""
    if min(width, height) < 1:
        return False
    shown = fitted(width, height, tokens=tokens, side=side)
    return max(shown) <= LONGEST * min(shown)


def zoom_box(text: str) -> Box | None:
    """The one list of four whole numbers that the zoom tag holds, or None."""
    inside = first_tag(text, "zoom")
    found = _FOUR.findall(inside or "")
    if len(found) != 1 or inside.count("[") != 1:
        return None
    left, top, right, bottom = map(int, found[0])
    return left, top, right, bottom


def in_original(box: Box, shown: tuple[int, int], original: tuple[int, int]) -> Box:
    """Pixels of the original picture, cut off to whole ones, inside of it."""
    scaled = (
        min(int(value * original[axis % 2] / shown[axis % 2]), original[axis % 2])
        for axis, value in enumerate(box)
    )
    left, top, right, bottom = scaled
    return left, top, right, bottom


def _png(picture: Image.Image, tokens: int, side: int) -> bytes:
    size = fitted(picture.width, picture.height, tokens=tokens, side=side)
    return as_png(picture.resize(size, Image.Resampling.LANCZOS))


def asked_closely(sample: Sample, look: Look | None, zoomed: str) -> Message:
    """What follows the zoom: the crop, the question, options and postfix under it.

    Of a row without a picture no crop is spoken of: `UNSEEN`.

    `ValueError` where options are no list.
    """
    words = literal(wording(sample.question))
    options = sample.annotations.get("options") or []
    if isinstance(options, str):
        raise ValueError(f"{sample.id}: `options` must be a list, got {options!r}.")
    usual = "Answer with the letter alone." if _is_letter(sample.answer) else ""
    postfix = sample.annotations.get("postfix") or usual
    lettered = [_lettered(at) for at in enumerate(map(str, options)) if at[1]]
    lines = [words, *lettered, postfix]
    question = "\n".join(filter(None, lines))
    if look is None:
        return user(UNSEEN.format(question=question))
    return user(zoomed.format(question=question), [look.picture])


def _lettered(numbered: tuple[int, str]) -> str:
    """An option behind its letter, which it may have already."""
    number, option = numbered
    letter = chr(ord("A") + number)
    has = re.match(rf"\(?{letter}[.:)]", option)
    return option if has else f"{letter}. {option}"


def _laid_out(pointed: str, said: str) -> bool:
    """Think, then zoom; then an answer in its tags."""
    thought = re.fullmatch(
        r"\s*<think>.*</think>\s*<zoom>[^<]*</zoom>\s*", pointed, re.DOTALL
    )
    return thought is not None and first_tag(said, "answer") is not None


def ergo(
    *,
    reader: Actor,
    group_size: int = 8,
    right: Check = right_answer,
    tokens: int = 640,
    side: int = 28,
    share: float = 0.6,
    find: str = FIND,
    zoomed: str = ZOOMED,
    anchor: Anchor = free,
    limits: Limits | None = None,
    clip: float = 0.2,
) -> Recipe:
    """`reader` is frozen: the paper's has 72B. The actor's reward is `ergo_reward()`.

    Both turns and the crop between them must fit `row_tokens` of the `limits`, their
    pictures its `pictures`: `play/ended/crop did not fit` counts what does not. The
    processor's bounds must let through what `fitted` gives, from 4 tokens to 1.05 times
    `tokens`, or boxes are read on another scale; `side` is 32 for Qwen3-VL.
    """
    asks = {
        "right": right,
        "tokens": tokens,
        "side": side,
        "share": share,
        "find": find,
        "zoomed": zoomed,
    }
    act = functools.partial(
        play,
        program=functools.partial(coarse_to_fine, **asks),
        group_size=group_size,
        models={"reader": reader},
        limits=limits,
    )
    return clipped_recipe(
        act,
        advantage=functools.partial(advantages.group_zscore, group_size=group_size),
        surrogate=objectives.clipped_surrogate,
        reduction=reductions.sequence_mean,
        anchor=anchor,
        clip_low=clip,
        clip_high=clip,
    )
