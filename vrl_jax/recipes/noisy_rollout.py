"""NoisyRollout: half of each group looks at noised pictures and answers for clean ones.

Liu et al., 2025, https://arxiv.org/abs/2504.13055. The noised responses explore, the
clean picture is what the policy is trained on, without a correction for the difference.
There is no KL term.

    act     y_1..y_G/2 ~ pi_old(. | image, q), the others ~ pi_old(. | noised image, q);
            R_i = reward(y_i);  log pi_old(y_i | image, q) for all
    score   nothing
    credit  A_it = (R_i - mean(R)) / (std(R) + 1e-6), over the whole group
    loss    clipped surrogate (0.2, 0.2), mean over all tokens

The released code averages over the tokens of each micro-batch; this does so over those
of the batch. The paper's noise fades over training, `schedules.sigmoid_decay`: a recipe
does not know the step, so its noise is one strength, and a run that anneals is a list
of stages, each with a `noise_std` of its own.
"""

import functools

from vrl_jax import advantages, objectives, reductions, schedules, views
from vrl_jax.programs.mixed_views import mixed_views
from vrl_jax.training.iteration import Recipe, as_batch
from vrl_jax.training.metrics import policy_metrics

FIRST = schedules.diffusion_noise_std(schedules.sigmoid_decay(0))


def noisy_rollout(
    *, group_size: int = 12, noise_std: float = FIRST, clip: float = 0.2
) -> Recipe:
    """`noise_std` by default as at the paper's first step: 499 of 1000 of diffusion."""
    act = functools.partial(
        mixed_views,
        group_size=group_size,
        view=functools.partial(views.diffusion_noise, noise_std=noise_std),
        perturbed=group_size // 2,
    )

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
        mean = reductions.token_mean(per_token, batch.mask)
        return mean, policy_metrics(new, batch, **clips)

    return Recipe(act, score, credit, loss)
