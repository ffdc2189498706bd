"""Gemma 3 as the engine's `Policy`."""

import functools

from vrl_jax.models.gemma3 import text, vision
from vrl_jax.models.gemma3.spec import Gemma3Spec
from vrl_jax.models.policy import Policy, applied
from vrl_jax.models.slots import as_slots


@functools.lru_cache
def policy(spec: Gemma3Spec) -> Policy:
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
