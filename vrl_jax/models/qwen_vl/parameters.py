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
from vrl_jax.models.qwen_vl.spec import QwenSpec

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

    def read(self, stored: np.ndarray) -> np.ndarray:
        """From the checkpoint's layout to ours, for one layer."""
        if self.transposed:
            stored = stored.reshape(stored.shape[0], -1).T
        return stored.reshape(self.shape)

    def write(self, array: np.ndarray) -> np.ndarray:
        """From our layout to the checkpoint's, for one layer."""
        if self.transposed:
            array = array.reshape(self.shape[0], -1).T
        return np.ascontiguousarray(array.reshape(self.stored))


def _norm(path: str, name: str, width: int, axis: str, layers: int = 0) -> Parameter:
    return Parameter(path, (width,), (axis,), name, (width,), layers, fill=1.0)


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
    vision, depth = spec.vision, spec.vision.depth
    width, mlp, merged = vision.width, vision.mlp, vision.width * vision.group
    block, name = "vision/blocks", "visual.blocks.{layer}"
    damping = 1 / math.sqrt(2 * depth)
    embed, inner = "vision_embed", "vision_mlp"
    [embedding] = _linear(
        "vision/patch_embed",
        "visual.patch_embed.proj",
        (vision.patch_values, width),
        (None, embed),
        bias=False,
    )
    volume = (width, 3, vision.temporal, vision.patch, vision.patch)
    return [
        embedding._replace(stored=volume),
        _norm(f"{block}/norm1", f"{name}.norm1.weight", width, embed, depth),
        _norm(f"{block}/norm2", f"{name}.norm2.weight", width, embed, depth),
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
        *(
            row
            for part in ("gate", "up")
            for row in _linear(
                f"{block}/{part}",
                f"{name}.mlp.{part}_proj",
                (width, mlp),
                (embed, inner),
                depth,
            )
        ),
        *_linear(
            f"{block}/down",
            f"{name}.mlp.down_proj",
            (mlp, width),
            (inner, embed),
            depth,
            damping=damping,
        ),
        _norm("vision/merger/norm", "visual.merger.ln_q.weight", width, embed),
        *_linear(
            "vision/merger/up",
            "visual.merger.mlp.0",
            (merged, merged),
            (embed, inner),
        ),
        *_linear(
            "vision/merger/down",
            "visual.merger.mlp.2",
            (merged, spec.text.width),
            (inner, "embed"),
        ),
    ]


def _text_table(spec: QwenSpec) -> list[Parameter]:
    text, layers, width = spec.text, spec.text.layers, spec.text.width
    queries, pairs = text.heads * text.head_dim, text.kv_heads * text.head_dim
    block, name = "text/layers", "model.layers.{layer}"
    damping = 1 / math.sqrt(2 * layers)
    table = (text.vocabulary, width)
    rows = Parameter(
        "text/embedding",
        table,
        ("vocabulary", "embed"),
        "model.embed_tokens.weight",
        table,
        scale=1 / math.sqrt(width),
    )
    head = rows._replace(path="text/head", name=HEAD)
    before, after = "input_layernorm", "post_attention_layernorm"
    return [
        rows,
        *([] if spec.tied else [head]),
        _norm("text/norm", "model.norm.weight", width, "embed"),
        _norm(f"{block}/norm1", f"{name}.{before}.weight", width, "embed", layers),
        _norm(f"{block}/norm2", f"{name}.{after}.weight", width, "embed", layers),
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
            )
        ),
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
            for part in ("gate", "up")
            for row in _linear(
                f"{block}/{part}",
                f"{name}.mlp.{part}_proj",
                (width, text.mlp),
                ("embed", "mlp"),
                layers,
                bias=False,
            )
        ),
        *_linear(
            f"{block}/down",
            f"{name}.mlp.down_proj",
            (text.mlp, width),
            ("mlp", "embed"),
            layers,
            bias=False,
            damping=damping,
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


def _legacy(name: str) -> str:
    """The on-disk name of an array that may carry its in-memory name (v5)."""
    for prefix, legacy in {
        "model.visual.": "visual.",
        "model.language_model.": "model.",
    }.items():
        if name.startswith(prefix):
            return legacy + name.removeprefix(prefix)
    return name


def from_checkpoint(
    tensors: Mapping[str, np.ndarray] | Iterable[tuple[str, np.ndarray]],
    spec: QwenSpec,
    dtype: jnp.dtype = jnp.float32,
) -> Params:
    """NumPy params from named arrays, read one at a time; the caller places them."""
    slots = {
        row.name.format(layer=layer): (row, layer)
        for row in parameter_table(spec)
        for layer in range(max(row.layers, 1))
    }
    arrays = {
        row.path: np.empty(row.stacked_shape, dtype) for row in parameter_table(spec)
    }
    unread, extra, misshaped, head_copy = set(slots), [], [], None
    pairs = tensors.items() if isinstance(tensors, Mapping) else tensors
    for given_name, tensor in pairs:
        name = _legacy(given_name)
        if spec.tied and name == HEAD:
            head_copy = tensor
            continue
        if name not in slots:
            extra.append(given_name)
            continue
        row, layer = slots[name]
        unread.discard(name)
        if tuple(tensor.shape) != row.stored:
            misshaped.append(f"{given_name} {tuple(tensor.shape)}, not {row.stored}")
            continue
        target = arrays[row.path]
        target[layer if row.layers else ...] = row.read(tensor)
    # Some writers repeat a tied head; another matrix there means that it is not tied.
    embedding = arrays["text/embedding"]
    if head_copy is not None and not np.array_equal(head_copy.astype(dtype), embedding):
        extra.append(f"{HEAD} (the config ties it to the embedding, it differs)")
    problems = [
        f"{kind}: {', '.join(names[:8])}{' ...' if len(names) > 8 else ''}"
        for kind, names in (
            ("missing", sorted(unread)),
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
    return _nest(arrays.items())
