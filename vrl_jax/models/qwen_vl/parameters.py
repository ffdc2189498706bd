"""The one table of parameters: every other view of them is read from it.

A row says where an array lives in the nested dict, its shape, its logical axes, how it
starts, and its name and shape in a checkpoint. Layers are stacked on axis 0, so that
the model scans over them. Matrices are stored [in, out] (checkpoints: [out, in]); the
embedding and the head stay [vocabulary, width].
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from vrl_jax.models.policy import Params
from vrl_jax.models.qwen_vl.spec import CHANNELS, QwenSpec
from vrl_jax.models.streaming import Layout, Stored, place

HEAD = "lm_head.weight"


class Parameter(NamedTuple):
    """One row. `layers` is 0 for an array that is not stacked.

    `shape`, `axes` and `stored` (the checkpoint's shape) are those of one layer.
    `scale` is the standard deviation at the start; a constant for vectors, see `fill`.
    """

    path: str
    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    name: str
    stored: tuple[int, ...]
    layers: int = 0
    scale: float = 0.0
    fill: float = 0.0
    transposed: bool = False

    @property
    def stacked_shape(self) -> tuple[int, ...]:
        """Shape with the layers in front."""
        return (self.layers, *self.shape) if self.layers else self.shape

    @property
    def layout(self) -> Layout:
        """How one layer's array in a checkpoint becomes ours."""
        plain = len(self.shape) == len(self.stored)
        return Layout(self.stored, self.shape, self.transposed, plain)

    def write(self, array: np.ndarray) -> np.ndarray:
        """From our layout to the checkpoint's, for one layer."""
        if self.transposed:
            array = array.reshape(self.shape[0], -1).T
        return np.ascontiguousarray(array.reshape(self.stored))


def _norm(
    path: str,
    name: str,
    width: int,
    axis: str | None,
    layers: int = 0,
    *,
    bias: bool = False,
) -> list[Parameter]:
    scale = Parameter(
        f"{path}/scale", (width,), (axis,), f"{name}.weight", (width,), layers, fill=1.0
    )
    shift = scale._replace(path=f"{path}/bias", name=f"{name}.bias", fill=0.0)
    return [scale, shift] if bias else [scale]


def _linear(
    path: str,
    name: str,
    shape: tuple[int, ...],
    axes: tuple[str | None, ...],
    layers: int = 0,
    *,
    bias: bool = True,
    damping: float = 1.0,
) -> list[Parameter]:
    """A matrix [in, *out] with standard deviation damping / sqrt(in), and a bias."""
    rows, out = shape[0], math.prod(shape[1:])
    scale = damping / math.sqrt(rows)
    matrix = Parameter(
        f"{path}/kernel",
        shape,
        axes,
        f"{name}.weight",
        (out, rows),
        layers,
        scale,
        transposed=True,
    )
    vector = Parameter(
        f"{path}/bias", shape[1:], axes[1:], f"{name}.bias", (out,), layers
    )
    return [matrix, vector] if bias else [matrix]


def _vision_table(spec: QwenSpec) -> list[Parameter]:
    vision, family, depth = spec.vision, spec.family, spec.vision.depth
    width, centred = vision.width, family.vision_norm_bias
    visual = family.prefixes[0]
    block, name = "vision/blocks", visual + "blocks.{layer}"
    damping = 1 / math.sqrt(2 * depth)
    embed, inner = "vision_embed", "vision_mlp"
    embedding, *bias = _linear(
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
        for row in _linear(
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
        *_norm(f"{block}/norm1", f"{name}.norm1", width, embed, depth, bias=centred),
        *_norm(f"{block}/norm2", f"{name}.norm2", width, embed, depth, bias=centred),
        *_linear(
            f"{block}/qkv",
            f"{name}.attn.qkv",
            (width, 3, width),
            (embed, None, "vision_heads"),
            depth,
        ),
        *_linear(
            f"{block}/out",
            f"{name}.attn.proj",
            (width, width),
            ("vision_heads", embed),
            depth,
            damping=damping,
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
        *_norm(
            f"{path}/norm",
            f"{name}.{names['norm']}",
            norm_width,
            "vision_embed",
            count,
            bias=spec.family.vision_norm_bias,
        ),
        *_linear(f"{path}/up", f"{name}.{names['up']}", *up, count),
        *_linear(f"{path}/down", f"{name}.{names['down']}", *down, count),
    ]


def _text_table(spec: QwenSpec) -> list[Parameter]:
    text, layers, width = spec.text, spec.text.layers, spec.text.width
    queries, pairs = text.heads * text.head_dim, text.kv_heads * text.head_dim
    model = spec.family.prefixes[1]
    block, name = "text/layers", model + "layers.{layer}"
    damping = 1 / math.sqrt(2 * layers)
    table = (text.vocabulary, width)
    rows = Parameter(
        "text/embedding",
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
        for row in _norm(
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
        *_norm("text/norm", model + "norm", width, "embed"),
        *_norm(f"{block}/norm1", f"{name}.{before}", width, "embed", layers),
        *_norm(f"{block}/norm2", f"{name}.{after}", width, "embed", layers),
        *(
            row
            for part, size, axis in (
                ("query", queries, "heads"),
                ("key", pairs, "kv_heads"),
                ("value", pairs, "kv_heads"),
            )
            for row in _linear(
                f"{block}/{part}",
                f"{name}.self_attn.{part[0]}_proj",
                (width, size),
                ("embed", axis),
                layers,
                bias=spec.family.qkv_bias,
            )
        ),
        *(head_norms if spec.family.qk_norm else []),
        *_linear(
            f"{block}/out",
            f"{name}.self_attn.o_proj",
            (queries, width),
            ("heads", "embed"),
            layers,
            bias=False,
            damping=damping,
        ),
        *(
            row
            for part in ("gate", "up", "down")
            for row in _linear(
                f"{block}/{part}",
                f"{name}.mlp.{part}_proj",
                (text.mlp, width) if part == "down" else (width, text.mlp),
                ("mlp", "embed") if part == "down" else ("embed", "mlp"),
                layers,
                bias=False,
                damping=damping if part == "down" else 1.0,
            )
        ),
    ]


def parameter_table(spec: QwenSpec) -> list[Parameter]:
    """All rows of a model."""
    return _vision_table(spec) + _text_table(spec)


def _nest(items: Iterable[tuple[str, Any]]) -> Params:
    tree: Params = {}
    for path, leaf in items:
        *folders, last = path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[last] = leaf
    return tree


def _leaf(tree: Params, path: str) -> Any:
    for part in path.split("/"):
        tree = tree[part]
    return tree


def init_params(
    key: Key[Array, ""], spec: QwenSpec, dtype: jnp.dtype = jnp.float32
) -> Params:
    """Normal matrices with variance 1 / in, unit norms, zero biases.

    What returns to the residual stream is divided by sqrt(2 layers), as in GPT-2.
    """

    def start(row: Parameter, row_key: Array) -> Array:
        if not row.scale:
            return jnp.full(row.stacked_shape, row.fill, dtype)
        return row.scale * jax.random.normal(row_key, row.stacked_shape, dtype)

    table = parameter_table(spec)
    keys = jax.random.split(key, len(table))
    return _nest(
        (row.path, start(row, row_key))
        for row, row_key in zip(table, keys, strict=True)
    )


def abstract_params(spec: QwenSpec, dtype: jnp.dtype = jnp.float32) -> Params:
    """Shapes alone: for planning, sharding and restoring."""
    return _nest(
        (row.path, jax.ShapeDtypeStruct(row.stacked_shape, dtype))
        for row in parameter_table(spec)
    )


def logical_axes(spec: QwenSpec) -> Params:
    """The same tree with a tuple of axis names (or None) for each array."""
    return _nest(
        (row.path, ("layers", *row.axes) if row.layers else row.axes)
        for row in parameter_table(spec)
    )


def to_checkpoint(params: Params, spec: QwenSpec) -> Iterator[tuple[str, np.ndarray]]:
    """Named arrays as on the hub, one at a time (the names that older readers know)."""
    for row in parameter_table(spec):
        array = np.asarray(_leaf(params, row.path))
        for layer in range(row.layers):
            yield row.name.format(layer=layer), row.write(array[layer])
        if not row.layers:
            yield row.name, row.write(array)


def short_name(name: str) -> str:
    """A tensor's name in the shorter of the two namings, on disk and in memory (v5)."""
    for prefix, short in {
        "model.visual.": "visual.",
        "model.language_model.": "model.",
    }.items():
        if name.startswith(prefix):
            return short + name.removeprefix(prefix)
    return name


def from_checkpoint(
    tensors: Mapping[str, Stored],
    spec: QwenSpec,
    dtype: jnp.dtype = jnp.float32,
    shardings: Params | None = None,
) -> Params:
    """Device params from named arrays, which are read one at a time, where needed.

    `shardings` is a tree like the params; without it they go to the default device.
    """
    table = parameter_table(spec)
    given = {short_name(name): name for name in tensors}
    _check_fit(tensors, given, table, spec)
    default = jnp.zeros(()).sharding

    def filled(row: Parameter) -> Array:
        sharding = _leaf(shardings, row.path) if shardings else default
        names = [
            given[short_name(row.name.format(layer=layer))]
            for layer in range(max(row.layers, 1))
        ]
        parts = (tensors[name] for name in names)
        return place(parts, row.stacked_shape, dtype, sharding, row.layout)

    return _nest((row.path, filled(row)) for row in table)


def _check_fit(
    tensors: Mapping[str, Stored],
    given: Mapping[str, str],
    table: list[Parameter],
    spec: QwenSpec,
) -> None:
    """Raises `ValueError` with the names of all tensors that do not fit the table."""
    shapes = {
        row.name.format(layer=layer): row.stored
        for row in table
        for layer in range(max(row.layers, 1))
    }
    needed = {short_name(name): name for name in shapes}
    misshaped = [
        f"{given[name]} {tuple(tensors[given[name]].shape)}, not {shapes[full]}"
        for name, full in needed.items()
        if name in given and tuple(tensors[given[name]].shape) != shapes[full]
    ]
    missing = sorted(full for name, full in needed.items() if name not in given)
    extra = [full for name, full in given.items() if name not in needed]
    if spec.tied and HEAD in extra and not missing and not misshaped:
        # Some writers repeat a tied head; another matrix means that it is not tied.
        extra.remove(HEAD)
        embedding = given[short_name(spec.family.prefixes[1] + "embed_tokens.weight")]
        if not _same(tensors[HEAD], tensors[embedding]):
            extra.append(f"{HEAD} (the config ties it to the embedding, it differs)")
    problems = [
        f"{kind}: {', '.join(names[:8])}{' ...' if len(names) > 8 else ''}"
        for kind, names in (
            ("missing", missing),
            ("unknown", extra),
            ("of another shape", misshaped),
        )
        if names
    ]
    if problems:
        raise ValueError(
            "The checkpoint does not fit its config.json. Tensors "
            f"{'; '.join(problems)}."
        )


def _same(one: Stored, other: Stored, rows: int = 4096) -> bool:
    """Equal values, compared some rows at a time."""
    return one.shape == other.shape and all(
        np.array_equal(one[start : start + rows], other[start : start + rows])
        for start in range(0, one.shape[0], rows)
    )
