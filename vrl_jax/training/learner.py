"""Optimisation: gradients summed over micro-batches, divided once, applied once."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from vrl_jax.engine.likelihood import likelihood
from vrl_jax.models.policy import Params, Policy
from vrl_jax.models.sharding import by_row
from vrl_jax.models.trained import Join, Trains, everything
from vrl_jax.training.metrics import Metrics, learning_rate_metrics, merged
from vrl_jax.types import Batch, Likelihood, Mean

ScoringPolicy = Callable[[Batch], Likelihood]
Loss = Callable[[ScoringPolicy, Batch], tuple[Mean, Metrics]]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("trained", "fixed", "opt_state", "step", "skipped", "allowed"),
    meta_fields=("join", "policy", "optimizer", "minibatches", "micro_batches"),
)
@dataclasses.dataclass(frozen=True)
class Learner:
    """What an update reads and returns.

    The policy's params are join(trained, fixed); only `trained` is differentiated.
    `step` counts applied updates, `skipped` those whose gradient was not finite.
    A batch is cut into `minibatches`, one update each; a minibatch into
    `micro_batches`, whose gradients are added before the update.
    """

    trained: Any
    fixed: Any
    opt_state: optax.OptState
    step: Int[Array, ""]
    skipped: Int[Array, ""]
    allowed: Bool[Array, " V"]
    join: Join
    policy: Policy
    optimizer: optax.GradientTransformation
    minibatches: int = 1
    micro_batches: int = 1

    @property
    def params(self) -> Params:
        """The policy's, for sampling, scoring and export."""
        return self.join(self.trained, self.fixed)


def adamw(
    learning_rate: float | optax.Schedule,
    *,
    weight_decay: float = 0.01,
    clip_norm: float = 1.0,
    mu_dtype: jnp.dtype | None = None,
) -> optax.GradientTransformation:
    """AdamW (0.9, 0.999) after clipping the gradient's global norm.

    Its state tells the learning rate of the newest update. `mu_dtype` bfloat16 halves
    the first moment, whose steps of 1/10 it can hold; the second stays float32: see
    `training.precision`.
    """
    return optax.chain(
        optax.clip_by_global_norm(clip_norm),
        optax.adamw(learning_rate, weight_decay=weight_decay, mu_dtype=mu_dtype),
        noted(learning_rate),
    )


class Noted(NamedTuple):
    """The state of `noted`."""

    count: Int[Array, ""]
    learning_rate: Float[Array, ""]


def noted(learning_rate: float | optax.Schedule) -> optax.GradientTransformation:
    """Changes nothing: its state holds the rate of the newest update, to be logged."""
    at = learning_rate if callable(learning_rate) else lambda count: learning_rate

    def init(params: Any) -> Noted:
        return Noted(jnp.int32(0), jnp.asarray(at(0), jnp.float32))

    def update(updates: Any, state: Noted, params: Any = None) -> tuple[Any, Noted]:
        rate = jnp.asarray(at(state.count), jnp.float32)
        return updates, Noted(state.count + 1, rate)

    return optax.GradientTransformation(init, update)


def make_learner(
    policy: Policy,
    params: Params,
    optimizer: optax.GradientTransformation,
    allowed: Bool[Array, " V"],
    *,
    trains: Trains = everything,
    minibatches: int = 1,
    micro_batches: int = 1,
) -> Learner:
    """A learner at step 0 of a policy of which `trains` says what is trained.

    What is trained is copied, for updates reuse its memory; what is fixed is not.
    """
    trained, fixed, join = trains(params)
    trained = jax.tree.map(jnp.copy, trained)
    return Learner(
        trained=trained,
        fixed=jax.tree.map(jnp.asarray, fixed),
        opt_state=optimizer.init(trained),
        step=jnp.int32(0),
        skipped=jnp.int32(0),
        allowed=jnp.copy(allowed),
        join=join,
        policy=policy,
        optimizer=optimizer,
        minibatches=minibatches,
        micro_batches=micro_batches,
    )


def split(batch: Batch, pieces: int) -> list[Batch]:
    """`pieces` equal parts with whole groups and packs, in order; one is not copied.

    `ValueError` if uneven.
    """
    if pieces == 1:
        return [jax.tree.map(by_row, batch)]
    count, packs = batch.prompts.tokens.shape[0], batch.prompts.images.frames.shape[0]
    if packs % pieces:
        raise ValueError(
            f"a batch of {count} prompts in {packs} packs does not split into {pieces} "
            "equal parts; choose prompts_per_step, prompts_per_pack, minibatches and "
            "micro_batches that divide."
        )
    return cut(batch, pieces)


@functools.partial(jax.jit, static_argnums=1, inline=True)
def cut(batch: Batch, pieces: int) -> list[Batch]:
    """The parts of `split`, by one program and not by three for every array."""
    return [
        jax.tree.map(lambda x: by_row(x.reshape(pieces, -1, *x.shape[1:])[i]), batch)  # noqa: B023
        for i in range(pieces)
    ]


def update(loss: Loss, learner: Learner, minibatch: Batch) -> tuple[Learner, Metrics]:
    """One optimiser step on sum(total) / sum(weight) over the micro-batches.

    The result does not depend on how many micro-batches there are. Where the
    gradient's norm is not finite, parameters and optimiser state stay as they were
    and `skipped` counts one. So they stay where the weights are 0, for nothing was
    scored or a filter left nothing: momentum alone makes no step, and the metric
    `training/empty` is 1. The learner that came is used up, but for what is fixed.
    """
    fixed = learner.fixed
    moving = dataclasses.replace(learner, fixed=())
    moving, metrics = update_moving(loss, moving, fixed, minibatch)
    return dataclasses.replace(moving, fixed=fixed), metrics


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def update_moving(
    loss: Loss, learner: Learner, fixed: Any, minibatch: Batch
) -> tuple[Learner, Metrics]:
    """`update` of a learner without its fixed part, whose memory is reused."""

    def objective(trained, fixed, allowed, batch):
        params = learner.join(trained, fixed)

        def policy(batch: Batch) -> Likelihood:
            return likelihood(
                learner.policy,
                params,
                batch.prompts,
                batch.tokens,
                batch.positions,
                batch.mask,
                batch.temperature,
                allowed,
                batch.log_kept,
                batch.shown,
            )

        mean, metrics = loss(policy, batch)
        return mean.total, (mean.weight, metrics)

    # Traced once, though its shapes are asked for first; nothing else is left of this
    # jit.
    slope = jax.jit(jax.value_and_grad(objective, has_aux=True), inline=True)

    def gradient(batch):
        return slope(learner.trained, fixed, learner.allowed, batch)

    pieces = split(minibatch, learner.micro_batches)
    if len(pieces) == 1:
        summed = gradient(pieces[0])
    else:
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *pieces)
        shapes = jax.eval_shape(gradient, pieces[0])
        # bfloat16 gradients are added up in float32.
        zeros = jax.tree.map(
            lambda s: jnp.zeros(s.shape, jnp.promote_types(s.dtype, jnp.float32)),
            shapes,
        )

        def add(sums, piece):
            return merged(sums, gradient(piece)), None

        summed, _ = jax.lax.scan(add, zeros, stacked)
    (total, (weight, metrics)), grads = summed

    divisor = jnp.maximum(weight, jnp.finfo(weight.dtype).tiny)
    grads = jax.tree.map(lambda g: g / divisor, grads)
    norm = optax.tree.norm(grads)
    finite, empty = jnp.isfinite(norm), weight == 0
    updates, opt_state = learner.optimizer.update(
        grads, learner.opt_state, learner.trained
    )
    stepped = (optax.apply_updates(learner.trained, updates), opt_state)
    trained, opt_state = jax.tree.map(
        functools.partial(jnp.where, finite & ~empty),
        stepped,
        (learner.trained, learner.opt_state),
    )
    one = jnp.float32(1)
    metrics = {
        **metrics,
        **learning_rate_metrics(opt_state),
        "actor/loss": Mean(total, weight),
        "actor/grad_norm": Mean(norm, one),
        "training/skipped": Mean(jnp.where(finite, 0.0, 1.0), one),
        "training/empty": Mean(jnp.where(empty, 1.0, 0.0), one),
    }
    learner = dataclasses.replace(
        learner,
        trained=trained,
        opt_state=opt_state,
        step=learner.step + (finite & ~empty),
        skipped=learner.skipped + ~finite,
    )
    return learner, metrics
