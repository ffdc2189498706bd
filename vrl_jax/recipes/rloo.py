"""RLOO: the other responses are the baseline, the response is one action.

"Back to Basics", Ahmadian et al., 2024, https://arxiv.org/abs/2402.14740, with the
clipped ratio of TRL, which by default stays near a reference,
anchor=near(reference, weight=0.05, divergence=divergences.k1); here there is none by
default. verl puts the same advantage into PPO's loss of single tokens.

    act     y_1..y_G ~ pi_old(. | image, q);  R_i = reward(y_i)
    score   log pi_ref(y_i | image, q), with an anchor
    credit  R_i less weight sum_t k1(l_it, l_ref_it);  A_it = R_i - mean of the other R
            of the group
    loss    r_i = exp(sum_t log(pi / pi_old)), clipped at (0.2, 0.2), mean over
            responses
"""

import functools

from vrl_jax import advantages, masked, objectives, reductions
from vrl_jax.engine.reference import Anchor, free
from vrl_jax.programs.single_turn import single_turn
from vrl_jax.training.iteration import Recipe, as_batch
from vrl_jax.training.metrics import once, policy_metrics, spread


def rloo(*, group_size: int = 8, clip: float = 0.2, anchor: Anchor = free) -> Recipe:
    """TRL's groups are of 2. `anchor` is paid for out of the reward."""
    act = functools.partial(single_turn, group_size=group_size)

    def score(actor, rollout, key):
        return anchor.score(actor, rollout)

    def credit(rollout):
        distance = anchor.distance(rollout.old_logprobs, rollout.extra_logprobs)
        paid = anchor.weight * masked.sum(distance, rollout.mask, axis=1)
        rewards = rollout.rewards - paid
        advantage = advantages.leave_one_out(rewards, group_size=group_size)
        metrics = {
            "critic/kl": reductions.token_mean(distance, rollout.mask),
            "critic/kl_coef": once(anchor.weight),
            **spread("critic/rewards", rewards),
        }
        return as_batch(rollout, advantage[:, None]), metrics

    def loss(policy, batch):
        new = policy(batch)
        clips = {"clip_low": clip, "clip_high": clip}
        ratio = objectives.response_ratio(new.logprobs, batch.old_logprobs, batch.mask)
        per_token = objectives.clipped(ratio, batch.advantages, **clips)
        mean = reductions.sequence_mean(per_token, batch.mask)
        return mean, policy_metrics(new, batch, mean, ratio=ratio, **clips)

    return Recipe(act, score, credit, loss)
