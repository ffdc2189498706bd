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
# Options of benchmarks/head_tpu.py: the fewest compilations, about 20 CPU seconds each,
# that hold every bar. The forward kernel is part of a gradient, its schedule too.
V5_AND_V6 = ("--chips", "v5e:2x2", "v5p:2x2x1", "v6e:2x2")
RUNS = [
    (*V5_AND_V6, "--streams", "2", "--ops", "gradient"),
    (*V5_AND_V6, "--streams", "1", "--ops", "head"),
    ("--chips", "v5p:2x2x1", "tpu7x:2x2x1", "--streams", "2", "--ops", "head"),
]
BOUNDS = {"head": 0.5e9, "gradient": 0.6e9}
# Of one and of two streams, compiled only: every way in which a shape can be awkward.
AWKWARD = [
    ("bfloat16", 1000, 3580, 151655),  # nothing divides
    ("bfloat16", 4096, 8192, 151936),  # d in two parts
    ("float32", 1000, 5120, 151655),
    ("bfloat16", 5, 64, 50),  # smaller than any tile
]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """What benchmarks/head_tpu.py finds in each of `RUNS`."""
    folder = tmp_path_factory.mktemp("aot")
    outs = [folder / f"{number}.json" for number in range(len(RUNS))]
    # Processes of their own: libtpu reads the flags of its dump when it is loaded.
    command = (sys.executable, "benchmarks/head_tpu.py")
    env = {**os.environ, "XLA_FLAGS": ""}  # libtpu does not know those of a CPU
    processes = [
        subprocess.Popen([*command, *options, "--json", str(out)], cwd=ROOT, env=env)
        for options, out in zip(RUNS, outs, strict=True)
    ]
    assert [process.wait() for process in processes] == [0] * len(RUNS)
    return [row for out in outs for row in json.loads(out.read_text())]


def test_every_row_is_there(rows):
    assert {(row["chip"], row["streams"]) for row in rows} == {
        *((chip, streams) for chip in SHARES for streams in (1, 2))
    } - {("tpu7x:2x2x1", 1)}


def test_temporaries_at_full_size(rows):
    """Float32 logits alone would be 10 GB a stream."""
    used = {(r["op"], r["streams"], r["chip"]): r["temporaries_bytes"] for r in rows}
    assert not {key: n for key, n in used.items() if n >= BOUNDS[key[0]]}


def test_matrix_unit_is_kept_busy(rows):
    shares = {(row["chip"], row["streams"]): row["matrix_share"] for row in rows}
    assert not {key: x for key, x in shares.items() if x < SHARES[key[0]]}


@pytest.mark.parametrize("shape", AWKWARD, ids=str)
@pytest.mark.parametrize("streams", [1, 2])
def test_awkward_shapes_compile_within_their_vmem(shape, streams, monkeypatch):
    """On a chip with the least VMEM; the kernel asks for `vmem_bytes`, no more."""
    monkeypatch.setitem(os.environ, "XLA_FLAGS", "")
    monkeypatch.setitem(os.environ, "TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setitem(os.environ, "ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    device = topologies.get_topology_desc("v5p:2x2x1", platform="tpu").devices[0]
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
