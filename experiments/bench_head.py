"""The linear head: milliseconds, temporaries and errors, beside the dense forms.

Claim     At N = 16384, d = 3584, V = 152064 in bfloat16 the forward pass needs less
          than 0.5 GB beyond its inputs and outputs and forward plus backward less than
          0.6 GB (on a GPU with two streams 0.9), where dense logits need 20 to 30 GB;
          on an H200 the Hopper kernel takes 1.1 times the time of the bare product;
          gradients err by at most 3e-3, at most 1.6 times as much as dense ones; on a
          CPU `xla` takes at most 1.1 times the dense form's time at N = 2048, d = 1024,
          V = 151936 and a twentieth of its memory; the backward pass costs what its
          active tokens cost.
Command   python experiments/bench_head.py --json out.json
          with libtpu installed (extra tpu-aot) also compiled for TPUs that are not here
Hardware  2 CPU cores and 12 GB; on a GPU or TPU, that device is timed instead
Time      about 15 minutes on 2 cores, 10 of them compiling for TPUs
"""

import functools
import importlib.util
import json as text
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding
from vrl_kernels.linear_head import js_divergence, linear_head, linear_head_pair
from vrl_kernels.linear_head.backend import NAMES

from vrl_jax.experiment import command_line, say

Row = dict[str, Any]
Arrays = tuple[Array, ...]
FULL = (16384, 3584, 152064, "bfloat16")
ON_CPU = (2048, 1024, 151936, "float32")
ACCURACY = (512, 512, 8192, "bfloat16")
SMOKE = (64, 32, 1000, "float32")
TOPOLOGIES = ("v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1")
# Those that cannot run say so in their row.
BACKENDS = ("reference", *NAMES)
TORCH = Path(__file__).parents[1] / "benchmarks" / "torch_head.py"


def main(
    *,
    json: Path | None = None,
    smoke: bool = False,
    repeats: int = 5,
    ops: tuple[str, ...] = ("one", "pair", "js", "one + backward", "pair + backward"),
    topologies: tuple[str, ...] = TOPOLOGIES,
) -> list[Row]:
    """Prints the table and writes its rows.

    Args:
        json: the file to write them to.
        smoke: tiny shapes, this device only.
        repeats: of every timing; the forms take turns, the median is given.
        ops: what to time and compile. "one + backward" is also timed by the share of
            tokens that train.
        topologies: TPUs to compile for.
    """
    on_cpu = jax.default_backend() == "cpu"
    timed = SMOKE if smoke else ON_CPU if on_cpu else FULL
    parts = [
        functools.partial(accuracy, SMOKE if smoke else ACCURACY),
        functools.partial(times, timed, repeats, ops),
    ]
    if "one + backward" in ops:
        parts.append(functools.partial(active_shares, timed, repeats))
    if not smoke:
        places = (None, *topologies)
        parts += [functools.partial(memory, FULL, place, ops) for place in places]
    if not on_cpu:
        parts.append(functools.partial(torch_times, timed, repeats))
    rows = []
    for part in parts:
        found = part()
        say("\n".join(map(line, found)))
        rows += found
    if json is not None:
        json.write_text(text.dumps(rows, indent=1))
    return rows


def one(backend: str, hidden: Array, other: Array, weight: Array, ids: Array) -> Arrays:
    """Log-prob and entropy."""
    return tuple(linear_head(hidden, weight, ids, backend=backend))


def pair(
    backend: str, hidden: Array, other: Array, weight: Array, ids: Array
) -> Arrays:
    """Those, and both divergences."""
    return tuple(linear_head_pair(hidden, other, weight, ids, backend=backend))


def js(backend: str, hidden: Array, other: Array, weight: Array, ids: Array) -> Arrays:
    """The second pass as well."""
    return (js_divergence(hidden, other, weight, backend=backend),)


def backward(
    op: Callable,
    backend: str,
    hidden: Array,
    other: Array,
    weight: Array,
    ids: Array,
    cotangents: Array | None = None,
) -> Arrays:
    """Gradients of the log-probs, and with two streams of the divergence as well."""

    def loss(hidden, other, weight):
        stats = op(backend, hidden, other, weight, ids)
        total = stats[0] if op is one else stats[0] + stats[3]
        return (total if cotangents is None else cotangents * total).sum()

    wanted = (0, 2) if op is one else (0, 1, 2)
    return jax.grad(loss, argnums=wanted)(hidden, other, weight)


OPS: dict[str, Callable] = {
    "one": one,
    "pair": pair,
    "js": js,
    "one + backward": functools.partial(backward, one),
    "pair + backward": functools.partial(backward, pair),
}


def shapes(shape: tuple, sharding: Any = None) -> list[jax.ShapeDtypeStruct]:
    """hidden, other, weight, ids."""
    n, d, v, dtype = shape
    make = functools.partial(jax.ShapeDtypeStruct, sharding=sharding)
    hidden = make((n, d), dtype)
    return [hidden, hidden, make((v, d), dtype), make((n,), jnp.int32)]


def inputs(shape: tuple, seed: int) -> list[np.ndarray]:
    """Random ones: logits of std 2, streams a tenth apart."""
    n, d, v, _ = shape
    random = np.random.default_rng(seed)
    hidden = random.standard_normal((n, d), np.float32)
    other = hidden + 0.1 * random.standard_normal((n, d), np.float32)
    weight = random.standard_normal((v, d), np.float32) * 2 / np.sqrt(d)
    return [hidden, other, weight, random.integers(0, v, n).astype(np.int32)]


def on_device(arrays: list[np.ndarray], dtype: str) -> list[jax.Array]:
    """The same in the dtype of the shape."""
    *floats, ids = arrays
    return [*(jnp.asarray(x, dtype) for x in floats), jnp.asarray(ids)]


def row(op: str, backend: str, shape: tuple, device: str, **figures: Any) -> Row:
    """A row of the table; what was not measured is null."""
    blank = {"milliseconds": None, "temporaries_bytes": None, "error": None}
    where = {"op": op, "backend": backend, "shape": list(shape), "device": device}
    return {**where, **blank, "note": "", **figures}


def compiled(op: str, backend: str, arguments: list) -> Any:
    """The op, ahead of time."""
    return jax.jit(functools.partial(OPS[op], backend)).lower(*arguments).compile()


def memory(shape: tuple, topology: str | None, ops: tuple[str, ...]) -> list[Row]:
    """Temporaries of the compiled ops, for this platform or a TPU that is not here."""
    device = topology or jax.devices()[0].device_kind
    sharding, rows = None, []
    if topology is not None:
        try:
            found = topologies.get_topology_desc(topology, platform="tpu")
        except Exception as problem:
            return [row("all", "xla", shape, device, note=first_line(problem))]
        sharding = SingleDeviceSharding(found.devices[0])
    for op in ops:
        try:
            used = compiled(op, "xla", shapes(shape, sharding)).memory_analysis()
            figure = {"temporaries_bytes": used.temp_size_in_bytes}
        except Exception as problem:
            figure = {"note": first_line(problem)}
        rows.append(row(op, "xla", shape, device, **figure))
    return rows


def times(shape: tuple, repeats: int, ops: tuple[str, ...]) -> list[Row]:
    """Median milliseconds of every backend that can run; they take turns."""
    device, dtype = jax.devices()[0].device_kind, shape[-1]
    arguments = on_device(inputs(shape, seed=time.time_ns() % 2**31), dtype)
    rows = []
    for op in ops:
        runs, here = {}, {}
        for backend in BACKENDS:
            try:
                run = compiled(op, backend, arguments)
                jax.block_until_ready(run(*arguments))
            except Exception as problem:
                here[backend] = {"note": first_line(problem)}
                continue
            runs[backend] = functools.partial(run, *arguments)
            used = run.memory_analysis().temp_size_in_bytes
            here[backend] = {"temporaries_bytes": used}
        for backend, milliseconds in in_turn(runs, repeats).items():
            here[backend]["milliseconds"] = milliseconds
        rows += [row(op, name, shape, device, **here[name]) for name in here]
    return rows


def in_turn(runs: dict[str, Callable], repeats: int) -> dict[str, float]:
    """Median milliseconds of each run."""
    spent: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            spent[name].append(1e3 * (time.perf_counter() - start))
    return {name: float(np.median(values)) for name, values in spent.items()}


def active_shares(shape: tuple, repeats: int) -> list[Row]:
    """Forward and backward where all, 40 %, 10 % or none of the tokens train."""
    device, dtype = jax.devices()[0].device_kind, shape[-1]
    arguments = on_device(inputs(shape, seed=0), dtype)
    run = jax.jit(functools.partial(backward, one, "xla"))
    order = np.random.default_rng(1).permutation(shape[0])
    shares = {
        f"one + backward, {share:.0%} active": share for share in (1, 0.4, 0.1, 0)
    }
    runs = {
        name: functools.partial(
            run, *arguments, jnp.asarray(order < share * shape[0], jnp.float32)
        )
        for name, share in shares.items()
    }
    for go in runs.values():
        jax.block_until_ready(go())
    found = in_turn(runs, repeats)
    return [
        row(name, "xla", shape, device, milliseconds=spent)
        for name, spent in found.items()
    ]


def accuracy(shape: tuple) -> list[Row]:
    """Norm-wise error of dhidden and dweight against float64, fresh random inputs."""
    device, dtype = jax.devices()[0].device_kind, shape[-1]
    arguments = on_device(inputs(shape, seed=time.time_ns() % 2**31), dtype)
    exact = exact_gradients(*(np.asarray(x, np.float64) for x in arguments))
    rows = []
    for backend in BACKENDS:
        try:
            found = jax.jit(functools.partial(backward, one, backend))(*arguments)
            errors = [relative(x, y) for x, y in zip(found, exact, strict=True)]
            figure = {"error": max(errors)}
        except Exception as problem:
            figure = {"note": first_line(problem)}
        rows.append(row("one + backward", backend, shape, device, **figure))
    return rows


def exact_gradients(
    hidden: np.ndarray, other: np.ndarray, weight: np.ndarray, ids: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Of sum log p[id], in float64 from the softmax's Jacobian."""
    z = hidden @ weight.T
    p = np.exp(z - z.max(axis=1, keepdims=True))
    dz = -p / p.sum(axis=1, keepdims=True)
    dz[np.arange(len(ids)), ids.astype(int)] += 1
    return dz @ weight, dz.T @ hidden


def relative(found: jax.Array, exact: np.ndarray) -> float:
    """|found - exact| / |exact|, Frobenius."""
    gap = np.asarray(found, np.float64) - exact
    return float(np.linalg.norm(gap) / np.linalg.norm(exact))


def torch_times(shape: tuple, repeats: int) -> list[Row]:
    """Torch's forms on the same GPU; rows without a time where it is not installed."""
    device = jax.devices()[0].device_kind
    place = importlib.util.spec_from_file_location("torch_head", TORCH)
    forms = importlib.util.module_from_spec(place)
    try:
        place.loader.exec_module(forms)
        *floats, ids = inputs(shape, seed=0)
        moved = forms.inputs([*floats, ids.astype(np.int64)])
    except Exception as problem:
        return [row("all", "torch", shape, device, note=first_line(problem))]
    rows = []
    for op, make in forms.RUNS.items():
        for name, form in forms.FORMS.items():
            arrays = [
                x if op.startswith("pair") or i != 1 else None
                for i, x in enumerate(moved)
            ]
            try:
                run = make(form, *arrays)
                figure = {"temporaries_bytes": forms.peak(run)}
                figure["milliseconds"] = in_turn({name: run}, repeats)[name]
            except Exception as problem:
                figure = {"note": first_line(problem)}
            rows.append(row(op, name, shape, device, **figure))
    return rows


def first_line(problem: Exception) -> str:
    """What went wrong, short enough for a table."""
    return f"{type(problem).__name__}: {problem}".splitlines()[0][:160]


def line(row: Row) -> str:
    """A row as text."""
    milliseconds, used = row["milliseconds"], row["temporaries_bytes"]
    n, d, v, dtype = row["shape"]
    cells = [
        f"{row['op']:30}",
        f"{row['backend']:12}",
        f"{row['device']:12}",
        f"{n}x{d}x{v} {dtype:9}",
        f"{milliseconds:10.1f} ms" if milliseconds is not None else " " * 13,
        f"{used / 1e9:8.3f} GB" if used is not None else " " * 11,
        f"error {row['error']:.2e}" if row["error"] is not None else row["note"],
    ]
    return "  ".join(cells).rstrip()


if __name__ == "__main__":
    command_line(main)
