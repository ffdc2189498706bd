"""GRPO: the group of responses is its own baseline.

DeepSeekMath, Shao et al., 2024, https://arxiv.org/abs/2402.03300. The paper stays near
a reference, anchor=near(reference, weight=0.04); the default is TRL's, without one.

    act     y_1..y_G ~ pi_old(. | image, q);  R_i = reward(y_i)
    score   log pi_ref(y_i | image, q), with an anchor
    credit  A_it = (R_i - mean(R)) / (std(R) + 1e-6)
    loss    clipped surrogate (0.2, 0.2) + weight k3(l_it, l_ref_it), mean over each
            response, then over responses
"""

import functools

from vrl_jax import advantages, objectives, reductions
from vrl_jax.engine.reference import Anchor, free
from vrl_jax.programs.single_turn import single_turn
from vrl_jax.training.iteration import Recipe, as_batch
from vrl_jax.training.metrics import once, policy_metrics


def grpo(*, group_size: int = 8, clip: float = 0.2, anchor: Anchor = free) -> Recipe:
    """`clip` is epsilon of equation 3, `anchor` its last term."""
    act = functools.partial(single_turn, group_size=group_size)

    def score(actor, rollout, key):
        return anchor.score(actor, rollout)

    def credit(rollout):
        advantage = advantages.group_zscore(rollout.rewards, group_size=group_size)
        metrics = {"actor/kl_coef": once(anchor.weight)}
        return as_batch(rollout, advantage[:, None], rollout.extra_logprobs), metrics

    def loss(policy, batch):
        new = policy(batch)
        clips = {"clip_low": clip, "clip_high": clip}
        surrogate = objectives.clipped_surrogate(
            new.logprobs, batch.old_logprobs, batch.advantages, **clips
        )
        distance = anchor.distance(new.logprobs, batch.extra)
        mean = reductions.sequence_mean(
            surrogate + anchor.weight * distance, batch.mask
        )
        pg_loss = reductions.sequence_mean(surrogate, batch.mask)
        return mean, {
            **policy_metrics(new, batch, pg_loss, **clips),
            "actor/kl_loss": reductions.sequence_mean(distance, batch.mask),
        }

    return Recipe(act, score, credit, loss)
