"""ReVisual-R1: of a batch, responses with much to say are trained on, others are not.

"Advancing Multimodal Reasoning: From Optimized Cold Start to Staged Reinforcement
Learning", Chen et al., 2025, https://arxiv.org/abs/2506.04207; code
https://github.com/CSfufu/Revisual-R1. Prioritized Advantage Distillation:

    act     y_1..y_G ~ pi_old(. | images, q);  R_i = reward(y_i)
            E = {i : low <= |A_i| <= high};  of all N responses min(ceil(share N), |E|)
            are drawn from E without replacement, p_i ~ exp(|A_i| / tau), tau from 1
            down to 0.3 over training
    score   log pi_ref(y_i), with an anchor
    credit  A_it = (R_i - mean(R)) / (std(R) + 1e-6), over the whole group
    loss    dual-clipped surrogate (0.2, 0.25, 3) + weight KL(l_it, l_ref_it)
            - entropy_weight entropy, mean over the tokens of the drawn responses

Follows the paper where the code differs, which draws 1.5 N with replacement by |A|^1.5
(`filters.priority_resampling_released`). Its configuration has high = 0.97: with
advantages divided by their deviation that drops the only right answer of a group, so
there is no upper bound here. `share` is not printed. Where E is empty nothing is drawn,
and all stay, as in the code.

A staged method: supervised steps on text; this recipe on pictures, without an anchor;
then on text with the tower frozen, near(reference, weight=0.002), and an entropy
weight, which falls by the update in the paper and is constant here. The reward is
accuracy and `efficient`; what the code adds for words of criticism, for looking again
and against repetition is left out.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from vrl_jax import advantages, filters, objectives, reductions, schedules
from vrl_jax.engine.reference import Anchor, free
from vrl_jax.programs.single_turn import single_turn
from vrl_jax.rewards import length
from vrl_jax.rewards.combine import Reward, per_response, response_length, weighted
from vrl_jax.training.iteration import Recipe, as_batch
from vrl_jax.training.metrics import once, policy_metrics

KEPT = "kept"
"""The part of the rewards that says which responses were drawn; its mean is logged."""


def revisual_r1(
    *,
    group_size: int = 8,
    share: float = 0.5,
    low: float = 0.03,
    high: float = math.inf,
    hot: float = 1.0,
    cold: float = 0.3,
    anchor: Anchor = free,
    entropy_weight: float = 0.0,
    clip_low: float = 0.2,
    clip_high: float = 0.25,
) -> Recipe:
    """`hot` and `cold` are tau at the first and the last step."""
    advantage = functools.partial(advantages.group_zscore, group_size=group_size)
    clips = {"clip_low": clip_low, "clip_high": clip_high}

    def act(actor, batches, key):
        play_key, draw_key = jax.random.split(key)
        rollout = single_turn(actor, batches, play_key, group_size=group_size)
        tau = schedules.linear(actor.step, start=hot, end=cold, total=actor.total_steps)
        given = advantage(rollout.rewards)
        bounds = {"share": share, "low": low, "high": high}
        kept = distilled(draw_key, given, tau=tau, **bounds)
        parts = {**rollout.reward_parts, KEPT: kept.astype(jnp.float32)}
        return dataclasses.replace(rollout, reward_parts=parts)

    def score(actor, rollout, key):
        return anchor.score(actor, rollout)

    def credit(rollout):
        kept = jnp.broadcast_to(rollout.reward_parts[KEPT][:, None], rollout.mask.shape)
        extra = {**rollout.extra_logprobs, KEPT: kept}
        metrics = {"actor/kl_coef": once(anchor.weight)}
        return as_batch(rollout, advantage(rollout.rewards)[:, None], extra), metrics

    def loss(policy, batch):
        new = policy(batch)
        drawn = batch.mask & (batch.extra[KEPT] > 0)
        surrogate = objectives.dual_clipped_surrogate(
            new.logprobs, batch.old_logprobs, batch.advantages, **clips
        )
        distance = anchor.distance(new.logprobs, batch.extra)
        entropy = objectives.sampled_entropy(new.logprobs)
        per_token = surrogate + anchor.weight * distance - entropy_weight * entropy
        pg_loss = reductions.token_mean(surrogate, drawn)
        return reductions.token_mean(per_token, drawn), {
            **policy_metrics(new, batch, pg_loss, **clips),
            "actor/kl_loss": reductions.token_mean(distance, drawn),
        }

    return Recipe(act, score, credit, loss)


@functools.partial(jax.jit, static_argnames="share")
def distilled(
    key: Key[Array, ""],
    advantages: Float[Array, " B"],
    *,
    share: float,
    low: float | Float[Array, ""] = 0.03,
    high: float | Float[Array, ""] = math.inf,
    tau: float | Float[Array, ""] = 0.3,
) -> Bool[Array, " B"]:
    """Which responses are drawn: min(ceil(share B), |E|) of E; all where E is empty."""
    said = filters.advantage_band(advantages, low=low, high=high)
    count = math.ceil(share * len(advantages))
    rows, real = filters.priority_resampling(
        key, advantages, said, count=count, temperature=tau
    )
    drawn = jnp.zeros(len(advantages), bool).at[rows].set(real)
    return jnp.where(said.any(), drawn, True)


def efficient(
    accuracy: Reward,
    *,
    budget: int,
    weight: float = 0.05,
    alpha: float = 5e-3,
    delta: float = 0.5,
) -> Reward:
    """accuracy + weight clip(alpha (budget - L) + delta, 0, 1), L in tokens.

    Equations 5 and 6; whether right or wrong. The paper does not print the weight: 0.05
    is its code's, where alpha is 0.001, delta 0.95 and the budget 8192, and whose
    released scripts switch the term off.
    """
    rule = functools.partial(
        length.efficient_length, budget=budget, alpha=alpha, delta=delta
    )
    short = per_response(lambda e: float(rule(np.float32(response_length(e)))))
    return weighted({"accuracy": (accuracy, 1.0), "length": (short, weight)})
