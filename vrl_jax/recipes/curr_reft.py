"""Curr-ReFT: yes or no first, then one of several, then an open answer.

"Boosting the Generalization and Reasoning of Vision Language Models with Curriculum
Reinforcement Learning", Deng et al., 2025, https://arxiv.org/abs/2503.07065; code
https://github.com/ding523/Curr_REFT.

    act     y_1..y_G ~ pi_old(. | image, q);  R_i = accuracy(y_i) + format(y_i), by
            stage:
            binary  the right one of yes and no
            choice  1 for the right letters, 0.2 for some of them and no other
            open    by the row's task: a box, a set of names, mathematics, words
    score   log pi_ref(y_i | image, q), with an anchor
    credit  A_it = (R_i - mean(R)) / (std(R) + 1e-4)
    loss    clipped surrogate (0.2, 0.2) + weight k3(l_it, l_ref_it), mean over each
            response, then over responses

A stage is this recipe with that stage's reward, on the same pictures; G is 4, 2 and 4
in the code, and its anchor near(reference, weight=0.04). What differs here: of several
words of a verdict the first counts, turned by a "not" before it, where the code finds
"correct" in "no, that is not correct", and none is tried as mathematics; letters are a
set, where it compares their order and pays nothing for a part, 0.2 being the paper's;
an empty answer is in no other. As in the code, a 1 is paid where 12 is right:
mathematics that must not be hacked has `boxed.boxed_math`. Boxes are in the frame of
the row's. A last stage, supervised on the policy's own best answers, is `sft` on rows
that a judge has kept.
"""

import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from vrl_jax import advantages, geometry, objectives, reductions
from vrl_jax.engine.reference import Anchor, free
from vrl_jax.programs.single_turn import single_turn
from vrl_jax.rewards.answers import letters_curr_reft, set_overlap
from vrl_jax.rewards.columns import chosen
from vrl_jax.rewards.combine import Reward, per_response, with_format
from vrl_jax.rewards.format import think_then_answer
from vrl_jax.rewards.math_verifier import MathVerifier
from vrl_jax.rewards.mathruler import mathruler
from vrl_jax.rewards.parse import answer_or_rest
from vrl_jax.rewards.parse_boxes import four_integers
from vrl_jax.training.clipped_recipe import clipped_recipe
from vrl_jax.training.iteration import Recipe
from vrl_jax.types import Episode, Sample

Similarity = Callable[[str, str], float]
"""(answer, the row's answer) -> the cosine of their embeddings."""

_VERDICT = re.compile(
    r"\b(not\s+)?(?:(yes|true|correct)|no|false|incorrect)\b", re.IGNORECASE
)
_BRACES = re.compile(r"\{([^{}]*)\}")


def binary(episodes: Sequence[Episode]) -> list[dict[str, float]]:
    """Stage 1: the row's answer is yes or no."""
    return with_format(per_response(_same_verdict), think_then_answer)(episodes)


def choice(episodes: Sequence[Episode]) -> list[dict[str, float]]:
    """Stage 2: the row's answer is a letter A to E, or some: "A,C"."""
    return with_format(per_response(_letters), think_then_answer)(episodes)


def open_ended(
    verifier: MathVerifier, *, similarity: Similarity | None = None
) -> Reward:
    """Stage 3: by the row's column `task`.

    "detection": IoU > 0.5 with the row's box. "classify": the share of names that both
    have. "math": equal by mathruler's rule, the same letters, or one answer in the
    other. "coco_vqa", where a `similarity` is given: 1 if it is above 0.95, 0.2 above
    0.9.
    """
    mathematics = functools.partial(_mathematics, verifier)
    tasks: dict[str, Reward] = {
        "detection": with_format(per_response(_found), _boxed_answer),
        "classify": with_format(per_response(_names), think_then_answer),
        "math": with_format(mathematics, think_then_answer),
    }
    if similarity is not None:
        close = functools.partial(_close, similarity)
        tasks["coco_vqa"] = with_format(per_response(close), think_then_answer)

    def reward(episodes: Sequence[Episode]) -> Sequence[Mapping[str, float]]:
        sample = episodes[0].sample
        task = sample.annotations.get("task")
        return chosen(sample, "the column 'task'", task, tasks)(episodes)

    return reward


def curr_reft(
    *, group_size: int = 4, clip: float = 0.2, anchor: Anchor = free
) -> Recipe:
    """The actor's reward is that of the stage."""
    return clipped_recipe(
        functools.partial(single_turn, group_size=group_size),
        advantage=functools.partial(
            advantages.group_zscore, group_size=group_size, eps=1e-4
        ),
        surrogate=objectives.clipped_surrogate,
        reduction=reductions.sequence_mean,
        anchor=anchor,
        clip_low=clip,
        clip_high=clip,
    )


def _same_verdict(episode: Episode) -> float:
    given, gold = map(_verdict, (answer_or_rest(episode.text), episode.sample.answer))
    if gold is None:
        raise ValueError(
            f"{episode.sample.id} needs yes or no as its answer; got "
            f"{episode.sample.answer!r}."
        )
    return float(given == gold)


def _verdict(text: str) -> bool | None:
    found = _VERDICT.search(text)
    return None if found is None else bool(found[2]) != bool(found[1])


def _letters(episode: Episode) -> float:
    given, gold = map(
        _letter_set, (answer_or_rest(episode.text), episode.sample.answer)
    )
    if not gold:
        raise ValueError(
            f"{episode.sample.id} needs letters A to E as its answer; got "
            f"{episode.sample.answer!r}."
        )
    return 1.0 if given == gold else 0.2 * bool(given and given < gold)


def _letter_set(text: str) -> set[str]:
    return {*letters_curr_reft(text).split(",")} - {""}


def _found(episode: Episode) -> float:
    boxes = [
        four_integers(text)
        for text in (answer_or_rest(episode.text), episode.sample.answer)
    ]
    given, gold = boxes
    if gold is None:
        raise ValueError(
            f"{episode.sample.id} needs a box of whole numbers as its answer; got "
            f"{episode.sample.answer!r}."
        )
    if given is None:
        return 0.0
    return float(geometry.iou(*np.array(boxes, np.float32)) > 0.5)


def _boxed_answer(text: str) -> bool:
    """The layout, and braces with four whole numbers in the answer."""
    return think_then_answer(text) and any(
        four_integers(inside) for inside in _BRACES.findall(answer_or_rest(text))
    )


def _names(episode: Episode) -> float:
    _needs_answer(episode.sample)
    return set_overlap(answer_or_rest(episode.text), episode.sample.answer)


def _mathematics(verifier: MathVerifier, episodes: Sequence[Episode]) -> list[float]:
    _needs_answer(episodes[0].sample)
    given = [answer_or_rest(episode.text) for episode in episodes]
    gold = episodes[0].sample.answer.strip()
    equal = mathruler(verifier, [(text, gold) for text in given])
    return [
        float(text != "" and (verdict.equal or _alike(text, gold)))
        for text, verdict in zip(given, equal, strict=True)
    ]


def _alike(text: str, gold: str) -> bool:
    letters = _letter_set(gold)
    return (
        bool(letters and _letter_set(text) == letters) or gold in text or text in gold
    )


def _close(similarity: Similarity, episode: Episode) -> float:
    cosine = similarity(answer_or_rest(episode.text), episode.sample.answer)
    if math.isnan(cosine):
        return math.nan
    return 1.0 if cosine > 0.95 else 0.2 * (cosine > 0.9)


def _needs_answer(sample: Sample) -> None:
    if not re.search(r"\w", sample.answer):
        raise ValueError(f"{sample.id} needs an answer; got {sample.answer!r}.")
