"""One update: what it sums, what it divides by, and what it refuses."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vrl_jax import reductions
from vrl_jax.training.learner import adamw, make_learner, split, update
from vrl_jax.training.metrics import as_floats
from vrl_jax.types import Batch

from ..fixtures.chain import chain, chain_prompts

PROMPTS, GROUP, LENGTH, VOCABULARY = 4, 2, 5, 7
POLICY = chain(VOCABULARY)
OPTIMIZER = adamw(0.1)


@functools.cache
def batch() -> Batch:
    random = np.random.RandomState(0)
    shape = (PROMPTS * GROUP, LENGTH)
    lengths = random.randint(1, LENGTH + 1, shape[0])
    return Batch(
        prompts=chain_prompts([1, 2, 3, 4]),
        tokens=jnp.asarray(random.randint(0, VOCABULARY, shape)),
        positions=jnp.zeros((*shape, 3), int),
        mask=jnp.arange(LENGTH) < jnp.asarray(lengths)[:, None],
        temperature=jnp.ones(shape[0]),
        old_logprobs=jnp.zeros(shape),
        advantages=jnp.asarray(random.randn(*shape), jnp.float32),
    )


def learner(**changes):
    table = jnp.asarray(np.random.RandomState(1).randn(VOCABULARY, VOCABULARY))
    allowed = jnp.ones(VOCABULARY, bool)
    return make_learner(POLICY, {"table": table}, OPTIMIZER, allowed, **changes)


def token_loss(policy, batch):
    new = policy(batch)
    mean = reductions.token_mean(-batch.advantages * new.logprobs, batch.mask)
    entropy = reductions.token_mean(new.entropy, batch.mask)
    return mean, {"actor/entropy": entropy}


def sequence_loss(policy, batch):
    logprobs = policy(batch).logprobs
    return reductions.sequence_mean(-batch.advantages * logprobs, batch.mask), {}


def turned(batch: Batch, order) -> Batch:
    rows = (np.array(order)[:, None] * GROUP + np.arange(GROUP)).ravel()
    return jax.tree.map(
        lambda x: x[jnp.array(order) if len(x) == PROMPTS else rows], batch
    )


def close(one, other):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), one, other
    )


@pytest.mark.parametrize("loss", [token_loss, sequence_loss])
@pytest.mark.parametrize("count", [2, 4])
def test_update_does_not_depend_on_micro_batches(loss, count):
    """Law 4. The responses' lengths differ, so a mean of means would be another."""
    whole, metrics = update(loss, learner(), batch())
    parts, logged = update(loss, learner(micro_batches=count), batch())
    close(parts.params, whole.params)
    close(as_floats(logged), as_floats(metrics))


def test_update_does_not_depend_on_the_order_of_the_groups():
    one, _ = update(token_loss, learner(micro_batches=2), batch())
    again = turned(batch(), [3, 1, 0, 2])
    other, _ = update(token_loss, learner(micro_batches=2), again)
    close(one.params, other.params)


def test_update_follows_the_gradient_of_the_divided_sum():
    """Plain descent by 1: the change is -grad(total / weight)."""
    plain = make_learner(
        POLICY, learner().params, optax.sgd(1.0), learner().allowed, micro_batches=2
    )
    after, metrics = update(token_loss, plain, batch())

    def divided(params):
        table, one = params["table"], batch()
        last = jnp.repeat(one.prompts.tokens[:, 1], GROUP)[:, None]
        before = jnp.concatenate([last, one.tokens[:, :-1]], axis=1)
        logprobs = jax.nn.log_softmax(table[before])
        chosen = jnp.take_along_axis(logprobs, one.tokens[..., None], axis=-1)[..., 0]
        return -jnp.where(one.mask, chosen * one.advantages, 0).sum() / one.mask.sum()

    value, slope = jax.value_and_grad(divided)(learner().params)
    close(learner().params["table"] - after.params["table"], slope["table"])
    logged = as_floats(metrics)
    assert logged["actor/loss"] == pytest.approx(float(value), rel=1e-5)
    norm = float(jnp.linalg.norm(slope["table"]))
    assert logged["actor/grad_norm"] == pytest.approx(norm, rel=1e-5)


def test_adamw_clips_the_global_norm():
    grads = {"a": jnp.full(4, 30.0), "b": jnp.full(9, -40.0)}
    params = jax.tree.map(jnp.zeros_like, grads)
    optimizer = adamw(0.1, weight_decay=0.0, clip_norm=2.0)
    _, state = optimizer.update(grads, optimizer.init(params), params)
    first = optax.tree_utils.tree_get(state, "mu")  # 0.1 times the clipped gradient
    assert float(optax.tree.norm(first)) == pytest.approx(0.2, rel=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])  # its square overflows
@pytest.mark.parametrize("count", [1, 2])
def test_update_skips_and_counts_what_is_not_finite(value, count):
    """Law 7: nothing moves, neither parameters nor the optimiser's memory."""
    start, _ = update(token_loss, learner(micro_batches=count), batch())
    before = jax.tree.map(np.asarray, (start.params, start.opt_state))
    bad = dataclasses.replace(
        batch(), advantages=batch().advantages.at[0, 0].set(value)
    )
    after, metrics = update(token_loss, start, bad)
    jax.tree.map(np.testing.assert_array_equal, (after.params, after.opt_state), before)
    assert (int(after.step), int(after.skipped)) == (1, 1)
    assert as_floats(metrics)["training/skipped"] == 1
    again, metrics = update(token_loss, after, batch())
    assert (int(again.step), int(again.skipped)) == (2, 1)
    assert as_floats(metrics)["training/skipped"] == 0
    assert (again.params["table"] != before[0]["table"]).any()


@pytest.mark.parametrize("count", [1, 2])
def test_update_without_any_token_changes_nothing(count):
    """No step by momentum or decay alone, and none that counts as not finite."""
    start, _ = update(token_loss, learner(micro_batches=count), batch())
    before = jax.tree.map(np.asarray, (start.params, start.opt_state))
    empty = dataclasses.replace(batch(), mask=jnp.zeros_like(batch().mask))
    after, metrics = update(token_loss, start, empty)
    jax.tree.map(np.testing.assert_array_equal, (after.params, after.opt_state), before)
    assert (int(after.step), int(after.skipped)) == (1, 0)
    logged = as_floats(metrics)
    assert (logged["training/empty"], logged["training/skipped"]) == (1, 0)
    assert logged["actor/grad_norm"] == 0
    _, metrics = update(token_loss, after, batch())
    assert as_floats(metrics)["training/empty"] == 0


def test_make_learner_copies():
    """An update reuses the learner's memory, and must leave the caller's alone."""
    mine, allowed = {"table": jnp.eye(VOCABULARY)}, jnp.ones(VOCABULARY, bool)
    update(token_loss, make_learner(POLICY, mine, OPTIMIZER, allowed), batch())
    np.testing.assert_array_equal(mine["table"], np.eye(VOCABULARY))
    assert allowed.all()


def test_split_keeps_groups_whole_and_in_order():
    pieces = split(batch(), 2)
    joined = jax.tree.map(lambda *x: jnp.concatenate(x), *pieces)
    jax.tree.map(np.testing.assert_array_equal, joined, batch())
    assert [len(piece.tokens) for piece in pieces] == [4, 4]
    assert [len(piece.prompts.tokens) for piece in pieces] == [2, 2]


def test_one_piece_is_the_batch_itself():
    whole = batch()
    (piece,) = split(whole, 1)
    assert jax.tree.leaves(piece)[0] is jax.tree.leaves(whole)[0]


def test_split_says_what_does_not_divide():
    with pytest.raises(
        ValueError, match=r"4 prompts in 4 packs does not split into 3 .*divide"
    ):
        split(batch(), 3)
