"""PEARL: a checklist of what is to be seen is trained too, and says whom to trust.

"Perceptual-Evidence Anchored Reinforced Learning for Multimodal Reasoning", Zhang et
al., 2025, https://arxiv.org/abs/2511.18437; code https://github.com/MiliLab/PEARL, as
its training loop stood before commit 13fe69d.

    act     of each prompt, G times: p_i ~ pi_old(. | images, checklist), and
            y_i ~ pi_old(. | images, q);  P_i = share of the checklist that is right,
            R_i = reward(y_i)
            gate: mean(P) > 0; y_i of other groups teach nothing. Play until enough
            groups have mixed answers behind an open gate, or mixed perception
    score   log pi_ref of both, with an anchor
    credit  A^r_it = zscore(R)_i max(mean(P), 0.5),  A^p_it = zscore(P)_i
    loss    dual-clipped surrogate (0.2, 0.3, 3) of A^r, mean over all tokens of y
            + lambda the same of A^p, mean over all tokens of p

A whole batch passes the gate with probability `bypass`, 0.3 in the code alone, and
where no group passes, all do. Both branches are asked at once, where theirs asks the
second behind the gate: a closed group costs its sampling, and its checklist is trained
where it is mixed. A note of the paper prints min(mean(P), 0.5) instead:
weigh=filters.capped_gate. The code's default lambda is 0, its run has clip_high 0.28.
The means are those of the whole batch, also where it is cut into minibatches.

Rows have the columns `probe_problem`, one question or several in tags <q1>...</q1>,
<q2>..., and `probe_answer`, a text, or several as a list or in tags <a1>...</a1>,
<a2>.... The code compares them by mathruler's grade, and divides by how many were
given; here they are compared as texts (`match`), and what is missing is wrong. A reward
sees both turns: one that counts tokens counts those of the checklist too.
"""

import dataclasses
import functools
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp

from vrl_jax import advantages, filters, objectives, reductions
from vrl_jax.engine.conversation import Ask, user
from vrl_jax.engine.episode import Outcome, Steps
from vrl_jax.engine.processing import question
from vrl_jax.engine.reference import Anchor, free
from vrl_jax.programs.acting import act as play
from vrl_jax.programs.checklist import EACH
from vrl_jax.programs.dynamic_sampling import (
    Keep,
    dynamic_sampling,
    groups_of,
    mixed_accuracy,
)
from vrl_jax.rewards.columns import column
from vrl_jax.rewards.parse import first_tag, last_boxed
from vrl_jax.training.iteration import Recipe, as_batch
from vrl_jax.training.metrics import once, policy_metrics
from vrl_jax.types import PLACEHOLDER, Rollout, Sample

ONE = r"Write the answer in \boxed{}."
_TAGGED = re.compile(r"<a\d+>(.*?)</a\d+>", re.DOTALL)
PERCEPTION, GATE = "perception", "gate"
"""Parts of the rewards: P_i, and 1 where the group passed."""

Match = Callable[[str, str], bool]


def same_text(given: str, gold: str) -> bool:
    """Up to case and white space at the ends."""
    return given.strip().lower() == gold.strip().lower()


def both_branches(sample: Sample, *, match: Match = same_text) -> Steps:
    """The checklist and the question, each alone; the fact `perception`."""
    probe, golds = checklist(sample)
    shown = "" if PLACEHOLDER in probe else PLACEHOLDER * len(sample.images)
    asked = user(shown + probe, sample.images)
    perceived, reasoned = yield [Ask((asked,)), Ask(question(sample))]
    share = perceived_share(perceived.text, golds, match=match)
    return Outcome((perceived, reasoned), {PERCEPTION: share})


def checklist(sample: Sample) -> tuple[str, list[str]]:
    """What is asked about the pictures, and the right answers.

    `ValueError` where a row lacks a column, or has more questions than answers.
    """
    probe = column(sample, "probe_problem", str, "what is asked of the pictures")
    kinds = (str, list, tuple, int, float)
    answers = column(sample, "probe_answer", kinds, "the answers to probe_problem")
    if isinstance(answers, str):
        answers = _TAGGED.findall(answers) or answers
    many = isinstance(answers, list | tuple)
    golds = [str(answer) for answer in (answers if many else [answers])]
    golds = [(_TAGGED.findall(gold) or [gold])[0] for gold in golds]
    count = len(re.findall(r"<q\d+>", probe))
    if max(count, 1) != len(golds):
        raise ValueError(
            f"row {sample.id}: probe_problem has {max(count, 1)} questions, and "
            f"probe_answer {len(golds)} answers."
        )
    return f"{probe}\n{EACH if count else ONE}", golds


def perceived_share(text: str, golds: list[str], *, match: Match = same_text) -> float:
    """(1/K) sum_j [a_j is right]; an answer that is missing is wrong."""
    if len(golds) > 1 or first_tag(text, "a1") is not None:
        given = [first_tag(text, f"a{number + 1}") for number in range(len(golds))]
    else:
        given = [last_boxed(text)]
    right = [
        said is not None and match(said, gold)
        for said, gold in zip(given, golds, strict=True)
    ]
    return sum(right) / len(golds)


def soft(rollout: Rollout, *, low: float = 0.01, high: float = 0.99) -> jax.Array:
    """Groups that teach something: mixed answers behind an open gate, or perception."""
    size = len(rollout.rewards) // groups_of(rollout)
    perception = rollout.reward_parts[PERCEPTION]
    seen = filters.mixed_groups(perception, group_size=size, low=low, high=high)
    passed = rollout.reward_parts[GATE][::size] > 0
    return seen | (passed & mixed_accuracy(rollout, low=low, high=high))


def pearl(
    *,
    group_size: int = 5,
    perception_weight: float = 0.1,
    weigh: Callable[..., jax.Array] = filters.soft_gate,
    threshold: float = 0.0,
    bypass: float = 0.3,
    match: Match = same_text,
    anchor: Anchor = free,
    clip_low: float = 0.2,
    clip_high: float = 0.3,
    keep: Keep = soft,
    max_rounds: int = 20,
) -> Recipe:
    """`perception_weight` is lambda; `weigh` of the group's P scales its answers' A."""
    zscore = functools.partial(advantages.group_zscore, group_size=group_size)
    clips = {"clip_low": clip_low, "clip_high": clip_high}

    def branches(actor, batches, key):
        play_key, bypass_key = jax.random.split(key)
        program = functools.partial(both_branches, match=match)
        rollout = play(
            actor, batches, play_key, program=program, group_size=group_size, rows=2
        )
        perception = rollout.facts[PERCEPTION]
        passed = filters.hard_gate(
            perception, group_size=group_size, threshold=threshold
        )
        anyway = jax.random.uniform(bypass_key) < bypass
        passed = passed | anyway | ~passed.any()
        parts = {
            **rollout.reward_parts,
            PERCEPTION: perception,
            GATE: jnp.repeat(passed.astype(jnp.float32), group_size),
        }
        return dataclasses.replace(rollout, reward_parts=parts)

    def score(actor, rollout, key):
        return anchor.score(actor, rollout)

    def credit(rollout):
        perception = rollout.reward_parts[PERCEPTION]
        reasoning = zscore(rollout.rewards) * weigh(perception, group_size=group_size)
        given = jnp.where(
            rollout.place == 0,
            zscore(perception)[rollout.episode],
            reasoning[rollout.episode],
        )
        sees = (rollout.place == 0)[:, None] & rollout.mask
        passed = rollout.reward_parts[GATE][rollout.episode] > 0
        reasons = (rollout.place == 1)[:, None] & rollout.mask & passed[:, None]
        # Each branch has a mean of its own; the learner divides by all tokens.
        every = rollout.mask.sum()
        scale = jnp.where(
            sees,
            perception_weight * every / jnp.maximum(sees.sum(), 1),
            reasons * every / jnp.maximum(reasons.sum(), 1),
        )
        extra = {**rollout.extra_logprobs, "scale": scale, "reasons": reasons}
        metrics = {"actor/kl_coef": once(anchor.weight)}
        return as_batch(rollout, given[:, None], extra), metrics

    def loss(policy, batch):
        new = policy(batch)
        surrogate = objectives.dual_clipped_surrogate(
            new.logprobs, batch.old_logprobs, batch.advantages, **clips
        )
        distance = anchor.distance(new.logprobs, batch.extra)
        reasons, scale = batch.extra["reasons"], batch.extra["scale"]
        per_token = surrogate + jnp.where(reasons, anchor.weight * distance, 0)
        pg_loss = reductions.token_mean(surrogate * scale, batch.mask)
        return reductions.token_mean(per_token * scale, batch.mask), {
            **policy_metrics(new, batch, pg_loss, **clips),
            "actor/kl_loss": reductions.token_mean(distance, reasons),
        }

    act = functools.partial(
        dynamic_sampling, act=branches, keep=keep, max_rounds=max_rounds
    )
    return Recipe(act, score, credit, loss)
