"""Compiles a program for a topology that is not there, as far as a plan reads it.

libtpu writes its optimised program and the assignment of its buffers before it makes
machine code, which takes most of the time and changes neither. So a process of its own
compiles each program and is ended once both are written. The total of the report is
that of `compiled.memory_analysis()`: arguments, results and temporaries, what is
donated counted once (a test holds this).
"""

import contextlib
import multiprocessing
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies
from jax.sharding import AbstractMesh, Mesh

from vrl_jax.models.families import Spec
from vrl_jax.models.sharding import make_mesh
from vrl_jax.training.plan_chips import Topology
from vrl_jax.training.plan_hlo import Traffic, traffic
from vrl_jax.training.plan_programs import (
    Choices,
    Planned,
    on,
    programs,
)
from vrl_jax.training.plan_shapes import Sizes, bytes_of
from vrl_jax.training.plan_work import matmul_flops

OPTIONS = {
    "xla_dump_hlo_as_text": True,
}
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
    return programs(request.spec, request.recipe, request.sizes, request.choices, mesh)


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
    memory = compiled.memory_analysis()
    total = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )
    sent = traffic(compiled.as_text(), devices=mesh.size, steps=found.steps)
    return found._replace(
        total=total, traffic=sent, seconds=time.perf_counter() - begun
    )


def compiled_for_tpu(request: Request, name: str, *, limit: float = 900) -> Found:
    """Compiled by libtpu for the request's topology, in a process of its own."""
    begun = time.perf_counter()
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    with tempfile.TemporaryDirectory() as folder:
        child = context.Process(target=_child, args=(theirs, request, name, folder))
        with _environment():
            child.start()
        theirs.close()
        try:
            found = _received(ours, child)
            written = _written(Path(folder), ours, child, begun + limit)
        finally:
            child.kill()
            child.join()
    total, text = written
    sent = traffic(text, devices=request.topology.devices, steps=found.steps)
    return found._replace(
        total=total, traffic=sent, seconds=time.perf_counter() - begun
    )


def _child(pipe: Any, request: Request, name: str, folder: str) -> None:
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    jax.config.update("jax_enable_compilation_cache", False)  # it would write nothing
    try:
        there = topologies.get_topology_desc(request.topology.name, platform="tpu")
        mesh = mesh_of(request, there.devices)
        found, traced = counted(name, plan_of(request, mesh), mesh)
        pipe.send(found)
        with on(mesh):
            lowered = traced.lower(lowering_platforms=("tpu",))
        lowered.compile(compiler_options={**OPTIONS, "xla_dump_to": folder})
        pipe.send(None)
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


def _received(pipe: Any, child: Any) -> Found:
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
