"""Layers that keep less, and attention in pieces: the same values and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.cases import EVERY, pack, random_params, responses, two_rows
from vrl_jax.models import attention, remat
from vrl_jax.models.attention import KVCache, attend
from vrl_jax.models.families import family_of
from vrl_jax.models.sharding import make_mesh


def summed(policy, params, packed, tokens):
    """A number that every part of the model has a hand in."""
    features = policy.encode_images(params, packed.prompts.images)
    hidden, cache = policy.prefill(params, packed.prompts, features)
    steps = packed.next_position[:, None, None] + jnp.arange(tokens.shape[2])
    positions = jnp.broadcast_to(steps[..., None], (*tokens.shape, 3))
    extended = policy.extend(params, cache, packed.prompts.mask, tokens, positions)
    seen = jnp.where(packed.prompts.mask[..., None], hidden, 0)
    return jnp.sin(extended).sum() + jnp.sin(seen).sum()


@functools.cache
def gradients(name, keep):
    spec = EVERY[name]
    policy = family_of(spec).policy(spec, keep)
    tokens = responses(3, (2, 2, 5))
    packed = pack(spec, two_rows(spec, 7))
    run = jax.jit(jax.value_and_grad(summed, argnums=1), static_argnums=0)
    compiled = run.lower(policy, random_params(spec, 1), packed, tokens).compile()
    return compiled(random_params(spec, 1), packed, tokens), compiled


@pytest.mark.parametrize(
    ("name", "keep"), [("tied", remat.nothing), ("gemma3", remat.dots)]
)
def test_remat_changes_no_value_and_no_gradient(name, keep):
    (value, grads), before = gradients(name, remat.everything)
    (again, found), after = gradients(name, keep)
    np.testing.assert_allclose(again, value, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4),
        found,
        grads,
    )
    sizes = [each.memory_analysis().temp_size_in_bytes for each in (after, before)]
    assert sizes[0] < sizes[1]


@pytest.mark.parametrize("name", ["tied", "gemma3"])
def test_split_changes_no_value_and_no_gradient(name):
    (value, grads), _ = gradients(name, remat.everything)
    with jax.set_mesh(make_mesh(tensor=2, devices=jax.devices()[:2])):
        (again, found), _ = gradients(name, remat.split)
    # Of a sum of hundreds of sines: devices add in another order.
    np.testing.assert_allclose(again, value, rtol=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4),
        found,
        grads,
    )


def test_split_keeps_a_part_on_each_device():
    """Of 16 layers' inputs a quarter on each of four devices; all without `tensor`."""

    def layer(x, weights):
        return x + jnp.tanh(x @ weights), None

    def loss(weights, x, keep):
        return jnp.square(jax.lax.scan(keep(layer), x, weights)[0]).sum()

    def temporaries(keep):
        run = jax.jit(jax.grad(loss), static_argnums=2)
        compiled = run.lower(jnp.ones((16, 64, 64)), jnp.ones((2, 512, 64)), keep)
        return compiled.compile().memory_analysis().temp_size_in_bytes

    with jax.set_mesh(make_mesh(tensor=4, devices=jax.devices()[:4])):
        apart, whole = temporaries(remat.split), temporaries(remat.nothing)
    kept = 16 * 2 * 512 * 64 * 4
    assert whole - apart > 0.5 * kept
    assert abs(temporaries(remat.split) - temporaries(remat.nothing)) < 0.1 * kept


def test_the_same_policy_for_the_same_remat():
    spec = EVERY["tied"]
    policy = family_of(spec).policy
    assert policy(spec, remat.nothing) is policy(spec, remat.REMATS["nothing"])
    assert policy(spec) is not policy(spec, remat.nothing)


@pytest.mark.parametrize("logits", [1, 100, 700])
def test_attention_in_pieces(logits, monkeypatch):
    """Down to one query at a time; 7 queries are no multiple of anything."""
    random = np.random.RandomState(0)
    queries = random.randn(2, 3, 7, 4, 8).astype(np.float32)
    prompt = KVCache(*random.randn(2, 2, 5, 2, 8).astype(np.float32))
    own = KVCache(*random.randn(2, 2, 3, 7, 2, 8).astype(np.float32))
    masks = [
        jnp.tri(7, dtype=bool),
        jnp.arange(5) < jnp.array([5, 3])[:, None, None, None],
    ]

    def value(queries, own, prompt):
        mixed = attend(queries, [own, prompt], masks, scale=0.3)
        return jnp.sin(mixed).sum(), mixed

    run = jax.value_and_grad(value, argnums=(0, 1, 2), has_aux=True)
    whole = run(queries, own, prompt)
    monkeypatch.setattr(attention, "LOGITS", logits)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        run(queries, own, prompt),
        whole,
    )
