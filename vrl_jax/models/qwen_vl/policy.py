"""Qwen-VL as the engine's `Policy`."""

import functools

from vrl_jax.models.policy import Policy, applied
from vrl_jax.models.qwen_vl import text, vision
from vrl_jax.models.qwen_vl.spec import QwenSpec
from vrl_jax.models.remat import Remat, everything
from vrl_jax.models.slots import as_slots


@functools.lru_cache
def policy(spec: QwenSpec, remat: Remat = everything) -> Policy:
    """The functions with `spec` applied; `remat` says what layers keep."""
    return applied(
        spec,
        encode_images=functools.partial(vision.encode_images, remat=remat),
        prefill=functools.partial(text.prefill, remat=remat),
        extend=functools.partial(text.extend, remat=remat),
        head=text.head,
        as_slots=as_slots,
        unstack=text.unstack,
        decode=text.decode,
        resume=functools.partial(text.resume, remat=remat),
    )
