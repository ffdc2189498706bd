"""The shape of a Qwen2.5-VL model, read from and written to `config.json`.

Both published layouts are read: the flat one of the hub, and the nested one
(`text_config`, `rope_parameters`) that transformers 5 writes. Class defaults of
transformers differ from the released files, so a key that the arithmetic needs and
the file lacks is an error. Reports: https://arxiv.org/abs/2502.13923 (Qwen2.5-VL),
https://arxiv.org/abs/2409.12191 (mRoPE).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

ARCHITECTURE = "Qwen2_5_VLForConditionalGeneration"
MODEL_TYPE = "qwen2_5_vl"
CHANNELS = 3


@dataclasses.dataclass(frozen=True)
class VisionSpec:
    """The tower: `depth` blocks of `width`, windows of `window` pixels.

    Blocks in `full_blocks` attend within a picture, the others within a window.
    """

    depth: int
    width: int
    heads: int
    mlp: int
    full_blocks: tuple[int, ...]
    patch: int = 14
    merge: int = 2
    temporal: int = 2
    window: int = 112
    tokens_per_second: int = 2
    eps: float = 1e-6

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
        """Merged tokens along the edge of a window."""
        return self.window // self.factor

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
    """The decoder. `rope_sections` are the frequencies of time, height and width."""

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

    @property
    def head_dim(self) -> int:
        """Values of one attention head."""
        return self.width // self.heads


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

    def __post_init__(self) -> None:
        vision, text = self.vision, self.text
        rules = {
            "vision width must be heads times a multiple of 4": vision.width
            % (4 * vision.heads)
            == 0,
            "a window must hold whole merged tokens": vision.window >= vision.factor
            and vision.window % vision.factor == 0,
            "full-attention blocks must exist": all(
                0 <= block < vision.depth for block in vision.full_blocks
            ),
            "text width must be heads times an even number": text.width
            % (2 * text.heads)
            == 0,
            "text heads must be whole groups of key-value heads": text.heads
            % text.kv_heads
            == 0,
            "mRoPE sections must add up to half a head": 2 * sum(text.rope_sections)
            == text.head_dim,
        }
        if broken := [rule for rule, holds in rules.items() if not holds]:
            raise ValueError(
                f"Impossible model shape: {'; '.join(broken)}; got {self}."
            )


def _needed(config: Mapping[str, Any], part: str, *names: str) -> Any:
    for name in names:
        if config.get(name) is not None:
            return config[name]
    raise ValueError(
        f"config.json lacks {' or '.join(map(repr, names))} in {part}. The library's "
        "defaults differ from the released models, so none is assumed: add the key."
    )


def _supported(name: str, value: Any, *allowed: Any) -> None:
    if value not in allowed:
        raise ValueError(
            f"config.json says {name} = {value!r}; supported here: "
            f"{', '.join(map(repr, allowed))}."
        )


def spec_from_config(config: Mapping[str, Any]) -> QwenSpec:
    """The spec of a parsed `config.json`.

    mRoPE is recognised by `mrope_section`, never by the name of the rope type: hub
    files call it "mrope", transformers 5 "default", and may leave out the section,
    which is then (16, 24, 24).
    """
    _supported("model_type", config.get("model_type"), MODEL_TYPE)
    vision = _needed(config, "the root", "vision_config")
    text = config.get("text_config") or config
    where = "text_config" if "text_config" in config else "the root"
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    _supported("rope type", kind, "default", "mrope")
    _supported("hidden_act", text.get("hidden_act", "silu"), "silu")
    _supported("vision hidden_act", vision.get("hidden_act", "silu"), "silu")
    _supported("use_sliding_window", bool(text.get("use_sliding_window")), False)
    channels = vision.get("in_channels", vision.get("in_chans", CHANNELS))
    _supported("vision in_channels", channels, CHANNELS)
    width = _needed(text, where, "hidden_size")
    out_width = _needed(vision, "vision_config", "out_hidden_size")
    _supported("vision out_hidden_size", out_width, width)
    tied = config.get("tie_word_embeddings", text.get("tie_word_embeddings"))
    return QwenSpec(
        vision=VisionSpec(
            depth=_needed(vision, "vision_config", "depth"),
            width=_needed(vision, "vision_config", "hidden_size"),
            heads=_needed(vision, "vision_config", "num_heads"),
            mlp=_needed(vision, "vision_config", "intermediate_size"),
            full_blocks=tuple(
                _needed(vision, "vision_config", "fullatt_block_indexes")
            ),
            patch=_needed(vision, "vision_config", "patch_size"),
            merge=_needed(vision, "vision_config", "spatial_merge_size"),
            temporal=_needed(vision, "vision_config", "temporal_patch_size"),
            window=_needed(vision, "vision_config", "window_size"),
            tokens_per_second=_needed(vision, "vision_config", "tokens_per_second"),
        ),
        text=TextSpec(
            layers=_needed(text, where, "num_hidden_layers"),
            width=width,
            mlp=_needed(text, where, "intermediate_size"),
            heads=_needed(text, where, "num_attention_heads"),
            kv_heads=_needed(text, where, "num_key_value_heads"),
            vocabulary=_needed(text, where, "vocab_size"),
            rope_theta=float(_needed({**text, **rope}, where, "rope_theta")),
            rope_sections=tuple(rope.get("mrope_section") or (16, 24, 24)),
            eps=_needed(text, where, "rms_norm_eps"),
            max_positions=_needed(text, where, "max_position_embeddings"),
        ),
        tied=_needed({"tie_word_embeddings": tied}, "the root", "tie_word_embeddings"),
        image_token=_needed(config, "the root", "image_token_id"),
        video_token=_needed(config, "the root", "video_token_id"),
        vision_start_token=_needed(config, "the root", "vision_start_token_id"),
        vision_end_token=_needed(config, "the root", "vision_end_token_id"),
    )


def config_from_spec(spec: QwenSpec) -> dict[str, Any]:
    """A `config.json` in the flat layout of the hub, which every loader reads."""
    vision, text = spec.vision, spec.text
    return {
        "architectures": [ARCHITECTURE],
        "model_type": MODEL_TYPE,
        "hidden_act": "silu",
        "hidden_size": text.width,
        "intermediate_size": text.mlp,
        "num_hidden_layers": text.layers,
        "num_attention_heads": text.heads,
        "num_key_value_heads": text.kv_heads,
        "vocab_size": text.vocabulary,
        "rms_norm_eps": text.eps,
        "rope_theta": text.rope_theta,
        "rope_scaling": {"type": "mrope", "mrope_section": list(text.rope_sections)},
        "max_position_embeddings": text.max_positions,
        "use_sliding_window": False,
        "tie_word_embeddings": spec.tied,
        "image_token_id": spec.image_token,
        "video_token_id": spec.video_token,
        "vision_start_token_id": spec.vision_start_token,
        "vision_end_token_id": spec.vision_end_token,
        "vision_config": {
            "model_type": MODEL_TYPE,
            "hidden_act": "silu",
            "depth": vision.depth,
            "hidden_size": vision.width,
            "num_heads": vision.heads,
            "intermediate_size": vision.mlp,
            "out_hidden_size": text.width,
            "in_channels": CHANNELS,
            "in_chans": CHANNELS,
            "patch_size": vision.patch,
            "spatial_patch_size": vision.patch,
            "spatial_merge_size": vision.merge,
            "temporal_patch_size": vision.temporal,
            "window_size": vision.window,
            "fullatt_block_indexes": list(vision.full_blocks),
            "tokens_per_second": vision.tokens_per_second,
        },
    }


def _released(mlp: int, text: TextSpec, *, tied: bool) -> QwenSpec:
    vision = VisionSpec(
        depth=32, width=1280, heads=16, mlp=mlp, full_blocks=(7, 15, 23, 31)
    )
    return QwenSpec(vision=vision, text=text, tied=tied)


QWEN2_5_VL_3B = _released(
    3420, TextSpec(36, 2048, 11_008, 16, 2, vocabulary=151_936), tied=True
)
QWEN2_5_VL_7B = _released(
    3420, TextSpec(28, 3584, 18_944, 28, 4, vocabulary=152_064), tied=False
)
QWEN2_5_VL_32B = _released(
    3456, TextSpec(64, 5120, 27_648, 40, 8, vocabulary=152_064), tied=False
)
QWEN2_5_VL_72B = _released(
    3456, TextSpec(80, 8192, 29_568, 64, 8, vocabulary=152_064), tied=False
)
