"""CISPO: clip the weight of a token, never its gradient.

MiniMax-M1, 2025, https://arxiv.org/abs/2506.13585; its bound is not published, 5 is
that of ScaleRL, https://arxiv.org/abs/2510.13786, and TRL. verl and EasyR1 clip to
[0.8, 1.28], `objectives.cispo_near_one`.

    act     y_1..y_G ~ pi_old(. | image, q);  R_i = reward(y_i)
    score   nothing
    credit  A_it = (R_i - mean(R)) / (std(R) + 1e-6)
    loss    -sg(min(pi / pi_old, 5)) A_it log pi, mean over all tokens
"""

import functools

from vrl_jax import advantages, objectives, reductions
from vrl_jax.programs.single_turn import single_turn
from vrl_jax.training.iteration import Recipe, as_batch
from vrl_jax.training.metrics import policy_metrics


def cispo(*, group_size: int = 8, max_weight: float = 5.0) -> Recipe:
    """`max_weight` bounds the ratio itself, not its distance from 1."""
    act = functools.partial(single_turn, group_size=group_size)

    def score(actor, rollout, key):
        return rollout

    def credit(rollout):
        advantage = advantages.group_zscore(rollout.rewards, group_size=group_size)
        return as_batch(rollout, advantage[:, None]), {}

    def loss(policy, batch):
        new = policy(batch)
        per_token = objectives.cispo(
            new.logprobs, batch.old_logprobs, batch.advantages, max_weight=max_weight
        )
        mean = reductions.token_mean(per_token, batch.mask)
        return mean, policy_metrics(
            new, batch, mean, clip_low=1, clip_high=max_weight - 1
        )

    return Recipe(act, score, credit, loss)
