"""The one table of Gemma 3's parameters, with the names of the hub's files."""

import math

from vrl_jax.models.gemma3.spec import CHANNELS, Gemma3Spec
from vrl_jax.models.parameters import EMBEDDING, Parameter, linear_rows, norm_rows

VISUAL = "vision_tower.vision_model."
PROJECTOR = "multi_modal_projector."
MODEL = "language_model.model."


def _vision_table(spec: Gemma3Spec) -> list[Parameter]:
    vision, depth, width = spec.vision, spec.vision.depth, spec.vision.width
    block, name = "vision/blocks", VISUAL + "encoder.layers.{layer}"
    embed, inner, heads = "vision_embed", "vision_mlp", "vision_heads"
    damping = 1 / math.sqrt(2 * depth)
    embedding, bias = linear_rows(
        "vision/patch_embed",
        VISUAL + "embeddings.patch_embedding",
        (vision.patch_values, width),
        (None, embed),
    )
    square = (width, CHANNELS, vision.patch, vision.patch)
    places = (vision.patches, width)
    positions = Parameter(
        "vision/positions",
        places,
        (None, embed),
        VISUAL + "embeddings.position_embedding.weight",
        places,
        scale=1 / math.sqrt(width),
    )
    matrices = (
        ("query", "self_attn.q_proj", (width, width), (embed, heads), 1.0),
        ("key", "self_attn.k_proj", (width, width), (embed, heads), 1.0),
        ("value", "self_attn.v_proj", (width, width), (embed, heads), 1.0),
        ("out", "self_attn.out_proj", (width, width), (heads, embed), damping),
        ("up", "mlp.fc1", (width, vision.mlp), (embed, inner), 1.0),
        ("down", "mlp.fc2", (vision.mlp, width), (inner, embed), damping),
    )
    projection = (width, spec.text.width)
    return [
        embedding._replace(stored=square),
        bias,
        positions,
        *(
            row
            for number in (1, 2)
            for row in norm_rows(
                f"{block}/norm{number}",
                f"{name}.layer_norm{number}",
                width,
                embed,
                depth,
                bias=True,
            )
        ),
        *(
            row
            for part, theirs, shape, axes, damp in matrices
            for row in linear_rows(
                f"{block}/{part}",
                f"{name}.{theirs}",
                shape,
                axes,
                depth,
                damping=damp,
                unit=vision.head_dim,
            )
        ),
        *norm_rows("vision/norm", VISUAL + "post_layernorm", width, embed, bias=True),
        *norm_rows(
            "vision/merger/norm",
            PROJECTOR + "mm_soft_emb_norm",
            width,
            embed,
            fill=0.0,
        ),
        Parameter(
            "vision/merger/kernel",
            projection,
            (embed, "embed"),
            PROJECTOR + "mm_input_projection_weight",
            projection,
            scale=1 / math.sqrt(width),
        ),
    ]


def _text_table(spec: Gemma3Spec) -> list[Parameter]:
    text, layers, width = spec.text, spec.text.layers, spec.text.width
    queries, pairs = text.heads * text.head_dim, text.kv_heads * text.head_dim
    block, name = "text/layers", MODEL + "layers.{layer}"
    table = (text.vocabulary, width)
    norms = (
        ("norm1", "input_layernorm", width, "embed"),
        ("after1", "post_attention_layernorm", width, "embed"),
        ("norm2", "pre_feedforward_layernorm", width, "embed"),
        ("after2", "post_feedforward_layernorm", width, "embed"),
        ("query_norm", "self_attn.q_norm", text.head_dim, None),
        ("key_norm", "self_attn.k_norm", text.head_dim, None),
    )
    matrices = (
        ("query", "self_attn.q_proj", (width, queries), ("embed", "heads")),
        ("key", "self_attn.k_proj", (width, pairs), ("embed", "kv_heads")),
        ("value", "self_attn.v_proj", (width, pairs), ("embed", "kv_heads")),
        ("out", "self_attn.o_proj", (queries, width), ("heads", "embed")),
        ("gate", "mlp.gate_proj", (width, text.mlp), ("embed", "mlp")),
        ("up", "mlp.up_proj", (width, text.mlp), ("embed", "mlp")),
        ("down", "mlp.down_proj", (text.mlp, width), ("mlp", "embed")),
    )
    return [
        Parameter(
            EMBEDDING,
            table,
            ("vocabulary", "embed"),
            MODEL + "embed_tokens.weight",
            table,
            scale=1 / math.sqrt(width),
        ),
        *norm_rows("text/norm", MODEL + "norm", width, "embed", fill=0.0),
        *(
            row
            for part, theirs, size, axis in norms
            for row in norm_rows(
                f"{block}/{part}", f"{name}.{theirs}", size, axis, layers, fill=0.0
            )
        ),
        *(
            row
            for part, theirs, shape, axes in matrices
            for row in linear_rows(
                f"{block}/{part}",
                f"{name}.{theirs}",
                shape,
                axes,
                layers,
                bias=False,
                unit=text.head_dim,
            )
        ),
    ]


def parameter_table(spec: Gemma3Spec) -> list[Parameter]:
    """All rows of a model."""
    return _vision_table(spec) + _text_table(spec)
