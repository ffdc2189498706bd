"""PAPO: be another policy where the picture is blackened.

Perception-Aware Policy Optimization, Wang et al., 2025,
https://arxiv.org/abs/2507.06448; code https://github.com/MikeWangWZHL/PAPO.

    act     DAPO's: play until enough groups are mixed
    score   l'_it = log pi_old(y_it | blackened image), one draw per prompt;
            log pi_ref(y_it | image), with an anchor
    credit  A_it = (R_i - mean(R)) / (std(R) + 1e-6)
    loss    dual-clipped surrogate (0.2, 0.28, 3) - 0.01 k3(l_it, l'_it)
            - 0.03 l_it - 0.03 l'_it, mean over all tokens

The numbers are those of PAPO-D; PAPO-G has clips (0.2, 0.3), keep=every_group, gamma
0.02, anchor=near(reference, weight=0.01, divergence=divergences.low_var_kl), and
entropy_penalty=0.0 for 3B, 0.05 for 7B; without the anchor gamma 0.01 and 0.03. The
paper maximises KL(pi || pi') and both entropies fall; in the code l' is scored once and
`constant`, so that its entropy term trains nothing, and the gradient of k3 is that of
the reverse divergence. `differentiated` is the paper's: a second pass of the policy
under the blackened picture. Averages are over the batch, where the code averages
micro-batches. Patches are blackened after the resize, as in VPPO, where PAPO does so
before.

Above 0.04 the perception term eats the reward: watch `actor/kl_prcp`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Array, Float, Key

from vrl_jax import advantages, divergences, objectives, reductions, views
from vrl_jax.engine.actor import Actor, View, look, seeing
from vrl_jax.engine.reference import Anchor, free
from vrl_jax.programs.dynamic_sampling import (
    Keep,
    dynamic_sampling,
    mixed_accuracy,
)
from vrl_jax.programs.single_turn import single_turn
from vrl_jax.training.iteration import Recipe, as_batch
from vrl_jax.training.learner import ScoringPolicy
from vrl_jax.training.metrics import once, policy_metrics
from vrl_jax.types import Batch, Rollout


class Second(NamedTuple):
    """How the loss comes by the log-probs under the blackened picture."""

    score: Callable[[Actor, Rollout, View, Key[Array, ""]], Rollout]
    logprobs: Callable[[ScoringPolicy, Batch], Float[Array, "B T"]]


def _scored(actor: Actor, rollout: Rollout, view: View, key: Key[Array, ""]) -> Rollout:
    return actor.add_shared_logprobs(rollout, "blackened", view, key)


def _drawn(actor: Actor, rollout: Rollout, view: View, key: Key[Array, ""]) -> Rollout:
    images = look(view, key, rollout.prompts)
    return dataclasses.replace(rollout, views={"blackened": images})


constant = Second(_scored, lambda policy, batch: batch.extra["blackened"])
differentiated = Second(
    _drawn,
    lambda policy, batch: policy(seeing(batch, batch.views["blackened"])).logprobs,
)


def papo(
    *,
    group_size: int = 8,
    gamma: float = 0.01,
    entropy_penalty: float = 0.03,
    anchor: Anchor = free,
    blackened: float = 0.6,
    second: Second = constant,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    keep: Keep = mixed_accuracy,
    max_rounds: int = 20,
) -> Recipe:
    """`gamma` weighs the perception term, `entropy_penalty` is eta_1 = eta_2."""
    act = functools.partial(
        dynamic_sampling,
        act=functools.partial(single_turn, group_size=group_size),
        keep=keep,
        max_rounds=max_rounds,
    )
    view = functools.partial(views.blacken_patches, share=blackened)

    def score(actor, rollout, key):
        rollout = second.score(actor, rollout, actor.painting(view), key)
        return anchor.score(actor, rollout)

    def credit(rollout):
        advantage = advantages.group_zscore(rollout.rewards, group_size=group_size)
        metrics = {"actor/kl_coef": once(anchor.weight)}
        return as_batch(rollout, advantage[:, None], rollout.extra_logprobs), metrics

    def loss(policy, batch):
        new, blind = policy(batch), second.logprobs(policy, batch)
        clips = {"clip_low": clip_low, "clip_high": clip_high}
        surrogate = objectives.dual_clipped_surrogate(
            new.logprobs, batch.old_logprobs, batch.advantages, **clips
        )
        perception = divergences.low_var_kl(new.logprobs, blind)
        penalty = objectives.sampled_entropy(new.logprobs + blind)
        distance = anchor.distance(new.logprobs, batch.extra)
        per_token = surrogate - gamma * perception + entropy_penalty * penalty
        per_token = per_token + anchor.weight * distance
        mean = reductions.token_mean(per_token, batch.mask)
        pg_loss = reductions.token_mean(surrogate, batch.mask)
        return mean, {
            **policy_metrics(new, batch, pg_loss, **clips),
            "actor/kl_loss": reductions.token_mean(distance, batch.mask),
            "actor/kl_prcp": reductions.token_mean(perception, batch.mask),
            "actor/aug_nll": reductions.token_mean(-blind, batch.mask),
        }

    return Recipe(act, score, credit, loss)
