"""Pairs of regions and answers, made by the policy and picked by judges.

The data of VisRL, https://arxiv.org/abs/2503.07523: `preferences` makes the rows that
`recipes.visrl` learns from.
"""

import collections
import dataclasses
import functools
import itertools
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Key

from vrl_jax import geometry
from vrl_jax.engine import tools
from vrl_jax.engine.actor import Actor
from vrl_jax.engine.conversation import Ask, user
from vrl_jax.engine.desk import Limits
from vrl_jax.engine.episode import Check, Outcome, Steps
from vrl_jax.engine.play import play
from vrl_jax.models.front_end import load_image, on_white
from vrl_jax.programs.acting import played, scored
from vrl_jax.programs.demonstrations import fits
from vrl_jax.programs.regions import (
    FIND,
    ZOOMED,
    Box,
    ReadBox,
    asked_closely,
    cut,
    spelled_box,
    unit_box,
)
from vrl_jax.rewards.combine import Reward, weighted
from vrl_jax.rewards.judge import AnswersQuestions, judged, picture_part
from vrl_jax.rewards.parse import json_text, read_json
from vrl_jax.types import Episode, Sample, Turn, literal, wording

ALONE = """\
<image>{question}

Write the answer in <answer> and </answer>."""

ANSWER_RULE = """\
Below are a question about a picture, the reference answer, and a response. How well
does the response agree with the reference answer? Wording does not matter. Reply with
JSON alone, {"score": x}, x from 0, it is wrong, to 1, it is right."""

CROP_RULE = """\
The picture is a part of a larger one. Below are a question about that one and the
reference answer. Can the answer be had from this part alone? Reply with JSON alone,
{"score": x}, x from 0, nothing of it is to be seen, to 1, all is."""


def elsewhere(box: Box, drawn: random.Random, *, tries: int = 100) -> Box | None:
    """A random box that shares nothing with this one and is of similar size.

    Its sides are within 30 % of this one's, within 40 % after 20 tries, and so on.
    None where no try finds one.
    """
    left, top, right, bottom = box
    for number in range(tries):
        within = 0.3 + 0.1 * (number // 20)
        wide, high = (
            min(side * drawn.uniform(1 - within, 1 + within), 1.0)
            for side in (right - left, bottom - top)
        )
        x, y = (drawn.uniform(0, 1 - side) for side in (wide, high))
        if x >= right or x + wide <= left or y >= bottom or y + high <= top:
            return x, y, x + wide, y + high
    return None


def two_candidates(
    sample: Sample,
    *,
    seed: Sequence[int],
    overlap: float = 0.05,
    find: str = FIND,
    zoomed: str = ZOOMED,
    read_box: ReadBox = unit_box,
    spell_box: Callable[[Box], str] = spelled_box,
) -> Steps:
    """One attempt: box and answer that may be good, box and answer that may be bad.

    A box is told, with its crop, not as the policy wrote it. A box that is drawn
    follows from the seed and the sample's id. Without two boxes that can be cut out
    there is no candidate, and a fact `ended/...` says why.
    """
    asked = user(find.format(question=sample.question), sample.images)
    pointing = Ask((asked,), trained=False)
    pointed = yield (pointing, pointing)
    good, bad = (read_box(turn.text) for turn in pointed)
    if good is None or bad is None:
        return Outcome((), {"ended/no box": 1})
    if geometry.iou(np.array(good), np.array(bad)) > overlap:
        bad = elsewhere(good, random.Random(f"{seed} {sample.id}"))
        if bad is None:
            return Outcome((), {"ended/no place elsewhere": 1})
    spelled = [spell_box(box) for box in (good, bad)]
    # Cut by their words, as they will be when they are learnt.
    crops = [cut(sample, read_box(text)) for text in spelled]
    if None in crops:
        return Outcome((), {"ended/no crop": 1})
    said = yield [
        Ask((asked_closely(sample, crop, zoomed),), trained=False) for crop in crops
    ]
    boxes = [
        Turn(text, (), chosen=False, images=(crop,))
        for text, crop in zip(spelled, crops, strict=True)
    ]
    return Outcome((boxes[0], said[0], boxes[1], said[1]))


def preferences(
    actor: Actor,
    samples: Sequence[Sample],
    key: Key[Array, ""],
    *,
    accuracy: Reward,
    accuracy_bbox: Reward,
    attempts: int = 3,
    temperature: float = 2.0,
    high: float = 0.8,
    low: float = 0.2,
    program: Callable[..., Steps] = two_candidates,
    size: int | None = None,
    limits: Limits | None = None,
) -> tuple[list[Sample], dict[str, int]]:
    """The samples of which pairs could be made, with them; and counts of everything.

    Such a row has the columns chosen_step and rejected_step, boxes, and chosen and
    rejected, answers. The rewards judge the candidates of a question, episodes whose
    `text` is the answer and whose first turn is the box, its crop the turn's picture:
    `answer_agrees` and `crop_suffices` ask a judge. A judge that is a model on the
    mesh of several processes needs an actor with rewards_everywhere. `size` samples are
    played at a time, by default `prompts_per_pass`.

    Counted are questions, attempts and candidates, and under each what was dropped, by
    its reason: ended attempts; candidates that are cut off, that are too long to be
    learnt within the same limits, spelled again, or that have no score; questions
    without a picture and those that `picked` finds no pair in.
    """
    rewards = {"accuracy": (accuracy, 1.0), "accuracy_bbox": (accuracy_bbox, 0.0)}
    actor = dataclasses.replace(
        actor, temperature=temperature, reward=weighted(rewards)
    )
    counts = collections.Counter({"questions": len(samples)})
    shown = [sample for sample in samples if sample.images]
    counts["questions/no picture"] = len(samples) - len(shown)
    found: list[list[Episode]] = [[] for _ in shown]
    budget = actor.max_new_tokens
    most = min(budget, (limits or Limits()).row_tokens or budget)
    learnable = functools.partial(fits, actor.processor, most=most)
    for again in jax.random.split(key, attempts):
        draw_key, play_key = jax.random.split(again)
        seed = jax.random.key_data(draw_key).tolist()
        trial = functools.partial(program, seed=seed)
        episodes = played(actor, trial, shown, play_key, size=size, limits=limits)
        for candidates, episode in zip(found, episodes, strict=True):
            candidates += _candidates(episode, learnable, counts)
    verdicts = iter(scored(actor, [*filter(None, found)]))
    pairs = []
    for sample, candidates in zip(shown, found, strict=True):
        scores = [
            tuple(score.get(name, math.nan) for name in rewards)
            for score in itertools.islice(verdicts, len(candidates))
        ]
        counts["candidates/no score"] += sum(any(map(math.isnan, s)) for s in scores)
        pair = picked(scores, high=high, low=low)
        if isinstance(pair, str):
            counts[f"questions/{pair}"] += 1
            continue
        better, worse = (candidates[place] for place in pair)
        pairs.append(_as_row(sample, better, worse))
    counts["pairs"] = len(pairs)
    return pairs, dict(counts)


def _as_row(sample: Sample, better: Episode, worse: Episode) -> Sample:
    columns = {
        "chosen_step": better.turns[0].text,
        "rejected_step": worse.turns[0].text,
        "chosen": better.text,
        "rejected": worse.text,
    }
    return dataclasses.replace(sample, annotations={**sample.annotations, **columns})


def _candidates(
    episode: Episode,
    learnable: Callable[[str], bool],
    counts: collections.Counter[str],
) -> list[Episode]:
    """The two of an attempt, each a box and an answer, but for what cannot be learnt.

    Counts the attempt, and what it lacks.
    """
    counts["attempts"] += 1
    ends = [fact for fact in episode.facts if fact.startswith("ended/")]
    if ends:
        counts[f"attempts/{ends[0].removeprefix('ended/')}"] += 1
        return []
    both = [episode.turns[:2], episode.turns[2:]]
    whole = [turns for turns in both if turns[-1].finished]
    counts["candidates"] += len(both)
    counts["candidates/cut off"] += len(both) - len(whole)
    kept = [turns for turns in whole if all(learnable(turn.text) for turn in turns)]
    counts["candidates/too long"] += len(whole) - len(kept)
    return [dataclasses.replace(episode, turns=turns) for turns in kept]


def picked(
    scores: Sequence[tuple[float, float]], *, high: float = 0.8, low: float = 0.2
) -> tuple[int, int] | str:
    """Places of the chosen and of the rejected candidate, or why there is no pair.

    Scores are of answer and crop; a candidate with a NaN is passed over. The best
    answer must score `high` at least, the worst `low` at most, and of each the first
    whose crop does so too is taken.
    """
    if not low < high:
        raise ValueError(f"a pair needs low < high, got low={low}, high={high}.")
    known = [
        (place, answer, crop)
        for place, (answer, crop) in enumerate(scores)
        if not math.isnan(answer) and not math.isnan(crop)
    ]
    if not known:
        return "no candidate"
    answers = [answer for _, answer, _ in known]
    best, worst = max(answers), min(answers)
    if best < high:
        return "too hard"
    if worst > low:
        return "too easy"
    chosen = [place for place, answer, crop in known if answer == best and crop >= high]
    rejected = [
        place for place, answer, crop in known if answer == worst and crop <= low
    ]
    if not chosen:
        return "no good crop"
    if not rejected:
        return "no bad crop"
    return chosen[0], rejected[0]


def score_in(reply: str) -> float | None:
    """{"score": x} with x in [0, 1], else None: Judge(endpoint, read=score_in)."""
    found = read_json(json_text(reply))
    score = found.get("score") if isinstance(found, dict) else None
    if not isinstance(score, int | float) or isinstance(score, bool):
        return None
    return float(score) if 0 <= score <= 1 else None


def answer_agrees(judge: AnswersQuestions, *, rule: str = ANSWER_RULE) -> Reward:
    """`accuracy`: the judge sees pictures, question, reference answer and response.

    It reads replies by `score_in`.
    """

    def ask(episode: Episode) -> list[dict[str, Any]]:
        pictures = [load_image(image, on_white) for image in episode.sample.images]
        text = f"{_question(rule, episode)}\nResponse: {episode.text}"
        return _asked([*map(tools.as_png, pictures)], text)

    return judged(judge, ask)


def crop_suffices(judge: AnswersQuestions, *, rule: str = CROP_RULE) -> Reward:
    """`accuracy_bbox`: the judge sees the crop alone, question and reference answer.

    It reads replies by `score_in`.
    """

    def ask(episode: Episode) -> list[dict[str, Any]]:
        return _asked(episode.turns[0].images, _question(rule, episode))

    return judged(judge, ask)


def _question(rule: str, episode: Episode) -> str:
    asked, wanted = wording(episode.sample.question), episode.sample.answer
    return f"{rule}\n\nQuestion: {asked}\nReference answer: {wanted}"


def _asked(pictures: Sequence[bytes], text: str) -> list[dict[str, Any]]:
    content = [*map(picture_part, pictures), {"type": "text", "text": text}]
    return [{"role": "user", "content": content}]


def crop_is_read(
    reader: Actor, right: Check, *, alone: str = ALONE, limits: Limits | None = None
) -> Reward:
    """`accuracy_bbox` without words: 1 where `reader`, shown the crop alone, is right.

    Its answer is greedy. A crop for which it has no room is unscored.
    """

    def read(sample: Sample) -> Steps:
        asked = literal(wording(sample.question))
        shown = user(alone.format(question=asked), sample.images)
        return (yield Ask((shown,), top_k=1))

    def reward(episodes: Sequence[Episode]) -> list[float]:
        crops = [
            dataclasses.replace(episode.sample, images=episode.turns[0].images)
            for episode in episodes
        ]
        key = jax.random.key(0)  # greedy: nothing is drawn
        groups = play(reader, read, crops, key, limits=limits)
        return [
            float(right(one.episode.sample, one.episode.turns[-1]))
            if one.rows
            else math.nan
            for (one,) in groups
        ]

    return reward
