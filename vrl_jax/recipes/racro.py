"""RACRO: a caption is good if a frozen reasoner, who sees only it, comes right.

"Perceptual Decoupling for Scalable Multi-modal Reasoning via Reward-Optimized
Captioning", Gou et al., 2025, https://arxiv.org/abs/2506.04559; code
https://github.com/gyhdog99/RACRO2.

    act     y_1..y_G ~ pi_old(. | image, q, "describe, do not answer");
            z_i ~ reasoner(. | y_i, q);  R_i = right(z_i)
    score   log pi_ref(y_i | image, q), with an anchor
    credit  A_it = (R_i - mean(R)) / (std(R) + 1e-6)
    loss    dual-clipped surrogate (0.2, 0.2, 3) + weight KL(l_it, l_ref_it), mean over
            all tokens

The code's anchor is near(reference, weight=0.001, divergence=divergences.low_var_kl).
It grades by mathruler, which the reward reasoned(mathruler) does too, where
`boxed_right` compares texts; and it drops a stock request
for short answers from questions. A later version, RAPID, trains solutions first, for
200 steps of GRPO, and takes 0.1 from a right answer to what is no caption but a
solution, which the policy itself is asked: program=checked_caption, and the reward
`caption_reward`. All prompts here are ours; theirs have system turns, and the last one
examples.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence

from vrl_jax import advantages, objectives, reductions
from vrl_jax.engine.actor import Actor
from vrl_jax.engine.conversation import Ask, user
from vrl_jax.engine.desk import Limits, OutOfRoom
from vrl_jax.engine.episode import Check, Steps
from vrl_jax.engine.reference import Anchor, free
from vrl_jax.programs.acting import act as play
from vrl_jax.programs.describe_then_answer import DESCRIBE, describe_then_answer
from vrl_jax.rewards.boxed import boxed_right
from vrl_jax.rewards.combine import Reward, Score, fact
from vrl_jax.training.clipped_recipe import clipped_recipe
from vrl_jax.training.iteration import Recipe
from vrl_jax.types import Episode, Sample, Turn, literal

ANSWER = """\
A picture is described so:

{seen}

{question}

Think step by step, then write the answer in \\boxed{{}}."""

GENUINE = """\
{text}

Does this describe what is to be seen, rather than only solve a problem? Answer Yes or
No."""

_NO = re.compile(r"\W*no\b", re.IGNORECASE)

solved = fact("solved")
"""The actor's reward: 1 where the reasoner came right, else 0."""


def captioned(
    sample: Sample,
    *,
    right: Check = boxed_right,
    describe: str = DESCRIBE,
    answer: str = ANSWER,
) -> Steps:
    """A caption by the policy, an answer by the model `reasoner`; the fact `solved`.

    A caption for which the reasoner has no room solves nothing.
    """
    outcome = yield from describe_then_answer(
        sample, describe=describe, answer=answer, reader="reasoner"
    )
    came = len(outcome.turns) == 2 and right(sample, outcome.turns[1])
    return outcome._replace(facts={**outcome.facts, "solved": int(came)})


def checked_caption(
    sample: Sample,
    *,
    right: Check = boxed_right,
    describe: str = DESCRIBE,
    answer: str = ANSWER,
    genuine: str = GENUINE,
) -> Steps:
    """`captioned`, and the fact `caption`: what the policy says of its own text.

    1 unless the first word of its greedy reply is no.
    """
    outcome = yield from captioned(
        sample, right=right, describe=describe, answer=answer
    )
    asked = user(genuine.format(text=literal(outcome.turns[0].text)))
    try:
        reply = yield Ask((asked,), trained=False, top_k=1, max_new_tokens=4)
    except OutOfRoom:
        return outcome._replace(facts={**outcome.facts, "caption": 1})
    caption = int(_NO.match(reply.text) is None)
    return outcome._replace(facts={**outcome.facts, "caption": caption})


def reasoned(reward: Reward) -> Reward:
    """`reward` of what the reasoner answered, as if it were the response.

    In the place of `solved`, after `captioned`: a verifier that no program may call,
    such as mathruler's rule in processes of its own, judges all answers of a group.
    Where the reasoner had no room to answer, it is of an empty response.
    """

    def paid(episodes: Sequence[Episode]) -> Sequence[Score]:
        return reward([*map(_as_the_response, episodes)])

    return paid


def _as_the_response(episode: Episode) -> Episode:
    asked = (turn for turn in episode.turns if turn.facts.get("model") == "reasoner")
    turn = dataclasses.replace(next(asked, Turn("", ())), chosen=True)
    return dataclasses.replace(episode, turns=(turn,), finished=turn.finished)


def caption_reward(*, penalty: float = 0.1) -> Reward:
    """solved - penalty where solved by what is no caption: after `checked_caption`."""

    def reward(episodes: Sequence[Episode]) -> list[float]:
        pairs = zip(solved(episodes), fact("caption")(episodes), strict=True)
        return [came - penalty * (came and not caption) for came, caption in pairs]

    return reward


def racro(
    *,
    reasoner: Actor,
    group_size: int = 4,
    program: Callable[..., Steps] = captioned,
    right: Check = boxed_right,
    describe: str = DESCRIBE,
    answer: str = ANSWER,
    anchor: Anchor = free,
    limits: Limits | None = None,
    clip: float = 0.2,
) -> Recipe:
    """`reasoner` is frozen, and may be of any family with a tokenizer of its own.

    `describe` asks for the caption and `answer` the reasoner, whom `right` judges: what
    `program` is given besides the sample. The actor's reward is `solved`.
    """
    asks = {"right": right, "describe": describe, "answer": answer}
    act = functools.partial(
        play,
        program=functools.partial(program, **asks),
        group_size=group_size,
        models={"reasoner": reasoner},
        limits=limits,
    )
    return clipped_recipe(
        act,
        advantage=functools.partial(advantages.group_zscore, group_size=group_size),
        surrogate=objectives.dual_clipped_surrogate,
        reduction=reductions.token_mean,
        anchor=anchor,
        clip_low=clip,
        clip_high=clip,
    )
