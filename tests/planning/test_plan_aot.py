"""Plans compiled by libtpu, without a TPU (make aot)."""

import functools
import importlib.util
import os

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from tests.fixtures import small
from vrl_jax.models.experts import mixture
from vrl_jax.planning.chips import topology
from vrl_jax.planning.command import method
from vrl_jax.planning.compiling import (
    ENVIRONMENT,
    OPTIONS,
    REPORT,
    Request,
    bytes_taken,
    compiled_for_tpu,
    total_of,
)
from vrl_jax.planning.plan import page, plan
from vrl_jax.planning.shapes import Sizes
from vrl_jax.planning.work import matmul_flops
from vrl_jax.recipes.grpo import grpo
from vrl_jax.training.choices import Choices

pytestmark = [
    pytest.mark.aot,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None,
        reason="libtpu is not installed: make aot installs and uses it",
    ),
]
SIZES = Sizes(prompts=8, group=2, prompt_tokens=16, response_tokens=8, patches=64)


def request(chips: str, sizes: Sizes) -> Request:
    where = topology(chips)
    make = functools.partial(method, grpo, "grpo", 2)
    fsdp = where.devices // 2
    choices = Choices(fsdp=fsdp, tensor=2, micro_batches=2, per_pass=8, slots=16)
    return Request(small.spec(), make, sizes, choices, where)


@pytest.fixture
def no_cache():
    """What is found there is not compiled, and nothing is written."""
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    yield
    jax.config.update("jax_enable_compilation_cache", before)


def test_the_report_is_the_analysis_of_memory(tmp_path, monkeypatch, no_cache):
    """What is read before there is machine code is what the compiler says after it."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setitem(os.environ, name, value)
    device = topologies.get_topology_desc("v5e:2x2", platform="tpu").devices[0]
    there = SingleDeviceSharding(device)
    x = jax.ShapeDtypeStruct((4096, 4096), jnp.bfloat16, sharding=there)
    step = jax.jit(lambda x, w: jnp.tanh(jnp.tanh(x @ w) @ w), donate_argnums=0)
    options = {**OPTIONS, "xla_dump_to": str(tmp_path)}
    counted = bytes_taken(step.lower(x, x).compile(compiler_options=options))
    (report,) = tmp_path.glob(f"*{REPORT}")
    # Buffers begin at multiples of some hundred bytes.
    assert 0 <= total_of(report.read_text()) - counted < 2**16


def test_what_is_read_between_turns_on_chips_that_are_not_there():
    """Memories that go on, and the pictures behind them, compile for a mesh."""
    sizes = SIZES._replace(pictures=2)
    names = ("update", "between turns")
    found = plan(request("v5e:2x2", sizes), compile=compiled_for_tpu, only=names)
    for one in found.found:
        assert one.total > one.arguments > one.shared > 0
    assert "between turns" in page(found)


@pytest.mark.parametrize("chips", ["v5e:2x2", "v7x:2x2x1"])
def test_an_update_for_chips_that_are_not_there(chips):
    found = plan(request(chips, SIZES), compile=compiled_for_tpu, only=("update",))
    (update,) = found.found
    assert update.total > update.arguments > update.shared > 0
    # Parameters are gathered along fsdp, at once or from neighbour to neighbour; sums
    # over heads and widths are along tensor.
    kinds = {kind for kind, _ in update.traffic}
    assert "all-reduce" in kinds and kinds & {"all-gather", "collective-permute"}
    assert {group for _, group in update.traffic} <= {2, 4, 8}
    assert found.fits and "compiled by libtpu" in page(found)


def test_a_tpu_multiplies_rows_with_their_own_experts_alone(monkeypatch, no_cache):
    """Forward and backward: products of 8 rows a token, not of 128."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setitem(os.environ, name, value)
    device = topologies.get_topology_desc("v6e:2x2", platform="tpu").devices[0]
    there = SingleDeviceSharding(device)
    shapes = {"router": (128, 512), "gate": (128, 512, 256)}
    shapes |= {"up": shapes["gate"], "down": (128, 256, 512)}
    params, x = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=there),
        (shapes, (1024, 512)),
        is_leaf=lambda node: isinstance(node, tuple) and isinstance(node[0], int),
    )
    loss = lambda params, x: mixture(params, x, chosen=8).astype(jnp.float32).sum()
    traced = jax.jit(jax.grad(loss, (0, 1))).trace(params, x)
    options = {name: value for name, value in OPTIONS.items() if "dump" not in name}
    compiled = traced.lower(lowering_platforms=("tpu",)).compile(
        compiler_options=options
    )
    assert compiled.cost_analysis()["flops"] < 1.2 * matmul_flops(traced.jaxpr)
