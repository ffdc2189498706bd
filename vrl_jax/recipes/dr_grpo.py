"""Dr. GRPO: GRPO without its two divisors, the std and the length.

"Understanding R1-Zero-Like Training", Liu et al., 2025,
https://arxiv.org/abs/2503.20783. Dividing by the std favours prompts that are nearly
solved or hopeless, dividing by the length favours long wrong responses.

    act     y_1..y_G ~ pi_old(. | image, q);  R_i = reward(y_i)
    score   nothing
    credit  A_it = R_i - mean(R)
    loss    clipped surrogate (0.2, 0.2), sum over tokens / (B T)

T is the width of the batch, the largest length that a response can have, as in TRL;
verl's form does not divide by B.
"""

import functools

from vrl_jax import advantages, objectives, reductions
from vrl_jax.programs.single_turn import single_turn
from vrl_jax.training.iteration import Recipe, as_batch
from vrl_jax.training.metrics import policy_metrics


def dr_grpo(*, group_size: int = 8, clip: float = 0.2) -> Recipe:
    """`clip` is epsilon."""
    act = functools.partial(single_turn, group_size=group_size)

    def score(actor, rollout, key):
        return rollout

    def credit(rollout):
        advantage = advantages.group_centered(rollout.rewards, group_size=group_size)
        return as_batch(rollout, advantage[:, None]), {}

    def loss(policy, batch):
        new = policy(batch)
        clips = {"clip_low": clip, "clip_high": clip}
        per_token = objectives.clipped_surrogate(
            new.logprobs, batch.old_logprobs, batch.advantages, **clips
        )
        mean = reductions.constant_length(
            per_token, batch.mask, max_length=batch.mask.shape[1]
        )
        return mean, policy_metrics(new, batch, mean, **clips)

    return Recipe(act, score, credit, loss)
