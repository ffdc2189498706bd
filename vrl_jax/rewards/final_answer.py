"""Rewards that compare the final answer of a response with the row's answer.

The final answer is what `parse.final_answer` finds outside of the thinking: the last
box, else the last answer tag, else what follows the last "answer is" or "Answer:".
Where there is none the reward is 0; but a choice may then be the last letter that
stands alone, and an amount the last number.
"""

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
