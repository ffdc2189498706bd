"""What is logged of a rollout and of an update, under the names of EasyR1 and verl.

Metrics are `Mean`s or a `Max` until the loop writes them, so that micro-batches add up.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import DictKey
from jaxtyping import Array, Float

from vrl_jax import filters, masked, objectives, reductions
from vrl_jax.models.critic import CRITIC
from vrl_jax.models.sharding import on_host
from vrl_jax.types import Batch, Episode, Likelihood, Max, Mean, Rollout

Metrics = Mapping[str, Mean | Max]


def once(value: Float[Array, ""]) -> Mean:
    """A number that is already what it should be."""
    return Mean(jnp.asarray(value, jnp.float32), jnp.float32(1))


def mean_known(values: Float[Array, " B"]) -> Mean:
    """The mean of what is not NaN: unscored responses do not count."""
    known = ~jnp.isnan(values)
    return Mean(masked.sum(values, known), known.sum().astype(jnp.float32))


def spread(name: str, values: Float[Array, " B"]) -> Metrics:
    """Mean, largest and smallest of what is not NaN."""
    return {
        f"{name}/mean": mean_known(values),
        f"{name}/max": once(jnp.nanmax(values)),
        f"{name}/min": once(jnp.nanmin(values)),
    }


def merged(one: Any, other: Any) -> Any:
    """Two micro-batches as one: a `Max` is the larger, all other numbers are added."""

    def merge(x: Any, y: Any) -> Any:
        return Max(jnp.maximum(*x, *y)) if isinstance(x, Max) else x + y

    return jax.tree.map(merge, one, other, is_leaf=lambda x: isinstance(x, Max))


def policy_metrics(
    new: Likelihood,
    batch: Batch,
    pg_loss: Mean,
    *,
    clip_low: float,
    clip_high: float,
    ratio: Float[Array, "B T"] | None = None,
) -> Metrics:
    """How far the policy is from the one that sampled, and how sure it is.

    `actor/logprob_gap` is mean |log pi - log pi_old|: on the first update of an
    iteration both are the same policy, and it measures sampler against learner, as do
    `actor/probs_diff`, mean |pi - pi_old|, and `actor/ratio`, mean pi / pi_old: see
    `sampler_gap`. `pg_loss` is the surrogate alone. `ratio` is what the loss clips, by
    default that of single tokens.
    """
    of_token = objectives.importance_ratio(new.logprobs, batch.old_logprobs)
    ratio = of_token if ratio is None else ratio
    low, high = objectives.clip_fractions(
        ratio, batch.advantages, clip_low=clip_low, clip_high=clip_high
    )
    gap = batch.old_logprobs - new.logprobs
    moved = jnp.abs(jnp.exp(new.logprobs) - jnp.exp(batch.old_logprobs))

    def mean(x: Float[Array, "B T"]) -> Mean:
        return reductions.token_mean(x.astype(jnp.float32), batch.mask)

    return {
        "actor/pg_loss": pg_loss,
        "actor/entropy": mean(new.entropy),
        "actor/ppo_kl": mean(gap),
        "actor/logprob_gap": mean(jnp.abs(gap)),
        "actor/probs_diff": mean(moved),
        "actor/probs_diff_squared": mean(moved**2),
        "actor/probs_diff_max": Max(jnp.where(batch.mask, moved, 0).max()),
        "actor/ratio": mean(of_token),
        "actor/ratio_squared": mean(of_token**2),
        "actor/ratio_above_2": mean(of_token > 2),
        "actor/pg_clipfrac_lower": mean(low),
        "actor/pg_clipfrac_higher": mean(high),
    }


def sampler_gap(first: Metrics) -> Metrics:
    """Sampler against learner, from an iteration's first `policy_metrics`.

    No update lies between them yet. Under verl's names: mean, largest and standard
    deviation of |pi_learner - pi_sampler|; of the importance weight their ratio the
    mean, the share above 2, where `mismatch.truncated` cuts, and the effective sample
    size (sum w)^2 / (n sum w^2). Nothing where the loss logs none of it.
    """
    if "actor/probs_diff" not in first:
        return {}
    gap, weight = first["actor/probs_diff"], first["actor/ratio"]
    squares, count = first["actor/probs_diff_squared"].total, gap.weight
    variance = (squares - gap.total**2 / count) / jnp.maximum(count - 1, 1)
    size = weight.total**2 / (count * first["actor/ratio_squared"].total)
    return {
        "training/logprob_gap": first["actor/logprob_gap"],
        "training/rollout_probs_diff_mean": gap,
        "training/rollout_probs_diff_max": first["actor/probs_diff_max"],
        "training/rollout_probs_diff_std": once(jnp.sqrt(jnp.maximum(variance, 0))),
        "training/rollout_is_mean": weight,
        "training/rollout_is_ratio_fraction_high": first["actor/ratio_above_2"],
        "training/rollout_is_eff_sample_size": once(size),
    }


def learning_rate_metrics(opt_state: Any) -> Metrics:
    """`actor/lr`, and `critic/lr` of critics that have a rate of their own.

    Each where the optimiser's state tells one: `learner.adamw` notes it, as
    `optax.inject_hyperparams` does, and `models.critic.parts` tells them apart.
    """
    found = optax.tree_utils.tree_get_all_with_path(
        opt_state, "learning_rate", lambda path, leaf: isinstance(leaf, jax.Array)
    )
    rates: dict[str, list[Array]] = {"actor/lr": [], "critic/lr": []}
    for path, rate in found:
        rates["critic/lr" if DictKey(CRITIC) in path else "actor/lr"].append(rate)
    return {name: once(told[0]) for name, told in rates.items() if len(told) == 1}


def rollout_metrics(rollout: Rollout) -> Metrics:
    """Scores, lengths, and how many groups carry no signal.

    `critic/rewards` are the scores, less what a recipe subtracts and logs under that
    name. `prompt_length/clip_ratio` is the share of prompts that fill their room; none
    is ever cut. A length is an episode's, over its rows. Where no two rows share a
    prompt, shapes do not say what is a group, and nothing is said of groups.
    """
    lengths, episodes = rollout.mask.sum(axis=1), len(rollout.rewards)
    if rollout.episode is not None:
        lengths = jax.ops.segment_sum(lengths, rollout.episode, episodes)
    prompt_lengths = rollout.prompts.mask.sum(axis=1)
    prompts, room = rollout.prompts.tokens.shape
    group_size = rollout.tokens.shape[0] // prompts
    metrics = {
        **spread("critic/score", rollout.rewards),
        **spread("critic/rewards", rollout.rewards),
        "response_length/mean": once(lengths.mean()),
        "response_length/max": once(lengths.max()),
        "response_length/min": once(lengths.min()),
        "response_length/clip_ratio": once((lengths == rollout.mask.shape[1]).mean()),
        "prompt_length/mean": once(prompt_lengths.mean()),
        "prompt_length/max": once(prompt_lengths.max()),
        "prompt_length/min": once(prompt_lengths.min()),
        "prompt_length/clip_ratio": once((prompt_lengths == room).mean()),
        "actor/sampled_nll": once(masked.mean(-rollout.old_logprobs, rollout.mask)),
        **{
            f"reward/{name}": mean_known(part)
            for name, part in rollout.reward_parts.items()
        },
    }
    if group_size > 1:
        flat = filters.zero_variance_groups(rollout.rewards, group_size=group_size)
        metrics["groups/zero_variance"] = once(flat.mean())
        if "accuracy" in rollout.reward_parts:
            right = rollout.reward_parts["accuracy"].reshape(-1, group_size)
            metrics["groups/all_right"] = once((right >= 1).all(axis=1).mean())
            metrics["groups/all_wrong"] = once((right <= 0).all(axis=1).mean())
    return metrics


def advantage_metrics(batch: Batch) -> Metrics:
    """What credit made of the rewards, over the tokens."""
    values, mask = batch.advantages, batch.mask
    return {
        "critic/advantages/mean": reductions.token_mean(values, mask),
        "critic/advantages/max": once(masked.max(values, mask)),
        "critic/advantages/min": once(masked.min(values, mask)),
    }


def fact_metrics(rollout: Rollout) -> Metrics:
    """The mean of each number that was noted of the episodes, where it is not NaN.

    On the host: which there are is not known when a step is compiled.
    """
    facts = on_host(rollout.facts)
    return {f"play/{name}": mean_known(fact) for name, fact in facts.items()}


def by_source(
    played: Sequence[tuple[Sequence[Episode], Sequence[Mapping[str, float]]]],
) -> dict[str, float]:
    """Rewards, lengths and groups without signal of each source that was played.

    `reward/<part>/<source>`, `response_length/mean/<source>` and
    `groups/zero_variance/<source>`. On the host: which sources a step has is not known
    when it is compiled.
    """
    values: dict[str, list[float]] = {}
    for group, scores in played:
        source = group[0].sample.source
        for score in scores:
            for name, value in score.items():
                if not math.isnan(value):
                    values.setdefault(f"reward/{name}/{source}", []).append(value)
        values.setdefault(f"response_length/mean/{source}", []).extend(
            sum(len(turn.tokens) for turn in episode.turns if turn.chosen)
            for episode in group
        )
        overall = {score["overall"] for score in scores}
        known = {value for value in overall if not math.isnan(value)}
        values.setdefault(f"groups/zero_variance/{source}", []).append(len(known) < 2)
    return {key: sum(found) / len(found) for key, found in sorted(values.items())}


def average(history: Sequence[Metrics]) -> Metrics:
    """One metric of several updates: totals and weights added."""
    return functools.reduce(merged, history)


def as_floats(metrics: Metrics) -> dict[str, float]:
    """total / weight of each, on the host; NaN where nothing was counted."""

    def number(metric: Mean | Max) -> float:
        if isinstance(metric, Max):
            return float(metric.value)
        return float(metric.total) / float(metric.weight) if metric.weight else math.nan

    return {name: number(m) for name, m in jax.device_get(dict(metrics)).items()}
