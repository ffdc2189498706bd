"""VPPO: train the tokens that look, and weigh responses by how much they look.

"Spotlight on Token Perception for Multimodal Reinforcement Learning", Huang et al.,
2025, https://arxiv.org/abs/2510.09285; code https://github.com/huaixuheqing/VPPO-RL.

    act     DAPO's: play until enough groups are mixed
    score   l'_it = log pi_old(y_it | blackened image), one draw per response
    credit  S_it = k3(l_it, l'_it);  M_it = 1 on the top 40 % of each response by S
            alpha_i = 0.9 + 0.1 n_i / mean(n),  n_i = min-max normalised mean_t S_it
            A_it = M_it alpha_i (R_i - mean(R)) / (std(R) + 1e-6)
    loss    dual-clipped surrogate (0.2, 0.28, 3) - 0.06 l_it, mean over all tokens

Where paper and code differ this follows the code: S from the sampled token, clamped to
[0, 10]; ceil(0.4 T_i) tokens; token mean over all response tokens, selected or not;
dual clip; the entropy term lowers entropy. Two deviations from the code: the
statistics of alpha are taken over the whole rollout batch, so that neither devices nor
micro-batches change them (`perception.per_shard_weights` is the released behaviour),
and l is the sampler's log-prob, which is the recomputed one by the on-policy law.
"""

import functools

import jax.numpy as jnp

from vrl_jax import advantages, masked, objectives, perception, reductions, views
from vrl_jax.programs.dynamic_sampling import (
    Keep,
    dynamic_sampling,
    mixed_accuracy,
)
from vrl_jax.programs.single_turn import single_turn
from vrl_jax.training.iteration import Recipe, as_batch
from vrl_jax.training.metrics import once, policy_metrics


def vppo(
    *,
    group_size: int = 8,
    share: float = 0.4,
    beta_min: float = 0.9,
    entropy_penalty: float = 0.06,
    blackened: float = 0.5,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    keep: Keep = mixed_accuracy,
    max_rounds: int = 20,
) -> Recipe:
    """`share` is k and `beta_min` is beta_min of the paper.

    `blackened` is the expected share of black patches, `entropy_penalty` the
    coefficient of the entropy term (0.12 for the 8B model). `keep` says which groups
    train; at most `max_rounds` batches fill one.
    """
    act = functools.partial(
        dynamic_sampling,
        act=functools.partial(single_turn, group_size=group_size),
        keep=keep,
        max_rounds=max_rounds,
    )
    view = functools.partial(views.blacken_patches, share=blackened)

    def score(actor, rollout, key):
        return actor.add_logprobs(rollout, "blackened", actor.painting(view), key)

    def credit(rollout):
        seen, mask = rollout.extra_logprobs["blackened"], rollout.mask
        dependency = perception.sampled_k3(rollout.old_logprobs, seen, mask)
        chosen = perception.top_share(dependency, mask, share)
        of_response = perception.trajectory_dependency(dependency, mask)
        weights = perception.mean_one_weights(
            of_response, mask.any(axis=1), beta_min=beta_min
        )
        advantage = advantages.group_zscore(rollout.rewards, group_size=group_size)
        metrics = {
            "perception/dependency_mean": reductions.token_mean(dependency, mask),
            "perception/dependency_kept": reductions.token_mean(dependency, chosen),
            "perception/dependency_dropped": reductions.token_mean(
                dependency, mask & ~chosen
            ),
            "perception/share_kept": reductions.token_mean(
                chosen.astype(jnp.float32), mask
            ),
            "perception/saturated": reductions.token_mean(
                (dependency >= 10).astype(jnp.float32), mask
            ),
            "perception/weight_max": once(masked.max(weights, mask.any(axis=1))),
        }
        return as_batch(rollout, chosen * (weights * advantage)[:, None]), metrics

    def loss(policy, batch):
        new = policy(batch)
        clips = {"clip_low": clip_low, "clip_high": clip_high}
        surrogate = objectives.dual_clipped_surrogate(
            new.logprobs, batch.old_logprobs, batch.advantages, **clips
        )
        penalty = objectives.sampled_entropy(new.logprobs)
        mean = reductions.token_mean(surrogate + entropy_penalty * penalty, batch.mask)
        metrics = policy_metrics(new, batch, **clips)
        return mean, {
            **metrics,
            "actor/pg_loss": reductions.token_mean(surrogate, batch.mask),
        }

    return Recipe(act, score, credit, loss)
