"""GSPO: one ratio a response, the geometric mean of its tokens'.

Group Sequence Policy Optimization, Zheng et al., 2025,
https://arxiv.org/abs/2507.18071. The paper takes four updates a rollout batch and no
KL term. verl's form is the token one, `objectives.sequence_token_ratio`, equal here.

    act     y_1..y_G ~ pi_old(. | image, q);  R_i = reward(y_i)
    score   nothing
    credit  A_it = (R_i - mean(R)) / (std(R) + 1e-6)
    loss    s_i = exp(mean_t log(pi / pi_old)), clipped at (3e-4, 4e-4), mean over
            responses
"""

import functools

from vrl_jax import advantages, objectives, reductions
from vrl_jax.programs.single_turn import single_turn
from vrl_jax.training.iteration import Recipe, as_batch
from vrl_jax.training.metrics import policy_metrics


def gspo(
    *, group_size: int = 8, clip_low: float = 3e-4, clip_high: float = 4e-4
) -> Recipe:
    """The bounds are narrow because a mean of many tokens hardly moves."""
    act = functools.partial(single_turn, group_size=group_size)

    def score(actor, rollout, key):
        return rollout

    def credit(rollout):
        advantage = advantages.group_zscore(rollout.rewards, group_size=group_size)
        return as_batch(rollout, advantage[:, None]), {}

    def loss(policy, batch):
        new = policy(batch)
        clips = {"clip_low": clip_low, "clip_high": clip_high}
        ratio = objectives.sequence_ratio(new.logprobs, batch.old_logprobs, batch.mask)
        per_token = objectives.clipped(ratio, batch.advantages, **clips)
        mean = reductions.sequence_mean(per_token, batch.mask)
        return mean, policy_metrics(new, batch, mean, ratio=ratio, **clips)

    return Recipe(act, score, credit, loss)
