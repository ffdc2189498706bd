"""Qwen-VL as the engine's `Policy`."""

import functools

from vrl_jax.models.policy import Policy, applied
from vrl_jax.models.qwen_vl import text, vision
from vrl_jax.models.qwen_vl.spec import QwenSpec
from vrl_jax.models.slots import as_slots


@functools.lru_cache
def policy(spec: QwenSpec) -> Policy:
    """The functions with `spec` applied."""
    return applied(
        spec,
        encode_images=vision.encode_images,
        prefill=text.prefill,
        extend=text.extend,
        head=text.head,
        as_slots=as_slots,
        unstack=text.unstack,
        decode=text.decode,
    )
