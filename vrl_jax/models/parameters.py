"""Tables of parameters: what every view of a family's parameters is read from.

A row says where an array lives in the nested dict, its shape, its logical axes, how it
starts, and its name and shape in a checkpoint. Layers are stacked on axis 0, so that
the model scans over them. Matrices are stored [in, out] (checkpoints: [out, in]); the
embedding and the head stay [vocabulary, width].
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from vrl_jax.models.policy import Params
from vrl_jax.models.streaming import Layout, Piece, Stored, Turned, place

HEAD = "lm_head.weight"
EMBEDDING = "text/embedding"


class Parameter(NamedTuple):
    """One row. `layers` is 0 for an array that is not stacked.

    `shape`, `axes` and `stored` (the checkpoint's shape) are those of one layer.
    `scale` is the standard deviation at the start; a constant for vectors, see `fill`.
    An axis of heads has `unit` values a head. `piece` (i, n) is the i-th of n equal
    pieces of the last axis of what is stored, which follow each other in a table.
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
    unit: int = 1
    piece: tuple[int, int] = (0, 1)

    @property
    def stacked_shape(self) -> tuple[int, ...]:
        """Shape with the layers in front."""
        return (self.layers, *self.shape) if self.layers else self.shape

    @property
    def stacked_axes(self) -> tuple[str | None, ...]:
        """Logical axes with the layers in front."""
        return ("layers", *self.axes) if self.layers else self.axes

    @property
    def layout(self) -> Layout:
        """How one layer's array in a checkpoint becomes ours."""
        plain = len(self.shape) == len(self.stored)
        return Layout(self._held, self.shape, self.transposed, plain)

    @property
    def _held(self) -> tuple[int, ...]:
        return (*self.stored[:-1], self.stored[-1] // self.piece[1])

    def read(self, tensor: Stored) -> Stored:
        """Of one layer's tensor what is this row's, matrices the right way round."""
        if tuple(tensor.shape) != self.stored:
            tensor = Turned(tensor)
        number, count = self.piece
        width = self.stored[-1] // count
        return tensor if count == 1 else Piece(tensor, number * width, width)

    def write(self, array: np.ndarray) -> np.ndarray:
        """From our layout to the checkpoint's, for one layer."""
        if self.transposed:
            array = array.reshape(self.shape[0], -1).T
        return np.ascontiguousarray(array.reshape(self._held))


def norm_rows(
    path: str,
    name: str,
    width: int,
    axis: str | None,
    layers: int = 0,
    *,
    bias: bool = False,
    fill: float = 1.0,
) -> list[Parameter]:
    """The scale of a norm, which starts as `fill`, and its bias."""
    scale = Parameter(
        f"{path}/scale", (width,), (axis,), f"{name}.weight", (width,), layers, 0, fill
    )
    shift = scale._replace(path=f"{path}/bias", name=f"{name}.bias", fill=0.0)
    return [scale, shift] if bias else [scale]


def linear_rows(
    path: str,
    name: str,
    shape: tuple[int, ...],
    axes: tuple[str | None, ...],
    layers: int = 0,
    *,
    bias: bool = True,
    damping: float = 1.0,
    unit: int = 1,
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
        unit=unit,
    )
    vector = Parameter(
        f"{path}/bias", shape[1:], axes[1:], f"{name}.bias", (out,), layers, unit=unit
    )
    return [matrix, vector] if bias else [matrix]


def nest(items: Iterable[tuple[str, Any]]) -> Params:
    """The nested dict of paths such as "text/layers/norm1/scale" and their leaves."""
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
    key: Key[Array, ""], table: Sequence[Parameter], dtype: jnp.dtype = jnp.float32
) -> Params:
    """Normal matrices with variance 1 / in, unit norms, zero biases.

    What returns to the residual stream is divided by sqrt(2 layers), as in GPT-2.
    """

    def start(row: Parameter, row_key: Array) -> Array:
        if not row.scale:
            return jnp.full(row.stacked_shape, row.fill, dtype)
        return row.scale * jax.random.normal(row_key, row.stacked_shape, dtype)

    keys = jax.random.split(key, len(table))
    return nest(
        (row.path, start(row, row_key))
        for row, row_key in zip(table, keys, strict=True)
    )


def abstract_params(
    table: Sequence[Parameter], dtype: jnp.dtype = jnp.float32
) -> Params:
    """Shapes alone: for planning, sharding and restoring."""
    return nest(
        (row.path, jax.ShapeDtypeStruct(row.stacked_shape, dtype)) for row in table
    )


def logical_axes(table: Sequence[Parameter]) -> Params:
    """The same tree with a tuple of axis names (or None) for each array."""
    return nest((row.path, row.stacked_axes) for row in table)


def to_checkpoint(
    params: Params, table: Sequence[Parameter]
) -> Iterator[tuple[str, np.ndarray]]:
    """Named arrays as on the hub, one at a time (the names that older readers know)."""
    for name, group in itertools.groupby(table, lambda row: row.name):
        pieces = [(row, np.asarray(_leaf(params, row.path))) for row in group]
        layers = pieces[0][0].layers
        for layer in range(layers) if layers else [...]:
            written = [row.write(array[layer]) for row, array in pieces]
            whole = written[0] if len(written) == 1 else np.concatenate(written, -1)
            yield name.format(layer=layer), whole


# Prefixes in checkpoints and in the classes of transformers 5; the first that fits.
RENAMED = {
    # On the hub: Gemma 3, as LLaVA.
    "language_model.lm_head.": "lm_head.",
    "language_model.model.": "model.language_model.",
    "vision_tower.vision_model.": "model.vision_tower.",
    "vision_tower.": "model.vision_tower.",
    "multi_modal_projector.": "model.multi_modal_projector.",
    "model.vision_tower.vision_model.": "model.vision_tower.",
    # On the hub: Qwen2-VL and Qwen2.5-VL, where the decoder is the model.
    "visual.": "model.visual.",
    "model.visual.": "model.visual.",
    "model.language_model.": "model.language_model.",
    "model.vision_tower.": "model.vision_tower.",
    "model.multi_modal_projector.": "model.multi_modal_projector.",
    "model.": "model.language_model.",
}


def current_name(name: str) -> str:
    """A tensor's name in the classes of transformers 5; checkpoints have older ones."""
    for prefix, now in RENAMED.items():
        if name.startswith(prefix):
            return now + name.removeprefix(prefix)
    return name


def from_checkpoint(
    tensors: Mapping[str, Stored],
    table: Sequence[Parameter],
    dtype: jnp.dtype = jnp.float32,
    shardings: Params | None = None,
) -> Params:
    """Device params from named arrays, which are read one at a time, where needed.

    `shardings` is a tree like the params; without it they go to the default device.
    """
    given = {current_name(name): name for name in tensors}
    _check_fit(tensors, given, table)
    default = jnp.zeros(()).sharding

    def filled(row: Parameter) -> Array:
        sharding = _leaf(shardings, row.path) if shardings else default
        names = [
            given[current_name(row.name.format(layer=layer))]
            for layer in range(max(row.layers, 1))
        ]
        parts = (row.read(tensors[name]) for name in names)
        return place(parts, row.stacked_shape, dtype, sharding, row.layout)

    return nest((row.path, filled(row)) for row in table)


def _check_fit(
    tensors: Mapping[str, Stored],
    given: Mapping[str, str],
    table: Sequence[Parameter],
) -> None:
    """Raises `ValueError` with the names of all tensors that do not fit the table."""
    shapes = {
        row.name.format(layer=layer): row.stored
        for row in table
        for layer in range(max(row.layers, 1))
    }
    needed = {current_name(name): name for name in shapes}
    misshaped = [
        f"{given[name]} {tuple(tensors[given[name]].shape)}, not {shapes[full]}"
        for name, full in needed.items()
        if name in given and not _fits(tuple(tensors[given[name]].shape), shapes[full])
    ]
    missing = sorted(full for name, full in needed.items() if name not in given)
    extra = [full for name, full in given.items() if name not in needed]
    head = given.get(HEAD)
    if head in extra and not missing and not misshaped:
        # Some writers repeat a tied head; another matrix means that it is not tied.
        extra.remove(head)
        embedding = next(row.name for row in table if row.path == EMBEDDING)
        if not _same(tensors[head], tensors[given[current_name(embedding)]]):
            extra.append(f"{head} (the config ties it to the embedding, it differs)")
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


def _fits(given: tuple[int, ...], stored: tuple[int, ...]) -> bool:
    """As the table says; stacks of matrices either way round."""
    turned = len(stored) == 3 and given == (stored[0], stored[2], stored[1])
    return given == stored or turned


def _same(one: Stored, other: Stored, rows: int = 4096) -> bool:
    """Equal values, compared some rows at a time."""
    return one.shape == other.shape and all(
        np.array_equal(one[start : start + rows], other[start : start + rows])
        for start in range(0, one.shape[0], rows)
    )
