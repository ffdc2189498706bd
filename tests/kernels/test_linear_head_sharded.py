"""The head with its vocabulary on 1, 2, 4 and 8 simulated devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from vrl_kernels.linear_head import js_divergence, linear_head_pair, sharded
from vrl_kernels.linear_head.state import PairState, empty, finish, merge, merge_across

from ..fixtures import heads

ROWS, VOCABULARY = 8, 40
ARGUMENTS = heads.inputs(rows=ROWS, vocabulary=VOCABULARY)
# Rows without a cotangent among them.
COTANGENTS = np.random.RandomState(1).randn(5, ROWS) * (np.arange(ROWS) % 3 > 0)


def mesh_of(shape, kind=AxisType.Auto):
    names = ("rows", "vocabulary")
    devices = jax.devices()[: np.prod(shape)]
    return jax.make_mesh(shape, names, axis_types=(kind,) * 2, devices=devices)


def placed(mesh, rows):
    """The arrays where the head wants them."""
    arrays = heads.as_arrays(ARGUMENTS, jnp.float32)
    specs = P(rows), P(rows), P("vocabulary"), P(rows), P(rows), P("vocabulary")
    return [
        jax.device_put(x, NamedSharding(mesh, spec))
        for x, spec in zip(arrays, specs, strict=True)
    ]


def results(pair, js, arrays):
    """Statistics, JS divergence and gradients."""

    @jax.jit
    def run(hidden, other, weight, ids, temperature, allowed):
        given = {"temperature": temperature, "allowed": allowed}

        def loss(hidden, other, weight):
            stats = pair(hidden, other, weight, ids, **given)
            total = sum(
                (jnp.asarray(c, jnp.float32) * x).sum()
                for c, x in zip(COTANGENTS, stats, strict=True)
            )
            return total, stats

        slopes, stats = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(
            hidden, other, weight
        )
        return stats, slopes, js(hidden, other, weight, **given)

    return jax.device_get(run(*arrays))


@functools.cache
def on_one_device():
    return results(
        functools.partial(linear_head_pair, backend="xla"),
        functools.partial(js_divergence, backend="xla"),
        heads.as_arrays(ARGUMENTS, jnp.float32),
    )


@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        ((1, 1), AxisType.Auto),
        ((1, 2), AxisType.Auto),
        ((1, 4), AxisType.Auto),
        ((1, 8), AxisType.Auto),
        ((2, 4), AxisType.Auto),
        ((2, 4), AxisType.Explicit),
    ],
)
def test_any_number_of_devices_agrees_with_one(shape, kind):
    mesh = mesh_of(shape, kind)
    rows = "rows" if shape[0] > 1 else None
    where = {"mesh": mesh, "axis": "vocabulary", "rows": rows}
    found = results(
        functools.partial(sharded.linear_head_pair, **where),
        functools.partial(sharded.js_divergence, **where),
        placed(mesh, rows),
    )
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-6),
        found,
        on_one_device(),
    )
    _, (dhidden, dother, _), _ = found
    silent = ~COTANGENTS.any(axis=0)
    assert silent.any()
    np.testing.assert_array_equal(dhidden[silent], 0)
    np.testing.assert_array_equal(dother[silent], 0)


def test_one_device_is_the_oracle():
    exact = heads.oracle(*ARGUMENTS)
    for name, value in on_one_device()[0]._asdict().items():
        np.testing.assert_allclose(value, exact[name], rtol=1e-4, atol=3e-6)


def test_one_stream_keeps_its_weight_where_it_lies():
    mesh = mesh_of((1, 4))
    hidden, _, weight, ids, *_ = placed(mesh, None)

    @jax.jit
    def slope(weight):
        head = functools.partial(sharded.linear_head, mesh=mesh, axis="vocabulary")
        return jax.grad(lambda w: head(hidden, w, ids).logprobs.sum())(weight)

    assert slope(weight).sharding.spec == P("vocabulary")


def test_merging_is_associative_and_empty_is_neutral():
    """Four quarters at once, two by two, and across devices."""
    hidden, other, weight, ids, temperature, allowed = heads.as_arrays(
        ARGUMENTS, jnp.float32
    )
    backend = heads.in_blocks(ROWS, 10)
    parts = [
        backend.pair_states(
            hidden, other, weight[i:j], ids - i, temperature, allowed[i:j]
        )
        for i, j in ((0, 10), (10, 20), (20, 30), (30, 40))
    ]

    def joined(*states):
        return merge(jax.tree.map(lambda *x: jnp.stack(x), *states))

    whole = joined(*parts)
    two = joined(joined(*parts[:2]), joined(*parts[2:]))
    one = joined(empty(PairState, ROWS), whole)
    mesh = mesh_of((1, 4))
    across = jax.shard_map(
        lambda x: merge_across(jax.tree.map(lambda y: y[0], x), "vocabulary"),
        mesh=mesh,
        in_specs=P("vocabulary"),
        out_specs=P(),
    )(jax.tree.map(lambda *x: jnp.stack(x), *parts))
    for other in (two, one, across):
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-6, atol=2e-6),
            finish(other),
            finish(whole),
        )


def test_what_does_not_divide_is_named():
    mesh = mesh_of((1, 8))
    with pytest.raises(ValueError, match="V = 33 on 8 and N = 2 on 1 devices"):
        sharded.linear_head(
            jnp.ones((2, 3)),
            jnp.ones((33, 3)),
            jnp.zeros(2, int),
            mesh=mesh,
            axis="vocabulary",
        )


def test_the_reference_is_for_one_device():
    with pytest.raises(ValueError, match="'reference' holds dense logits"):
        sharded.linear_head(
            jnp.ones((2, 3)),
            jnp.ones((32, 3)),
            jnp.zeros(2, int),
            mesh=mesh_of((1, 8)),
            axis="vocabulary",
            backend="reference",
        )
