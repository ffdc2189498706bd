"""The shape of a Gemma 3 model."""

import dataclasses
import math
from typing import ClassVar

from vrl_jax.views import RGB

CHANNELS = 3


@dataclasses.dataclass(frozen=True)
class VisionSpec:
    """The SigLIP tower: every picture has `image` x `image` pixels, `tokens` tokens."""

    depth: int
    width: int
    heads: int
    mlp: int
    image: int = 896
    patch: int = 14
    tokens: int = 256
    eps: float = 1e-6

    @property
    def head_dim(self) -> int:
        """Values of one attention head."""
        return self.width // self.heads

    @property
    def side(self) -> int:
        """Patches along the edge of a picture."""
        return self.image // self.patch

    @property
    def patches(self) -> int:
        """Patches of a picture."""
        return self.side**2

    @property
    def token_side(self) -> int:
        """Tokens along the edge of a picture."""
        return math.isqrt(self.tokens)

    @property
    def group(self) -> int:
        """Patches that are averaged to one token."""
        return (self.side // self.token_side) ** 2

    @property
    def patch_values(self) -> int:
        """Values of one flattened patch: channel, row, column."""
        return CHANNELS * self.patch**2


@dataclasses.dataclass(frozen=True)
class TextSpec:
    """The decoder. Layers that are not in `global_layers` are local.

    A local layer sees the last `window` tokens. Attention logits are divided by
    sqrt(`query_scalar`). Global positions are divided by `global_factor`.
    """

    layers: int
    width: int
    mlp: int
    heads: int
    kv_heads: int
    head_dim: int
    query_scalar: int
    vocabulary: int
    global_layers: tuple[int, ...]
    window: int = 1024
    local_theta: float = 1e4
    global_theta: float = 1e6
    global_factor: float = 8.0
    eps: float = 1e-6
    max_positions: int = 131_072


@dataclasses.dataclass(frozen=True)
class Gemma3Spec:
    """A whole model; its head is the embedding.

    A picture stands in the prompt as `start_token`, `image_token` once for each of its
    tokens, `end_token`.
    """

    vision: VisionSpec
    text: TextSpec
    image_token: int = 262_144
    start_token: int = 255_999
    end_token: int = 256_000
    model_type: ClassVar[str] = "gemma3"
    pixel_mean: ClassVar[RGB] = (0.5, 0.5, 0.5)
    pixel_std: ClassVar[RGB] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        vision, text = self.vision, self.text
        rules = {
            "a picture must hold whole patches": vision.image % vision.patch == 0,
            "tokens of a picture must be a square": vision.token_side**2
            == vision.tokens,
            "a token must be a square of whole patches": vision.side
            % max(vision.token_side, 1)
            == 0,
            "vision width must be whole heads": vision.width % vision.heads == 0,
            "text heads must be whole groups of key-value heads": text.heads
            % text.kv_heads
            == 0,
            "head_dim must be even": text.head_dim % 2 == 0,
            "global layers must exist, in order": list(text.global_layers)
            == sorted({*text.global_layers} & {*range(text.layers)}),
            "a window must hold a token": text.window > 0,
        }
        if broken := [rule for rule, holds in rules.items() if not holds]:
            raise ValueError(
                f"Impossible model shape: {'; '.join(broken)}; got {vision}, {text}."
            )
