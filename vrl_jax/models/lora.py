"""LoRA: a low-rank change of a frozen matrix.

    W = W_0 + (alpha / rank) A B,   A [in, rank],   B [rank, out],   B = 0 at the start

Hu et al., 2021, https://arxiv.org/abs/2106.09685, section 4.1 (there x stands on the
right, so A and B change places). The matrices are merged before each forward pass and
gradients flow through the merge: optimiser state and checkpoints shrink to the
adapters, the work of a step does not. Adapters of stacked layers are stacked.

Scripts that train a released model have them by --lora-rank, and `finetune` writes them
beside the merged policy; elsewhere they are a Stage's trains=adapters(key, table).
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, Key
from safetensors import safe_open
from safetensors.numpy import save_file

from vrl_jax.models.parameters import Parameter, current_name
from vrl_jax.models.policy import Params
from vrl_jax.models.trained import Rule, Split, Trains, overlay

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."


class Adapter(NamedTuple):
    """A [layers in rank] and B [layers rank *out], or both without the layers."""

    a: Float[Array, " ... in rank"]
    b: Float[Array, "..."]


class Lora(NamedTuple):
    """Adapters in the place of their matrices, and alpha / rank."""

    adapters: Params
    scale: Float[Array, ""]


def text_linear(path: str) -> bool:
    """Every linear map of the decoder; neither embedding nor head, no vision.

    Of a mixture of experts the attention's alone: experts and router are not linear
    modules of transformers, which adapters on disk belong to.
    """
    return path.startswith("text/layers/")


def adapters(
    key: Key[Array, ""],
    table: Sequence[Parameter],
    *,
    rank: int = 16,
    alpha: float = 32.0,
    targets: Rule = text_linear,
) -> Trains:
    """Trains adapters of the matrices that `targets` chooses, and nothing else."""

    def trains(params: Params) -> Split:
        fresh = init(key, table, rank=rank, targets=targets)
        return continued(Lora(fresh, jnp.float32(alpha / rank)))(params)

    return trains


def continued(lora: Lora) -> Trains:
    """Trains adapters that are there already, such as those that `load` read."""

    def trains(params: Params) -> Split:
        return Split(lora.adapters, (params, jnp.float32(lora.scale)), _join)

    return trains


def _join(adapters: Params, fixed: tuple[Params, Array]) -> Params:
    params, scale = fixed
    return merge(params, Lora(adapters, scale))


def init(
    key: Key[Array, ""],
    table: Sequence[Parameter],
    *,
    rank: int,
    targets: Rule = text_linear,
) -> Params:
    """float32 adapters: A uniform in +-1 / sqrt(in) as in the released code, B = 0."""
    rows = _linear_rows(table, targets)
    if rank < 1 or not rows:
        raise ValueError(
            f"adapters need a rank of at least 1 (got {rank}) and a matrix to change "
            f"(the rule of targets chooses {len(rows)}); matrices have paths like "
            "text/layers/query/kernel."
        )

    def fresh(row: Parameter, row_key: Array) -> Adapter:
        layers = (row.layers,) if row.layers else ()
        bound = row.shape[0] ** -0.5
        shape = (*layers, row.shape[0], rank)
        a = jax.random.uniform(row_key, shape, minval=-bound, maxval=bound)
        return Adapter(a, jnp.zeros((*layers, rank, *row.shape[1:])))

    keys = jax.random.split(key, len(rows))
    fresh_ones = {row.path: fresh(row, k) for row, k in zip(rows, keys, strict=True)}
    return unflatten_dict(fresh_ones, sep="/")


def merge(params: Params, lora: Lora) -> Params:
    """params with W + scale A B for each adapted W, added in float32, in W's dtype."""

    def merged(adapter: Adapter, matrix: Array) -> Array:
        return _changed(matrix, adapter, lora.scale)

    return overlay(lora.adapters, params, merged)


# Compiled, so that a device of a mesh makes its part of the change and not the whole.
@jax.jit
def _changed(matrix: Array, adapter: Adapter, scale: Array) -> Array:
    a, b = adapter
    change = a @ b.reshape(*a.shape[:-2], a.shape[-1], -1)
    change = scale * change.reshape(matrix.shape)
    return (matrix + change).astype(matrix.dtype)


def save(
    folder: str | Path, lora: Lora, table: Sequence[Parameter], *, base: str = ""
) -> None:
    """Writes a folder that PEFT loads onto the transformers model named `base`.

    https://huggingface.co/docs/peft/developer_guides/checkpoint
    """
    held = flatten_dict(lora.adapters, sep="/")
    rows = _linear_rows(table, held.__contains__)
    rank = held[rows[0].path].a.shape[-1]
    tensors = {}
    for row in rows:
        a, b = (np.asarray(factor, np.float32) for factor in held[row.path])
        for layer, (a_name, b_name) in enumerate(_names(row)):
            at = layer if row.layers else ...
            tensors[a_name] = np.ascontiguousarray(a[at].T)
            tensors[b_name] = np.ascontiguousarray(b[at].reshape(rank, -1).T)
    modules = [re.escape(_module(row)).replace(r"\{layer\}", r"\d+") for row in rows]
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base or None,
        "r": rank,
        "lora_alpha": float(lora.scale) * rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": "|".join(modules),
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


# What PEFT can be told to add to W_0 + (lora_alpha / r) A B, and its neutral values.
PLAIN = {
    "use_dora": False,
    "use_rslora": False,
    "bias": "none",
    "rank_pattern": {},
    "alpha_pattern": {},
    "modules_to_save": None,
    "fan_in_fan_out": False,
}


def load(folder: str | Path, table: Sequence[Parameter]) -> Lora:
    """Adapters that `save` or PEFT wrote, for the model with this table.

    PEFT names them after the modules of the transformers at hand, old or new.
    """
    folder = Path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ValueError(f"{str(folder)!r} has no {name}: it holds no adapters.")
    config = json.loads((folder / CONFIG).read_text())
    odd = [
        f"{name} is {config[name]!r}"
        for name, plain in PLAIN.items()
        if config.get(name) not in (plain, None)
    ]
    if config.get("peft_type") != "LORA" or odd:
        raise ValueError(
            f"{str(folder)!r} holds {config.get('peft_type')} adapters that are not "
            f"plain LoRA ({'; '.join(odd)}). Merge them with PEFT and load the model."
        )
    with safe_open(folder / WEIGHTS, framework="numpy") as file:
        names = file.keys()
        tensors = {_current(name): file.get_tensor(name) for name in names}
    unknown, problems, found = set(tensors), [], {}
    for row in _linear_rows(table, lambda path: True):
        names = [name for pair in _names(row) for name in pair]
        if unknown.isdisjoint(names):
            continue
        if missing := [name for name in names if name not in unknown]:
            problems.append(f"missing {missing[0]}")
        else:
            found[row.path] = _read(row, [tensors[name] for name in names], problems)
        unknown -= set(names)
    problems += [f"unknown {name}" for name in sorted(unknown)]
    if problems or not found:
        raise ValueError(
            f"The adapters in {str(folder)!r} are of another model. Tensors: "
            f"{'; '.join(problems[:4])}."
        )
    adapters = unflatten_dict(found, sep="/")
    return Lora(adapters, jnp.float32(config["lora_alpha"] / config["r"]))


def _read(row: Parameter, pairs: Sequence[np.ndarray], problems: list[str]) -> Adapter:
    """From PEFT's A [rank in], B [out rank] of each layer."""
    (out, into), rank = row.stored, pairs[0].shape[0]
    shapes = [factor.shape for factor in pairs]
    if shapes != [(rank, into), (out, rank)] * (len(pairs) // 2):
        problems.append(f"of another shape: {shapes[:2]} for {row.path}")
        return Adapter(*pairs[:2])
    a = np.stack([p.T for p in pairs[::2]]).astype(np.float32)
    b = np.stack([p.T for p in pairs[1::2]]).astype(np.float32)
    b = b.reshape(*b.shape[:2], *row.shape[1:])
    return Adapter(*(jnp.asarray(f if row.layers else f[0]) for f in (a, b)))


def _linear_rows(table: Sequence[Parameter], targets: Rule) -> list[Parameter]:
    """Rows of x W; neither embedding and head nor the tower's first convolution."""
    return [
        row
        for row in table
        if row.transposed and len(row.stored) == 2 and targets(row.path)
    ]


def _names(row: Parameter) -> list[tuple[str, str]]:
    """PEFT's names of A and B of each layer."""
    modules = [_module(row).format(layer=i) for i in range(max(row.layers, 1))]
    ends = ("lora_A.weight", "lora_B.weight")
    return [tuple(f"{PREFIX}{module}.{end}" for end in ends) for module in modules]


def _current(name: str) -> str:
    """PEFT's name of a tensor, with the module named as in transformers 5."""
    if not name.startswith(PREFIX):
        return name
    return PREFIX + current_name(name.removeprefix(PREFIX))


def _module(row: Parameter) -> str:
    """The module that owns a matrix."""
    return current_name(row.name).removesuffix(".weight")
