"""The released models by name: https://huggingface.co/google, from their config.json.

What those files leave out (`config.LEFT_OUT`) is what `transformers` fills in, which
they were written for; the tensors' shapes and section 2 of the report,
https://arxiv.org/abs/2503.19786, agree.
"""

from vrl_jax.models.gemma3.spec import Gemma3Spec, TextSpec, VisionSpec


def _gemma3(layers: int, *sizes: int) -> Gemma3Spec:
    every_sixth = tuple(range(5, layers, 6))
    text = TextSpec(layers, *sizes, vocabulary=262_208, global_layers=every_sixth)
    return Gemma3Spec(VisionSpec(27, 1152, 16, 4304), text)


GEMMA3_4B = _gemma3(34, 2560, 10_240, 8, 4, 256, 256)
GEMMA3_12B = _gemma3(48, 3840, 15_360, 16, 8, 256, 256)
GEMMA3_27B = _gemma3(62, 5376, 21_504, 32, 16, 128, 168)

RELEASED = (GEMMA3_4B, GEMMA3_12B, GEMMA3_27B)
