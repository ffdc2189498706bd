"""Set before jax starts: a shared compilation cache, cheap compilations, 8 devices."""

import functools
import itertools
import os
import threading
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parent.parent

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax-tests"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")  # of operations
# A quarter of the compilation time. Tests of meshes see 8 devices, everything else runs
# on the first.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        "--xla_cpu_parallel_codegen_split_count=1",
        "--xla_force_host_platform_device_count=8",
    ]
)
OLDER = tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11)
# The older and faster of two ways to code; XLA ends the process where it has only one.
if OLDER:
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"

# A device that waits for the others keeps a thread; with as many threads as cores, two
# collectives of one program can wait for each other for ever.
os.environ.setdefault("PJRT_NPROC", "32")

import gc  # noqa: E402

import jax  # noqa: E402
import jaxtyping  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

# The shapes in the mathematics' signatures hold: every call is compared with them.
# Arrays are jax's or NumPy's, as users give them. Of the decoders it would cost a
# seventh of the time that tracing them takes.
jaxtyping.Array = jax.Array | np.ndarray | np.generic
CHECKED = """
    advantages augmentations contrast denoising divergences filters geometry masked
    mismatch objectives perception preference reductions schedules token_weights views
"""
jaxtyping.install_import_hook(
    [f"vrl_jax.{name}" for name in CHECKED.split()],
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
)

# From 0.11 on, programs of a thread share what jax writes them in. Before, each has its
# own, which takes 5 ms and, kept with the program, a megabyte.
if OLDER:
    from jax._src.interpreters import mlir

    write = mlir.make_ir_context
    shared = functools.lru_cache(maxsize=8)(lambda thread, hundred: write())
    written = itertools.count()
    mlir.make_ir_context = lambda: shared(threading.get_ident(), next(written) // 100)

MANY_MAPPINGS = 30_000
"""Of memory; Linux allows 65530 a process, and a compiled program takes a dozen."""


def pytest_collection_finish():
    """Tracing makes many objects; the collector need not go through all imports."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 50)


@pytest.fixture(autouse=True, scope="module")
def room_for_programs():
    """Programs of earlier files are let go before there are too many to map."""
    maps = Path("/proc/self/maps")
    if maps.exists() and len(maps.read_bytes().splitlines()) > MANY_MAPPINGS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def verifier():
    """A process that compares formulas; it starts at the first comparison."""
    # Not above: what is imported here would escape the checks of types.
    from vrl_jax.rewards.math_verifier import MathVerifier

    with MathVerifier(workers=1, seconds=5) as pool:
        yield pool
