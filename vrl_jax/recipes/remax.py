"""ReMax: what the greedy answer to the same question earns is the baseline.

Li et al., 2023, https://arxiv.org/abs/2310.10505; code
https://github.com/liziniu/ReMax. The paper plays a prompt once. Its penalty for leaving
a reference is anchor=near(reference, weight=..., divergence=divergences.k1), paid token
by token as in verl; there is none by default. Nothing is clipped, so one update a step
is meant; verl puts the same advantage into PPO's loss.

    act     y_1..y_G ~ pi_old(. | image, q), R_i = reward(y_i);  y* greedily, R* its own
    score   log pi_ref(y_i | image, q), with an anchor
    credit  A_it = R_i - R* - weight sum_{t' >= t} k1(l_it', l_ref_it')
    loss    -A_it log pi(y_it), mean over all tokens
"""

import dataclasses

import jax.numpy as jnp

from vrl_jax import advantages, masked, objectives, reductions
from vrl_jax.engine.actor import ignore
from vrl_jax.engine.reference import Anchor, free
from vrl_jax.programs.single_turn import single_turn
from vrl_jax.training.iteration import Recipe, as_batch
from vrl_jax.training.metrics import once, policy_metrics, spread

GREEDY = "greedy"
"""Among the parts of a reward what the greedy answer earned, which is not paid."""


def remax(*, group_size: int = 1, anchor: Anchor = free) -> Recipe:
    """The greedy answer is one more a prompt, which is neither trained nor observed."""

    def act(actor, batches, key):
        samples = next(batches)
        rollout = single_turn(actor, iter([samples]), key, group_size=group_size)
        greedy = dataclasses.replace(actor, top_k=1, observe=ignore)
        best = single_turn(greedy, iter([samples]), key, group_size=1)
        earned = {GREEDY: jnp.repeat(best.rewards, group_size)}
        return dataclasses.replace(rollout, reward_parts=rollout.reward_parts | earned)

    def score(actor, rollout, key):
        return anchor.score(actor, rollout)

    def credit(rollout):
        greedy = rollout.reward_parts[GREEDY]
        gain = advantages.greedy_baseline(rollout.rewards, greedy)
        distance = anchor.distance(rollout.old_logprobs, rollout.extra_logprobs)
        known = rollout.mask & ~jnp.isnan(rollout.rewards - greedy)[:, None]
        ahead = advantages.reward_to_go(distance, known)
        advantage = gain[:, None] - anchor.weight * ahead
        paid = anchor.weight * masked.sum(distance, rollout.mask, axis=1)
        metrics = {
            "critic/kl": reductions.token_mean(distance, rollout.mask),
            "critic/kl_coef": once(anchor.weight),
            **spread("critic/rewards", rollout.rewards - paid),
        }
        return as_batch(rollout, advantage), metrics

    def loss(policy, batch):
        new = policy(batch)
        per_token = objectives.policy_gradient(new.logprobs, batch.advantages)
        mean = reductions.token_mean(per_token, batch.mask)
        unclipped = {"clip_low": 1.0, "clip_high": float("inf")}
        return mean, policy_metrics(new, batch, mean, **unclipped)

    return Recipe(act, score, credit, loss)
