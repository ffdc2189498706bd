"""GLIDER: a planner that says what to do next, a controller that does it, one model.

2025, https://arxiv.org/abs/2505.19761; code https://github.com/NJU-RL/GLIDER.

    before  trajectories of experts, and of the cloned policy, as rows of two kinds:
            the planner's (states -> subtasks) and the controller's (what it sees ->
            actions), a conversation each: `programs.plan_and_act` plays and writes them
    act     the row's own words to what the row says; action k is turn k
    score   nothing
    credit  lp_k = mean_t log pi(token t of action k): the same whatever its length
    loss    where the row has rewards, with Q, V and a target Q' that follows Q:
                y_k = r_k + gamma Q'_k+1, and r_K of the last action
                (Q_k - y_k)^2 + |tau - 1(Q'_k < V_k)| (Q'_k - V_k)^2
                - w_k lp_k,  w_k = min(exp((Q'_k - V_k) / lambda), 20)
            where it has none, - lp_k: it is cloned
            a mean over the actions of either kind

Rows are those of `read_dialogues`, with the columns `asks` and `demonstration`, and one
more, `rewards`, a number for each answer: of the planner's, what the environment paid
for the subtask, a share of an episode's 1. The controller's have none and are cloned,
as in the code. The paper also describes the reward 1 for the last action of a subtask
that it finished: `programs.plan_and_act.finished` adds it, and these rows then learn as
the planner's do.

    policy, params = judged(actor.policy, actor.params, key)
    first    glider_cloning(), five epochs at 1e-4
    then     glider(), four, with rows of experts and of the policy that was cloned
             optimizer=following(
                 optax.multi_transform({"critic": adamw(1e-4), "policy": adamw(1e-5)},
                                       parts), "q", "target", rate=0.2)
             trains=also(critic, lora.adapters(key, table))     rank 16, alpha 32
    online   glider() again at 1e-6 and 1e-5, on rows of the last 32 episodes

Which weight gave the paper's numbers is open. The code that is released has w = Q',
`q_weight`, without V; its comments name the exponential, which is AWAC's; an older file
of it has w = Q' - V, `advantage`. The cap is that of https://arxiv.org/abs/1910.00177.
That file swaps the two sides of the expectile; here it is IQL's.

The critics read hidden states, and what they learn does not reach the policy. V reads
the state that predicts the action's first token, and Q the one that predicts its last,
the end: it has read the whole action. The code's Q reads one token later, behind the
end, where a row that fills its room has no state. Means are over the actions that there
are; the code averages its padding too. It takes a step for each loss in turn; here one
step is taken on their sum. That an environment has ended says nothing more, for a
trajectory's last action has no successor: the code's column `done` is not read.
Pictures among what is seen, in a row as in an environment, are our reading.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from vrl_jax import advantages, masked, objectives, reductions
from vrl_jax.engine.desk import Limits
from vrl_jax.models.critic import CRITIC, apart, held, mlp, with_critics
from vrl_jax.models.policy import Params, Policy
from vrl_jax.programs.dialogue import dialogue
from vrl_jax.programs.recital import demonstrated, recited
from vrl_jax.training.iteration import Recipe, as_batch
from vrl_jax.types import Batch, Likelihood, Sample

Weight = Callable[[Float[Array, "B S"], Float[Array, "B S"]], Float[Array, "B S"]]
"""(Q', V) of an action -> what its log-probability weighs."""


class Actions(NamedTuple):
    """What the loss reads of action k of row b; 0 where `there` is False.

    `rewards` are NaN where the row has none. `share` makes of a mean over all actions
    one over those of its kind.
    """

    there: Bool[Array, "B S"]
    rewards: Float[Array, "B S"]
    share: Float[Array, "B S"]
    logprobs: Float[Array, "B S"]


def q_weight(
    target: Float[Array, "B S"], values: Float[Array, "B S"]
) -> Float[Array, "B S"]:
    """Q': an action that comes to nothing is not learnt."""
    del values
    return target


def advantage(
    target: Float[Array, "B S"], values: Float[Array, "B S"]
) -> Float[Array, "B S"]:
    """Q' - V: an action worse than what is usual is unlearnt."""
    return target - values


def exp_advantage(
    target: Float[Array, "B S"],
    values: Float[Array, "B S"],
    *,
    temperature: float = 1.0,
    cap: float = 20.0,
) -> Float[Array, "B S"]:
    """min(exp((Q' - V) / temperature), cap), AWAC, https://arxiv.org/abs/2006.09359."""
    return jnp.exp(jnp.minimum((target - values) / temperature, math.log(cap)))


def sarsa_targets(
    rewards: Float[Array, "B S"], target: Float[Array, "B S"], *, discount: float = 0.99
) -> Float[Array, "B S"]:
    """r_k + discount Q'_k+1, of the actions that were taken; Q' is 0 after the last."""
    following = jnp.pad(target, ((0, 0), (0, 1)))[:, 1:]
    return rewards + discount * following


def judged(
    policy: Policy, params: Params, key: Key[Array, ""]
) -> tuple[Policy, Params]:
    """With critics q, value and target, which begins as q; none moves the policy."""
    critics = {"q": apart(mlp), "value": apart(mlp), "target": held(mlp)}
    policy, params = with_critics(policy, params, key, critics)
    own = params[CRITIC]
    return policy, {**params, CRITIC: {**own, "target": own["q"]}}


def glider(
    *,
    weight: Weight = exp_advantage,
    discount: float = 0.99,
    expectile: float = 0.9,
    limits: Limits | None = None,
) -> Recipe:
    """`expectile` is tau, from 0.75 to 0.95 in the paper's settings.

    `weight` is such as functools.partial(exp_advantage, temperature=0.5). A row whose
    rewards are not one number for each answer is a ValueError.
    """

    def act(actor, batches, key):
        samples = next(batches)
        paid = _paid(samples)
        rollout = recited(actor, iter([samples]), key, program=dialogue, limits=limits)
        last = masked.ends(rollout.mask)
        rewards = advantages.at_tokens(paid, masked.numbered(rollout.mask), last)
        return dataclasses.replace(rollout, extra={"reward": rewards})

    def score(actor, rollout, key):
        return rollout

    def credit(rollout):
        last = masked.ends(rollout.mask)
        known = last & ~jnp.isnan(rollout.extra["reward"])
        paid, every = known.any(axis=1), last.sum()
        # Each kind has a mean of its own; the learner divides by all actions.
        of_kind = jnp.where(paid, known.sum(), (last & ~known).sum())
        share = every / jnp.maximum(of_kind, 1)
        return as_batch(rollout, share[:, None], rollout.extra), {}

    def loss(policy, batch):
        new = policy(batch)
        actions = _actions(new, batch)
        known = actions.there & ~jnp.isnan(actions.rewards)
        rewards = jnp.where(known, actions.rewards, 0)
        q, target, values = _said(new, batch)
        target = jax.lax.stop_gradient(target)
        errors = (q - sarsa_targets(rewards, target, discount=discount)) ** 2
        spread = objectives.expectile_loss(values, target, expectile=expectile)
        weights = jax.lax.stop_gradient(weight(target, values))
        learnt = -jnp.where(known, weights, 1) * actions.logprobs
        whole = learnt + jnp.where(known, errors + spread, 0)
        mean = reductions.token_mean(actions.share * whole, actions.there)
        cloned = actions.there & ~known
        return mean, {
            "actor/pg_loss": reductions.token_mean(learnt, known),
            "actor/weight": reductions.token_mean(weights, known),
            "actor/entropy": reductions.token_mean(new.entropy, batch.mask),
            "sft/loss": reductions.token_mean(learnt, cloned),
            "critic/q_loss": reductions.token_mean(errors, known),
            "critic/vf_loss": reductions.token_mean(spread, known),
            "critic/q": reductions.token_mean(q, known),
            "critic/value": reductions.token_mean(values, known),
            "critic/target_gap": reductions.token_mean(jnp.abs(q - target), known),
        }

    return Recipe(act, score, credit, loss)


def glider_cloning(*, limits: Limits | None = None) -> Recipe:
    """The stage before: -lp_k of all rows, a mean of each kind; no critic is asked."""

    def loss(policy, batch):
        new = policy(batch)
        actions = _actions(new, batch)
        kept = -actions.share * actions.logprobs
        mean = reductions.token_mean(kept, actions.there)
        entropy = reductions.token_mean(new.entropy, batch.mask)
        return mean, {"sft/loss": mean, "actor/entropy": entropy}

    return glider(limits=limits)._replace(loss=loss)


def _actions(new: Likelihood, batch: Batch) -> Actions:
    number, last = masked.numbered(batch.mask), masked.ends(batch.mask)
    ones = jnp.ones_like(new.logprobs)
    lengths = advantages.of_steps(ones, number, batch.mask)
    total = advantages.of_steps(new.logprobs, number, batch.mask)
    return Actions(
        lengths > 0,
        advantages.of_steps(batch.extra["reward"], number, last),
        advantages.of_steps(batch.advantages, number, last),
        total / jnp.maximum(lengths, 1),
    )


def _said(new: Likelihood, batch: Batch) -> tuple[Float[Array, "B S"], ...]:
    """Q, its target, and V of each action. `ValueError` without the critics."""
    if missing := {"q", "target", "value"} - new.values.keys():
        raise ValueError(
            f"GLIDER needs the critics of `recipes.glider.judged`, and this policy has "
            f"no {', '.join(sorted(missing))}."
        )
    number = masked.numbered(batch.mask)
    last, first = masked.ends(batch.mask), masked.starts(batch.mask)
    places = {"q": last, "target": last, "value": first}
    return tuple(
        advantages.of_steps(new.values[name], number, at) for name, at in places.items()
    )


def _paid(samples: Sequence[Sample]) -> Float[Array, "B S"]:
    """The rows' rewards; NaN behind them, and where a row has none."""
    rows = [_rewards(sample) for sample in samples]
    table = np.full((len(rows), max(1, *map(len, rows))), np.nan, np.float32)
    for row, rewards in zip(table, rows, strict=True):
        row[: len(rewards)] = rewards
    return jnp.asarray(table)


def _rewards(sample: Sample) -> Sequence[float]:
    given = sample.annotations.get("rewards")
    if given is None:
        return ()
    count = len(demonstrated(sample))
    usable = isinstance(given, list | tuple) and all(
        isinstance(r, int | float) and math.isfinite(r) for r in given
    )
    if not usable or len(given) != count:
        raise ValueError(
            f"{sample.id} needs in the column 'rewards' a number for each of its "
            f"{count} answers, or nothing at all to be cloned; got {given!r}."
        )
    return given
