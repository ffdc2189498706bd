"""A plan against the GPU of this machine: the programs of a step, compiled and run.

    python benchmarks/plan_on_gpu.py

Every program of a step is compiled twice, as `vrl-jax plan --topology h200:1` does it
without a GPU and for the GPU that is here, and then run, on numbers without meaning but
of the right shapes. Its peak is what the allocator says beyond what lay there before;
its time is the median of a few runs, beside the plan's lower bound.
"""

import argparse
import functools
import gc
import json
import math
import statistics
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from vrl_jax.models.qwen_vl.released import RELEASED
from vrl_jax.models.sharding import make_mesh
from vrl_jax.planning.chips import topology
from vrl_jax.planning.command import RECIPES, method
from vrl_jax.planning.compiling import (
    Found,
    Request,
    bytes_taken,
    compiled_for_gpu,
    plan_of,
)
from vrl_jax.planning.plan import bound
from vrl_jax.planning.programs import Program, on
from vrl_jax.planning.search import usual
from vrl_jax.planning.shapes import Sizes, bytes_of

HEADER = (
    "| program | planned, GiB | compiled here, GiB | measured, GiB | bound, s | binds "
    "| measured, s | of the bound |\n|---|---|---|---|---|---|---|---|"
)


@functools.partial(jax.jit, static_argnums=0)
def numbers(struct: Any) -> jax.Array:
    """Small ones of both signs, made in place; integers are 0, masks are true."""
    if jnp.issubdtype(struct.dtype, jax.dtypes.prng_key):
        return jax.random.key(0)
    if struct.dtype == bool:
        return jnp.ones(struct.shape, bool)
    if not jnp.issubdtype(struct.dtype, jnp.floating):
        return jnp.zeros(struct.shape, struct.dtype)
    order = jax.lax.iota(jnp.uint32, math.prod(struct.shape)) * jnp.uint32(2654435761)
    values = order.astype(jnp.float32) / 2.0**32 - 0.5
    return (0.05 * values).reshape(struct.shape).astype(struct.dtype)


def arguments(name: str, program: Program) -> tuple:
    """For one run; slots write as many tokens as a run has rounds."""
    made = jax.tree.map(
        lambda x: numbers(jax.ShapeDtypeStruct(x.shape, x.dtype)), program.arguments
    )
    if name != "decode":
        return made
    weights, tables, slots, column, most, patience = made
    tables = tables._replace(stops=~tables.stops)
    left = slots.orders.left + program.steps
    orders = slots.orders._replace(left=left, temperature=jnp.ones_like(left) * 1.0)
    begun = slots.index.shape[1] - program.steps  # nearly all columns are read
    index = jnp.where(jnp.arange(slots.index.shape[1]) < begun, 0, -1) + slots.index
    slots = slots.__class__(**{**vars(slots), "orders": orders, "index": index})
    steps = most + program.steps
    return weights, tables, slots, column + begun, steps, patience + 2 * len(left)


def in_use(kind: str) -> int:
    """Bytes of the GPU, now or at most so far."""
    return jax.devices()[0].memory_stats()[kind]


def measured(name: str, program: Program, compiled: Any, repeats: int) -> dict:
    """Seconds, and bytes beyond what lies there besides the arguments."""
    seconds = []
    for _ in range(repeats + 1):
        gc.collect()
        besides = in_use("bytes_in_use")
        given = jax.block_until_ready(arguments(name, program))
        begun = time.perf_counter()
        result = jax.block_until_ready(compiled(*given))
        seconds.append(time.perf_counter() - begun)
        peak = in_use("peak_bytes_in_use") - besides
        del given, result
    return {"seconds": statistics.median(seconds[1:]), "peak_bytes": peak}


def rows(request: Request, repeats: int) -> list[dict]:
    """One for each program, the smallest first: a peak cannot be taken back."""
    mesh = make_mesh()
    planned = plan_of(request, mesh)
    # Processes are started one after the other: they share what they are told.
    with ThreadPoolExecutor(1) as alone, ThreadPoolExecutor() as pool:
        ahead = {
            name: alone.submit(compiled_for_gpu, request, name)
            for name in planned.programs
        }
        here = {}
        for name, program in planned.programs.items():
            with on(mesh):
                traced = program.function.trace(*program.static, *program.arguments)
                here[name] = pool.submit(traced.lower().compile)
        order = sorted(here, key=lambda name: bytes_taken(here[name].result()))
    return [
        row(name, planned.programs[name], ahead[name], here[name], request, repeats)
        for name in order
    ]


def row(
    name: str,
    program: Program,
    ahead: Future[Found],
    here: Future[Any],
    request: Request,
    repeats: int,
) -> dict:
    """What was planned, what is compiled, what was measured."""
    found, compiled = ahead.result(), here.result()
    limits = bound(found, request.topology)
    figures = {
        "program": name,
        "planned_bytes": found.total,
        "planned_arguments_bytes": bytes_of(program.arguments),
        "compiled_bytes": bytes_taken(compiled),
        "bound_seconds": limits.seconds,
        "binds": limits.binds,
        **measured(name, program, compiled, repeats),
    }
    gib = 2**30
    print(
        f"| {name} | {figures['planned_bytes'] / gib:.2f} "
        f"| {figures['compiled_bytes'] / gib:.2f} "
        f"| {figures['peak_bytes'] / gib:.2f} | {figures['bound_seconds']:.3f} "
        f"| {figures['binds']} | {figures['seconds']:.3f} "
        f"| {figures['bound_seconds'] / figures['seconds']:.0%} |",
        flush=True,
    )
    return figures


def main() -> None:
    """The table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=RELEASED, default="qwen2.5-vl-3b")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=1024, help="of prompt, response")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    where = topology("h200:1")
    sizes = Sizes(given.prompts, 8, given.tokens, given.tokens, 2 * given.tokens)
    make = functools.partial(method, RECIPES["vppo"], "vppo", sizes.group)
    request = Request(RELEASED[given.model], make, sizes, usual(where, sizes), where)
    print(jax.devices()[0].device_kind, "jax", jax.__version__, given.model, sizes)
    print(HEADER)
    found = rows(request, given.repeats)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
