"""LUFFY: one response of each group is an expert's.

"Learning to Reason under Off-Policy Guidance", Yan et al., 2025,
https://arxiv.org/abs/2504.14945. As in the released code: centred rewards without std,
no clip, a constant divisor. The code adds up the rows of a micro-batch; this divides by
their number as well. Its entropy bonus of 0.001 has another divisor and is left out.

    act     y_1..y_G-1 ~ pi_old(. | image, q), y_G = the demonstration;
            R_i = reward(y_i), of the demonstration too
    score   nothing
    credit  A_it = R_i - mean(R), over the whole group
    loss    -A_it pi / pi_old on own tokens, -A_it pi / (pi + 0.1) on the expert's;
            sum over tokens / (B T)

Where all rewards of a group are equal the expert teaches nothing.
"""

import dataclasses
import functools

import jax.numpy as jnp

from vrl_jax import advantages, objectives, reductions
from vrl_jax.programs.demonstrations import beside_demonstration
from vrl_jax.training.iteration import Recipe, as_batch
from vrl_jax.training.metrics import policy_metrics


def luffy(*, group_size: int = 8, gamma: float = 0.1) -> Recipe:
    """`gamma` of the policy shaping: what the policy says less often is lifted."""
    act = functools.partial(beside_demonstration, group_size=group_size)

    def score(actor, rollout, key):
        return rollout

    def credit(rollout):
        advantage = advantages.group_centered(rollout.rewards, group_size=group_size)
        last = jnp.arange(len(rollout.mask)) % group_size == group_size - 1
        expert = rollout.mask & last[:, None]
        return as_batch(rollout, advantage[:, None], {"expert": expert}), {}

    def loss(policy, batch):
        new, expert = policy(batch), batch.extra["expert"]
        ratio = objectives.importance_ratio(new.logprobs, batch.old_logprobs)
        own = objectives.weighted(ratio, batch.advantages)
        shaped = objectives.shaped_likelihood(
            new.logprobs, batch.advantages, gamma=gamma
        )
        mean = reductions.constant_length(
            jnp.where(expert, shaped, own), batch.mask, max_length=batch.mask.shape[1]
        )
        sampled = dataclasses.replace(batch, mask=batch.mask & ~expert)
        metrics = policy_metrics(new, sampled, mean, clip_low=0.2, clip_high=0.2)
        likelihood = reductions.token_mean(jnp.exp(new.logprobs), expert)
        return mean, {**metrics, "actor/expert_probability": likelihood}

    return Recipe(act, score, credit, loss)
