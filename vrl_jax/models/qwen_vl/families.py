"""What differs between the three generations of Qwen-VL; sizes are in the spec.

Everything else of this folder reads one of these records and asks no model's name.
Qwen2-VL, https://arxiv.org/abs/2409.12191; Qwen2.5-VL, https://arxiv.org/abs/2502.13923;
Qwen3-VL, with one MLP a layer or a mixture of experts, https://arxiv.org/abs/2511.21631.
"""

import dataclasses
from collections.abc import Callable

from vrl_jax.models.layers import layer_norm, rms_norm, swiglu, tanh_gelu_mlp
from vrl_jax.models.qwen_vl.layers import (
    contiguous_sections,
    interleaved_sections,
    quick_gelu_mlp,
)
from vrl_jax.views import CLIP_MEAN, CLIP_STD, RGB

Pairs = tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True)
class Family:
    """One generation. Pairs are (our name, the checkpoint's or the config's name).

    `default_sections` stands in for an mRoPE section that a config leaves out;
    `pixel_bounds` are the released bounds of a picture's area.
    """

    model_type: str
    architecture: str
    processor: str
    # Pixels and prompt.
    pixel_mean: RGB
    pixel_std: RGB
    pixel_bounds: tuple[int, int]
    system_prompt: str | None
    # Tower.
    patch_bias: bool
    vision_norm: Callable
    vision_norm_bias: bool
    vision_mlp: Callable
    vision_activation: str
    vision_mlp_names: Pairs
    merger_names: Pairs
    # Decoder.
    qkv_bias: bool
    qk_norm: bool
    sections: Callable
    default_sections: tuple[int, int, int] | None
    # Files: prefixes on disk; config keys of the decoder's MLPs and of the tower;
    # whether text keys are nested.
    prefixes: tuple[str, str]
    mlp_keys: Pairs
    vision_keys: Pairs
    vision_out_key: str
    nested_text: bool


_SIZES = (
    ("depth", "depth"),
    ("heads", "num_heads"),
    ("patch", "patch_size"),
    ("merge", "spatial_merge_size"),
    ("temporal", "temporal_patch_size"),
)

QWEN2_VL = Family(
    model_type="qwen2_vl",
    architecture="Qwen2VLForConditionalGeneration",
    processor="Qwen2VLProcessor",
    pixel_mean=CLIP_MEAN,
    pixel_std=CLIP_STD,
    pixel_bounds=(3136, 12_845_056),
    system_prompt="You are a helpful assistant.",
    patch_bias=False,
    vision_norm=layer_norm,
    vision_norm_bias=True,
    vision_mlp=quick_gelu_mlp,
    vision_activation="quick_gelu",
    vision_mlp_names=(("up", "fc1"), ("down", "fc2")),
    merger_names=(("norm", "ln_q"), ("up", "mlp.0"), ("down", "mlp.2")),
    qkv_bias=True,
    qk_norm=False,
    sections=contiguous_sections,
    default_sections=(16, 24, 24),
    prefixes=("visual.", "model."),
    mlp_keys=(("mlp", "intermediate_size"),),
    vision_keys=(*_SIZES, ("width", "embed_dim"), ("mlp", "mlp_ratio")),
    vision_out_key="hidden_size",
    nested_text=False,
)

QWEN2_5_VL = dataclasses.replace(
    QWEN2_VL,
    model_type="qwen2_5_vl",
    architecture="Qwen2_5_VLForConditionalGeneration",
    processor="Qwen2_5_VLProcessor",
    vision_norm=rms_norm,
    vision_norm_bias=False,
    vision_mlp=swiglu,
    vision_activation="silu",
    vision_mlp_names=(("gate", "gate_proj"), ("up", "up_proj"), ("down", "down_proj")),
    vision_keys=(
        *_SIZES,
        ("width", "hidden_size"),
        ("mlp", "intermediate_size"),
        ("window", "window_size"),
        ("full_blocks", "fullatt_block_indexes"),
        ("tokens_per_second", "tokens_per_second"),
    ),
    vision_out_key="out_hidden_size",
)

QWEN3_VL = dataclasses.replace(
    QWEN2_VL,
    model_type="qwen3_vl",
    architecture="Qwen3VLForConditionalGeneration",
    processor="Qwen3VLProcessor",
    pixel_mean=(0.5, 0.5, 0.5),
    pixel_std=(0.5, 0.5, 0.5),
    pixel_bounds=(65_536, 16_777_216),
    system_prompt=None,
    patch_bias=True,
    vision_mlp=tanh_gelu_mlp,
    vision_activation="gelu_pytorch_tanh",
    vision_mlp_names=(("up", "linear_fc1"), ("down", "linear_fc2")),
    merger_names=(("norm", "norm"), ("up", "linear_fc1"), ("down", "linear_fc2")),
    qkv_bias=False,
    qk_norm=True,
    sections=interleaved_sections,
    default_sections=None,
    prefixes=("model.visual.", "model.language_model."),
    vision_keys=(
        *_SIZES,
        ("width", "hidden_size"),
        ("mlp", "intermediate_size"),
        ("table_side", "num_position_embeddings"),
        ("deepstack", "deepstack_visual_indexes"),
    ),
    vision_out_key="out_hidden_size",
    nested_text=True,
)

QWEN3_VL_MOE = dataclasses.replace(
    QWEN3_VL,
    model_type="qwen3_vl_moe",
    architecture="Qwen3VLMoeForConditionalGeneration",
    mlp_keys=(
        ("mlp", "moe_intermediate_size"),
        ("experts", "num_experts"),
        ("chosen", "num_experts_per_tok"),
    ),
)

FAMILIES = (QWEN2_VL, QWEN2_5_VL, QWEN3_VL, QWEN3_VL_MOE)
