"""Params of another kind for sampling, and a reference that waits on the host."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from vrl_jax import mismatch
from vrl_jax.engine.reference import near
from vrl_jax.engine.slots import unstack
from vrl_jax.models.qwen_vl.parameters import parameter_table
from vrl_jax.models.sharding import gathered, make_mesh, spread, to_device, to_host
from vrl_jax.recipes.grpo import grpo
from vrl_jax.training.learner import adamw
from vrl_jax.training.sampler import sampling_gathered, sampling_in

from ..fixtures import small


def acting(seen):
    def act(actor, batches, key):
        seen.append(actor.params)
        return small.rollout()

    return act


def test_sampling_in_rounds_the_params_and_weighs():
    seen, key = [], jax.random.key(0)
    plain = small.recipe("grpo")
    recipe = sampling_in(plain._replace(act=acting(seen)), jnp.bfloat16)
    actor = small.actor()
    rollout = recipe.act(actor, iter([small.samples()]), key)
    assert {leaf.dtype for leaf in jax.tree.leaves(seen[0])} == {jnp.dtype("bfloat16")}
    # The sampler's log-probs were off by a known factor: 3, and 1/2.
    off = jnp.where(jnp.arange(rollout.tokens.shape[0])[:, None] % 2, 3.0, 0.5)
    sampled = jnp.where(rollout.mask, rollout.old_logprobs - jnp.log(off), 0)
    scored = recipe.score(
        actor, dataclasses.replace(rollout, old_logprobs=sampled), key
    )
    np.testing.assert_allclose(scored.old_logprobs, rollout.old_logprobs, atol=1e-4)
    batch, metrics = recipe.credit(scored)
    unweighted, _ = plain.credit(rollout)
    expected = unweighted.advantages * mismatch.truncated(
        jnp.broadcast_to(off, rollout.mask.shape), rollout.mask
    )
    np.testing.assert_allclose(batch.advantages, expected, rtol=1e-3)
    assert 0.5 < metrics["mismatch/weight"].total < 2


def test_sampling_gathered_writes_from_whole_weights():
    """Of each layer; params lie as they did, and what is sampled is the same."""
    plain, key, told = small.recipe("grpo"), jax.random.key(0), []

    def act(actor, *rest):
        told.append(actor)
        return plain.act(actor, *rest)

    with jax.set_mesh(make_mesh(fsdp=4, tensor=2)):
        actor = small.actor(
            params=spread(small.params(), parameter_table(small.spec()))
        )
        recipe = sampling_gathered(plain._replace(act=act))
        played = recipe.act(actor, iter([small.samples()]), key)
        weights = told[0].weights(actor.policy, actor.params)
    assert told[0].params is actor.params
    spread_kernel = actor.params["text"]["layers"]["up"]["kernel"]
    assert spread_kernel.sharding.spec == P(None, "fsdp", "tensor")
    for layer in weights.decoder["layers"]:
        assert layer["up"]["kernel"].sharding.spec == P(None, "tensor")
    expected = unstack(actor.policy, small.params())
    jax.tree.map(np.testing.assert_array_equal, weights, expected)
    alone = plain.act(small.actor(), iter([small.samples()]), key)
    np.testing.assert_array_equal(played.tokens, alone.tokens)
    assert gathered(small.params()) is small.params()  # without a mesh


def test_a_reference_on_the_host_scores_the_same():
    reference = jax.tree.map(lambda x: 1.1 * x, small.params())
    there = to_host(reference)
    kinds = {leaf.sharding.memory_kind for leaf in jax.tree.leaves(there)}
    assert kinds == {"pinned_host"}
    rollout, key = small.rollout(), jax.random.key(0)
    scored = [
        grpo(group_size=small.GROUP, anchor=anchor).score(small.actor(), rollout, key)
        for anchor in (
            near(reference, weight=0.1),
            near(there, weight=0.1, fetch=to_device),
        )
    ]
    first, second = (one.extra_logprobs["reference"] for one in scored)
    np.testing.assert_array_equal(first, second)
    assert not np.allclose(first, rollout.old_logprobs, atol=1e-3)


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_first_moments_in_bfloat16_follow_those_in_float32(dtype):
    random = np.random.RandomState(0)
    params = {"x": jnp.asarray(random.randn(64), jnp.float32)}
    optimizer = adamw(1e-2, weight_decay=0.0, mu_dtype=dtype)
    state, moved = optimizer.init(params), params
    for _ in range(20):
        grads = {"x": moved["x"] + 0.1 * random.randn(64).astype(np.float32)}
        updates, state = optimizer.update(grads, state, moved)
        moved = jax.tree.map(jnp.add, moved, updates)
    held = {leaf.dtype for leaf in jax.tree.leaves(state) if leaf.shape == (64,)}
    assert held == {jnp.dtype("float32"), jnp.dtype(dtype or "float32")}
    # 20 steps of 0.01 towards 0.
    far = np.abs(params["x"]) > 0.5
    np.testing.assert_allclose(
        (params["x"] - moved["x"])[far], 0.2 * np.sign(params["x"])[far], rtol=0.1
    )
