"""STIC: a model prefers its careful descriptions to those it was led into.

"Enhancing Large Vision Language Models with Self-Training on Image Comprehension", Deng
et al., 2024, https://arxiv.org/abs/2405.19716; code https://github.com/yihedeng9/STIC.

    before  of each unlabelled picture, by pi_ref at temperature 0.2 (`preferences`):
            y_1 ~ (. | image, a detailed prompt);  q = one of eight plain prompts;
            y_2 ~ (. | image, one of eight misleading prompts), or, half of the time,
            (. | corrupted image, q)
    act     y_1, then y_2, both as answers to the clean image and q
    score   log pi_ref(y_i | image, q)
    credit  nothing
    loss    -log sigmoid(0.1 (h_1 - h_2)) - log pi(y_1) / 1024,
            h_i = sum_t log(pi / pi_ref), mean over pairs

The pairs are learnt by `stic(reference=params)`, of the params that wrote them; then
`sft()` on instruction data with the model's own descriptions before the questions
(`described`). The paper: 6000 pictures, learning rate 1e-7, one epoch of pairs of 8;
5000 rows, 2e-5, one epoch, from where the pairs have led; LoRA of rank 128 in both.

The loss is the paper's. The code takes, in place of the rejected tokens' own log-probs,
those of the most likely other tokens. Pairs with a description that was cut off, or
empty, are left out here and told; the code keeps them. It draws colours from a
generator that its seed does not reach; here all draws follow from the key and the row's
id. A picture of 20 pixels is enlarged by the model's own processor: Qwen-VL then has
fewer tokens of it, where LLaVA has as many. The words of the prompts are ours.
"""

import dataclasses
import functools
import random
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
from jaxtyping import Array, Key
from PIL import Image, ImageEnhance

from vrl_jax import preference
from vrl_jax.engine.actor import Actor
from vrl_jax.engine.conversation import Ask, user
from vrl_jax.engine.episode import Steps
from vrl_jax.engine.processing import encode_one, question
from vrl_jax.engine.tools import as_png
from vrl_jax.models.front_end import load_image, on_white
from vrl_jax.models.policy import Params
from vrl_jax.programs.acting import played
from vrl_jax.programs.demonstrations import fits, preference_pairs
from vrl_jax.training.iteration import Recipe
from vrl_jax.training.pair_recipe import Side, pair_recipe
from vrl_jax.types import PLACEHOLDER, Episode, ImageRef, Sample, literal

DETAILED = """\
Go through the picture step by step, then describe it at length.
1. Who or what is in it, and what are they doing?
2. Where and when is it: the place, the time, what lies around?
3. Which mood does it have, and what in it makes that mood?
4. Which colours are there, and how is the picture composed?
5. Which small things tell more than they seem to, or stand for something?
6. What does all of this say together?
Write one connected text. Say only what can be seen, or follows from it."""

PLAIN = (
    "What does this picture show?",
    "Put the picture into words.",
    "Tell somebody who cannot see it what is in this picture.",
    "Give an account of the picture.",
    "What is there to be seen here? Describe it.",
    "Write down what you see.",
    "How would you describe this picture over the telephone?",
    "Say in a few sentences what is in the picture.",
)

MISLEADING = (
    "Describe the picture, and add things that would go well with it.",
    "Tell what is in the picture and what probably lies just outside, as one scene.",
    "Describe the picture as if there were a few more people or animals in it.",
    "Write a lively account of the picture; where it shows little, make something up.",
    "Describe the picture, and name what is usually found in such a place.",
    "Say what else could be going on here, and describe it along with the rest.",
    "Describe the picture as it looks after three more objects were put into it.",
    "Tell a friend what the picture shows. Exaggerate: more things, more colours.",
)

Corruption = Callable[[Image.Image], Image.Image]


class Contrast(NamedTuple):
    """What was drawn for a row: the prompt of its pair, and one of two ways to err.

    `misleading` is empty where the picture is corrupted.
    """

    plain: str
    misleading: str
    corrupt: Corruption | None


class Made(NamedTuple):
    """Rows, and the ids of those whose descriptions have a fault, by its kind.

    "cut off", "empty", "too long" to be spelled again or, before a question, for the
    prompt's room, or what ended the episode, such as "OutOfRoom".
    """

    samples: list[Sample]
    faults: dict[str, list[str]]


def stic(
    *, reference: Params | None = None, beta: float = 0.1, alpha: float = 1 / 1024
) -> Recipe:
    """On the rows of `preferences`; `reference` is the policy that wrote them.

    It stays what it is. None takes the policy before each iteration: all margins then
    start at 0 in each, and nothing ties the policy to where it began.
    """

    def pair_loss(chosen: Side, rejected: Side) -> Array:
        return preference.dpo_with_likelihood(
            chosen.gain, rejected.gain, chosen.logprob, beta=beta, alpha=alpha
        )

    return pair_recipe(preference_pairs, pair_loss=pair_loss, reference=reference)


def preferences(
    actor: Actor,
    samples: Sequence[Sample],
    key: Key[Array, ""],
    *,
    detailed: str = DETAILED,
    plain: Sequence[str] = PLAIN,
    misleading: Sequence[str] = MISLEADING,
    temperature: float = 0.2,
    size: int | None = None,
) -> Made:
    """Two descriptions of each sample's pictures as a row: `chosen` and `rejected`.

    The row asks the plain prompt of the clean pictures, and its answer is the chosen
    text; `image_corruption` and `hallu_prompt` say how the rejected one came about. A
    sample's own question is not read. Descriptions end after the actor's
    max_new_tokens, 1024 in the paper; faulty pairs are left out. `size` samples are
    played at a time, by default `prompts_per_pass`. `ValueError` where a sample has no
    picture.
    """
    draw_key, play_key = jax.random.split(key)
    seed = jax.random.key_data(draw_key).tolist()
    drawn = functools.partial(contrast, seed=seed, plain=plain, misleading=misleading)
    program = functools.partial(
        two_descriptions, drawn=drawn, detailed=detailed, temperature=temperature
    )
    _check_pictures(samples)
    pairs, faults = [], {}
    for episode in played(actor, program, samples, play_key, size=size):
        if fault := _fault(episode) or _unlearnable(actor, episode):
            faults.setdefault(fault, []).append(episode.sample.id)
        else:
            pairs.append(_pair(episode, drawn(episode.sample)))
    return Made(pairs, faults)


def described(
    actor: Actor,
    samples: Sequence[Sample],
    key: Key[Array, ""],
    *,
    plain: Sequence[str] = PLAIN,
    temperature: float = 0.2,
    size: int | None = None,
) -> Made:
    """The samples, with the actor's own description before each question: for `sft()`.

    It stands behind the placeholders that the question begins with, and before a blank
    line; later turns of a `demonstration` stay as they are, and where there is none the
    answer becomes it. A description that was cut off is used, for it is read and not
    learnt. Without one, or where the prompt has no room for it, the question stays as
    it was. All are told.

    The paper's describe-and-respond is this with questions to be measured, and then
    `evals.held_out.answers`. `programs.describe_then_answer` is another thing: who
    answers there does not see the picture.
    """
    draw_key, play_key = jax.random.split(key)
    seed = jax.random.key_data(draw_key).tolist()

    def program(sample: Sample) -> Steps:
        prompt = _generator(sample, seed).choice(plain)
        said = yield _ask(sample, prompt, sample.images, temperature)
        return (said,)

    _check_pictures(samples)
    rows, faults = [], {}
    for episode in played(actor, program, samples, play_key, size=size):
        fault, row = _fault(episode), _behind(episode.sample, episode.text.strip())
        if episode.text.strip() and not _has_room(actor, row):
            fault, row = "too long", _behind(episode.sample, "")
        if fault:
            faults.setdefault(fault, []).append(row.id)
        rows.append(row)
    return Made(rows, faults)


def two_descriptions(
    sample: Sample,
    *,
    drawn: Callable[[Sample], Contrast],
    detailed: str = DETAILED,
    temperature: float = 0.2,
) -> Steps:
    """The one to prefer, then the one that was led astray; neither is trained."""
    plain, misleading, corrupt = drawn(sample)
    images = sample.images
    if corrupt is not None:
        images = [as_png(corrupt(load_image(image, on_white))) for image in images]
    better = _ask(sample, detailed, sample.images, temperature)
    worse = _ask(sample, misleading or plain, images, temperature)
    return (yield [better, worse])


def contrast(
    sample: Sample,
    *,
    seed: Sequence[int],
    plain: Sequence[str] = PLAIN,
    misleading: Sequence[str] = MISLEADING,
) -> Contrast:
    """A plain prompt, and a misleading one or a corruption, each half of the time.

    The corruption is `shrunk` or, half of the time, `recoloured`: brightness times
    0.5..1.5, hues turned by -0.3..0.3.
    """
    generator = _generator(sample, seed)
    prompt = generator.choice(plain)
    if generator.random() < 0.5:
        return Contrast(prompt, generator.choice(misleading), None)
    if generator.random() < 0.5:
        return Contrast(prompt, "", shrunk)
    brightness, hue = generator.uniform(0.5, 1.5), generator.uniform(-0.3, 0.3)
    corrupt = functools.partial(recoloured, brightness=brightness, hue=hue)
    return Contrast(prompt, "", corrupt)


def shrunk(picture: Image.Image, *, side: int = 20) -> Image.Image:
    """The picture with `side` pixels along its shorter side."""
    scale = side / min(picture.size)
    size = (round(picture.width * scale), round(picture.height * scale))
    return picture.resize(size, Image.Resampling.BILINEAR)


def recoloured(picture: Image.Image, *, brightness: float, hue: float) -> Image.Image:
    """`brightness` times as bright, then every hue turned by `hue` of the circle."""
    picture = ImageEnhance.Brightness(picture).enhance(brightness)
    hues, *others = picture.convert("HSV").split()
    turned = hues.point([(value + round(255 * hue)) % 256 for value in range(256)])
    return Image.merge("HSV", (turned, *others)).convert("RGB")


def _check_pictures(samples: Sequence[Sample]) -> None:
    """That there is something to describe in each."""
    for sample in samples:
        if not sample.images:
            raise ValueError(
                f"{sample.id} has no picture to describe in `images`: leave it out."
            )


def _fault(episode: Episode) -> str | None:
    """What is wrong with its descriptions, if anything."""
    ended = [fact for fact in episode.facts if fact.startswith("ended/")]
    if ended:
        return ended[0].removeprefix("ended/")
    if not all(turn.text.strip() for turn in episode.turns):
        return "empty"
    return None if all(turn.finished for turn in episode.turns) else "cut off"


def _unlearnable(actor: Actor, episode: Episode) -> str | None:
    """Whether a description, as the policy would have to write it, is too long."""
    most = actor.max_new_tokens
    learnt = [fits(actor.processor, turn.text, most=most) for turn in episode.turns]
    return None if all(learnt) else "too long"


def _has_room(actor: Actor, sample: Sample) -> bool:
    """Whether its prompt is one that training can read."""
    try:
        encode_one(actor.processor, sample)
    except ValueError:
        return False
    return True


def _pair(episode: Episode, how: Contrast) -> Sample:
    """The clean pictures, the plain prompt and the two descriptions."""
    sample, (better, worse) = episode.sample, episode.turns
    return dataclasses.replace(
        sample,
        question=_shown(sample, how.plain),
        answer=better.text,
        annotations={
            **sample.annotations,
            "chosen": better.text,
            "rejected": worse.text,
            "image_corruption": how.corrupt is not None,
            "hallu_prompt": how.misleading,
        },
    )


def _behind(sample: Sample, description: str) -> Sample:
    """The question behind its description, if there is one."""
    asked = sample.question
    if description:
        front = re.match(rf"(?:\s*{PLACEHOLDER})*\s*", asked).end()
        asked = f"{asked[:front]}{literal(description)}\n\n{asked[front:]}"
    learnt = {"demonstration": sample.answer, **sample.annotations}
    return dataclasses.replace(
        sample, question=asked, annotations={**learnt, "description": description}
    )


def _ask(
    sample: Sample, prompt: str, images: Sequence[ImageRef], temperature: float
) -> Ask:
    told = user(_shown(sample, prompt), images)
    context = (*question(sample)[:-1], told)
    return Ask(context, trained=False, temperature=temperature)


def _shown(sample: Sample, prompt: str) -> str:
    return PLACEHOLDER * len(sample.images) + prompt


def _generator(sample: Sample, seed: Sequence[int]) -> random.Random:
    return random.Random(f"{seed} {sample.id}")
