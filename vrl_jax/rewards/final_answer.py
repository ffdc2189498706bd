"""Rewards that compare the final answer of a response with the row's answer.

The final answer is what `parse.final_answer` finds outside of the thinking: the last
box, else the last answer tag, else what follows the last "answer is" or "Answer:".
Where there is none the reward is 0; but a choice may then be the last letter that
stands alone, and an amount the last number.
"""

import contextlib
import re
from collections.abc import Callable, Sequence

from vrl_jax.rewards import answers, text
from vrl_jax.rewards.combine import Reward, per_response, with_format
from vrl_jax.rewards.format import think_then_answer
from vrl_jax.rewards.math_verifier import MathVerifier
from vrl_jax.rewards.mathruler import mathruler
from vrl_jax.rewards.parse import (
    final_answer,
    first_answer_line,
    last_boxed,
    last_letter,
    last_number,
    last_pair,
)
from vrl_jax.types import Episode


def answer_reward(rule: Callable[[str, str], float]) -> Reward:
    """rule(final answer, the row's answer), such as `answers.yes_no` or `text.anls`."""

    def score(episode: Episode) -> float:
        found = final_answer(episode.text)
        return 0.0 if found is None else float(rule(found, episode.sample.answer))

    return per_response(score)


def multiple_choice(episodes: Sequence[Episode]) -> list[float]:
    """`answers.choice`, with the texts of the row's column `options` if it has one.

    Where no answer is named, of `parse.last_letter`.
    """

    def rule(episode: Episode) -> float:
        found = final_answer(episode.text) or last_letter(episode.text)
        options = episode.sample.annotations.get("options") or ()
        return float(answers.choice(found, episode.sample.answer, options))

    return per_response(rule)(episodes)


def numeric(episodes: Sequence[Episode]) -> list[float]:
    """`answers.relaxed_numeric`; where no answer is named, of `parse.last_number`."""

    def rule(episode: Episode) -> float:
        return float(answers.relaxed_numeric(_amount(episode), episode.sample.answer))

    return per_response(rule)(episodes)


def count(episodes: Sequence[Episode]) -> list[float]:
    """1 where the final answer is the number that the row's answer is.

    In digits or as a word, `answers.amount`; where no answer is named, by
    `parse.last_number`.
    """

    def rule(episode: Episode) -> float:
        wanted = answers.amount(episode.sample.answer)
        given = answers.amount(_amount(episode) or "")
        return float(wanted is not None and given == wanted)

    return per_response(rule)(episodes)


def _amount(episode: Episode) -> str | None:
    return final_answer(episode.text) or last_number(episode.text)


def anls(episodes: Sequence[Episode]) -> list[float]:
    """`text.anls` against the row's column `answers` or, without it, its answer."""

    def score(episode: Episode) -> float:
        found = final_answer(episode.text)
        golds = episode.sample.annotations.get("answers") or [episode.sample.answer]
        return 0.0 if found is None else text.anls(found, golds)

    return per_response(score)(episodes)


def mathruler_boxed(verifier: MathVerifier) -> Reward:
    """1 where the last box is the answer by mathruler's rule; no box is never right."""

    def reward(episodes: Sequence[Episode]) -> list[float]:
        return _by_mathruler(verifier, episodes, [last_boxed(e.text) for e in episodes])

    return reward


def r1v_style(verifier: MathVerifier) -> Reward:
    """0.5 accuracy + 0.5 format: the first answer tag, and think then answer.

    Accuracy is mathruler's rule on the tag or, without one, on the whole response, as
    in EasyR1's `r1v` reward, https://github.com/hiyouga/EasyR1.
    """

    def accuracy(episodes: Sequence[Episode]) -> list[float]:
        tagged = [first_answer_line(e.text) for e in episodes]
        given = [
            e.text.strip() if tag is None else tag
            for e, tag in zip(episodes, tagged, strict=True)
        ]
        return _by_mathruler(verifier, episodes, given)

    return with_format(accuracy, think_then_answer, weight=0.5, format_weight=0.5)


def r1v_accuracy(verifier: MathVerifier) -> Reward:
    """1 where math-verify finds the response equal, or its first answer tag is gold.

    R1-V, https://github.com/Deep-Agent/R1-V. Its trap: all of the response is read,
    thinking included, so that a right number on the way can pay. As there the response
    takes the place of gold, which matters to inequalities and intervals.
    """

    def reward(episodes: Sequence[Episode]) -> list[float]:
        texts = [episode.text for episode in episodes]
        return _verified(verifier, episodes, texts, _same_tag)

    return reward


def _same_tag(text: str, gold: str) -> float:
    tagged = first_answer_line(text)
    return float((text.strip() if tagged is None else tagged) == gold.strip())


def vlm_r1_accuracy(verifier: MathVerifier) -> Reward:
    """VLM-R1's default: math-verify on the last answer tag, else by what gold is.

    Gold with digits: 1 for the same number, and the indel ratio where one is no number;
    with a choice letter: 1 for that letter; else the indel ratio. So a wrong text earns
    a part. Without a tag all of the response counts.
    https://github.com/om-ai-lab/VLM-R1
    """

    def reward(episodes: Sequence[Episode]) -> list[float]:
        tagged = [last_pair(episode.text, "answer") for episode in episodes]
        given = [
            episode.text.strip() if tag is None else tag
            for episode, tag in zip(episodes, tagged, strict=True)
        ]
        return _verified(verifier, episodes, given, _vlm_r1_text)

    return reward


def _vlm_r1_text(given: str, gold: str) -> float:
    letter = answers.letter_vlm_r1(gold)
    p, g = (
        re.sub(r"(?<!\s)[\n\r]", " ", t).strip().rstrip(".").lower()
        for t in (given, gold)
    )
    if re.search(r"\d", gold):
        with contextlib.suppress(ValueError):  # one of them is no number
            return float(float(p) == float(g))
    elif letter is not None:
        return float(answers.letter_vlm_r1(given) == letter)
    return text.indel_ratio(p, g)


def _verified(
    verifier: MathVerifier,
    episodes: Sequence[Episode],
    given: Sequence[str],
    otherwise: Callable[[str, str], float],
) -> list[float]:
    """1 where math-verify finds gold in what is given; else otherwise(given, gold)."""
    golds = [episode.sample.answer for episode in episodes]
    verdicts = verifier.check(list(zip(golds, given, strict=True)))
    return [
        1.0 if verdict.equal else otherwise(one, gold)
        for verdict, one, gold in zip(verdicts, given, golds, strict=True)
    ]


def _by_mathruler(
    verifier: MathVerifier, episodes: Sequence[Episode], given: Sequence[str | None]
) -> list[float]:
    golds = [episode.sample.answer for episode in episodes]
    pairs = [(text or "", gold) for text, gold in zip(given, golds, strict=True)]
    verdicts = mathruler(verifier, pairs)
    return [
        float(verdict.equal and text is not None)
        for verdict, text in zip(verdicts, given, strict=True)
    ]
