"""SAPO: a gate that closes softly, faster for bad tokens.

Soft Adaptive Policy Optimization, 2025, https://arxiv.org/abs/2511.20347.

    act     y_1..y_G ~ pi_old(. | image, q);  R_i = reward(y_i)
    score   nothing
    credit  A_it = (R_i - mean(R)) / (std(R) + 1e-6)
    loss    -A_it 4 / tau sigmoid(tau (pi / pi_old - 1)), tau 1 or 1.05 by the sign of
            A, mean over each response, then over responses
"""

import functools

from vrl_jax import advantages, objectives, reductions
from vrl_jax.programs.single_turn import single_turn
from vrl_jax.training.iteration import Recipe, as_batch
from vrl_jax.training.metrics import policy_metrics


def sapo(
    *, group_size: int = 8, tau_positive: float = 1.0, tau_negative: float = 1.05
) -> Recipe:
    """The temperatures of good and of bad tokens."""
    act = functools.partial(single_turn, group_size=group_size)

    def score(actor, rollout, key):
        return rollout

    def credit(rollout):
        advantage = advantages.group_zscore(rollout.rewards, group_size=group_size)
        return as_batch(rollout, advantage[:, None]), {}

    def loss(policy, batch):
        new = policy(batch)
        per_token = objectives.sapo(
            new.logprobs,
            batch.old_logprobs,
            batch.advantages,
            tau_positive=tau_positive,
            tau_negative=tau_negative,
        )
        mean = reductions.sequence_mean(per_token, batch.mask)
        # Nothing is clipped; logged is what GRPO would clip.
        return mean, policy_metrics(new, batch, mean, clip_low=0.2, clip_high=0.2)

    return Recipe(act, score, credit, loss)
