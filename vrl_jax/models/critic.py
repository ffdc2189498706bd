"""Critics: what the states of a policy are worth, read beside its head.

    V(s_t) = f(h_t),   h_t the final hidden state that predicts token t

A critic is part of the params, `params["critic"][name]`, and a pure function of them
and of the states, so that learner, checkpoints and meshes treat it as they treat the
rest. It reads the states of the policy that it judges: a critic that is a model of its
own, as verl's, is not here. Sampling does not look at it, folders for transformers
leave it out, and params without one, such as a reference's, give no values.

    policy, params = with_critics(policy, params, key, {"value": linear})
    actor = dataclasses.replace(actor, policy=policy, params=params)

The actor is one that `engine.pretrained.load_actor` gives, and `training.loop.train`
trains it. `finetuning.finetune(critics={"value": linear})` does all of this for a
released model, and `critic_learning_rate` is its critics' rate.

What is trained is said of it too: also(critic, only(language)) trains it beside the
decoder, also(critic, float32_master) in float32 beside a policy in bfloat16. Its
learning rate is often ten times the policy's. Each part then has a gradient norm of its
own to be clipped, as with two optimisers, and rates are logged as `critic/lr` and
`actor/lr`:

    optax.multi_transform({"critic": adamw(1e-5), "policy": adamw(1e-6)}, parts)
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vrl_jax.models.policy import Params, Policy

CRITIC = "critic"


class Critic(NamedTuple):
    """How its params begin, and what it says of states. Both are plain functions.

    init(key, width)        -> its params, for states of this width
    values(params, states)  -> [B T]

    jit finds what it compiled by the functions: define them once, in a module.
    """

    init: Callable[[Key[Array, ""], int], Params]
    values: Callable[[Params, Float[Array, "B T H"]], Float[Array, "B T"]]


def with_critics(
    policy: Policy,
    params: Params,
    key: Key[Array, ""],
    critics: Mapping[str, Critic],
) -> tuple[Policy, Params]:
    """The policy that gives the values of these critics, and params with theirs.

    Theirs are float32, whatever the policy's are.
    """
    width = jax.eval_shape(policy.head, params).shape[-1]
    keys = jax.random.split(key, len(critics))
    own = {
        name: critic.init(own_key, width)
        for (name, critic), own_key in zip(critics.items(), keys, strict=True)
    }
    read = _reading(tuple((name, critic.values) for name, critic in critics.items()))
    return policy._replace(values=read), {**params, CRITIC: own}


@functools.lru_cache
def _reading(critics: tuple[tuple[str, Callable], ...]) -> Callable:
    """One function for the same critics, so that jit finds what it compiled."""

    def values(params: Params, states: Float[Array, "B T H"]) -> dict[str, Array]:
        own = params.get(CRITIC, {})
        return {name: read(own[name], states) for name, read in critics if name in own}

    return values


def parts(tree: Any) -> Any:
    """ "critic" in the place of each leaf of a critic's, "policy" of the others."""

    def part(path: tuple[Any, ...], leaf: Any) -> str:
        return CRITIC if jax.tree_util.DictKey(CRITIC) in path else "policy"

    return jax.tree_util.tree_map_with_path(part, tree)


def linear_init(key: Key[Array, ""], width: int) -> Params:
    """Zeros: it says 0 of everything at first, and its trunk is not pulled about.

    TRL's is drawn as torch draws linear maps.
    """
    del key
    return {"last": {"kernel": jnp.zeros(width), "bias": jnp.zeros(())}}


def linear_values(params: Params, states: Float[Array, "B T H"]) -> Float[Array, "B T"]:
    """w . h + b: the value head of TRL, without its dropout of 0.1."""
    return _last(params["last"], _wide(states))


def mlp_init(key: Key[Array, ""], width: int) -> Params:
    """Normal kernels of variance 1 / width, zero biases."""
    first, second, last = jax.random.split(key, 3)
    scale = width**-0.5

    def drawn(key: Key[Array, ""], shape: tuple[int, ...]) -> Params:
        kernel = scale * jax.random.normal(key, shape)
        return {"kernel": kernel, "bias": jnp.zeros(shape[1:])}

    return {
        "first": drawn(first, (width, width)),
        "second": drawn(second, (width, width)),
        "last": drawn(last, (width,)),
    }


def mlp_values(params: Params, states: Float[Array, "B T H"]) -> Float[Array, "B T"]:
    """H -> H -> H -> 1 with ReLU: as in GLIDER, https://arxiv.org/abs/2505.19761."""
    x = _wide(states)
    for name in ("first", "second"):
        x = jax.nn.relu(x @ params[name]["kernel"] + params[name]["bias"])
    return _last(params["last"], x)


linear = Critic(linear_init, linear_values)
"""One number a state, and gradients into the trunk."""

mlp = Critic(mlp_init, mlp_values)
"""Two hidden layers of the states' width, and gradients into the trunk."""


@functools.lru_cache
def apart(critic: Critic) -> Critic:
    """The same, but what it learns does not reach the trunk."""

    def values(params: Params, states: Float[Array, "B T H"]) -> Float[Array, "B T"]:
        return critic.values(params, jax.lax.stop_gradient(states))

    return Critic(critic.init, values)


@functools.lru_cache
def held(critic: Critic) -> Critic:
    """The same, but it learns nothing: a target, which something else moves."""

    def values(params: Params, states: Float[Array, "B T H"]) -> Float[Array, "B T"]:
        return jax.lax.stop_gradient(critic.values(params, states))

    return Critic(critic.init, values)


def _last(params: Params, x: Float[Array, "B T H"]) -> Float[Array, "B T"]:
    return x @ params["kernel"] + params["bias"]


def _wide(states: Float[Array, "B T H"]) -> Float[Array, "B T H"]:
    """Values of bfloat16 would be 3 digits: they are compared and subtracted."""
    return states.astype(jnp.promote_types(states.dtype, jnp.float32))
