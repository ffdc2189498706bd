"""What is trained: a policy's params as a function of a trained and a fixed part.

    params = join(trained, fixed)

The learner differentiates with respect to `trained` and gives it alone an optimiser
state; sampling, scoring and export see `params`. A frozen tower, adapters
(`lora.adapters`) and float32 master weights are such splits; `chain` splits the
trained part again, as in chain(only(language), float32_master).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from vrl_jax.models.policy import Params

Rule = Callable[[str], bool]
"""Says yes or no to a parameter's path, such as `text/layers/query/kernel`."""

Join = Callable[[Any, Any], Params]


class Split(NamedTuple):
    """join(trained, fixed) is what was split.

    `join` is a pure function that every split of its kind shares: what differs from one
    to another is an array in `fixed`, so that jit finds what it compiled.
    """

    trained: Any
    fixed: Any
    join: Join


Trains = Callable[[Params], Split]


def chain(*steps: Trains) -> Trains:
    """Splits, then splits the trained part of that, and so on."""

    def trains(params: Params) -> Split:
        trained, fixed, joins = params, [], []
        for step in steps:
            trained, held, join = step(trained)
            fixed.append(held)
            joins.append(join)
        return Split(trained, tuple(fixed), _joined(*joins))

    return trains


@functools.lru_cache
def _joined(*joins: Join) -> Join:
    def join(trained: Any, fixed: tuple[Any, ...]) -> Params:
        for step, held in zip(reversed(joins), reversed(fixed), strict=True):
            trained = step(trained, held)
        return trained

    return join


everything: Trains = chain()
"""All parameters are trained, as they are."""


def only(rule: Rule) -> Trains:
    """Trains the parameters that `rule` chooses; the others are frozen.

    What is frozen has no gradient and no optimiser state, and the backward pass stops
    where nothing below is trained.
    """

    def trains(params: Params) -> Split:
        parts: tuple[dict, dict] = {}, {}  # frozen, trained
        paths = {names: "/".join(map(str, names)) for names in flatten_dict(params)}
        for names, leaf in flatten_dict(params).items():
            parts[bool(rule(paths[names]))][names] = leaf
        frozen, trained = map(unflatten_dict, parts)
        if not trained:
            raise ValueError(
                "the rule of what is trained chooses no parameter; paths are "
                f"{', '.join([*paths.values()][:3])}..."
            )
        return Split(trained, frozen, overlay)

    return trains


def tower(path: str) -> bool:
    """The vision tower, without the projector."""
    return path.startswith("vision/") and not projector(path)


def projector(path: str) -> bool:
    """What turns the tower's patches into the decoder's image tokens."""
    return path.startswith(("vision/merger", "vision/deepstack"))


def language(path: str) -> bool:
    """The decoder, its embedding and its head."""
    return path.startswith("text/")


def critic(path: str) -> bool:
    """The critics of `models.critic`; neither tower nor language."""
    return path.startswith("critic/")


def also(rule: Rule, trains: Trains) -> Trains:
    """Trains what `rule` chooses, as it is, and of the rest what `trains` says.

    A critic is no part of what most splits train: also(critic, only(language)), or
    also(critic, lora.adapters(key, table)).
    """

    def split(params: Params) -> Split:
        chosen, rest, _ = only(rule)(params)
        trained, fixed, join = trains(rest)
        return Split((chosen, trained), fixed, _beside(join))

    return split


@functools.lru_cache
def _beside(join: Join) -> Join:
    def joined(trained: tuple[Params, Any], fixed: Any) -> Params:
        chosen, rest = trained
        return overlay(chosen, join(rest, fixed))

    return joined


def float32_master(params: Params) -> Split:
    """Trains a float32 copy; the policy's params are its bfloat16 roundings.

    Gradients are those of the rounded params, summed and applied in float32.
    https://arxiv.org/abs/1710.03740, section 3.1.
    """
    return Split(_cast(params, jnp.float32), (), _in_bfloat16)


def _in_bfloat16(master: Params, _: tuple[()]) -> Params:
    return _cast(master, jnp.bfloat16)


def _cast(tree: Any, dtype: jnp.dtype) -> Any:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tree)


def overlay(
    over: Params, under: Params, meet: Callable[[Any, Any], Any] = lambda o, _: o
) -> Params:
    """The leaves of both trees; where both have one, meet(over's, under's)."""
    both = flatten_dict(under)
    for path, leaf in flatten_dict(over).items():
        both[path] = meet(leaf, both[path]) if path in both else leaf
    return unflatten_dict(both)
