"""Loading a checkpoint: seconds, and host memory beyond the parameters' own size.

    python benchmarks/load_checkpoint.py

Writes a folder of random bfloat16 weights (Qwen3-VL-2B with 20 of its 28 decoder
layers, 1.72 B parameters, 3.45 GB) to a temporary place, loads it in a fresh process,
and removes it. On a CPU the parameters themselves lie in host memory; what counts is
what comes on top. `--layers` makes it smaller.
"""

import argparse
import dataclasses
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp

from vrl_jax.models import hub
from vrl_jax.models.parameters import init_params
from vrl_jax.models.qwen_vl.parameters import parameter_table
from vrl_jax.models.qwen_vl.released import QWEN3_VL_2B

DTYPE = jnp.bfloat16


def write(folder: str, layers: int) -> None:
    """A folder of random weights in shards of half a gigabyte."""
    text = dataclasses.replace(QWEN3_VL_2B.text, layers=layers)
    spec = dataclasses.replace(QWEN3_VL_2B, text=text)
    table = parameter_table(spec)
    params = jax.jit(lambda key: init_params(key, table, DTYPE))(jax.random.key(0))
    hub.save(folder, spec, params, shard_bytes=500_000_000)


def load(folder: str) -> dict[str, float]:
    """What one load takes; to be called in a process that has done nothing else."""
    jnp.zeros(()).block_until_ready()  # the backend's own memory is not ours
    before = _resident()
    start, busy = time.perf_counter(), time.process_time()
    spec, params = hub.load(folder, dtype=DTYPE)
    jax.block_until_ready(params)
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    table = parameter_table(spec)
    return {
        "seconds": seconds,
        "busy": busy,
        "parameters": sum(math.prod(row.stacked_shape) for row in table),
        "bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(params)),
        "largest_tensor": max(2 * math.prod(row.stored) for row in table),
        "largest_parameter": max(leaf.nbytes for leaf in jax.tree.leaves(params)),
        "peak": peak - before,
    }


def _resident() -> int:
    """Bytes of memory that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def main() -> None:
    """Writes, loads three times, prints a row of BENCHMARKS.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=20)
    parser.add_argument("--step", choices=("write", "load"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step == "write":
        return write(given.folder, given.layers)
    if given.step == "load":
        return print(json.dumps(load(given.folder)))

    def run(step: str, folder: str) -> str:
        command = [sys.executable, __file__, "--step", step, "--folder", folder]
        command += ["--layers", str(given.layers)]
        return subprocess.run(
            command, check=True, stdout=subprocess.PIPE, text=True
        ).stdout

    with tempfile.TemporaryDirectory() as folder:
        run("write", folder)
        results = [json.loads(run("load", folder)) for _ in range(3)]
    worst = max(results, key=lambda result: result["peak"])
    seconds, busy = (
        sorted(result[name] for result in results)[1] for name in ("seconds", "busy")
    )
    over = worst["peak"] - worst["bytes"]
    print(
        f"{worst['parameters'] / 1e9:.2f} B parameters, {worst['bytes'] / 1e9:.2f} GB: "
        f"{seconds:.1f} s, {busy:.1f} s of CPU (medians of 3), "
        f"peak {worst['peak'] / 1e9:.2f} GB, {over / 1e9:.2f} GB over the parameters; "
        f"largest tensor {worst['largest_tensor'] / 1e9:.2f} GB, "
        f"largest stacked parameter {worst['largest_parameter'] / 1e9:.2f} GB; "
        f"jax {jax.__version__}, {jax.default_backend()}"
    )


if __name__ == "__main__":
    main()
