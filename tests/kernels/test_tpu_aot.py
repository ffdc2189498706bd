"""The head compiled for four TPU generations by libtpu, without a TPU (make aot)."""

import functools
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding
from vrl_kernels.linear_head import pallas_tpu
from vrl_kernels.linear_head.pallas_tpu import choose_tiles

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.aot,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None,
        reason="libtpu is not installed: make aot installs and uses it",
    ),
]
# Least share of the matrix unit's slots. TPU7x has no bar: what it fills, rounded down.
SHARES = {"v5e:2x2": 0.85, "v5p:2x2x1": 0.85, "v6e:2x2": 0.75, "tpu7x:2x2x1": 0.6}
# Of one and of two streams, compiled only: every way in which a shape can be awkward.
AWKWARD = [
    ("bfloat16", 1000, 3580, 151655),  # nothing divides
    ("bfloat16", 4096, 8192, 151936),  # d in two parts
    ("float32", 1000, 5120, 151655),
    ("bfloat16", 5, 64, 50),  # smaller than any tile
]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """What benchmarks/head_tpu.py finds: {(op, streams, chip): row}."""
    out = tmp_path_factory.mktemp("aot") / "out.json"
    # A process of its own: libtpu reads the flags of its dump when it is loaded.
    command = [sys.executable, "benchmarks/head_tpu.py", "--json", str(out)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]
    print(run.stdout)
    found = json.loads(out.read_text())
    return {(row["op"], row["streams"], row["chip"]): row for row in found}


@pytest.mark.parametrize("chip", SHARES)
@pytest.mark.parametrize("streams", [1, 2])
def test_temporaries_at_full_size(rows, chip, streams):
    """Float32 logits alone would be 10 GB a stream."""
    assert rows["head", streams, chip]["temporaries_bytes"] < 0.5e9
    assert rows["gradient", streams, chip]["temporaries_bytes"] < 0.6e9


@pytest.mark.parametrize(("chip", "least"), SHARES.items())
@pytest.mark.parametrize("streams", [1, 2])
def test_matrix_unit_is_kept_busy(rows, chip, least, streams):
    assert rows["head", streams, chip]["matrix_share"] >= least


@pytest.mark.parametrize("chip", ["v5p:2x2x1", "tpu7x:2x2x1"])
@pytest.mark.parametrize("shape", AWKWARD, ids=str)
@pytest.mark.parametrize("streams", [1, 2])
def test_awkward_shapes_compile_within_their_vmem(chip, shape, streams, monkeypatch):
    """On the chips with the least VMEM; the kernel asks for `vmem_bytes`, no more."""
    monkeypatch.setitem(os.environ, "TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setitem(os.environ, "ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    device = topologies.get_topology_desc(chip, platform="tpu").devices[0]
    dtype, count, width, vocabulary = shape
    struct = functools.partial(
        jax.ShapeDtypeStruct, sharding=SingleDeviceSharding(device)
    )
    tiles = choose_tiles(device.device_kind, streams, count, width, vocabulary, dtype)
    function = pallas_tpu.states if streams == 1 else pallas_tpu.pair_states
    compiled = (
        jax.jit(functools.partial(function, tiles=tiles))
        .lower(
            *[struct((count, width), dtype)] * streams,
            struct((vocabulary, width), dtype),
            struct((count,), jnp.int32),
            struct((count,), jnp.float32),
            struct((vocabulary,), bool),
        )
        .compile()
    )
    # No copy of the hidden states or the weight.
    assert compiled.memory_analysis().temp_size_in_bytes < 5e6
