"""Set before jax starts: a shared compilation cache, cheap compilations, 8 devices."""

import os
from pathlib import Path

ROOT = Path(__file__).parent.parent

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax-tests"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
# Half the compilation time; the arithmetic is the same. Tests of meshes see 8 devices,
# everything else runs on the first.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_backend_optimization_level=1",
        "--xla_force_host_platform_device_count=8",
    ]
)

import gc  # noqa: E402

import jax  # noqa: E402
import pytest  # noqa: E402

MANY_MAPPINGS = 30_000
"""Of memory; Linux allows 65530 a process, and a compiled program takes a dozen."""


@pytest.fixture(autouse=True, scope="module")
def room_for_programs():
    """Programs of earlier files are let go before there are too many to map."""
    maps = Path("/proc/self/maps")
    if maps.exists() and len(maps.read_bytes().splitlines()) > MANY_MAPPINGS:
        jax.clear_caches()
        gc.collect()
