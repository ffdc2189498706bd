"""REINFORCE++: no groups; rewards whitened over the batch.

Hu et al., 2025, https://arxiv.org/abs/2501.03262. Its optional KL to a reference is
anchor=near(reference, weight=..., divergence=divergences.k1). Dual clip and token mean
are those of verl and EasyR1, which forgets to mask the whitened padding.

    act     y_1..y_G ~ pi_old(. | image, q);  R_i = reward(y_i)
    score   log pi_ref(y_i | image, q), with an anchor
    credit  r_it = R_i at the last token, less weight k1(l_it, l_ref_it) at each
            A_it = whitened over all tokens of the batch: sum_{t' >= t} r_it'
    loss    dual-clipped surrogate (0.2, 0.2, 3), mean over all tokens
"""

import functools

import jax.numpy as jnp

from vrl_jax import advantages, masked, objectives, reductions
from vrl_jax.engine.reference import Anchor, free
from vrl_jax.programs.single_turn import single_turn
from vrl_jax.training.iteration import Recipe, as_batch
from vrl_jax.training.metrics import once, policy_metrics, spread


def reinforce_pp(
    *,
    group_size: int = 8,
    discount: float = 1.0,
    clip: float = 0.2,
    anchor: Anchor = free,
) -> Recipe:
    """A group is only how often a prompt is played; 1 will do."""
    act = functools.partial(single_turn, group_size=group_size)

    def score(actor, rollout, key):
        return anchor.score(actor, rollout)

    def credit(rollout):
        scored = rollout.mask & ~jnp.isnan(rollout.rewards)[:, None]
        distance = anchor.distance(rollout.old_logprobs, rollout.extra_logprobs)
        rewards = advantages.at_last_token(rollout.rewards, scored)
        rewards = rewards - anchor.weight * distance
        returns = advantages.reward_to_go(rewards, scored, discount=discount)
        paid = anchor.weight * masked.sum(distance, rollout.mask, axis=1)
        metrics = {
            "critic/kl": reductions.token_mean(distance, rollout.mask),
            "critic/kl_coef": once(anchor.weight),
            **spread("critic/rewards", rollout.rewards - paid),
        }
        return as_batch(rollout, advantages.whiten(returns, scored)), metrics

    def loss(policy, batch):
        new = policy(batch)
        clips = {"clip_low": clip, "clip_high": clip}
        per_token = objectives.dual_clipped_surrogate(
            new.logprobs, batch.old_logprobs, batch.advantages, **clips
        )
        mean = reductions.token_mean(per_token, batch.mask)
        return mean, policy_metrics(new, batch, mean, **clips)

    return Recipe(act, score, credit, loss)
