"""Bring your own model: one in Flax Linen or NNX becomes a policy.

What is asked of the model is one forward pass over whole sequences:

    hidden = model(tokens, positions, mask, slots, features)

    tokens     [B S]    a prompt, then what is written of the response, then padding
    positions  [B S 3]  as the processor numbers them: (time, height, width); text has
                        three equal numbers. A model that counts tokens ignores them
    mask       [B S]    True where there is a token; padding is on the right
    slots      [B S]    0 for text, m + 1 where merged image token m stands
    features            what `encode_images` made of the row's pictures; by default
                        the pictures: `Images` with patches [B N C], 0 on padding. So
                        a prompt has a pack of its own, prompts_per_pack = 1
    hidden     [B S H]  causal: position s sees the tokens up to s and the features

and a matrix `head` [V H] such that logits = hidden @ head.T. A model that gives logits
has head = eye(V), for small vocabularies.

The model needs no cache, and so none is kept: each sampled token costs a forward pass
over the prompt and the whole response. Scoring and updates cost what they cost with a
cache, but for the prompt, which every response of a group reads again.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen, nnx
from jaxtyping import Array, Bool, Float, Int

from vrl_jax.models.policy import Params, Policy, SlotCache
from vrl_jax.types import Images, Prompts

Hidden = Callable[..., Float[Array, "B S H"]]
"""hidden(params, tokens, positions, mask, slots, features)"""


class Read(NamedTuple):
    """In the place of a prompt's cache: all that was read."""

    prompts: Prompts
    features: Any


class Columns(NamedTuple):
    """In the place of the slots' keys and values: what stands in each column."""

    tokens: Int[Array, "B 1 C"]
    positions: Int[Array, "B 1 C 3"]
    slots: Int[Array, "B 1 C"]


def as_they_are(params: Any, images: Images) -> Images:
    """The features of a model that encodes pictures in its forward pass."""
    del params
    return images


def linen_policy(
    module: linen.Module,
    head: Callable[[Params], Float[Array, "V H"]],
    *,
    encode_images: Callable[[Params, Images], Any] = as_they_are,
) -> Policy:
    """The policy whose params are module.init(...)["params"].

    A module that encodes pictures by a method of its own gives encode_images =
    lambda params, images: module.apply({"params": params}, images, method="encode");
    then pictures are encoded once a prompt.
    """

    def hidden(params: Params, *inputs: Any) -> Float[Array, "B S H"]:
        return module.apply({"params": params}, *inputs)

    return uncached_policy(hidden, head, encode_images)


def nnx_policy(
    model: nnx.Module,
    head: Callable[[Any], Float[Array, "V H"]],
    *,
    encode_images: Callable[[Any, Images], Any] = as_they_are,
) -> tuple[Policy, Params]:
    """The policy of a model, and its params: the model's `nnx.Param`s.

    `head` and `encode_images` are functions of the model. Its other variables stay as
    they are now; call model.eval() first.
    """
    graph, state, rest = nnx.split(model, nnx.Param, ...)

    def filled(params: Params) -> Any:
        own = jax.tree.map(lambda leaf: leaf, state)  # the next line writes to it
        nnx.replace_by_pure_dict(own, params)
        return nnx.merge(graph, own, rest, copy=True)

    def hidden(params: Params, *inputs: Any) -> Float[Array, "B S H"]:
        return filled(params)(*inputs)

    policy = uncached_policy(
        hidden,
        lambda params: head(filled(params)),
        lambda params, images: encode_images(filled(params), images),
    )
    return policy, nnx.to_pure_dict(state)


def uncached_policy(
    hidden: Hidden,
    head: Callable[[Params], Float[Array, "V H"]],
    encode_images: Callable[[Params, Images], Any] = as_they_are,
) -> Policy:
    """The policy of pure functions of `params`; see above for what they take."""

    def encode(params: Params, images: Images) -> Any:
        # Padding may hold anything; what the model sees of it is 0.
        patches = jnp.where(images.frames[..., None] > 0, images.patches, 0)
        return encode_images(params, dataclasses.replace(images, patches=patches))

    def prefill(
        params: Params, prompts: Prompts, features: Any
    ) -> tuple[Float[Array, "P L H"], Read]:
        count, packs = prompts.tokens.shape[0], prompts.images.frames.shape[0]
        if packs != count:
            raise ValueError(
                f"this model reads a prompt with its own pictures, and {count} prompts "
                f"came in {packs} packs; set prompts_per_pack=1."
            )
        parts = (prompts.tokens, prompts.positions, prompts.slots)
        inputs = _sequences(parts, prompts.mask.sum(axis=1))
        return hidden(params, *inputs, features), Read(prompts, features)

    def extend(
        params: Params,
        read: Read,
        prompt_mask: Bool[Array, "P L"],
        tokens: Int[Array, "P G T"],
        positions: Int[Array, "P G T 3"],
        shown: Any = None,
    ) -> Float[Array, "P G T H"]:
        if shown is not None:
            raise ValueError(
                "a model without a cache cannot score pictures between turns; give it "
                "a policy of its own, with `extend`."
            )
        count, group, new = tokens.shape
        # One row a response; its tokens follow its prompt's last one.
        rows = (read.prompts, read.features, prompt_mask.sum(axis=1))
        prompts, features, starts = jax.tree.map(
            lambda x: jnp.repeat(x, group, axis=0), rows
        )
        slots = jnp.where(prompts.mask, prompts.slots, 0)
        tokens, positions = (x.reshape(-1, *x.shape[2:]) for x in (tokens, positions))
        parts = (
            jax.vmap(_followed)(prompts.tokens, tokens, starts),
            jax.vmap(_followed)(prompts.positions, positions, starts),
            jnp.pad(slots, ((0, 0), (0, new))),
        )
        states = hidden(params, *_sequences(parts, starts + new), features)
        at = starts[:, None] + jnp.arange(new)
        states = jnp.take_along_axis(states, at[..., None], axis=1)
        return states.reshape(count, group, new, -1)

    def as_slots(read: Read) -> SlotCache:
        prompts = read.prompts
        slots = jnp.where(prompts.mask, prompts.slots, 0)
        columns = (prompts.tokens, prompts.positions, slots)
        return SlotCache(Columns(*(x[:, None] for x in columns)), read.features)

    def decode(
        params: Params,
        cache: SlotCache,
        column: Int[Array, ""],
        index: Int[Array, "B C"],
        tokens: Int[Array, " B"],
        positions: Int[Array, "B 3"],
    ) -> tuple[Float[Array, "B H"], SlotCache]:
        new = Columns(tokens, positions, jnp.zeros_like(tokens))
        columns = jax.tree.map(
            lambda old, x: old.at[:, 0, column].set(x), cache.columns, new
        )
        # The columns that hold a token, in the order of the sequence.
        there = index >= 0
        order = jnp.argsort(jnp.where(there, index, index.shape[1]), axis=1)
        parts = [jax.vmap(lambda x, to: x[to])(x[:, 0], order) for x in columns]
        lengths = there.sum(axis=1)
        states = hidden(params, *_sequences(parts, lengths), cache.rows)
        last = jnp.take_along_axis(states, lengths[:, None, None] - 1, axis=1)
        return last[:, 0], SlotCache(columns, cache.rows)

    return Policy(
        encode_images=encode,
        prefill=prefill,
        extend=extend,
        head=head,
        as_slots=as_slots,
        unstack=lambda params: params,
        decode=decode,
    )


def _followed(
    first: Int[Array, "L ..."], then: Int[Array, "T ..."], start: Int[Array, ""]
) -> Int[Array, "L+T ..."]:
    """`first` up to `start`, then `then`."""
    room = jnp.concatenate([first, jnp.zeros_like(then)])
    return jax.lax.dynamic_update_slice_in_dim(room, then, start, axis=0)


def _sequences(
    parts: tuple[Int[Array, "B S"], Int[Array, "B S 3"], Int[Array, "B S"]],
    lengths: Int[Array, " B"],
) -> tuple[Array, Array, Array, Array]:
    """Tokens, positions, mask and slots as the model gets them: 0 on padding."""
    mask = jnp.arange(parts[0].shape[1]) < lengths[:, None]
    tokens, slots = (jnp.where(mask, part, 0) for part in parts[::2])
    return tokens, jnp.where(mask[..., None], parts[1], 0), mask, slots
