"""Log-probabilities and entropy of given responses: scoring and updates."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int
from vrl_kernels.linear_head import linear_head, sharded
from vrl_kernels.linear_head.state import HeadStats

from vrl_jax.models.policy import Params, Policy
from vrl_jax.models.sharding import RULES, partition
from vrl_jax.types import Likelihood, Prompts, Shown


def first_positions(prompts: Prompts) -> Int[Array, " P"]:
    """The position of the first response token: one past the prompt's largest."""
    largest = jnp.where(prompts.mask[..., None], prompts.positions, -1)
    return largest.max(axis=(1, 2)) + 1


def last_hidden(
    hidden: Float[Array, "P L H"], mask: Bool[Array, "P L"]
) -> Float[Array, "P H"]:
    """The state that predicts the first response token: of the last one in the mask."""
    last = mask.shape[1] - 1 - mask[:, ::-1].argmax(axis=1)
    return hidden[jnp.arange(hidden.shape[0]), last]


def final_states(
    policy: Policy,
    params: Params,
    prompts: Prompts,
    tokens: Int[Array, "B T"],
    positions: Int[Array, "B T 3"],
    shown: Shown | None = None,
) -> Float[Array, "B T H"]:
    """The hidden states that predict the tokens, after the final norm.

    Each prompt and its pictures are processed once, and its B / P consecutive
    responses attend to it. `shown` are the pictures between the turns of responses.
    """
    batch, length = tokens.shape
    count = prompts.tokens.shape[0]
    group = batch // count
    features = policy.encode_images(params, prompts.images)
    prompt_hidden, prompt_cache = policy.prefill(params, prompts, features)
    states = last_hidden(prompt_hidden, prompts.mask)
    states = jnp.repeat(states[:, None], group, axis=1)[:, :, None]
    if length > 1:  # the last token predicts nothing that is scored
        pictures = None
        if shown is not None:
            slots = shown.slots.reshape(count, group, length)[:, :, :-1]
            pictures = slots, policy.encode_images(params, shown.images)
        hidden = policy.extend(
            params,
            prompt_cache,
            prompts.mask,
            tokens.reshape(count, group, length)[:, :, :-1],
            positions.reshape(count, group, length, 3)[:, :, :-1],
            pictures,
        )
        states = jnp.concatenate([states, hidden], axis=2)
    return states.reshape(batch, length, -1)


def likelihood(
    policy: Policy,
    params: Params,
    prompts: Prompts,
    tokens: Int[Array, "B T"],
    positions: Int[Array, "B T 3"],
    mask: Bool[Array, "B T"],
    temperature: Float[Array, " B"],
    allowed: Bool[Array, " V"],
    log_kept: Float[Array, "B T"] | None = None,
    shown: Shown | None = None,
) -> Likelihood:
    """log pi(y_t | prompt, y_<t) and H(pi(. | prompt, y_<t)) in nats, 0 where ~mask.

    Of `final_states`. Logits are divided by `temperature` and ids that are not
    `allowed` have probability 0, as in sampling. `log_kept` is subtracted from the
    log-probs (not from what the entropy is of): what `engine.sampling` left out. With
    what the policy's critics say of the states, if it has any.
    """
    batch, length = tokens.shape
    states = final_states(policy, params, prompts, tokens, positions, shown)
    stats = _head(
        states.reshape(batch * length, -1),
        policy.head(params),
        tokens.reshape(-1),
        temperature=jnp.repeat(temperature, length),
        allowed=allowed,
    )
    logprobs, entropy = (x.reshape(batch, length) for x in stats)
    if log_kept is not None:
        logprobs = logprobs - log_kept
    return Likelihood(
        jnp.where(mask, logprobs, 0.0),
        jnp.where(mask, entropy, 0.0),
        state_values(policy, params, states, mask),
    )


def state_values(
    policy: Policy,
    params: Params,
    states: Float[Array, "B T H"],
    mask: Bool[Array, "B T"],
) -> dict[str, Float[Array, "B T"]]:
    """What each of the policy's critics says of `final_states`, 0 where ~mask."""
    found = policy.values(params, states)
    return {name: jnp.where(mask, values, 0.0) for name, values in found.items()}


def _head(
    hidden: Float[Array, "N H"],
    weight: Float[Array, "V H"],
    ids: Int[Array, " N"],
    *,
    temperature: Float[Array, " N"],
    allowed: Bool[Array, " V"],
) -> HeadStats:
    """`linear_head`; on a mesh each device has its tokens and its rows of the weight.

    Where the vocabulary does not divide, the compiler spreads it as it finds best.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or weight.shape[0] % mesh.shape[RULES["vocabulary"]]:
        return linear_head(
            hidden, weight, ids, temperature=temperature, allowed=allowed
        )
    [rows] = partition(("batch",), ids.shape, mesh)
    return sharded.linear_head(
        hidden,
        weight,
        ids,
        mesh=mesh,
        axis=RULES["vocabulary"],
        rows=rows,
        temperature=temperature,
        allowed=allowed,
    )


def divergence(
    measure: Callable,
    policy: Policy,
    params: Params,
    prompts: Prompts,
    states: Float[Array, "B T H"],
    tokens: Int[Array, "B T"],
    positions: Int[Array, "B T 3"],
    mask: Bool[Array, "B T"],
    temperature: Float[Array, " B"],
    allowed: Bool[Array, " V"],
    shown: Shown | None = None,
) -> Float[Array, "B T"]:
    """How far pi(. | prompt, y_<t) is from the distribution of `states`; 0 off mask.

    `measure(states, other states, head, temperature=, allowed=)` is one of
    `perception`'s, per token and over the whole vocabulary.
    """
    batch, length = tokens.shape
    other = final_states(policy, params, prompts, tokens, positions, shown)
    found = _token_by_token(measure, batch * length)(
        states.reshape(batch * length, -1),
        other.reshape(batch * length, -1),
        policy.head(params),
        jnp.repeat(temperature, length),
        allowed,
    )
    return jnp.where(mask, found.reshape(batch, length), 0.0)


def _token_by_token(measure: Callable, tokens: int) -> Callable:
    """`measure`; on a mesh each device has its share of the tokens and the whole head.

    Where the tokens do not divide, the compiler spreads the work as it finds best.
    """

    def local(hidden, other, head, temperature, allowed):
        return measure(hidden, other, head, temperature=temperature, allowed=allowed)

    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or tokens % mesh.size:
        return local
    rows, whole = PartitionSpec(mesh.axis_names), PartitionSpec()
    specs = (rows, rows, whole, rows, whole)
    return jax.shard_map(local, in_specs=specs, out_specs=rows, check_vma=False)


def in_pieces(
    score: Callable, prompts_per_pass: int, prompts: Prompts, *rows: Any
) -> Any:
    """`score(prompts, *rows)` over equal pieces of the prompts, in order.

    The largest pieces that are equal and have at most `prompts_per_pass` prompts, or
    else one pack: they bound the memory of a pass without gradient.
    """
    count, packs = prompts.tokens.shape[0], prompts.images.frames.shape[0]
    fewest = min(-(-count // prompts_per_pass), packs)
    pieces = next(n for n in range(fewest, packs + 1) if packs % n == 0)
    if pieces == 1:
        return score(prompts, *rows)
    split = jax.tree.map(
        lambda x: x.reshape(pieces, x.shape[0] // pieces, *x.shape[1:]),
        (prompts, *rows),
    )
    scored = jax.lax.map(lambda piece: score(*piece), split)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), scored)
