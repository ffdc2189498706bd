"""RLOO: the other responses are the baseline, the response is one action.

"Back to Basics", Ahmadian et al., 2024, https://arxiv.org/abs/2402.14740, with the
clipped ratio of TRL. The KL to the reference, which TRL subtracts from the reward with
0.05, is left out. verl puts the same advantage into PPO's loss of single tokens.

    act     y_1..y_G ~ pi_old(. | image, q);  R_i = reward(y_i)
    score   nothing
    credit  A_it = R_i - mean of the other R of the group
    loss    r_i = exp(sum_t log(pi / pi_old)), clipped at (0.2, 0.2), mean over
            responses
"""

import functools

from vrl_jax import advantages, objectives, reductions
from vrl_jax.programs.single_turn import single_turn
from vrl_jax.training.iteration import Recipe, as_batch
from vrl_jax.training.metrics import policy_metrics


def rloo(*, group_size: int = 8, clip: float = 0.2) -> Recipe:
    """TRL's groups are of 2."""
    act = functools.partial(single_turn, group_size=group_size)

    def score(actor, rollout, key):
        return rollout

    def credit(rollout):
        advantage = advantages.leave_one_out(rollout.rewards, group_size=group_size)
        return as_batch(rollout, advantage[:, None]), {}

    def loss(policy, batch):
        new = policy(batch)
        clips = {"clip_low": clip, "clip_high": clip}
        ratio = objectives.response_ratio(new.logprobs, batch.old_logprobs, batch.mask)
        per_token = objectives.clipped(ratio, batch.advantages, **clips)
        mean = reductions.sequence_mean(per_token, batch.mask)
        return mean, policy_metrics(new, batch, ratio=ratio, **clips)

    return Recipe(act, score, credit, loss)
