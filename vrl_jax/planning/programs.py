"""The programs of a training step, as a run compiles them, over arrays that are not.

Every argument is a shape, a dtype and where it lies on the mesh: nothing is computed or
held. `programs` is what the plan traces and compiles.
"""

import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from vrl_jax.engine import slots
from vrl_jax.engine.actor import Actor
from vrl_jax.engine.desk import BATCHES
from vrl_jax.engine.packing import Room
from vrl_jax.engine.processing import Processor
from vrl_jax.models.critic import CRITIC, Critic, with_critics
from vrl_jax.models.families import Spec, family_of
from vrl_jax.models.parameters import abstract_params
from vrl_jax.models.policy import Params
from vrl_jax.models.remat import REMATS
from vrl_jax.models.sharding import lying_whole, param_shardings, partition
from vrl_jax.models.trained import also, critic
from vrl_jax.planning.shapes import (
    Sizes,
    by_row,
    bytes_of,
    lying,
    lying_like,
    part,
    prompts_of,
    rollout_of,
)
from vrl_jax.training import choices as chosen
from vrl_jax.training.choices import Choices
from vrl_jax.training.iteration import Recipe
from vrl_jax.training.learner import Learner, make_learner, update_moving
from vrl_jax.types import Rollout

STEPS = 32
"""Tokens that a run of the sampler writes, as in `engine.decoding`."""


class Program(NamedTuple):
    """A jitted function with its arguments, and how often a step runs it.

    `static` arguments come before the others. `steps` are the rounds of its loop over
    tokens; `shared` bytes of a device's arguments are held the whole time.
    """

    function: Callable
    arguments: tuple
    runs: int
    static: tuple = ()
    steps: int = 1
    shared: int = 0


class Planned(NamedTuple):
    """What lies on a device the whole time, in bytes, and what is run.

    `caches` are those of the prompts, which wait to be handed to slots, the slots', and
    what is read to write in them: the decoder's weights, its layers apart; while they
    are gathered, as they lay before, too.
    """

    held: Mapping[str, int]
    caches: Mapping[str, int]
    programs: Mapping[str, Program]


def on(mesh: Mesh | AbstractMesh) -> AbstractContextManager:
    """The mesh is set, whether its devices are there or not."""
    if isinstance(mesh, Mesh):
        return jax.set_mesh(mesh)
    return jax.sharding.use_abstract_mesh(mesh)


def programs(
    spec: Spec,
    recipe: Callable[[Params | None], Recipe],
    sizes: Sizes,
    choices: Choices,
    mesh: Mesh | AbstractMesh,
    *,
    critics: Mapping[str, Critic] | None = None,
    frozen: Sequence[Spec] = (),
) -> Planned:
    """Update, scoring, prefill, decode and what is read between turns, of one step.

    `recipe` is given the reference's params, or None for a method without one. The
    `critics` that it reads, if any, lie whole on each device. Of `frozen` models that
    it asks their parameters count, in the policy's dtype, and nothing that they do.
    """
    family = family_of(spec)
    policy = family.policy(spec, REMATS[choices.remat])
    table = family.parameter_table(spec)
    shardings = param_shardings(table, mesh)
    params = abstract_params(table, chosen.dtype(choices))
    allowed = jax.ShapeDtypeStruct((spec.text.vocabulary,), bool)
    key = jax.random.key(0)
    trains = chosen.trains(choices, table, key)
    critic_rate = 1e-5 if critics else None
    optimizer = chosen.optimizer(choices, 1e-6, key, critic_rate=critic_rate)
    plain = jax.tree.map(lying, params, shardings)
    if critics:
        policy, params = with_critics(policy, params, key, critics)
        params = jax.eval_shape(lambda tree: tree, params)
        trains = also(critic, trains)
        whole = NamedSharding(mesh, PartitionSpec())
        own = jax.tree.map(lambda _: whole, params[CRITIC])
        shardings = {**shardings, CRITIC: own}

    def start(params: Any, allowed: Any) -> Learner:
        return make_learner(
            policy,
            params,
            optimizer,
            allowed,
            trains=trains,
            micro_batches=choices.micro_batches,
        )

    learner = lying_like(
        jax.eval_shape(start, params, allowed), params, shardings, mesh
    )
    params = jax.tree.map(lying, params, shardings)
    allowed = lying(allowed, NamedSharding(mesh, PartitionSpec()))
    # Without adapters, or a copy in another precision, what is trained is what is
    # sampled from.
    of_policy = learner.trained[1] if critics else learner.trained
    copied = jax.tree.leaves(of_policy)[0].dtype != chosen.dtype(choices)
    copied = copied or choices.lora_rank > 0
    front_end = family.front_end(spec)
    actor = Actor(
        policy=policy,
        params=None,
        processor=Processor(
            None, front_end, Room((sizes.prompt_tokens,), front_end.granularity)
        ),
        allowed=None,
        stop_ids=None,
        reward=None,
        max_new_tokens=sizes.response_tokens,
        prompts_per_pass=choices.per_pass,
    )

    method = recipe(None if choices.reference == "none" else ())
    reference = plain if choices.reference != "none" else None
    resident = bytes_of(reference) if choices.reference == "device" else 0

    def asked(spec: Spec) -> int:
        table = family_of(spec).parameter_table(spec)
        shapes = abstract_params(table, chosen.dtype(choices))
        return bytes_of(jax.tree.map(lying, shapes, param_shardings(table, mesh)))

    def score(params: Any, allowed: Any, reference: Any, *rest: Any) -> Rollout:
        rollout, key = rest
        playing = dataclasses.replace(actor, params=params, allowed=allowed)
        return recipe(reference).score(playing, rollout, key)

    key = jax.eval_shape(lambda: jax.random.key(0))
    key = lying(key, NamedSharding(mesh, PartitionSpec()))
    rollout = by_row(rollout_of(front_end, sizes), mesh)
    with on(mesh):
        scored = jax.eval_shape(score, params, allowed, reference, rollout, key)
        batch, _ = jax.eval_shape(method.credit, scored)
    minibatch = by_row(part(batch, choices.minibatches), mesh)
    shared = bytes_of(params)  # held, as a copy or as what is trained
    weights = _unstacked(policy, params, mesh)
    unstacked, gather = bytes_of(weights), {}
    if choices.sampling == "gathered":
        weights, gather = _gathered(weights)
    moving = dataclasses.replace(learner, fixed=())
    some = by_row(
        part(rollout.prompts, max(sizes.prompts // choices.per_pass, 1)), mesh
    )
    with on(mesh):
        read = jax.eval_shape(slots.read, policy, params, some)
    decode = _decode(policy, weights, read, sizes, choices, mesh)
    between = {}
    if sizes.pictures:
        on_from = _read_on(policy, params, read, front_end, sizes, choices, mesh)
        between = {"between turns": on_from._replace(shared=shared)}
    unmoved = bytes_of(learner.fixed)
    scoring = Program(
        jax.jit(score),
        (params, allowed, reference, rollout, key),
        1,
        shared=shared + resident,
    )
    # Scores are only added: where nothing was, nothing is run.
    adds = jax.tree.structure(scored) != jax.tree.structure(rollout)
    return Planned(
        held={
            "parameters": bytes_of(learner.trained) + unmoved,
            "optimiser": bytes_of(learner.opt_state),
            "sampling copy": bytes_of(params) if copied else 0,
            "reference": resident,
            **({"frozen models": sum(map(asked, frozen))} if frozen else {}),
        },
        caches={
            "prompts": bytes_of(by_row(read, mesh))
            * -(-sizes.prompts // choices.per_pass),
            "slots": bytes_of(decode.arguments[2].cache),
            "layers": bytes_of(weights),
            "spread layers": unstacked if gather else 0,
        },
        programs={
            "update": Program(
                update_moving,
                (moving, learner.fixed, minibatch),
                choices.minibatches,
                (method.loss,),
                shared=bytes_of((moving, learner.fixed)),
            ),
            **({"scoring": scoring} if adds else {}),
            **gather,
            "prefill": Program(
                slots.read,
                (params, some),
                -(-sizes.prompts // choices.per_pass),
                (policy,),
                shared=shared,
            ),
            "decode": decode,
            **between,
        },
    )


def _unstacked(policy, params, mesh) -> slots.Weights:
    """Of each layer by itself, which lies as its part of the stack does."""
    weights = jax.eval_shape(slots.unstack, policy, params)

    def one(path: tuple, x: Any) -> jax.ShapeDtypeStruct:
        names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        whole = functools.reduce(operator.getitem, names, inside)
        spec = whole.sharding.spec[len(whole.shape) - len(x.shape) :]
        return lying(x, NamedSharding(mesh, PartitionSpec(*spec)))

    # Some families' decoders read the text's part alone.
    inside = params if "text" in weights.decoder else params["text"]
    head = partition(("vocabulary", None), weights.head.shape, mesh)
    return slots.Weights(
        jax.tree_util.tree_map_with_path(one, weights.decoder),
        lying(weights.head, NamedSharding(mesh, head)),
    )


def _gathered(weights: slots.Weights) -> tuple[slots.Weights, dict[str, Program]]:
    """The weights whole along `fsdp`, and what gathers the largest of them.

    One array after the other is gathered: counted as if each were the largest, and that
    one twice, as a part of all and by itself.
    """
    gathered = jax.tree.map(lying, weights, lying_whole(weights))
    moved = [
        (before, after)
        for before, after in zip(
            *map(jax.tree.leaves, (weights, gathered)), strict=True
        )
        if before.sharding != after.sharding
    ]
    if not moved:
        return gathered, {}
    before, after = max(moved, key=lambda pair: bytes_of(pair[1]))
    function = jax.jit(lambda x: x, out_shardings=after.sharding)
    runs = math.ceil(bytes_of([x for _, x in moved]) / bytes_of(after))
    return gathered, {"gather": Program(function, (before,), runs)}


def _by_head(cache: Any, mesh: Mesh | AbstractMesh) -> Any:
    """Memories of slots, as they are spread over rows and heads."""

    def one(x: Any) -> Any:
        axes = ("batch", "kv_heads", *[None] * (x.ndim - 2))[: x.ndim]
        return lying(x, NamedSharding(mesh, partition(axes, x.shape, mesh)))

    return jax.tree.map(one, cache)


def _read_on(policy, params, read, front_end, sizes, choices, mesh) -> Program:
    """A picture behind each of some responses, whose memories lie there twice."""
    responses = sizes.prompts * sizes.group
    most = min(max(4, min(choices.slots, responses) // 4), choices.per_pass)
    count = max(size for size in BATCHES if size <= most)
    columns = sizes.prompt_tokens + sizes.response_tokens
    with on(mesh):
        empty = jax.eval_shape(lambda x: slots.empty(x, count, columns), read)
    kept = _by_head(empty.cache, mesh)
    prompts = by_row(prompts_of(front_end, sizes, count), mesh)
    lengths = jax.ShapeDtypeStruct((count,), jnp.int32)
    lengths = lying(lengths, NamedSharding(mesh, PartitionSpec()))
    return Program(
        slots.read_on,
        (params, kept, lengths, prompts),
        -(-sizes.pictures * responses // count),
        (policy,),
    )


def _decode(policy, weights, read, sizes, choices, mesh) -> Program:
    count = min(choices.slots, sizes.prompts * sizes.group)
    columns = sizes.prompt_tokens + sizes.response_tokens
    with on(mesh):
        empty = jax.eval_shape(lambda x: slots.empty(x, count, columns), read)
    everywhere = NamedSharding(mesh, PartitionSpec())
    rest = dataclasses.replace(empty, cache=(), states=())
    rest = jax.tree.map(lambda x: lying(x, everywhere), rest)
    filled = dataclasses.replace(
        rest,
        cache=_by_head(empty.cache, mesh),
        states=by_row(empty.states, mesh),
    )
    vocabulary = weights.head.shape[0]
    ids = jax.ShapeDtypeStruct((vocabulary,), bool, sharding=everywhere)
    rows = jax.ShapeDtypeStruct((1, vocabulary), bool, sharding=everywhere)
    number = jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere)
    steps = min(STEPS, sizes.response_tokens)

    def write(weights, tables, filled, column, most, patience):
        return slots.run(policy, weights, tables, filled, column, steps, most, patience)

    waves = -(-sizes.prompts * sizes.group // count)
    return Program(
        jax.jit(write, donate_argnums=2),
        (weights, slots.Tables(ids, rows, rows), filled, number, number, number),
        waves * -(-sizes.response_tokens // steps),
        steps=steps,
    )
