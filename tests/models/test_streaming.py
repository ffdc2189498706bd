"""Weights on their way from files to devices."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from vrl_jax.models import hub, streaming

from .cases import EVERY, SPECS, random_params

ROOT = Path(__file__).parents[2]


@pytest.fixture
def small_pieces(monkeypatch):
    """Every parameter is large now, and rows are read a few at a time."""
    monkeypatch.setattr(streaming, "PIECE_BYTES", 1000)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", ["tied", "qwen3", "qwen3_moe"])
def test_filling_in_place_equals_what_was_saved(tmp_path, small_pieces, name, dtype):
    spec, params = EVERY[name], random_params(EVERY[name], 1)
    hub.save(tmp_path, spec, params, shard_bytes=60_000)
    _, read = hub.load(tmp_path, dtype=dtype)
    expected = jax.tree.map(lambda p: p.astype(dtype), params)
    jax.tree.map(np.testing.assert_array_equal, read, expected)


def test_parts_of_what_is_turned_or_cut(tmp_path):
    """As numpy takes them of the whole; only those parts are read."""
    whole = np.random.RandomState(0).randn(3, 8, 6).astype(np.float32)
    save_file({"a": whole}, tmp_path / "file")
    tensor = streaming.FileTensor(tmp_path / "file", "a", whole.shape)
    turned = streaming.Turned(tensor)
    piece = streaming.Piece(turned, 4, 4)
    assert (turned.shape, piece.shape) == ((3, 6, 8), (3, 6, 4))
    part = (slice(1, 3), slice(2, 5), slice(1, 3))
    np.testing.assert_array_equal(turned[part], whole.swapaxes(1, 2)[part])
    np.testing.assert_array_equal(piece[part], whole.swapaxes(1, 2)[..., 4:][part])
    np.testing.assert_array_equal(piece[:], whole.swapaxes(1, 2)[..., 4:])


def test_part_of_a_tensor_is_read_in_pieces(tmp_path, small_pieces, monkeypatch):
    whole = np.random.RandomState(0).randn(40, 30).astype(np.float32)
    save_file({"a": whole}, tmp_path / "file")
    tensor, reads = streaming.FileTensor(tmp_path / "file", "a", (40, 30)), []
    read = streaming.FileTensor._read

    def noted(self, index):
        reads.append(read(self, index))
        return reads[-1]

    monkeypatch.setattr(streaming.FileTensor, "_read", noted)
    np.testing.assert_array_equal(tensor[5:35, 10:20], whole[5:35, 10:20])
    assert sum(part.size for part in reads) == 300  # that part alone
    assert max(part.nbytes for part in reads) <= 1000
    np.testing.assert_array_equal(tensor[:], whole)
    np.testing.assert_array_equal(tensor[3:4], whole[3:4])


SHARDED = """
import sys
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from vrl_jax.models import hub, streaming
from vrl_jax.models.parameters import logical_axes
from vrl_jax.models.qwen_vl.parameters import parameter_table
from tests.models.cases import SPECS, random_params

streaming.PIECE_BYTES = 1000
spec = SPECS["qwen3"]
auto = (jax.sharding.AxisType.Auto,) * 2
mesh = jax.make_mesh((2, 2), ("fsdp", "tensor"), axis_types=auto)
rules = {"embed": "fsdp", "vision_embed": "fsdp", "heads": "tensor", "mlp": "tensor",
         "kv_heads": "tensor", "vocabulary": "tensor", "vision_heads": "tensor"}
shardings = jax.tree.map(
    lambda axes: NamedSharding(mesh, PartitionSpec(*map(rules.get, axes))),
    logical_axes(parameter_table(spec)), is_leaf=lambda node: isinstance(node, tuple))
_, params = hub.load(sys.argv[1], shardings=shardings)
jax.tree.map(np.testing.assert_array_equal, params, random_params(spec, 1))
placed = lambda p, s: p.sharding.is_equivalent_to(s, p.ndim)
same = jax.tree.map(placed, params, shardings)
assert all(jax.tree.leaves(same)), same
query = params["text"]["layers"]["query"]["kernel"]
assert {part.data.shape for part in query.addressable_shards} == {(3, 24, 32)}
"""


def test_every_device_gets_its_part(tmp_path):
    spec = SPECS["qwen3"]
    hub.save(tmp_path, spec, random_params(spec, 1))
    flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=4"
    done = subprocess.run(
        [sys.executable, "-c", SHARDED, str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
