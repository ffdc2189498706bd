"""Qwen-VL as the engine's `Policy`."""

import functools

from jaxtyping import Array, Bool, Float, Int

from vrl_jax.models.attention import KVCache
from vrl_jax.models.policy import Params, Policy, SlotCache
from vrl_jax.models.qwen_vl import text, vision
from vrl_jax.models.qwen_vl.spec import QwenSpec
from vrl_jax.models.qwen_vl.vision import Features
from vrl_jax.types import Images, Prompts


@functools.lru_cache
def policy(spec: QwenSpec) -> Policy:
    """The functions with `spec` applied.

    Cached: the same spec gives the same functions, so that jit finds what it compiled.
    """

    def encode_images(params: Params, images: Images) -> Features:
        return vision.encode_images(params, spec, images)

    def prefill(
        params: Params, prompts: Prompts, features: Features
    ) -> tuple[Float[Array, "P L H"], KVCache]:
        return text.prefill(params, spec, prompts, features)

    def extend(
        params: Params,
        prompt_cache: KVCache,
        prompt_mask: Bool[Array, "P L"],
        cache: KVCache,
        offset: Int[Array, ""] | int,
        tokens: Int[Array, "P G S"],
        positions: Int[Array, "P G S 3"],
        shown: tuple[Int[Array, "P G S"], Features] | None = None,
    ) -> tuple[Float[Array, "P G S H"], KVCache]:
        read = (prompt_cache, prompt_mask, cache, offset, tokens, positions, shown)
        return text.extend(params, spec, *read)

    def decode(
        weights: Params,
        cache: SlotCache,
        column: Int[Array, ""],
        index: Int[Array, "B C"],
        tokens: Int[Array, " B"],
        positions: Int[Array, "B 3"],
    ) -> tuple[Float[Array, "B H"], SlotCache]:
        return text.decode(weights, spec, cache, column, index, tokens, positions)

    return Policy(
        encode_images=encode_images,
        prefill=prefill,
        extend=extend,
        init_cache=functools.partial(text.init_cache, spec),
        head=functools.partial(text.head, spec=spec),
        as_slots=text.as_slots,
        unstack=functools.partial(text.unstack, spec=spec),
        decode=decode,
    )
