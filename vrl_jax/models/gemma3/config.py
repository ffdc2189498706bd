"""`config.json` to spec and back.

Both spellings of rotary positions are read: that of the hub (`rope_theta`,
`rope_local_base_freq`, `rope_scaling`), and `rope_parameters` for each type of layer,
which transformers 5 writes. Class defaults are not trusted: a key that the arithmetic
needs and the file lacks is an error, unless the file has the sizes of a released model
and the key is one that the released files leave out.
"""

from collections.abc import Mapping
from typing import Any

from vrl_jax.models.config import needed, supported
from vrl_jax.models.gemma3.released import RELEASED
from vrl_jax.models.gemma3.spec import CHANNELS, Gemma3Spec, TextSpec, VisionSpec

ARCHITECTURE = "Gemma3ForConditionalGeneration"
ACTIVATION = "gelu_pytorch_tanh"
VISION_KEYS = {
    "depth": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "mlp": "intermediate_size",
    "image": "image_size",
    "patch": "patch_size",
    "eps": "layer_norm_eps",
}
TEXT_KEYS = {
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "mlp": "intermediate_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "query_scalar": "query_pre_attn_scalar",
    "vocabulary": "vocab_size",
    "window": "sliding_window",
    "eps": "rms_norm_eps",
    "max_positions": "max_position_embeddings",
}
TOKEN_KEYS = {
    "image_token": "image_token_index",
    "start_token": "boi_token_index",
    "end_token": "eoi_token_index",
}
# What google/gemma-3-*-it leave to the class that reads them.
LEFT_OUT = {
    "text_config": {
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "query_pre_attn_scalar",
        "vocab_size",
        "rms_norm_eps",
        "max_position_embeddings",
        "rope_theta",
        "rope_local_base_freq",
        "sliding_window_pattern",
    },
    "vision_config": {"layer_norm_eps"},
}
KINDS = {True: "full_attention", False: "sliding_attention"}


def spec_from_config(config: Mapping[str, Any]) -> Gemma3Spec:
    """The spec of a parsed `config.json`."""
    supported("model_type", config.get("model_type"), "gemma3")
    text, vision = _completed(config)
    supported("tie_word_embeddings", config.get("tie_word_embeddings", True), True)
    supported("text model_type", text.get("model_type"), "gemma3_text")
    supported("vision model_type", vision.get("model_type"), "siglip_vision_model")
    supported("vision hidden_act", vision.get("hidden_act", ACTIVATION), ACTIVATION)
    supported("num_channels", vision.get("num_channels", CHANNELS), CHANNELS)
    use_head = needed(vision, "vision_config", "vision_use_head")
    supported("vision_use_head", use_head, False)
    sizes = {
        ours: needed(vision, "vision_config", theirs)
        for ours, theirs in VISION_KEYS.items()
    }
    tokens = needed(config, "the root", "mm_tokens_per_image")
    return Gemma3Spec(
        vision=VisionSpec(tokens=tokens, **sizes),
        text=_text_from_config(text),
        **{
            ours: needed(config, "the root", theirs)
            for ours, theirs in TOKEN_KEYS.items()
        },
    )


def _completed(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Both parts, with what the released files leave out if they are of those sizes."""
    parts = {name: needed(config, "the root", name) for name in LEFT_OUT}
    known: dict[str, Any] = {}
    for spec in RELEASED:
        sizes = ("hidden_size", "num_hidden_layers")
        released = config_from_spec(spec)
        if all(
            part.get(size) == released[name][size]
            for name, part in parts.items()
            for size in sizes
        ):
            known = released
    return [
        {key: known[name][key] for key in LEFT_OUT[name] if known} | dict(part)
        for name, part in parts.items()
    ]


def _text_from_config(text: Mapping[str, Any]) -> TextSpec:
    activation = text.get("hidden_activation", ACTIVATION)
    supported("hidden_activation", activation, ACTIVATION)
    for name in ("attention_bias", "use_bidirectional_attention"):
        supported(name, bool(text.get(name)), False)
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        supported(name, text.get(name), None)
    sizes = {
        ours: needed(text, "text_config", theirs) for ours, theirs in TEXT_KEYS.items()
    }
    local, whole = _rope(text)
    supported("rope type of local layers", local["rope_type"], "default")
    supported("rope type of global layers", whole["rope_type"], "default", "linear")
    linear = whole["rope_type"] == "linear"
    return TextSpec(
        **sizes,
        global_layers=_global_layers(text),
        local_theta=float(local["rope_theta"]),
        global_theta=float(whole["rope_theta"]),
        global_factor=float(needed(whole, "rope", "factor")) if linear else 1.0,
    )


def _global_layers(text: Mapping[str, Any]) -> tuple[int, ...]:
    """From `layer_types`, or as the last of each `sliding_window_pattern` layers."""
    if text.get("layer_types") is None:
        every = needed(text, "text_config", "sliding_window_pattern")
        return tuple(range(every - 1, text["num_hidden_layers"], every))
    kinds = text["layer_types"]
    supported("the number of layer_types", len(kinds), text["num_hidden_layers"])
    for kind in kinds:
        supported("a layer type", kind, *KINDS.values())
    return tuple(i for i, kind in enumerate(kinds) if kind == KINDS[True])


def _rope(text: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """rope_type, rope_theta and factor of local and of global layers."""
    if text.get("rope_parameters") is not None:
        each = text["rope_parameters"]
        parts = [needed(each, "rope_parameters", KINDS[kind]) for kind in (False, True)]
    else:
        # Here `null` says that positions are not scaled; no key says nothing.
        if "rope_scaling" not in text:
            needed(text, "text_config", "rope_scaling")
        scaling = text["rope_scaling"] or {}
        kind = scaling.get("rope_type", scaling.get("type")) if scaling else "default"
        local = needed(text, "text_config", "rope_local_base_freq")
        whole = needed(text, "text_config", "rope_theta")
        parts = [
            {"rope_type": "default", "rope_theta": local},
            {**scaling, "rope_type": kind, "rope_theta": whole},
        ]
    for part in parts:
        for key in ("rope_type", "rope_theta"):
            needed(part, "rope_parameters", key)
    return tuple(parts)


def config_from_spec(spec: Gemma3Spec) -> dict[str, Any]:
    """A `config.json` in the spelling of the hub's files, which every loader reads."""
    vision, text = spec.vision, spec.text
    kinds = [KINDS[i in text.global_layers] for i in range(text.layers)]
    scaling = {"rope_type": "linear", "factor": text.global_factor}
    decoder = {
        "model_type": "gemma3_text",
        **{theirs: getattr(text, ours) for ours, theirs in TEXT_KEYS.items()},
        "hidden_activation": ACTIVATION,
        "attention_bias": False,
        "layer_types": kinds,
        "rope_theta": text.global_theta,
        "rope_local_base_freq": text.local_theta,
        "rope_scaling": None if text.global_factor == 1 else scaling,
    }
    every = text.global_layers[0] + 1 if text.global_layers else text.layers + 1
    if text.global_layers == tuple(range(every - 1, text.layers, every)):
        decoder["sliding_window_pattern"] = every  # for readers of before layer_types
    return {
        "architectures": [ARCHITECTURE],
        "model_type": spec.model_type,
        "text_config": decoder,
        "vision_config": {
            "model_type": "siglip_vision_model",
            **{theirs: getattr(vision, ours) for ours, theirs in VISION_KEYS.items()},
            "hidden_act": ACTIVATION,
            "num_channels": CHANNELS,
            "vision_use_head": False,
        },
        "mm_tokens_per_image": vision.tokens,
        "tie_word_embeddings": True,
        **{theirs: getattr(spec, ours) for ours, theirs in TOKEN_KEYS.items()},
    }


def processor_settings(
    spec: Gemma3Spec, pixel_bounds: tuple[int, int] | None = None
) -> dict[str, dict[str, Any]]:
    """The files of the processor: under them transformers makes our patches."""
    vision = spec.vision
    area = (vision.image**2,) * 2
    if pixel_bounds not in (None, area):
        raise ValueError(
            f"Every picture has {vision.image} x {vision.image} pixels, got bounds of "
            f"its area {pixel_bounds}: leave them out."
        )
    images = {
        "image_processor_type": "Gemma3ImageProcessor",
        "processor_class": "Gemma3Processor",
        "do_convert_rgb": True,
        "do_pan_and_scan": False,
        "size": {"height": vision.image, "width": vision.image},
        "resample": 2,  # bilinear
        "image_mean": list(spec.pixel_mean),
        "image_std": list(spec.pixel_std),
        "image_seq_length": vision.tokens,
    }
    whole = {"processor_class": "Gemma3Processor", "image_seq_length": vision.tokens}
    return {"preprocessor_config.json": images, "processor_config.json": whole}
