"""Where parameters lie on a mesh: by one rule table, heads whole."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from tests.models.cases import (
    EVERY,
    outputs,
    pack,
    random_params,
    responses,
    two_rows,
)
from vrl_jax.models import sharding
from vrl_jax.models.families import family_of
from vrl_jax.models.parameters import abstract_params

P = PartitionSpec


def test_a_mesh_takes_all_devices():
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    with pytest.raises(ValueError, match="needs 3 devices, and there are 8"):
        sharding.make_mesh(data=3)


def test_partition_follows_the_rules_where_they_divide():
    mesh = sharding.make_mesh(fsdp=2, tensor=4)
    assert sharding.partition(("embed", "mlp"), (8, 12), mesh) == P("fsdp", "tensor")
    assert sharding.partition(("embed", "mlp"), (8, 10), mesh) == P("fsdp", None)
    assert sharding.partition(("layers", None), (2, 8), mesh) == P(None, None)
    assert sharding.partition(("batch",), (8,), mesh) == P(("data", "fsdp"))
    twice = sharding.partition(("vision_embed", "embed"), (8, 8), mesh)
    assert twice == P("fsdp", None)


def test_no_axis_of_the_mesh_is_used_twice():
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    assert sharding.partition(("embed", "embed"), (8, 8), mesh) == P("fsdp", None)
    rows = sharding.partition(("batch", "embed"), (8, 8), mesh)
    assert rows == P(("data", "fsdp"), None)


def test_heads_are_not_cut():
    mesh = sharding.make_mesh(fsdp=2, tensor=4)
    whole = sharding.partition(("embed", "kv_heads"), (8, 2 * 16), mesh, unit=16)
    assert whole == P("fsdp", None)
    cut = sharding.partition(("embed", "heads"), (8, 4 * 16), mesh, unit=16)
    assert cut == P("fsdp", "tensor")


@pytest.mark.parametrize("name", EVERY)
def test_parameters_of_every_family_lie_on_a_mesh(name):
    spec = EVERY[name]
    table = family_of(spec).parameter_table(spec)
    mesh = sharding.make_mesh(fsdp=2, tensor=2, devices=jax.devices()[:4])
    shardings = sharding.param_shardings(table, mesh)
    params = jax.device_put(random_params(spec, 1), shardings)
    jax.tree.map(np.testing.assert_array_equal, params, random_params(spec, 1))
    abstract = abstract_params(table)
    parts = jax.tree.map(lambda s, a: s.shard_shape(a.shape), shardings, abstract)
    assert parts["text"]["embedding"][0] * 2 == abstract["text"]["embedding"].shape[0]


@pytest.mark.parametrize("name", EVERY)
def test_every_family_computes_the_same_on_a_mesh(name):
    """Pictures, prompts, responses; one or two key-value heads on four devices."""
    spec = EVERY[name]
    given = pack(spec, two_rows(spec, 1)), responses(1, (2, 2, 3))
    alone = outputs(spec, random_params(spec, 1), *given)
    with jax.set_mesh(sharding.make_mesh(fsdp=2, tensor=4)):
        table = family_of(spec).parameter_table(spec)
        spread = outputs(spec, sharding.spread(random_params(spec, 1), table), *given)
    close = functools.partial(np.testing.assert_allclose, atol=2e-5)
    jax.tree.map(close, spread, alone)


def test_placed_is_a_no_op_without_a_mesh():
    x = np.ones((4, 2), np.float32)
    assert sharding.placed(x, "batch", None) is x


def test_placed_lays_out_on_the_mesh_that_is_set():
    mesh = sharding.make_mesh(data=8)
    with jax.set_mesh(mesh):
        y = jax.jit(lambda x: sharding.placed(x + 1, "batch", None))(np.ones((8, 2)))
    assert y.sharding.shard_shape(y.shape) == (1, 2)


def test_a_mesh_is_named_by_its_axes():
    assert sharding.parse_mesh("") is None
    mesh = sharding.parse_mesh("fsdp=4,data=2")
    assert dict(mesh.shape) == {"data": 2, "fsdp": 4, "tensor": 1}


@pytest.mark.parametrize("text", ["8", "data", "data=x", "data=0", "fsdp=2,fsdp=4"])
def test_a_mesh_that_is_misspelt(text):
    with pytest.raises(ValueError, match=f"data=2,fsdp=4. Got '{text}'"):
        sharding.parse_mesh(text)


def test_put_spreads_rows_and_on_host_brings_them_back():
    table = {
        "rows": np.arange(16.0).reshape(8, 2),
        "odd": np.arange(3),
        "one": np.int8(1),
    }
    with jax.set_mesh(sharding.make_mesh(data=4, fsdp=2)):
        lies = sharding.put(table)
        assert lies["rows"].sharding.shard_shape((8, 2)) == (1, 2)
        assert lies["odd"].sharding.shard_shape((3,)) == (3,)
        back = sharding.on_host(lies)
    jax.tree.map(np.testing.assert_array_equal, back, table)
    alone = sharding.put(table)
    assert {len(x.devices()) for x in alone.values()} == {1}


@pytest.mark.parametrize("at_most", [1, 24, 32, 10**6])
def test_what_others_hold_comes_in_parts(at_most):
    """64 bytes in rows of 8: one row, three (the last part is shorter), four, all."""
    rows = np.arange(16.0, dtype=np.float32).reshape(8, 2)
    with jax.set_mesh(sharding.make_mesh(data=4, fsdp=2)):
        lies = sharding.put(rows)
        np.testing.assert_array_equal(sharding._in_parts(lies, at_most), rows)
