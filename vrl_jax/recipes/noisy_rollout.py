"""NoisyRollout: half of each group looks at noised pictures and answers for clean ones.

Liu et al., 2025, https://arxiv.org/abs/2504.13055. The noised responses explore, the
clean picture is what the policy is trained on, without a correction for the difference.
There is no KL term.

    act     y_1..y_G/2 ~ pi_old(. | image, q), the others ~ pi_old(. | noised image, q);
            R_i = reward(y_i);  log pi_old(y_i | image, q) for all
    score   nothing
    credit  A_it = (R_i - mean(R)) / (std(R) + 1e-6), over the whole group
    loss    clipped surrogate (0.2, 0.2), mean over all tokens

The noise fades over training: heavy until shortly before two thirds of the steps, none
at the end. The released code averages over the tokens of each micro-batch; this does so
over those of the batch.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vrl_jax import advantages, objectives, reductions, schedules, views
from vrl_jax.programs.mixed_views import mixed_views
from vrl_jax.training.iteration import Recipe, as_batch
from vrl_jax.training.metrics import policy_metrics
from vrl_jax.types import Images, Prompts


def fading(step: int, total_steps: int) -> int:
    """499 of 1000 steps of diffusion at first, 250 at 2/3 of the training, then few.

    The paper's schedule for 60 training steps, stretched to as many as there are.
    """
    total = max(total_steps, 1)
    return schedules.sigmoid_decay(step, middle=total * 2 / 3, total=total)


@functools.partial(jax.jit, static_argnums=0)
def _noised(
    view: Callable, key: Key[Array, ""], prompts: Prompts, noise_std: Float[Array, ""]
) -> Images:
    # The noise is traced: one compilation for all of the training.
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(prompts.tokens)))
    noised = functools.partial(view, noise_std=noise_std)
    return views.each_prompt(noised, keys, prompts.images)


def noisy_rollout(
    *,
    group_size: int = 12,
    noise: Callable[[int, int], int] = fading,
    clip: float = 0.2,
) -> Recipe:
    """`noise` says how many steps of diffusion, of the step and how many there are."""

    def noised(actor, key, prompts):
        std = schedules.diffusion_noise_std(noise(actor.step, actor.total_steps))
        view = actor.painting(views.diffusion_noise)
        return _noised(view, key, prompts, jnp.float32(std))

    act = functools.partial(
        mixed_views,
        group_size=group_size,
        pictures=noised,
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
        return mean, policy_metrics(new, batch, mean, **clips)

    return Recipe(act, score, credit, loss)
