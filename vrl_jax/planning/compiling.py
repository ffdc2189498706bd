"""Compiles a program for a topology that is not there, as far as a plan reads it.

libtpu writes its optimised program and the assignment of its buffers before it makes
machine code, which takes most of the time and changes neither. So a process of its own
compiles each program and is ended once both are written. The total of the report is
that of `compiled.memory_analysis()`: arguments, results and temporaries, what is
donated counted once (a test holds this).

For GPUs XLA compiles for a description of one, such as `h200.txtpb`, and all products
are cuBLAS's: to choose among kernels of its own it would have to time them on a GPU.
"""

import contextlib
import functools
import importlib.resources
import multiprocessing
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies
from jax.sharding import AbstractMesh, Mesh

from vrl_jax.models import experts
from vrl_jax.models.critic import Critic
from vrl_jax.models.families import Spec
from vrl_jax.models.sharding import make_mesh
from vrl_jax.planning.chips import Topology
from vrl_jax.planning.hlo import Traffic, traffic
from vrl_jax.planning.programs import Planned, on, programs
from vrl_jax.planning.shapes import Sizes, bytes_of
from vrl_jax.planning.work import matmul_flops
from vrl_jax.training.choices import Choices

OPTIONS = {
    "xla_dump_hlo_as_text": True,
    experts.KERNEL: True,
}
GPU_OPTIONS = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "",  # libtpu ends the process for one that it does not know
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    # It asks nobody which TPU this is, and says nothing of it.
    "TPU_ACCELERATOR_TYPE": "v5p-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
}
REPORT = "after_optimizations-memory-usage-report.txt"
TEXT = "after_optimizations.txt"


class Request(NamedTuple):
    """What is planned. Everything in it must survive pickling."""

    spec: Spec
    recipe: Callable
    sizes: Sizes
    choices: Choices
    topology: Topology
    critics: Mapping[str, Critic] | None = None
    frozen: tuple[Spec, ...] = ()


class Found(NamedTuple):
    """A program of a step, for one device and one run of it.

    `total` bytes are arguments, results and temporaries; where nothing was compiled it
    is 0 and `traffic` None. `shared` of the arguments are held the whole time.
    """

    name: str
    runs: int
    steps: int
    flops: float
    arguments: int
    shared: int
    total: int = 0
    traffic: Traffic | None = None
    seconds: float = 0.0


def plan_of(request: Request, mesh: Mesh | AbstractMesh) -> Planned:
    """The programs of a request on a mesh."""
    return programs(
        request.spec,
        request.recipe,
        request.sizes,
        request.choices,
        mesh,
        critics=request.critics,
        frozen=request.frozen,
    )


def mesh_of(request: Request, devices: Any) -> Mesh:
    """Axes as the choices say, over these devices."""
    choices = request.choices
    return make_mesh(
        data=choices.data, fsdp=choices.fsdp, tensor=choices.tensor, devices=devices
    )


def counted(
    name: str, planned: Planned, mesh: Mesh | AbstractMesh
) -> tuple[Found, Any]:
    """What is known of a program before it is compiled; what jax traced."""
    program = planned.programs[name]
    with on(mesh):
        traced = program.function.trace(*program.static, *program.arguments)
    found = Found(
        name,
        program.runs,
        program.steps,
        matmul_flops(traced.jaxpr, steps=program.steps) / mesh.size,
        bytes_of(program.arguments),
        program.shared,
    )
    return found, traced


def compiled_here(name: str, planned: Planned, mesh: Mesh) -> Found:
    """Compiled in this process, for devices that are there."""
    found, traced = counted(name, planned, mesh)
    begun = time.perf_counter()
    with on(mesh):
        compiled = traced.lower().compile()
    total, text = bytes_taken(compiled), compiled.as_text()
    return _with(found, total, text, mesh.size, begun)


def compiled_for_tpu(request: Request, name: str, *, limit: float = 900) -> Found:
    """Compiled by libtpu for the request's topology, in a process of its own."""
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        at_work = functools.partial(_for_tpu, request, name, folder)
        with _child(at_work) as (pipe, child):
            found = _received(pipe, child)
            total, text = _written(Path(folder), pipe, child, begun + limit)
    return _with(found, total, text, request.topology.devices, begun)


def compiled_for_gpu(request: Request, name: str, *, limit: float = 900) -> Found:
    """Compiled by XLA for the request's GPUs, in a process of its own."""
    begun = time.perf_counter()
    with _child(functools.partial(_for_gpu, request, name)) as (pipe, child):
        found = _received(pipe, child)
        if not pipe.poll(begun + limit - time.perf_counter()):
            raise TimeoutError("XLA did not compile a program for GPUs in time.")
        total, text = _received(pipe, child)
    return _with(found, total, text, request.topology.devices, begun)


def description(chip: str) -> Traversable:
    """Of a GPU, for XLA; a file that need not be there."""
    return importlib.resources.files(__package__) / f"{chip}.txtpb"


def bytes_taken(compiled: Any) -> int:
    """Arguments, results and temporaries, what is donated counted once."""
    memory = compiled.memory_analysis()
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )


def _with(found: Found, total: int, text: str, devices: int, begun: float) -> Found:
    sent = traffic(text, devices=devices, steps=found.steps)
    seconds = time.perf_counter() - begun
    return found._replace(total=total, traffic=sent, seconds=seconds)


def _for_tpu(request: Request, name: str, folder: str, pipe: Any) -> None:
    there = topologies.get_topology_desc(request.topology.name, platform="tpu")
    lowered = _lowered(request, name, there.devices, "tpu", pipe)
    lowered.compile(compiler_options={**OPTIONS, "xla_dump_to": folder})
    pipe.send(None)


def _for_gpu(request: Request, name: str, pipe: Any) -> None:
    chip, devices = request.topology.chip.name, request.topology.devices
    there = topologies.get_topology_desc(
        platform="cuda",
        target_config=description(chip).read_text(),
        topology=f"1x1x{devices}",  # slices x hosts x GPUs
    )
    lowered = _lowered(request, name, there.devices, "cuda", pipe)
    compiled = lowered.compile(compiler_options=GPU_OPTIONS)
    pipe.send((bytes_taken(compiled), compiled.as_text()))


def _lowered(
    request: Request, name: str, devices: Any, platform: str, pipe: Any
) -> Any:
    """The program for these devices; sends what was counted."""
    mesh = mesh_of(request, devices)
    found, traced = counted(name, plan_of(request, mesh), mesh)
    pipe.send(found)
    with on(mesh):
        return traced.lower(lowering_platforms=(platform,))


@contextlib.contextmanager
def _child(at_work: Callable) -> Iterator[tuple[Any, Any]]:
    """A process that calls `at_work` with a pipe, the other end of which comes back."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=_run, args=(theirs, at_work))
    with _environment():
        child.start()
    theirs.close()
    try:
        yield ours, child
    finally:
        child.kill()
        child.join()


def _run(pipe: Any, at_work: Callable) -> None:
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    jax.config.update("jax_enable_compilation_cache", False)  # it would write nothing
    try:
        at_work(pipe)
    except Exception as error:  # the parent raises it
        pipe.send(error)


def _end_with(parent: int) -> None:
    """Nobody waits for this process once its parent is gone."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """Of children: they look for no TPU, and start on the CPU."""
    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    os.environ.update(ENVIRONMENT)
    yield
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


def _received(pipe: Any, child: Any) -> Any:
    try:
        found = pipe.recv()
    except EOFError:
        child.join()
        raise RuntimeError(
            f"the process that compiles ended with code {child.exitcode}: "
            "out of memory?"
        ) from None
    if isinstance(found, Exception):
        raise found
    return found


def total_of(report: str) -> int:
    """Bytes of the device's main memory; other memories follow in the report."""
    return int(re.search(r"^Total bytes: (\d+)", report, re.M)[1])


def _written(folder: Path, pipe: Any, child: Any, until: float) -> tuple[int, str]:
    """The report's total and the program's text, once both are whole."""
    sizes: dict[Path, int] = {}
    error = None
    while time.perf_counter() < until:
        over = not child.is_alive()
        while pipe.poll():
            try:
                error = pipe.recv()
            except EOFError:
                break
        before, sizes = (
            sizes,
            {
                path: path.stat().st_size
                for path in folder.iterdir()
                if path.name.endswith((REPORT, TEXT))
            },
        )
        settled = sizes == before or (over and child.exitcode == 0)
        if len(sizes) == 2 and settled and min(sizes.values()):
            report, text = sorted(sizes, key=lambda path: path.name.endswith(TEXT))
            return total_of(report.read_text()), text.read_text()
        if over and error is not None:
            raise error
        if over:
            raise RuntimeError(
                f"the process that compiles ended with code {child.exitcode} before "
                "its buffers were assigned: out of memory?"
            )
        time.sleep(0.5)
    raise TimeoutError("libtpu did not assign the buffers of a program in time.")
