"""PPO: a critic says what each token was worth.

Schulman et al., 2017, https://arxiv.org/abs/1707.06347, with generalised advantages,
Schulman et al., 2015, https://arxiv.org/abs/1506.02438, for language models as in verl
(`adv_estimator: gae`), code https://github.com/volcengine/verl. A token is an action.

    act     y_1..y_G ~ pi_old(. | image, q);  R_i = reward(y_i)
    score   V_it, what the critic says of each token's state
            log pi_ref(y_i | image, q), with an anchor
    credit  r_it = R_i at the last token, less weight k1(l_it, l_ref_it) at each
            d_it = r_it + gamma V_i,t+1 - V_it
            g_it = d_it + gamma lambda g_i,t+1
            A_it = whitened over all tokens of the batch: g_it
            return_it = g_it + V_it
    loss    clipped surrogate (0.2)
            + c/2 max((v_it - return_it)^2, (clip(v_it, V_it +- 0.5) - return_it)^2),
            v the critic as it is now; mean over all tokens

The actor wants a critic "value"; a group of 1 will do:

    policy, params = with_critics(actor.policy, actor.params, key, {"value": linear})
    actor = dataclasses.replace(actor, policy=policy, params=params)

or, of a released model, finetune(critics={"value": linear}).

                                    gamma   lambda   band of v   c
    verl                            1       1        0.5         of its own optimiser
    TRL                             1       0.95     0.2         0.1
    here                            1       1        0.5         0.1
    the paper, on Atari             0.99    0.95     none        1, of the whole square

verl's critic is a model of its own, learning ten times as fast as the policy. Here it
reads the policy's states, as TRL's value head does, and c times its gradient goes on
into the policy; {"value": apart(linear)} stops it there. `models.critic.parts` gives it
its own rate. verl also bounds the surrogate of bad tokens, which is
surrogate=objectives.dual_clipped_surrogate, and its critic_warmup is a Stage before,
with trains=only(models.trained.critic). Splits such as only(language) leave the critic
out: also(critic, only(language)) trains it too.

Iterations have as many updates as `minibatches`; no batch is gone through twice, as the
paper's is. A response that has no reward trains neither policy nor critic.
"""

import functools

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vrl_jax import advantages, masked, objectives, reductions
from vrl_jax.engine.reference import Anchor, free
from vrl_jax.programs.single_turn import single_turn
from vrl_jax.training.clipped_recipe import Surrogate
from vrl_jax.training.iteration import Recipe, as_batch
from vrl_jax.training.metrics import Metrics, once, policy_metrics, spread


def ppo(
    *,
    group_size: int = 1,
    discount: float = 1.0,
    decay: float = 1.0,
    clip: float = 0.2,
    value_clip: float = 0.5,
    value_weight: float = 0.1,
    surrogate: Surrogate = objectives.clipped_surrogate,
    anchor: Anchor = free,
) -> Recipe:
    """`discount` is gamma, `decay` lambda, `value_weight` c.

    With a reference: anchor=near(reference, weight=0.001, divergence=divergences.k1).
    """
    act = functools.partial(single_turn, group_size=group_size)
    clips = {"clip_low": clip, "clip_high": clip}

    def score(actor, rollout, key):
        return anchor.score(actor, actor.add_values(rollout, "value"))

    def credit(rollout):
        values = rollout.extra["value"]
        scored = rollout.mask & ~jnp.isnan(rollout.rewards)[:, None]
        distance = anchor.distance(rollout.old_logprobs, rollout.extra_logprobs)
        rewards = advantages.at_last_token(rollout.rewards, scored)
        rewards = rewards - anchor.weight * distance
        gained = advantages.generalized_advantages(
            rewards, values, scored, discount=discount, decay=decay
        )
        returns = gained + jnp.where(scored, values, 0)
        paid = anchor.weight * masked.sum(distance, rollout.mask, axis=1)
        metrics = {
            "critic/kl": reductions.token_mean(distance, rollout.mask),
            "critic/kl_coef": once(anchor.weight),
            **spread("critic/rewards", rollout.rewards - paid),
            **value_metrics(values, returns, scored),
        }
        extra = {"value": values, "returns": returns, "scored": scored}
        return as_batch(rollout, advantages.whiten(gained, scored), extra), metrics

    def loss(policy, batch):
        new = policy(batch)
        values, returns, scored = map(batch.extra.get, ("value", "returns", "scored"))
        per_token = surrogate(
            new.logprobs, batch.old_logprobs, batch.advantages, **clips
        )
        told = (new.values["value"], values, returns)
        value_loss = objectives.clipped_value_loss(*told, clip=value_clip)
        bounded = objectives.value_clip_fraction(*told, clip=value_clip)
        mean = reductions.token_mean(per_token + value_weight * value_loss, scored)
        return mean, {
            **policy_metrics(
                new, batch, reductions.token_mean(per_token, scored), **clips
            ),
            "critic/vf_loss": reductions.token_mean(value_loss, scored),
            "critic/vf_clipfrac": reductions.token_mean(bounded, scored),
            "critic/vpred_mean": reductions.token_mean(new.values["value"], scored),
        }

    return Recipe(act, score, credit, loss)


def value_metrics(
    values: Float[Array, "B T"], returns: Float[Array, "B T"], mask: Bool[Array, "B T"]
) -> Metrics:
    """Of the values before the update, under verl's names.

    `critic/vf_explained_var` = 1 - var(returns - values) / (var(returns) + 1e-5): 1 if
    they say all, 0 or less if a constant says as much.
    """
    unsaid, spread_out = (masked.std(x, mask) ** 2 for x in (returns - values, returns))
    known = (jnp.where(mask, x, jnp.nan) for x in (values, returns))
    names = ("critic/values", "critic/returns")
    of_each = [spread(name, x) for name, x in zip(names, known, strict=True)]
    explained = once(1 - unsaid / (spread_out + 1e-5))
    return {**of_each[0], **of_each[1], "critic/vf_explained_var": explained}
