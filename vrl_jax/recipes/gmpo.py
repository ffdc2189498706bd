"""GMPO: the geometric mean of clipped ratios.

Geometric-Mean Policy Optimization, 2025, https://arxiv.org/abs/2507.20673: one token
whose ratio explodes moves an arithmetic mean, but hardly a geometric one.

    act     y_1..y_G ~ pi_old(. | image, q);  R_i = reward(y_i)
    score   nothing
    credit  A_it = (R_i - mean(R)) / (std(R) + 1e-6)
    loss    -A_i exp(mean_t d_it), d = log(pi / pi_old) bounded by 0.4 where A_i gains
            by it, mean over responses
"""

import functools
import math

from vrl_jax import advantages, objectives, reductions
from vrl_jax.programs.single_turn import single_turn
from vrl_jax.training.iteration import Recipe, as_batch
from vrl_jax.training.metrics import policy_metrics


def gmpo(*, group_size: int = 8, clip: float = 0.4) -> Recipe:
    """`clip` bounds the log of a token's ratio."""
    act = functools.partial(single_turn, group_size=group_size)

    def score(actor, rollout, key):
        return rollout

    def credit(rollout):
        advantage = advantages.group_zscore(rollout.rewards, group_size=group_size)
        return as_batch(rollout, advantage[:, None]), {}

    def loss(policy, batch):
        new = policy(batch)
        ratio = objectives.geometric_ratio(
            new.logprobs, batch.old_logprobs, batch.advantages, batch.mask, clip=clip
        )
        per_token = objectives.weighted(ratio, batch.advantages)
        mean = reductions.sequence_mean(per_token, batch.mask)
        clips = {"clip_low": 1 - math.exp(-clip), "clip_high": math.exp(clip) - 1}
        return mean, policy_metrics(new, batch, mean, **clips)

    return Recipe(act, score, credit, loss)
