r"""Rewards for answers in a `\boxed{...}`."""

import re
from collections.abc import Callable, Sequence

from vrl_jax.rewards.answers import exact, is_words
from vrl_jax.rewards.combine import Reward, with_format
from vrl_jax.rewards.format import think_then_boxed
from vrl_jax.rewards.math_verifier import MathVerifier
from vrl_jax.rewards.parse import last_boxed
from vrl_jax.types import Episode, Sample, Turn

_INTEGER = re.compile("-?[1-9][0-9]{0,17}|0")


def boxed_exact(episodes: Sequence[Episode]) -> list[float]:
    """1 where the last box is the answer, up to white space."""
    return [float(exact(last_boxed(e.text), e.sample.answer)) for e in episodes]


def boxed_right(sample: Sample, turn: Turn) -> bool:
    """The same of one turn, for programs that ask whether an answer will do."""
    return exact(last_boxed(turn.text), sample.answer)


def boxed_math(
    verifier: MathVerifier, *, read: Callable[[str], str | None] = last_boxed
) -> Reward:
    """1 where the last box is the answer as text or, unless words, as mathematics.

    `read` finds in the response what is compared, such as `parse.final_answer`, which
    takes an answer tag where there is no box. The part `unchecked` is 1 where
    math-verify could not tell: it ran out of time or failed, or the sample's answer
    does not parse.
    """

    def reward(episodes: Sequence[Episode]) -> list[dict[str, float]]:
        boxes = [read(episode.text) for episode in episodes]
        scores = [
            {"overall": float(exact(box, episode.sample.answer)), "unchecked": 0.0}
            for box, episode in zip(boxes, episodes, strict=True)
        ]
        open_cases = [
            index
            for index, (episode, box) in enumerate(zip(episodes, boxes, strict=True))
            if box is not None
            and not scores[index]["overall"]
            and not is_words(episode.sample.answer)
            # Two whole numbers that differ as texts: no need to ask.
            and not (_plain_integer(box) and _plain_integer(episode.sample.answer))
        ]
        verdicts = verifier.check(
            [_as_boxes(boxes[i], episodes[i].sample.answer) for i in open_cases]
        )
        for index, verdict in zip(open_cases, verdicts, strict=True):
            scores[index] = {
                "overall": float(verdict.equal),
                "unchecked": float(verdict.problem != ""),
            }
        return scores

    return reward


def math_style(verifier: MathVerifier) -> Reward:
    """0.9 accuracy + 0.1 format: `boxed_math` and thinking before the box.

    The weights and the format are those of EasyR1's `math` reward,
    https://github.com/hiyouga/EasyR1; its accuracy is mathruler's, ours math-verify's.
    """
    accuracy = boxed_math(verifier)
    return with_format(accuracy, think_then_boxed, weight=0.9, format_weight=0.1)


def _plain_integer(text: str) -> bool:
    return _INTEGER.fullmatch(text.strip()) is not None


def _as_boxes(prediction: str, gold: str) -> tuple[str, str]:
    # A bare LaTeX answer would not be read; one in a box is.
    return rf"\boxed{{{prediction}}}", rf"\boxed{{{gold}}}"
