"""The recipe that most papers are: an advantage a response, a clipped ratio, an anchor.

Such a paper is its `act`, its reward, and which functions these are.
"""

from collections.abc import Callable

from jaxtyping import Array, Bool, Float

from vrl_jax.engine.reference import Anchor
from vrl_jax.training.iteration import Act, Recipe, as_batch
from vrl_jax.training.metrics import once, policy_metrics
from vrl_jax.types import Mean

Advantage = Callable[[Float[Array, " E"]], Float[Array, " E"]]
Surrogate = Callable[..., Float[Array, "B T"]]
Reduction = Callable[[Float[Array, "B T"], Bool[Array, "B T"]], Mean]


def clipped_recipe(
    act: Act,
    *,
    advantage: Advantage,
    surrogate: Surrogate,
    reduction: Reduction,
    anchor: Anchor,
    clip_low: float,
    clip_high: float,
) -> Recipe:
    """reduction(surrogate(l, l_old, A) + weight distance(l, l_ref)), l = log pi.

    A = advantage(R) goes to every token of its response. The functions are such as
    `advantages.group_zscore` of a group size, `objectives.clipped_surrogate` and
    `reductions.token_mean`; `anchor` is `near` a reference, or `free`.
    """
    clips = {"clip_low": clip_low, "clip_high": clip_high}

    def score(actor, rollout, key):
        return anchor.score(actor, rollout)

    def credit(rollout):
        given = advantage(rollout.rewards)
        metrics = {"actor/kl_coef": once(anchor.weight)}
        return as_batch(rollout, given[:, None], rollout.extra_logprobs), metrics

    def loss(policy, batch):
        new = policy(batch)
        per_token = surrogate(
            new.logprobs, batch.old_logprobs, batch.advantages, **clips
        )
        distance = anchor.distance(new.logprobs, batch.extra)
        mean = reduction(per_token + anchor.weight * distance, batch.mask)
        pg_loss = reduction(per_token, batch.mask)
        return mean, {
            **policy_metrics(new, batch, pg_loss, **clips),
            "actor/kl_loss": reduction(distance, batch.mask),
        }

    return Recipe(act, score, credit, loss)
