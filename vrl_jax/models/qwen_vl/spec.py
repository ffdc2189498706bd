"""The shape of a Qwen-VL model: sizes, and the family that they are sizes of."""

import dataclasses

import numpy as np

from vrl_jax.models.qwen_vl.families import QWEN2_5_VL, Family

CHANNELS = 3


@dataclasses.dataclass(frozen=True)
class VisionSpec:
    """The tower: `depth` blocks of `width`.

    Blocks in `full_blocks` attend within a picture, the others within a window of
    `window` pixels; with `window` 0 all blocks attend within a picture. `table_side`
    is the edge of the learned table of positions, 0 for none; what the blocks of
    `deepstack` give is merged, too, and added inside the decoder.
    """

    depth: int
    width: int
    heads: int
    mlp: int
    full_blocks: tuple[int, ...] = ()
    patch: int = 14
    merge: int = 2
    temporal: int = 2
    window: int = 0
    tokens_per_second: int = 2
    eps: float = 1e-6
    table_side: int = 0
    deepstack: tuple[int, ...] = ()

    @property
    def head_dim(self) -> int:
        """Values of one attention head."""
        return self.width // self.heads

    @property
    def factor(self) -> int:
        """Pixels along the edge of one merged token: picture sizes are multiples."""
        return self.patch * self.merge

    @property
    def window_side(self) -> int:
        """Merged tokens along the edge of a window.

        Without windows 1: pictures are then laid out row by row without padding, and
        a patch budget is any multiple of `group`.
        """
        return self.window // self.factor if self.window else 1

    @property
    def group(self) -> int:
        """Patches of one merged token."""
        return self.merge**2

    @property
    def window_patches(self) -> int:
        """Patches of one whole window."""
        return self.window_side**2 * self.group

    @property
    def patch_values(self) -> int:
        """Values of one flattened patch: channel, frame, row, column."""
        return CHANNELS * self.temporal * self.patch**2


@dataclasses.dataclass(frozen=True)
class TextSpec:
    """The decoder. `rope_sections` are the frequencies of time, height and width.

    Heads are `width` / `heads` wide, or `head_width` where that is not 0. `mlp` is the
    inner width of a layer's MLP or, where `experts` is not 0, of each of so many MLPs,
    of which a token goes through `chosen`.
    """

    layers: int
    width: int
    mlp: int
    heads: int
    kv_heads: int
    vocabulary: int
    rope_theta: float = 1e6
    rope_sections: tuple[int, int, int] = (16, 24, 24)
    eps: float = 1e-6
    max_positions: int = 128_000
    head_width: int = 0
    experts: int = 0
    chosen: int = 0

    @property
    def head_dim(self) -> int:
        """Values of one attention head."""
        return self.head_width or self.width // self.heads


@dataclasses.dataclass(frozen=True)
class QwenSpec:
    """A whole model. `tied`: the head is the embedding."""

    vision: VisionSpec
    text: TextSpec
    tied: bool
    image_token: int = 151_655
    video_token: int = 151_656
    vision_start_token: int = 151_652
    vision_end_token: int = 151_653
    family: Family = QWEN2_5_VL

    @property
    def model_type(self) -> str:
        """Its name in `config.json`."""
        return self.family.model_type

    def __post_init__(self) -> None:
        vision, text = self.vision, self.text
        owned = np.bincount(self.family.sections(text.rope_sections), minlength=3)
        known = {ours for ours, _ in self.family.vision_keys}
        routed = "experts" in dict(self.family.mlp_keys)
        rules = {
            **{
                f"{self.family.model_type} has no {part}": not getattr(vision, part)
                for part in ("window", "full_blocks", "table_side", "deepstack")
                if part not in known
            },
            **{
                f"{self.family.model_type} needs {part}": getattr(vision, part)
                for part in ("window", "table_side")
                if part in known
            },
            f"{self.family.model_type} has {'' if routed else 'no '}experts": routed
            == bool(text.experts),
            "a token must go to some of the experts that there are": not text.experts
            or 0 < text.chosen <= text.experts,
            "experts' inner width must not be the width nor half of it (their matrices "
            "are stored either way round, and nothing else tells which)": not (
                text.experts and text.width in (text.mlp, 2 * text.mlp)
            ),
            "an MLP ratio must be whole": vision.mlp % vision.width == 0
            or dict(self.family.vision_keys)["mlp"] != "mlp_ratio",
            "vision width must be heads times a multiple of 4": vision.width
            % (4 * vision.heads)
            == 0,
            "a window must hold whole merged tokens": vision.window % vision.factor
            == 0,
            "full-attention and deepstack blocks must exist": all(
                0 <= block < vision.depth
                for block in vision.full_blocks + vision.deepstack
            ),
            "deepstack needs a decoder layer for each level": len(vision.deepstack)
            <= text.layers,
            "text width must be heads times an even number": text.head_width % 2 == 0
            and (text.head_width or text.width % (2 * text.heads) == 0),
            "text heads must be whole groups of key-value heads": text.heads
            % text.kv_heads
            == 0,
            "mRoPE sections must add up to half a head": 2 * sum(text.rope_sections)
            == text.head_dim
            and owned.tolist() == list(text.rope_sections),
        }
        if broken := [rule for rule, holds in rules.items() if not holds]:
            raise ValueError(
                f"Impossible model shape: {'; '.join(broken)}; got {vision}, {text}."
            )
