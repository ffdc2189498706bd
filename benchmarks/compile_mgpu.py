"""The Hopper kernel compiled for an H200 on a machine without one.

    make compile-mgpu

XLA for CUDA compiles for the target described in `vrl_jax/planning/h200.txtpb`.

First table, the kernel: memory beside inputs and outputs, and what ptxas says of it
twice. JAX, where it finds libnvJitLink (a part of `jax[cuda13]`), compiles for later
linking; ptxas then ignores the warpgroups' register budgets (C7504), gives every thread
168 and spills what does not fit. Called on the same PTX for the whole program, it keeps
to the budgets. Second table, the public functions with either backend: memory alone.

Raises where the wgmma loop spills, where wgmma is serialised, or where the whole
program spills. Times nothing: there is no GPU.
"""

import functools
import itertools
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

H200 = Path(__file__).parents[1] / "vrl_jax" / "planning" / "h200.txtpb"
# Qwen2.5-VL 7B and 3B, a vocabulary of no whole tiles, few tokens.
SHAPES = [
    (16384, 3584, 152064),
    (16384, 2048, 151936),
    (16384, 3584, 151655),
    (512, 3584, 152064),
]
TEMPORARY = tempfile.TemporaryDirectory()
DUMPS = Path(TEMPORARY.name)
os.environ.update(JAX_PLATFORMS="cpu", MOSAIC_GPU_DUMP_TO=str(DUMPS))

import jax  # noqa: E402  (reads the environment)
import jax.numpy as jnp  # noqa: E402
from jax.experimental import topologies  # noqa: E402
from jax.sharding import SingleDeviceSharding  # noqa: E402
from vrl_kernels.linear_head import (  # noqa: E402
    linear_head,
    linear_head_pair,
    pallas_mgpu,
    xla,
)
from vrl_kernels.linear_head.backend import Backend  # noqa: E402


def inputs(sharding, streams: int, shape: tuple[int, int, int]) -> list:
    """One or two streams, weight, ids, temperature and mask: their shapes alone."""
    rows, width, vocabulary = shape
    sizes = [*[(rows, width)] * streams, (vocabulary, width), (rows,), (rows,)]
    types = [jnp.bfloat16] * (streams + 1) + [jnp.int32, jnp.float32, jnp.bool_]
    return [
        jax.ShapeDtypeStruct(size, dtype, sharding=sharding)
        for size, dtype in zip([*sizes, (vocabulary,)], types, strict=True)
    ]


def temporaries(function, arguments) -> int:
    """Bytes of device memory beside inputs and outputs."""
    compiled = jax.jit(function).lower(*arguments).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def kernel_facts(sharding, streams: int, shape: tuple[int, int, int]) -> dict:
    """Memory and register facts of one kernel."""
    function = pallas_mgpu.states if streams == 1 else pallas_mgpu.pair_states
    size = temporaries(function, inputs(sharding, streams, shape))
    ptx = max(DUMPS.glob("*.ptx"), key=lambda path: path.stat().st_mtime)
    return {
        "temporaries": size,
        "jax": ptx.with_suffix(".ptxas").read_text(errors="replace"),
        "whole": ptxas("-v", str(ptx), "-o", str(ptx.with_suffix(".cubin"))),
        "loop": loop_spills(ptx),
    }


def ptxas(*arguments: str) -> str:
    """What the compiler of the CUDA wheels says."""
    command = [str(tool("ptxas")), "-arch=sm_90a", *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout + done.stderr


def loop_spills(ptx: Path) -> int:
    """Loads from and stores to local memory between the first and last wgmma."""
    relocatable = ptx.with_suffix(".o")
    ptxas("-c", str(ptx), "-o", str(relocatable))
    command = [str(tool("nvdisasm")), "-c", str(relocatable)]
    sass = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    lines = sass.splitlines()
    products = [i for i, line in enumerate(lines) if "HGMMA" in line]
    if len(products) != 8:  # 64 / 16 steps of depth, two accumulators
        raise AssertionError(f"8 wgmma in one loop, got {len(products)}.")
    loop = lines[products[0] : products[-1]]
    return sum(bool(re.search(r"\b(LDL|STL)\b", line)) for line in loop)


def tool(name: str) -> Path:
    """A program of the CUDA wheels in this environment."""
    (found,) = Path(sys.prefix).glob(f"lib/python*/site-packages/nvidia/cu*/bin/{name}")
    return found


def numbers(report: str) -> tuple[int, int]:
    """Registers, and bytes that are spilled."""
    registers = re.search(r"Used (\d+) registers", report)
    stores = re.search(r"(\d+) bytes spill stores", report)
    return int(registers[1]), int(stores[1])


def kernel_table(sharding) -> None:
    """A row a kernel; holds it to its claims."""
    print("| streams | N | d | V | temporaries | registers | spilled | whole program |")
    print("|---|---|---|---|---|---|---|---|")
    for shape, streams in itertools.product(SHAPES, (1, 2)):
        facts = kernel_facts(sharding, streams, shape)
        registers, spilled = numbers(facts["jax"])
        _, whole = numbers(facts["whole"])
        print(
            f"| {streams} | {' | '.join(map(str, shape))} "
            f"| {facts['temporaries'] / 1e6:.1f} MB | {registers} "
            f"| {spilled} B, {facts['loop']} in the loop | {whole} B |",
            flush=True,
        )
        if facts["loop"] or whole or spilled > 128:
            raise AssertionError("registers no longer suffice:\n" + facts["jax"])
        # C7509, C7510 and their like; setmaxnreg is C7504.
        if "serialized" in facts["jax"] + facts["whole"]:
            raise AssertionError("wgmma is serialised:\n" + facts["jax"])


def memory_table(sharding) -> None:
    """A row a public function, at the first shape."""
    print("\n| op | backend | forward | forward and backward |")
    print("|---|---|---|---|")
    modules = {"pallas_mgpu": pallas_mgpu, "xla": xla}
    functions = linear_head, linear_head_pair
    for (name, module), (count, head) in itertools.product(
        modules.items(), enumerate(functions, start=1)
    ):
        backend = Backend(module.states, module.pair_states)
        *arrays, ids, _, _ = inputs(sharding, count, SHAPES[0])
        forward = functools.partial(head, backend=backend)

        def loss(*arguments, forward=forward):
            return sum(x.sum() for x in forward(*arguments))

        both = jax.value_and_grad(loss, argnums=tuple(range(len(arrays))))
        sizes = [temporaries(f, [*arrays, ids]) / 1e6 for f in (forward, both)]
        print(
            f"| {head.__name__} | {name} | {sizes[0]:.0f} MB | {sizes[1]:.0f} MB |",
            flush=True,
        )


def main() -> None:
    """Both tables, in Markdown."""
    topology = topologies.get_topology_desc(
        platform="cuda",
        target_config=H200.read_text(),
        topology="1x1x1",
    )
    sharding = SingleDeviceSharding(topology.devices[0])
    kernel_table(sharding)
    memory_table(sharding)
    release = re.search(r"release (\S+),", ptxas("--version"))
    print(f"\njax {jax.__version__}, ptxas {release[1]}")


if __name__ == "__main__":
    main()
