"""GRPO: the group of responses is its own baseline.

DeepSeekMath, Shao et al., 2024, https://arxiv.org/abs/2402.03300. The paper adds
0.04 KL(pi || pi_ref), estimated by k3, to the loss; as in TRL's default there is no KL
term here, and no reference model in memory.

    act     y_1..y_G ~ pi_old(. | image, q);  R_i = reward(y_i)
    score   nothing
    credit  A_it = (R_i - mean(R)) / (std(R) + 1e-6)
    loss    clipped surrogate (0.2, 0.2), mean over each response, then over responses
"""

import functools

from vrl_jax import advantages, objectives, reductions
from vrl_jax.programs.single_turn import single_turn
from vrl_jax.training.iteration import Recipe, as_batch
from vrl_jax.training.metrics import policy_metrics


def grpo(*, group_size: int = 8, clip: float = 0.2) -> Recipe:
    """`clip` is epsilon of equation 3."""
    act = functools.partial(single_turn, group_size=group_size)

    def score(actor, rollout, key):
        return rollout

    def credit(rollout):
        advantage = advantages.group_zscore(rollout.rewards, group_size=group_size)
        return as_batch(rollout, advantage[:, None]), {}

    def loss(policy, batch):
        new = policy(batch)
        clips = {"clip_low": clip, "clip_high": clip}
        per_token = objectives.clipped_surrogate(
            new.logprobs, batch.old_logprobs, batch.advantages, **clips
        )
        mean = reductions.sequence_mean(per_token, batch.mask)
        return mean, policy_metrics(new, batch, **clips)

    return Recipe(act, score, credit, loss)
