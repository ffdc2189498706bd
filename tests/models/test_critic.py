"""Critics: what they say, where their gradients go, and what becomes of them."""

import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vrl_jax.engine.likelihood import likelihood
from vrl_jax.models import hub, lora
from vrl_jax.models.critic import (
    apart,
    held,
    linear,
    linear_values,
    mlp,
    mlp_values,
    parts,
    with_critics,
)
from vrl_jax.models.qwen_vl.parameters import parameter_table
from vrl_jax.models.trained import also, critic, language, only
from vrl_jax.training.learner import make_learner

from ..fixtures import small, toy
from .cases import random_params, small_spec


def test_values_by_hand():
    states = jnp.array([[[1.0, 2.0], [0.0, -1.0]]])
    params = {"last": {"kernel": jnp.array([3.0, 0.5]), "bias": jnp.array(-1.0)}}
    np.testing.assert_array_equal(linear_values(params, states), [[3, -1.5]])
    layer = {"kernel": jnp.array([[1.0, -1.0], [0.0, 1.0]]), "bias": jnp.zeros(2)}
    shifted = {**layer, "bias": jnp.array([0.0, 2.0])}
    deep = {"first": layer, "second": shifted, **params}
    # (1, 2) -> (1, 1) -> (1, 2) -> 3; (0, -1) -> (0, 0) -> (0, 2) -> 0.
    np.testing.assert_array_equal(mlp_values(deep, states), [[3, 0]])


def test_values_of_bfloat16_states_are_float32():
    states = jnp.ones((1, 2, 4), jnp.bfloat16)
    for one in (linear, mlp):
        found = one.values(one.init(jax.random.key(0), 4), states)
        assert found.dtype == jnp.float32 and found.shape == (1, 2)


def test_the_same_critics_are_the_same_functions():
    """So that jit finds what it compiled."""

    def made(critics):
        return with_critics(toy.POLICY, toy.params(), jax.random.key(0), critics)[0]

    critics = {"q": apart(mlp), "target": held(mlp)}
    again = {"q": apart(mlp), "target": held(mlp)}
    assert made(critics) == made(again)
    assert made(critics) != made({"q": mlp, "target": held(mlp)})


def slopes(critics):
    """The gradient of the values' sum."""
    policy, params = with_critics(toy.POLICY, toy.params(), jax.random.key(1), critics)
    rollout, allowed = small.rollout(), small.actor().allowed

    def total(params):
        rows = (rollout.tokens, rollout.positions, rollout.mask, rollout.temperature)
        said = likelihood(policy, params, rollout.prompts, *rows, allowed)
        assert said.values.keys() == critics.keys()
        for values in said.values.values():
            assert values.shape == rollout.mask.shape
        off = [jnp.where(rollout.mask, 0, x).any() for x in said.values.values()]
        return sum(x.sum() for x in said.values.values()), (off, said)

    gradient, (off, said) = jax.jit(jax.grad(total, has_aux=True))(params)
    assert not any(off)
    assert all(values.any() for values in said.values.values())
    return jax.tree.map(lambda x: bool(jnp.abs(x).max() > 0), gradient)


def test_gradients_stop_where_promised():
    into = slopes({"value": mlp})
    assert all(jax.tree.leaves(into["critic"])) and into["text"]["mixer"]
    outside = slopes({"value": apart(mlp)})
    assert all(jax.tree.leaves(outside.pop("critic")))
    assert not any(jax.tree.leaves(outside))
    assert not any(jax.tree.leaves(slopes({"value": held(mlp)})))


def test_the_actor_says_what_the_learner_reads():
    policy, params = with_critics(
        toy.POLICY, toy.params(), jax.random.key(1), small.CRITICS
    )
    actor, rollout = toy.actor(policy=policy, params=params), small.rollout()
    said = actor.likelihood(rollout)
    pieces = dataclasses.replace(actor, prompts_per_pass=1)
    for name in small.CRITICS:
        found = pieces.add_values(rollout, name).extra
        assert found.keys() == {name}
        np.testing.assert_allclose(found[name], said.values[name], atol=1e-5)
    plain = toy.actor().likelihood(rollout)
    np.testing.assert_allclose(said.logprobs, plain.logprobs, atol=1e-6)
    assert plain.values == {}
    without = dataclasses.replace(actor, params=toy.params())
    with pytest.raises(ValueError, match=r"no critic 'value' \(it has none\)"):
        without.add_values(rollout, "value")


def test_a_rate_for_each_part():
    _, params = with_critics(
        toy.POLICY, toy.params(), jax.random.key(0), {"value": linear}
    )
    labels = parts(params)
    assert {*jax.tree.leaves(labels["critic"])} == {"critic"}
    assert {*jax.tree.leaves([labels["text"], labels["vision"]])} == {"policy"}
    # Also where a split has put it elsewhere.
    trained = also(critic, only(language))(params).trained
    assert set(jax.tree.leaves(parts(trained))) == {"critic", "policy"}


def test_splits_train_it_beside_the_rest():
    policy, params = with_critics(
        toy.POLICY, toy.params(), jax.random.key(0), {"value": linear}
    )
    adapted = lora.Lora(
        {"text": {"mixer": lora.Adapter(jnp.ones((toy.WIDTH, 2)), jnp.ones((2, 16)))}},
        jnp.float32(1),
    )
    for trains in (only(language), lora.continued(adapted)):
        split = also(critic, trains)(params)
        learner = make_learner(
            policy,
            params,
            optax.sgd(1.0),
            small.actor().allowed,
            trains=also(critic, trains),
        )
        assert learner.params.keys() == params.keys()
        jax.tree.map(
            np.testing.assert_array_equal, learner.params["critic"], params["critic"]
        )
        assert split.trained[0].keys() == {"critic"}
        assert "critic" not in only(language)(params).trained  # frozen, unless asked
        again = also(critic, trains)(params)
        assert again.join is split.join  # jit finds what it compiled


def test_a_folder_holds_the_model_alone_and_says_so(tmp_path, caplog):
    spec, params = small_spec(), random_params(small_spec(), 0)
    beside = {**params, "critic": {"value": {"last": jnp.ones(3)}}}
    with caplog.at_level(logging.WARNING):
        hub.save(tmp_path / "plain", spec, params)
        assert not caplog.records
        hub.save(tmp_path / "beside", spec, beside)
    assert "without its critic" in caplog.text
    names = ("config.json", "model.safetensors")
    one, other = (
        [(tmp_path / folder / name).read_bytes() for name in names]
        for folder in ("plain", "beside")
    )
    assert one == other
    _, read = hub.load(tmp_path / "beside")
    jax.tree.map(np.testing.assert_array_equal, read, params)
    assert {row.path for row in parameter_table(spec)}.isdisjoint({"critic"})
