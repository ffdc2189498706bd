"""DAPO: clip higher, dynamic sampling, every token counts once, no KL.

DAPO, Yu et al., 2025, https://arxiv.org/abs/2503.14476. Its fourth part, the soft
over-long punishment, is a reward: `rewards.length.soft_overlong`; the 1 or -1 for a
right answer is `rewards.dapo_answer.dapo_style`. Bounds of the group filter and the
limit of rounds are EasyR1's.

    act     play until enough groups are mixed, 0.01 < mean(accuracy) < 0.99
    score   nothing
    credit  A_it = (R_i - mean(R)) / (std(R) + 1e-6)
    loss    clipped surrogate (0.2, 0.28), mean over all tokens
"""

import functools

from vrl_jax import advantages, objectives, reductions
from vrl_jax.programs.dynamic_sampling import (
    Keep,
    dynamic_sampling,
    mixed_accuracy,
)
from vrl_jax.programs.single_turn import single_turn
from vrl_jax.training.iteration import Recipe, as_batch
from vrl_jax.training.metrics import policy_metrics


def dapo(
    *,
    group_size: int = 8,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    keep: Keep = mixed_accuracy,
    max_rounds: int = 20,
) -> Recipe:
    """`keep` says which groups train; at most `max_rounds` batches fill one."""
    play = functools.partial(single_turn, group_size=group_size)
    act = functools.partial(
        dynamic_sampling, act=play, keep=keep, max_rounds=max_rounds
    )

    def score(actor, rollout, key):
        return rollout

    def credit(rollout):
        advantage = advantages.group_zscore(rollout.rewards, group_size=group_size)
        return as_batch(rollout, advantage[:, None]), {}

    def loss(policy, batch):
        new = policy(batch)
        clips = {"clip_low": clip_low, "clip_high": clip_high}
        per_token = objectives.clipped_surrogate(
            new.logprobs, batch.old_logprobs, batch.advantages, **clips
        )
        mean = reductions.token_mean(per_token, batch.mask)
        return mean, policy_metrics(new, batch, mean, **clips)

    return Recipe(act, score, credit, loss)
