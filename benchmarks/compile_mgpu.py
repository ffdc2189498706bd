"""The Hopper kernel compiled for an H200 on a machine without one.

    make compile-mgpu

XLA for CUDA compiles for the target described in `h200.txtpb`. A row a shape: device
memory beside inputs and outputs, and what ptxas says of the kernel twice. As JAX calls
it where it finds libnvJitLink (a part of `jax[cuda13]`), it compiles for later linking,
ignores the warpgroups' register budgets (C7504), gives every thread 168 and spills what
does not fit. Called on the same PTX for the whole program, it keeps to the budgets.
Raises where the wgmma loop spills, where wgmma is serialised, or where the whole
program spills. Times nothing: there is no GPU.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
# Qwen2.5-VL 7B and 3B, a vocabulary of no whole tiles, few tokens.
SHAPES = [
    (16384, 3584, 152064),
    (16384, 2048, 151936),
    (16384, 3584, 151655),
    (512, 3584, 152064),
]
DUMPS = Path(tempfile.mkdtemp(prefix="mgpu-"))
os.environ.update(JAX_PLATFORMS="cpu", MOSAIC_GPU_DUMP_TO=str(DUMPS))

import jax  # noqa: E402  (reads the environment)
import jax.numpy as jnp  # noqa: E402
from jax.experimental import topologies  # noqa: E402
from jax.sharding import SingleDeviceSharding  # noqa: E402
from vrl_kernels.linear_head import pallas_mgpu  # noqa: E402


def compile_for(sharding, streams: int, shape: tuple[int, int, int]) -> dict:
    """Memory and register facts of one kernel."""
    rows, width, vocabulary = shape

    def array(shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    function = pallas_mgpu.states if streams == 1 else pallas_mgpu.pair_states
    compiled = (
        jax.jit(function)
        .lower(
            *[array((rows, width), jnp.bfloat16)] * streams,
            array((vocabulary, width), jnp.bfloat16),
            array((rows,), jnp.int32),
            array((rows,), jnp.float32),
            array((vocabulary,), jnp.bool_),
        )
        .compile()
    )
    memory = compiled.memory_analysis()
    ptx = max(DUMPS.glob("*.ptx"), key=lambda path: path.stat().st_mtime)
    return {
        "temporaries": memory.temp_size_in_bytes,
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


def main() -> None:
    """Compile, print a Markdown table, and hold the kernel to its claims."""
    topology = topologies.get_topology_desc(
        platform="cuda",
        target_config=(HERE / "h200.txtpb").read_text(),
        topology="1x1x1",
    )
    sharding = SingleDeviceSharding(topology.devices[0])
    print("| streams | N | d | V | temporaries | registers | spilled | whole program |")
    print("|---|---|---|---|---|---|---|---|")
    for shape in SHAPES:
        for streams in (1, 2):
            facts = compile_for(sharding, streams, shape)
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
    release = re.search(r"release (\S+),", ptxas("--version"))
    print(f"jax {jax.__version__}, ptxas {release[1]}")


if __name__ == "__main__":
    main()
