"""A mixture of experts: the formula, no token left out, each device its own tokens."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from vrl_jax.models.experts import in_blocks, mixture, route
from vrl_jax.models.remat import REMATS
from vrl_jax.models.sharding import make_mesh

EXPERTS, WIDTH, INNER, CHOSEN = 6, 8, 12, 2
P = PartitionSpec
run = jax.jit(functools.partial(mixture, chosen=CHOSEN))


def weights(seed=0, inner=INNER):
    random = np.random.RandomState(seed)
    shapes = {
        "router": (EXPERTS, WIDTH),
        "gate": (EXPERTS, WIDTH, inner),
        "up": (EXPERTS, WIDTH, inner),
        "down": (EXPERTS, inner, WIDTH),
    }
    return {
        name: jnp.asarray(random.randn(*shape) / shape[-1] ** 0.5, jnp.float32)
        for name, shape in shapes.items()
    }


def tokens(*shape):
    return jnp.asarray(np.random.RandomState(9).randn(*shape, WIDTH), jnp.float32)


def one_by_one(params, x):
    """The module's formula, a token at a time, in numpy."""
    router, gate, up, down = (
        np.asarray(params[name], np.float64)
        for name in ("router", "gate", "up", "down")
    )
    silu = lambda h: h / (1 + np.exp(-h))
    out = []
    for token in np.asarray(x, np.float64).reshape(-1, WIDTH):
        p = np.exp(router @ token)
        p /= p.sum()
        largest = np.argsort(-p)[:CHOSEN]
        share = p[largest] / p[largest].sum()
        out.append(
            sum(
                g * ((silu(token @ gate[e]) * (token @ up[e])) @ down[e])
                for g, e in zip(share, largest, strict=True)
            )
        )
    return np.array(out).reshape(x.shape)


def everywhere(params, x):
    """The same with every expert on every token, for its gradient."""
    p = jax.nn.softmax(x @ params["router"].T)
    kept = p >= jax.lax.top_k(p, CHOSEN)[0][..., -1:]
    share = jnp.where(kept, p, 0) / jnp.where(kept, p, 0).sum(-1, keepdims=True)
    gate, up = (jnp.einsum("...h,ehi->...ei", x, params[n]) for n in ("gate", "up"))
    inner = share[..., None] * jax.nn.silu(gate) * up
    return jnp.einsum("...ei,eih->...h", inner, params["down"])


def close(got, wanted, atol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), got, wanted)


def test_route_by_hand():
    """Logits ln 1, ln 2, ln 5: the shares of the larger two are 2/7 and 5/7."""
    router = jnp.log(jnp.array([[1.0], [2.0], [5.0]]))
    shares, experts = route(router, jnp.ones((1, 1)), 2)
    np.testing.assert_allclose(shares, [[5 / 7, 2 / 7]], rtol=1e-6)
    assert experts.tolist() == [[2, 1]]


@pytest.mark.parametrize("shape", [(7,), (2, 3, 5)])
def test_equals_the_formula(shape):
    close(run(weights(), tokens(*shape)), one_by_one(weights(), tokens(*shape)))


def test_no_token_is_left_out_where_all_want_the_same_experts():
    params = weights()
    x = jnp.abs(tokens(64))
    params["router"] = params["router"].at[:2].set(9.0).at[2:].set(-9.0)
    assert set(np.ravel(route(params["router"], x, CHOSEN)[1])) == {0, 1}
    close(run(params, x), one_by_one(params, x), atol=1e-4)


def test_gradient_equals_that_of_all_experts_on_all_tokens():
    def loss(function, params, x):
        return jnp.sin(function(params, x)).sum()

    x = tokens(4, 5)
    got = jax.jit(jax.grad(functools.partial(loss, run), (0, 1)))(weights(), x)
    close(got, jax.grad(functools.partial(loss, everywhere), (0, 1))(weights(), x))
    assert all(jnp.abs(leaf).max() > 0 for leaf in jax.tree.leaves(got))


@pytest.mark.parametrize("keep", ["dots", "nothing"])
def test_layers_that_keep_less_have_the_same_gradient(keep):
    stacked = jax.tree.map(lambda *pair: jnp.stack(pair), weights(0), weights(1))
    layer = lambda x, params: (x + run(params, x), None)

    def loss(keep, params, x):
        return jnp.sin(jax.lax.scan(keep(layer), x, params)[0]).sum()

    got, wanted = (
        jax.jit(jax.grad(functools.partial(loss, one), (0, 1)))(stacked, tokens(2, 3))
        for one in (REMATS[keep], REMATS["everything"])
    )
    close(got, wanted)


def test_half_precision_stays_half():
    half = jax.tree.map(jnp.bfloat16, weights())
    x = tokens(5).astype(jnp.bfloat16)
    assert run(half, x).dtype == jnp.bfloat16


@pytest.mark.parametrize("rows", [5, 75])
def test_blocks_are_what_a_ragged_product_is(rows):
    """Of one row, of several; experts without rows; one with nearly all."""
    random = np.random.RandomState(rows)
    given = [random.randn(*s).astype(np.float32) for s in ((rows, 8), (4, 8, 3))]

    def value(function, rows, matrices, sizes):
        return jnp.sin(function(rows, matrices, sizes)).sum()

    ours, theirs = (
        jax.jit(jax.value_and_grad(functools.partial(value, function), (0, 1)))
        for function in (in_blocks, jax.lax.ragged_dot)
    )
    for sizes in ([rows - 4, 1, 0, 3], [0, 0, rows, 0], [1, rows - 3, 1, 1]):
        close(ours(*given, np.array(sizes)), theirs(*given, np.array(sizes)))


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(data=2, fsdp=2, tensor=2)


def compiled_gradient(mesh, inner, rows):
    """Value and gradients on a mesh, parameters lying as the table lays them."""
    cut = "tensor" if inner % 2 == 0 else None
    axes = {
        "router": P(None, "fsdp"),
        "gate": P(None, "fsdp", cut),
        "up": P(None, "fsdp", cut),
        "down": P(None, cut, "fsdp"),
    }
    lie = {name: NamedSharding(mesh, spec) for name, spec in axes.items()}
    given = jax.device_put(weights(inner=inner), lie)
    whole = rows % 4
    batch = NamedSharding(mesh, P(None if whole else ("data", "fsdp")))
    x = jax.device_put(tokens(rows, 3), batch)

    def loss(params, x):
        y = run(params, x)
        return jnp.sin(y).sum(), y

    with jax.set_mesh(mesh):
        step = jax.jit(
            jax.value_and_grad(loss, (0, 1), has_aux=True),
            out_shardings=((None, batch), (lie, batch)),
        )
        return step.lower(given, x).compile(), (given, x)


@pytest.mark.parametrize(("inner", "rows"), [(12, 8), (9, 3)])
def test_a_mesh_computes_the_same(mesh, inner, rows):
    """`tensor` cuts the inner width, or does not; rows that do not divide."""
    compiled, given = compiled_gradient(mesh, inner, rows)
    (_, y), gradients = compiled(*given)
    params, x = weights(inner=inner), tokens(rows, 3)
    close(y, one_by_one(params, x))
    alone = jax.grad(lambda params, x: jnp.sin(everywhere(params, x)).sum(), (0, 1))
    close(gradients, alone(params, x))


def test_no_device_of_a_mesh_sees_the_tokens_of_another(mesh):
    """What is gathered is weights alone: experts' matrices, and the router."""
    compiled, _ = compiled_gradient(mesh, 12, 8)
    gathered = re.findall(r"= \w+\[([\d,]*)\]\S* all-gather\(", compiled.as_text())
    sizes = {tuple(map(int, shape.split(","))) for shape in gathered}
    assert sizes == {(6, 8), (6, 8, 6), (6, 6, 8)}
    assert "all-to-all" not in compiled.as_text()
