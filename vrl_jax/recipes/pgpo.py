"""PGPO: weigh tokens by what they lose when the picture is out of sight.

PGPO, 2026, https://arxiv.org/abs/2604.01840. No code is released; a development branch
differs (see `token_weights.pgpo_weights`).

    act     DAPO's: play until enough groups are mixed
    score   l'_it = log pi_old(y_it | attention to the picture's tokens masked)
    credit  S_it = k3(l_it, l'_it);  I_it = min-max over the response of log(1 + S_it)
            w_it = I / tau below tau, 1 + beta (I - tau) / (1 - tau) above, mean one
            A_it = w_it (R_i - mean(R)) / (std(R) + 1e-6)
    loss    clipped surrogate (0.2, 0.28), mean over all tokens
"""

import functools

from vrl_jax import advantages, objectives, perception, reductions, token_weights
from vrl_jax.programs.dynamic_sampling import (
    Keep,
    dynamic_sampling,
    mixed_accuracy,
)
from vrl_jax.programs.single_turn import single_turn
from vrl_jax.training.iteration import Recipe, as_batch
from vrl_jax.training.metrics import policy_metrics


def pgpo(
    *,
    group_size: int = 8,
    tau: float = 0.4,
    beta: float = 2.0,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    keep: Keep = mixed_accuracy,
    max_rounds: int = 20,
) -> Recipe:
    """Tokens below `tau` are held back, those above count up to 1 + `beta` times."""
    play = functools.partial(single_turn, group_size=group_size)
    act = functools.partial(
        dynamic_sampling, act=play, keep=keep, max_rounds=max_rounds
    )

    def score(actor, rollout, key):
        return actor.add_blind_logprobs(rollout, "blind")

    def credit(rollout):
        mask = rollout.mask
        scores = perception.sampled_k3(
            rollout.old_logprobs, rollout.extra_logprobs["blind"], mask
        )
        weights = token_weights.pgpo_weights(scores, mask, tau=tau, beta=beta)
        advantage = advantages.group_zscore(rollout.rewards, group_size=group_size)
        metrics = {"perception/dependency_mean": reductions.token_mean(scores, mask)}
        return as_batch(rollout, weights * advantage[:, None]), metrics

    def loss(policy, batch):
        new = policy(batch)
        clips = {"clip_low": clip_low, "clip_high": clip_high}
        per_token = objectives.clipped_surrogate(
            new.logprobs, batch.old_logprobs, batch.advantages, **clips
        )
        mean = reductions.token_mean(per_token, batch.mask)
        return mean, policy_metrics(new, batch, mean, **clips)

    return Recipe(act, score, credit, loss)
