"""What is logged of a rollout and of an update, under the names of EasyR1 and verl.

Metrics are `Mean`s until the loop writes them, so that micro-batches add up.
"""

import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vrl_jax import filters, masked, objectives, reductions
from vrl_jax.models.sharding import on_host
from vrl_jax.types import Batch, Episode, Likelihood, Mean, Rollout

Metrics = Mapping[str, Mean]


def once(value: Float[Array, ""]) -> Mean:
    """A number that is already what it should be."""
    return Mean(jnp.asarray(value, jnp.float32), jnp.float32(1))


def mean_known(values: Float[Array, " B"]) -> Mean:
    """The mean of what is not NaN: unscored responses do not count."""
    known = ~jnp.isnan(values)
    return Mean(masked.sum(values, known), known.sum().astype(jnp.float32))


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
    iteration both are the same policy, and it measures sampler against learner, as
    `actor/probs_diff`, mean |pi - pi_old|, does. `pg_loss` is the surrogate alone.
    `ratio` is what the loss clips, by default that of single tokens.
    """
    if ratio is None:
        ratio = objectives.importance_ratio(new.logprobs, batch.old_logprobs)
    low, high = objectives.clip_fractions(
        ratio, batch.advantages, clip_low=clip_low, clip_high=clip_high
    )
    gap = batch.old_logprobs - new.logprobs

    def mean(x: Float[Array, "B T"]) -> Mean:
        return reductions.token_mean(x.astype(jnp.float32), batch.mask)

    return {
        "actor/pg_loss": pg_loss,
        "actor/entropy": mean(new.entropy),
        "actor/ppo_kl": mean(gap),
        "actor/logprob_gap": mean(jnp.abs(gap)),
        "actor/probs_diff": mean(
            jnp.abs(jnp.exp(new.logprobs) - jnp.exp(batch.old_logprobs))
        ),
        "actor/pg_clipfrac_lower": mean(low),
        "actor/pg_clipfrac_higher": mean(high),
    }


def rollout_metrics(rollout: Rollout) -> Metrics:
    """Scores, lengths, and how many groups carry no signal.

    A length is an episode's, over its rows. Where no two rows share a prompt, shapes do
    not say what is a group, and nothing is said of groups.
    """
    lengths, episodes = rollout.mask.sum(axis=1), len(rollout.rewards)
    if rollout.episode is not None:
        lengths = jax.ops.segment_sum(lengths, rollout.episode, episodes)
    prompt_lengths = rollout.prompts.mask.sum(axis=1)
    prompts = rollout.prompts.tokens.shape[0]
    group_size = rollout.tokens.shape[0] // prompts
    metrics = {
        "critic/score/mean": mean_known(rollout.rewards),
        "critic/score/max": once(jnp.nanmax(rollout.rewards)),
        "critic/score/min": once(jnp.nanmin(rollout.rewards)),
        "response_length/mean": once(lengths.mean()),
        "response_length/max": once(lengths.max()),
        "response_length/min": once(lengths.min()),
        "response_length/clip_ratio": once((lengths == rollout.mask.shape[1]).mean()),
        "prompt_length/mean": once(prompt_lengths.mean()),
        "prompt_length/max": once(prompt_lengths.max()),
        "prompt_length/min": once(prompt_lengths.min()),
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
    """The mean of each number that was noted of the episodes.

    On the host: which there are is not known when a step is compiled.
    """
    facts = on_host(rollout.facts)
    return {f"play/{name}": once(fact.mean()) for name, fact in facts.items()}


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


def average(history: Sequence[Metrics]) -> dict[str, Mean]:
    """One metric of several updates: totals and weights added."""
    return {
        name: Mean(
            sum(metrics[name].total for metrics in history),
            sum(metrics[name].weight for metrics in history),
        )
        for name in history[0]
    }


def as_floats(metrics: Metrics) -> dict[str, float]:
    """total / weight of each, on the host; NaN where nothing was counted."""
    return {
        name: float(mean.total) / float(mean.weight) if mean.weight else math.nan
        for name, mean in jax.device_get(dict(metrics)).items()
    }
