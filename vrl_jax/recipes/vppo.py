"""VPPO: train the tokens that look, and weigh responses by how much they look.

"Spotlight on Token Perception for Multimodal Reinforcement Learning", Huang et al.,
2025, https://arxiv.org/abs/2510.09285; code https://github.com/huaixuheqing/VPPO-RL.

    act     DAPO's: play until enough groups are mixed
    score   l'_it = log pi_old(y_it | blackened image), one draw per response
    credit  S_it = k3(l_it, l'_it), or KL(pi_old(. | image) || pi_old(. | blackened));
            M_it = 1 on the top 40 % of each response by S
            alpha_i = 0.9 + 0.1 n_i / mean(n),  n_i = min-max normalised mean_t S_it
            A_it = M_it alpha_i (R_i - mean(R)) / (std(R) + 1e-6)
    loss    dual-clipped surrogate (0.2, 0.28, 3) - 0.06 l_it, mean over all tokens

Where paper and code differ this follows the code: S from the sampled token, clamped to
[0, 10]; ceil(0.4 T_i) tokens; token mean over all response tokens, selected or not;
dual clip; the entropy term lowers entropy. Four deviations from the code: the
statistics of alpha are taken over the whole rollout batch, so that neither devices nor
micro-batches change them (`perception.per_shard_weights` is the released behaviour);
l is the sampler's log-prob, which is the recomputed one by the on-policy law; a batch
is filled in at most `max_rounds` rounds, where the code has no limit; and black are
whole patches of the model, after the last resize, where the code blackens cells of 14
pixels before the processor, which resizes once more.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, Shaped

from vrl_jax import advantages, masked, objectives, perception, reductions, views
from vrl_jax.engine import slots
from vrl_jax.engine.actor import Actor
from vrl_jax.programs.dynamic_sampling import (
    Keep,
    dynamic_sampling,
    mixed_accuracy,
)
from vrl_jax.programs.single_turn import single_turn
from vrl_jax.training.iteration import Recipe, as_batch
from vrl_jax.training.metrics import Metrics, once, policy_metrics
from vrl_jax.types import Rollout

Select = Callable[[Float[Array, "B T"], Bool[Array, "B T"]], Shaped[Array, "B T"]]
Shape = Callable[[Float[Array, " B"], Bool[Array, " B"]], Float[Array, " B"]]
Compare = Callable[
    [Float[Array, "B T"], Float[Array, "B T"], Bool[Array, "B T"]], Float[Array, "B T"]
]


class Scoring(NamedTuple):
    """What tokens are ranked by: what `score` adds, how `credit` reads and logs it.

    `note` says what the actor must keep of the hidden states while it plays.
    """

    score: Callable[[Actor, Rollout, Key[Array, ""]], Rollout]
    scores: Callable[[Rollout], Float[Array, "B T"]]
    note: Callable = slots.nothing
    metrics: Callable[[Rollout], Metrics] = lambda rollout: {}


def dependency(view: Callable, compare: Compare = perception.sampled_k3) -> Scoring:
    """How far the log-probs move under the view, drawn anew for each response."""

    def score(actor, rollout, key):
        return actor.add_logprobs(rollout, "blackened", actor.painting(view), key)

    return _blackened(score, compare)


def shared_dependency(
    view: Callable, compare: Compare = perception.sampled_k3
) -> Scoring:
    """`dependency` under one draw for each prompt, which its responses share.

    PAPO draws so. Cheaper: a perturbed prompt is read once, not `group_size` times.
    """

    def score(actor, rollout, key):
        painted = actor.painting(view)
        return actor.add_shared_logprobs(rollout, "blackened", painted, key)

    return _blackened(score, compare)


def _blackened(score: Callable, compare: Compare) -> Scoring:
    def scores(rollout):
        seen = rollout.extra_logprobs["blackened"]
        return compare(rollout.old_logprobs, seen, rollout.mask)

    def metrics(rollout):
        opposed = rollout.extra_logprobs["blackened"] > rollout.old_logprobs
        kept = {"saturated": scores(rollout) >= 10, "opposed": opposed}
        return {
            f"perception/{name}": reductions.token_mean(
                part.astype(jnp.float32), rollout.mask
            )
            for name, part in kept.items()
        }

    return Scoring(score, scores, metrics=metrics)


def divergence(view: Callable, measure: Callable = perception.view_kl) -> Scoring:
    """`measure` of the whole next-token distributions: equation 3, to the letter.

    With `perception.view_reverse_kl` or `perception.view_js`, its relatives. The
    sampler keeps [B, T, hidden] for it, so that the real picture is not read again.
    """

    def score(actor, rollout, key):
        painted = actor.painting(view)
        return actor.add_divergence(rollout, "blackened", painted, key, measure=measure)

    def scores(rollout):
        return rollout.divergences["blackened"]

    return Scoring(score, scores, slots.states)


def _add_entropy(actor: Actor, rollout: Rollout, key: Key[Array, ""]) -> Rollout:
    # E[log pi] = -H: a log-prob like the others, of no token in particular.
    expected = -actor.likelihood(rollout).entropy
    return dataclasses.replace(rollout, extra_logprobs={"expected": expected})


def _add_random(actor: Actor, rollout: Rollout, key: Key[Array, ""]) -> Rollout:
    drawn = -jax.random.exponential(key, rollout.mask.shape)
    drawn = jnp.where(rollout.mask, drawn, 0)
    return dataclasses.replace(rollout, extra_logprobs={"random": drawn})


top_40 = functools.partial(perception.top_share, share=0.4)
half_black = functools.partial(views.blacken_patches, share=0.5)
blackened = dependency(half_black)
blackened_once = shared_dependency(half_black)
full_kl = divergence(half_black)
entropy = Scoring(_add_entropy, lambda rollout: -rollout.extra_logprobs["expected"])
at_random = Scoring(_add_random, lambda rollout: -rollout.extra_logprobs["random"])


def vppo(
    *,
    group_size: int = 8,
    scoring: Scoring = blackened,
    select: Select = top_40,
    shape: Shape = perception.mean_one_weights,
    entropy_penalty: float = 0.06,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    keep: Keep = mixed_accuracy,
    max_rounds: int = 20,
) -> Recipe:
    """`select` is the token filter, `shape` the weight of a response.

    `entropy_penalty` is 0.12 for the 8B model. `keep` says which groups train; at most
    `max_rounds` batches fill one. The paper's ablations, as arguments:

        token filter alone      shape=perception.equal_weights
        response weights alone  select=perception.every_token
        random 40 %             scoring=at_random, shape=perception.equal_weights
        entropy 40 %            scoring=entropy, shape=perception.equal_weights
        soft filter             select=partial(perception.soft_share, share=0.4)
        fixed range             shape=perception.fixed_range_weights
        other scores, views     scoring=dependency(view, perception.probability_drop)
        one draw for a prompt   scoring=blackened_once
        the paper's KL          scoring=full_kl
        its reverse, JS         scoring=divergence(view, perception.view_reverse_kl)
    """

    def act(actor, batches, key):
        return dynamic_sampling(
            dataclasses.replace(actor, note=scoring.note),
            batches,
            key,
            act=functools.partial(single_turn, group_size=group_size),
            keep=keep,
            max_rounds=max_rounds,
        )

    def credit(rollout):
        mask = rollout.mask
        scores = scoring.scores(rollout)
        chosen = select(scores, mask)
        rows = mask.any(axis=1)
        looks = perception.trajectory_dependency(scores, mask)
        weights = shape(looks, rows)
        advantage = advantages.group_zscore(rollout.rewards, group_size=group_size)
        kept, known = mask & (chosen > 0), rows & ~jnp.isnan(rollout.rewards)
        metrics = {
            **scoring.metrics(rollout),
            "perception/dependency_mean": reductions.token_mean(scores, mask),
            "perception/dependency_kept": reductions.token_mean(scores, kept),
            "perception/dependency_dropped": reductions.token_mean(
                scores, mask & ~kept
            ),
            "perception/share_kept": reductions.token_mean(
                kept.astype(jnp.float32), mask
            ),
            "perception/reward_correlation": once(
                masked.correlation(looks, rollout.rewards, known)
            ),
            "perception/length_correlation": once(
                masked.correlation(looks, mask.sum(axis=1).astype(jnp.float32), rows)
            ),
            "perception/weight_mean": reductions.row_mean(weights, rows),
            "perception/weight_min": once(masked.min(weights, rows)),
            "perception/weight_max": once(masked.max(weights, rows)),
        }
        credit = chosen * (weights * advantage)[:, None]
        return as_batch(rollout, credit, {"kept": kept}), metrics

    def loss(policy, batch):
        new = policy(batch)
        clips = {"clip_low": clip_low, "clip_high": clip_high}
        surrogate = objectives.dual_clipped_surrogate(
            new.logprobs, batch.old_logprobs, batch.advantages, **clips
        )
        penalty = objectives.sampled_entropy(new.logprobs)
        mean = reductions.token_mean(surrogate + entropy_penalty * penalty, batch.mask)
        pg_loss = reductions.token_mean(surrogate, batch.mask)
        forks = perception.top_share(new.entropy, batch.mask, 0.2)
        overlap = (forks & batch.extra["kept"]).astype(jnp.float32)
        return mean, {
            **policy_metrics(new, batch, pg_loss, **clips),
            "perception/kept_of_top_entropy": reductions.token_mean(overlap, forks),
        }

    return Recipe(act, scoring.score, credit, loss)
