"""`config.json` to spec and back.

Both published layouts are read: the flat one of the hub (Qwen2-VL, Qwen2.5-VL), and
the nested one (`text_config`, `rope_parameters`) that transformers 5 writes. Class
defaults of transformers differ from the released files, so a key that the arithmetic
needs and the file lacks is an error.
"""

import math
from collections.abc import Mapping
from typing import Any

from vrl_jax.models.config import needed, supported
from vrl_jax.models.qwen_vl.families import FAMILIES, Family
from vrl_jax.models.qwen_vl.layers import interleaved_sections
from vrl_jax.models.qwen_vl.spec import CHANNELS, QwenSpec, TextSpec, VisionSpec

TEXT_KEYS = {
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "vocabulary": "vocab_size",
    "eps": "rms_norm_eps",
    "max_positions": "max_position_embeddings",
}
TOKEN_KEYS = {
    name: f"{name}_id"
    for name in ("image_token", "video_token", "vision_start_token", "vision_end_token")
}


def spec_from_config(config: Mapping[str, Any]) -> QwenSpec:
    """The spec of a parsed `config.json`; the family is that of its model type."""
    families = {family.model_type: family for family in FAMILIES}
    supported("model_type", config.get("model_type"), *families)
    family = families[config["model_type"]]
    text = config.get("text_config") or config
    where = "text_config" if config.get("text_config") else "the root"
    vision = needed(config, "the root", "vision_config")
    out_width = needed(vision, "vision_config", family.vision_out_key)
    width = needed(text, where, "hidden_size")
    supported(f"vision {family.vision_out_key}", out_width, width)
    tied = config.get("tie_word_embeddings", text.get("tie_word_embeddings"))
    return QwenSpec(
        vision=_vision_from_config(vision, family),
        text=_text_from_config(text, where, family),
        tied=needed({"tie_word_embeddings": tied}, "the root", "tie_word_embeddings"),
        family=family,
        **{
            ours: needed(config, "the root", theirs)
            for ours, theirs in TOKEN_KEYS.items()
        },
    )


def _vision_from_config(vision: Mapping[str, Any], family: Family) -> VisionSpec:
    activation = family.vision_activation
    supported("vision hidden_act", vision.get("hidden_act", activation), activation)
    channels = vision.get("in_channels", vision.get("in_chans", CHANNELS))
    supported("vision in_channels", channels, CHANNELS)
    values = {
        ours: needed(vision, "vision_config", theirs)
        for ours, theirs in family.vision_keys
    }
    keys = dict(family.vision_keys)
    if keys["mlp"] == "mlp_ratio":
        values["mlp"] = int(values["width"] * values["mlp"])
    if "table_side" in keys:
        values["table_side"] = math.isqrt(rows := values["table_side"])
        supported(keys["table_side"], rows, values["table_side"] ** 2)
    blocks = {name: tuple(values[name]) for name in _BLOCKS if name in keys}
    return VisionSpec(**values | blocks)


def _text_from_config(text: Mapping[str, Any], where: str, family: Family) -> TextSpec:
    """mRoPE is recognised by its section, never by the name of the rope type.

    Hub files call that "mrope", transformers 5 "default". Files of the first two
    generations may leave out the section.
    """
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    supported("rope type", kind, "default", "mrope")
    supported("hidden_act", text.get("hidden_act", "silu"), "silu")
    supported("use_sliding_window", bool(text.get("use_sliding_window")), False)
    bias = text.get("attention_bias", family.qkv_bias)
    supported("attention_bias", bias, family.qkv_bias)
    _every_layer_routes(text)
    keys = TEXT_KEYS | dict(family.mlp_keys)
    if "num_local_experts" in text:  # as transformers 5 writes it
        text = {"num_experts": text["num_local_experts"], **text}
    interleaved = family.sections is interleaved_sections
    given = bool(rope.get("mrope_interleaved", interleaved))
    supported("mrope_interleaved", given, interleaved)
    sections = rope.get("mrope_section") or family.default_sections
    return TextSpec(
        **{ours: needed(text, where, theirs) for ours, theirs in keys.items()},
        rope_theta=float(needed({**text, **rope}, where, "rope_theta")),
        rope_sections=tuple(
            needed({"mrope_section": sections}, where, "mrope_section")
        ),
        head_width=needed(text, where, "head_dim") if family.nested_text else 0,
    )


def _every_layer_routes(text: Mapping[str, Any]) -> None:
    """Raises `ValueError` where some layers have one MLP, or shares do not add up to 1.

    Keys of models with experts; transformers 5 always makes shares add up, and leaves
    out `norm_topk_prob`.
    """
    supported("decoder_sparse_step", text.get("decoder_sparse_step", 1), 1)
    supported("mlp_only_layers", list(text.get("mlp_only_layers") or []), [])
    supported("norm_topk_prob", text.get("norm_topk_prob", True), True)


def config_from_spec(spec: QwenSpec) -> dict[str, Any]:
    """A `config.json` in the layout of the hub's files, which every loader reads."""
    vision, text, family = spec.vision, spec.text, spec.family
    keys = dict(family.vision_keys)
    sizes = {theirs: getattr(vision, ours) for ours, theirs in family.vision_keys}
    if keys["mlp"] == "mlp_ratio":
        sizes["mlp_ratio"] = vision.mlp // vision.width
    if "table_side" in keys:
        sizes[keys["table_side"]] = vision.table_side**2
    decoder = {
        theirs: getattr(text, ours)
        for ours, theirs in (TEXT_KEYS | dict(family.mlp_keys)).items()
    }
    if text.experts:
        decoder |= {
            # Of layers without experts, which no released model has; their value.
            "intermediate_size": text.chosen * text.mlp,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "norm_topk_prob": True,
        }
    decoder |= {
        "hidden_act": "silu",
        "rope_theta": text.rope_theta,
        "rope_scaling": {"mrope_section": list(text.rope_sections)},
    }
    if family.nested_text:
        decoder |= {
            "model_type": f"{family.model_type}_text",
            "head_dim": text.head_dim,
            "attention_bias": family.qkv_bias,
        }
        decoder["rope_scaling"] |= {"rope_type": "default", "mrope_interleaved": True}
        decoder = {"text_config": decoder}
    else:
        decoder["use_sliding_window"] = False
        decoder["rope_scaling"] |= {"type": "mrope"}
    return {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        **decoder,
        "tie_word_embeddings": spec.tied,
        **{theirs: getattr(spec, ours) for ours, theirs in TOKEN_KEYS.items()},
        "vision_config": {
            "model_type": family.model_type,
            "hidden_act": family.vision_activation,
            **sizes,
            **{keys[name]: list(getattr(vision, name)) for name in _BLOCKS & set(keys)},
            family.vision_out_key: text.width,
            "in_channels": CHANNELS,
            "in_chans": CHANNELS,
            "spatial_patch_size": vision.patch,
        },
    }


def processor_settings(
    spec: QwenSpec, pixel_bounds: tuple[int, int] | None = None
) -> dict[str, dict[str, Any]]:
    """The files of the processor: under them transformers makes our patches.

    `pixel_bounds` bound a picture's area; the family's released ones if not given.
    """
    least, most = pixel_bounds or spec.family.pixel_bounds
    settings = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": spec.family.processor,
        "min_pixels": least,
        "max_pixels": most,
        "size": {"shortest_edge": least, "longest_edge": most},
        "patch_size": spec.vision.patch,
        "merge_size": spec.vision.merge,
        "temporal_patch_size": spec.vision.temporal,
        "image_mean": list(spec.family.pixel_mean),
        "image_std": list(spec.family.pixel_std),
    }
    return {"preprocessor_config.json": settings}


_BLOCKS = {"full_blocks", "deepstack"}
