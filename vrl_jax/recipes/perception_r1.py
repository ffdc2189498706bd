"""Perception-R1: be paid for what was seen, not for the answer alone.

"Advancing Multimodal Reasoning Capabilities of Multimodal Large Language Models via
Visual Perception Reward", Xiao et al., 2025, https://arxiv.org/abs/2506.07218; code
https://github.com/tongxiao2002/Perception-R1.

    act     y_1..y_G ~ pi_old(. | image, q);
            R_i = 0.9 accuracy + 0.1 format + 0.7 share of the facts that a judge finds
            in y_i + 2 repetition (of 20 words, at most 0)
    score   nothing
    credit  A_it = (R_i - mean(R)) / (std(R) + 1e-6)
    loss    dual-clipped surrogate (0.2, 0.3, 3), mean over all tokens

The judge is a text model that sees facts and response, never the picture; it tells
whether a fact is stated, not whether something else contradicts it. The share is of the
verdicts it gave, so a judge that skips facts pays too much. Where the judge fails the
code means to give 0; here the response is unscored and counted. RULE is ours: the
released prompt has a system turn and three examples.
"""

import functools
import itertools
from collections.abc import Sequence

import jax
import numpy as np

from vrl_jax import advantages, objectives, reductions
from vrl_jax.engine.reference import free
from vrl_jax.programs.single_turn import single_turn
from vrl_jax.rewards.answers import number
from vrl_jax.rewards.combine import Reward, of_text, weighted
from vrl_jax.rewards.format import think_then_boxed_answer
from vrl_jax.rewards.judge import AnswersQuestions
from vrl_jax.rewards.parse import last_tag
from vrl_jax.rewards.steps import fact_share
from vrl_jax.rewards.text import repetition
from vrl_jax.training.clipped_recipe import clipped_recipe
from vrl_jax.training.iteration import Recipe
from vrl_jax.types import Episode, Sample

MOST = 64
"""Verdicts of a reply that count."""

_share = jax.jit(fact_share)

RULE = """\
Below are numbered facts about a picture, and a response to a question about it. For
each fact say whether the response states it: 1 if it does, 0 if it does not. Whether a
fact matters, and whether the response is right, is not asked. Reply with a tag a fact.

Facts:
<info1>The triangle has a right angle at C.</info1>
<info2>The side AB is 10 long.</info2>
Response:
Since angle C is 90 degrees, I use the theorem of Pythagoras.
Verdicts:
<info1>1</info1>
<info2>0</info2>
"""


def facts_stated(reply: str) -> float | None:
    """sum of verdicts / (count + 1e-6) over info1, info2, ... up to the first gap.

    The last of equal tags counts, clipped to [0, 1]; what is no number is 0. None
    without a verdict; of more than MOST, the first. How a judge's reply is read:
    Judge(endpoint, read=facts_stated), with 512 tokens of a reply in the code,
    Endpoint(max_tokens=512).
    """
    tags = (last_tag(reply, f"info{place}") for place in range(1, MOST + 1))
    told = [*itertools.takewhile(lambda tag: tag is not None, tags)]
    if not told:
        return None
    # Always MOST places, so that one program serves all replies.
    verdicts = np.zeros(MOST, np.float32)
    verdicts[: len(told)] = [number(tag) or 0.0 for tag in told]
    return float(_share(verdicts, np.arange(MOST) < len(told)))


def seen(judge: AnswersQuestions, *, rule: str = RULE) -> Reward:
    """What `judge` says of the facts in the row's column `visual_key_info`.

    A list, or one text `<info1>...</info1> <info2>...`. A row without facts is not
    asked about, and earns nothing by it.
    """

    def reward(episodes: Sequence[Episode]) -> list[float | None]:
        facts = _tagged(episodes[0].sample)
        if not facts:
            return [None] * len(episodes)
        return judge.verdicts(
            [
                [{"role": "user", "content": _question(rule, facts, episode.text)}]
                for episode in episodes
            ]
        )

    return reward


def perception_reward(
    accuracy: Reward, judge: AnswersQuestions, *, weight: float = 0.7
) -> Reward:
    """The actor's reward, at most 1.7; `weight` is the paper's gamma.

    `accuracy` is the code's math check of the answer, such as `boxed.boxed_math`;
    `judge` reads replies by `facts_stated`.
    """
    return weighted(
        {
            "accuracy": (accuracy, 0.9),
            "format": (of_text(think_then_boxed_answer), 0.1),
            "perception": (seen(judge), weight),
            "repetition": (of_text(functools.partial(repetition, n=20)), 2.0),
        }
    )


def perception_r1(
    *, group_size: int = 8, clip_low: float = 0.2, clip_high: float = 0.3
) -> Recipe:
    """The actor's reward is a `perception_reward`."""
    act = functools.partial(single_turn, group_size=group_size)
    return clipped_recipe(
        act,
        advantage=functools.partial(advantages.group_zscore, group_size=group_size),
        surrogate=objectives.dual_clipped_surrogate,
        reduction=reductions.token_mean,
        anchor=free,
        clip_low=clip_low,
        clip_high=clip_high,
    )


def _tagged(sample: Sample) -> str:
    facts = sample.annotations.get("visual_key_info") or []
    if isinstance(facts, str) and "<info1>" in facts:
        return facts
    if not isinstance(facts, list | tuple):
        raise ValueError(
            f"{sample.id} needs the column 'visual_key_info', a list of facts or "
            f"a text with a tag <info1>, <info2>, ... for each; got {facts!r}."
        )
    return "\n".join(f"<info{i}>{f}</info{i}>" for i, f in enumerate(facts, start=1))


def _question(rule: str, facts: str, text: str) -> str:
    return f"{rule}\nFacts:\n{facts}\nResponse:\n{text}\nVerdicts:\n"
