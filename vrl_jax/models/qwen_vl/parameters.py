"""The one table of Qwen-VL's parameters."""

import math

from vrl_jax.models.parameters import (
    EMBEDDING,
    HEAD,
    Parameter,
    linear_rows,
    norm_rows,
)
from vrl_jax.models.qwen_vl.spec import CHANNELS, QwenSpec


def _vision_table(spec: QwenSpec) -> list[Parameter]:
    vision, family, depth = spec.vision, spec.family, spec.vision.depth
    width, centred = vision.width, family.vision_norm_bias
    visual = family.prefixes[0]
    block, name = "vision/blocks", visual + "blocks.{layer}"
    damping = 1 / math.sqrt(2 * depth)
    embed, inner = "vision_embed", "vision_mlp"
    embedding, *bias = linear_rows(
        "vision/patch_embed",
        visual + "patch_embed.proj",
        (vision.patch_values, width),
        (None, embed),
        bias=family.patch_bias,
    )
    volume = (width, CHANNELS, vision.temporal, vision.patch, vision.patch)
    places = (vision.table_side**2, width)
    table = Parameter(
        "vision/positions",
        places,
        (None, embed),
        visual + "pos_embed.weight",
        places,
        scale=1 / math.sqrt(width),
    )
    mlp = [
        row
        for part, theirs in family.vision_mlp_names
        for row in linear_rows(
            f"{block}/{part}",
            f"{name}.mlp.{theirs}",
            (vision.mlp, width) if part == "down" else (width, vision.mlp),
            (inner, embed) if part == "down" else (embed, inner),
            depth,
            damping=damping if part == "down" else 1.0,
        )
    ]
    return [
        embedding._replace(stored=volume),
        *bias,
        *([table] if vision.table_side else []),
        *norm_rows(
            f"{block}/norm1", f"{name}.norm1", width, embed, depth, bias=centred
        ),
        *norm_rows(
            f"{block}/norm2", f"{name}.norm2", width, embed, depth, bias=centred
        ),
        *linear_rows(
            f"{block}/qkv",
            f"{name}.attn.qkv",
            (width, 3, width),
            (embed, None, "vision_heads"),
            depth,
            unit=vision.head_dim,
        ),
        *linear_rows(
            f"{block}/out",
            f"{name}.attn.proj",
            (width, width),
            ("vision_heads", embed),
            depth,
            damping=damping,
            unit=vision.head_dim,
        ),
        *mlp,
        *_merger_rows("vision/merger", visual + "merger", spec, norm_width=width),
        *_merger_rows(
            "vision/deepstack",
            visual + "deepstack_merger_list.{layer}",
            spec,
            norm_width=width * vision.group,
            layers=len(vision.deepstack),
        ),
    ]


def _merger_rows(
    path: str, name: str, spec: QwenSpec, *, norm_width: int, layers: int | None = None
) -> list[Parameter]:
    """Norm, up and down of a merger; of `layers` mergers, stacked, if it is given."""
    names, merged = (
        dict(spec.family.merger_names),
        spec.vision.width * spec.vision.group,
    )
    if layers == 0:
        return []
    count, inner = layers or 0, "vision_mlp"
    down = ((merged, spec.text.width), (inner, "embed"))
    up = ((merged, merged), ("vision_embed", inner))
    return [
        *norm_rows(
            f"{path}/norm",
            f"{name}.{names['norm']}",
            norm_width,
            "vision_embed",
            count,
            bias=spec.family.vision_norm_bias,
        ),
        *linear_rows(f"{path}/up", f"{name}.{names['up']}", *up, count),
        *linear_rows(f"{path}/down", f"{name}.{names['down']}", *down, count),
    ]


def _text_table(spec: QwenSpec) -> list[Parameter]:
    text, layers, width = spec.text, spec.text.layers, spec.text.width
    queries, pairs = text.heads * text.head_dim, text.kv_heads * text.head_dim
    model = spec.family.prefixes[1]
    block, name = "text/layers", model + "layers.{layer}"
    damping = 1 / math.sqrt(2 * layers)
    table = (text.vocabulary, width)
    rows = Parameter(
        EMBEDDING,
        table,
        ("vocabulary", "embed"),
        model + "embed_tokens.weight",
        table,
        scale=1 / math.sqrt(width),
    )
    head = rows._replace(path="text/head", name=HEAD)
    before, after = "input_layernorm", "post_attention_layernorm"
    head_norms = [
        row
        for part in ("query", "key")
        for row in norm_rows(
            f"{block}/{part}_norm",
            f"{name}.self_attn.{part[0]}_norm",
            text.head_dim,
            None,
            layers,
        )
    ]
    return [
        rows,
        *([] if spec.tied else [head]),
        *norm_rows("text/norm", model + "norm", width, "embed"),
        *norm_rows(f"{block}/norm1", f"{name}.{before}", width, "embed", layers),
        *norm_rows(f"{block}/norm2", f"{name}.{after}", width, "embed", layers),
        *(
            row
            for part, size, axis in (
                ("query", queries, "heads"),
                ("key", pairs, "kv_heads"),
                ("value", pairs, "kv_heads"),
            )
            for row in linear_rows(
                f"{block}/{part}",
                f"{name}.self_attn.{part[0]}_proj",
                (width, size),
                ("embed", axis),
                layers,
                bias=spec.family.qkv_bias,
                unit=text.head_dim,
            )
        ),
        *(head_norms if spec.family.qk_norm else []),
        *linear_rows(
            f"{block}/out",
            f"{name}.self_attn.o_proj",
            (queries, width),
            ("heads", "embed"),
            layers,
            bias=False,
            damping=damping,
            unit=text.head_dim,
        ),
        *(_expert_rows if text.experts else _mlp_rows)(spec, damping),
    ]


def _mlp_rows(spec: QwenSpec, damping: float) -> list[Parameter]:
    text, name = spec.text, spec.family.prefixes[1] + "layers.{layer}"
    return [
        row
        for part in ("gate", "up", "down")
        for row in linear_rows(
            f"text/layers/{part}",
            f"{name}.mlp.{part}_proj",
            (text.mlp, text.width) if part == "down" else (text.width, text.mlp),
            ("mlp", "embed") if part == "down" else ("embed", "mlp"),
            text.layers,
            bias=False,
            damping=damping if part == "down" else 1.0,
        )
    ]


def _expert_rows(spec: QwenSpec, damping: float) -> list[Parameter]:
    """The router [experts, width], and the matrices of all experts [experts, in, out].

    Gate and up are the halves of one tensor on disk. Released files have [in, out] as
    well, transformers 5 writes [out, in]: either is read.
    """
    text, folder = spec.text, "text/layers/experts"
    name = spec.family.prefixes[1] + "layers.{layer}.mlp"
    count, width, inner = text.experts, text.width, text.mlp
    router = Parameter(
        f"{folder}/router",
        (count, width),
        ("experts", "embed"),
        f"{name}.gate.weight",
        (count, width),
        text.layers,
        scale=1 / math.sqrt(width),
    )
    gate = Parameter(
        f"{folder}/gate",
        (count, width, inner),
        ("experts", "embed", "mlp"),
        f"{name}.experts.gate_up_proj",
        (count, width, 2 * inner),
        text.layers,
        scale=1 / math.sqrt(width),
        piece=(0, 2),
    )
    down = Parameter(
        f"{folder}/down",
        (count, inner, width),
        ("experts", "mlp", "embed"),
        f"{name}.experts.down_proj",
        (count, inner, width),
        text.layers,
        scale=damping / math.sqrt(inner),
    )
    return [router, gate, gate._replace(path=f"{folder}/up", piece=(1, 2)), down]


def parameter_table(spec: QwenSpec) -> list[Parameter]:
    """All rows of a model."""
    return _vision_table(spec) + _text_table(spec)
