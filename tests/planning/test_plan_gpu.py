"""Plans compiled by XLA for GPUs, without a GPU (where `jax[cuda13]` is installed)."""

import functools
import importlib.util

import pytest

from tests.fixtures import small
from vrl_jax.planning import command
from vrl_jax.planning.chips import CHIPS, topology
from vrl_jax.planning.command import method
from vrl_jax.planning.compiling import (
    Request,
    compiled_for_gpu,
    compiled_for_tpu,
)
from vrl_jax.planning.plan import page, plan
from vrl_jax.planning.shapes import Sizes
from vrl_jax.recipes.grpo import grpo
from vrl_jax.training.choices import Choices

PLUGIN = importlib.util.find_spec("jax_cuda13_plugin") is not None


@pytest.mark.skipif(not PLUGIN, reason="JAX's CUDA plugin is not installed")
def test_programs_for_gpus_that_are_not_there():
    sizes = Sizes(prompts=8, group=2, prompt_tokens=16, response_tokens=8, patches=64)
    choices = Choices(fsdp=4, tensor=2, micro_batches=2, per_pass=8, slots=16)
    make = functools.partial(method, grpo, "grpo", 2)
    asked = Request(small.spec(), make, sizes, choices, topology("h200:8"))
    found = plan(asked, compile=compiled_for_gpu)
    assert found.fits and "compiled by XLA for CUDA" in page(found)
    for one in found.found:
        assert one.total > one.arguments > 0
    update = found.found[0]
    kinds = {kind for kind, _ in update.traffic}
    assert {"all-gather", "all-reduce"} <= kinds
    assert {group for _, group in update.traffic} <= {2, 4, 8}


def test_who_compiles_is_said(monkeypatch):
    """libtpu for TPUs, XLA for GPUs, nobody where they are not installed."""
    there = {"libtpu", "jax_cuda13_plugin"}
    monkeypatch.setattr(
        command.importlib.util, "find_spec", lambda name: name in there or None
    )
    chosen = {name: command._compiler(chip, False) for name, chip in CHIPS.items()}
    for name in ("h100", "h200"):
        assert chosen[name][0] is compiled_for_gpu and "CUDA" in chosen[name][1]
    assert chosen["a100"] == (
        None,
        "analytic: there is no description of a100 to compile for.",
    )
    assert chosen["v5e"][0] is compiled_for_tpu and "libtpu" in chosen["v5e"][1]
    there.clear()
    assert command._compiler(CHIPS["h200"], False) == (
        None,
        "analytic: JAX's CUDA plugin is not installed (pip install 'jax[cuda13]').",
    )
    assert command._compiler(CHIPS["v5e"], False)[0] is None
    assert command._compiler(CHIPS["v5e"], True)[1].startswith("analytic, as")
