"""The head against its dense form, against float64 NumPy, and against golden values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from vrl_kernels.linear_head import linear_head, tiles, xla

BACKENDS = ["reference", "xla"]
ROWS, WIDTH = 5, 6
# (vocabulary, rows of a tile): the last tile overlaps by all rows but one, or is alone.
TILINGS = [(33, 8), (7, 16)]


@pytest.fixture(params=TILINGS, ids=lambda tiling: "V{}-tile{}".format(*tiling))
def vocabulary(request, monkeypatch):
    monkeypatch.setattr(tiles, "TILE", request.param[1])
    return request.param[0]


def inputs(vocabulary, seed=0):
    """hidden, weight, ids, temperature a row, and a mask that spares the ids."""
    random = np.random.RandomState(seed)
    hidden = random.randn(ROWS, WIDTH)
    weight = random.randn(vocabulary, WIDTH)
    ids = random.randint(0, vocabulary, ROWS)
    ids[:2] = 0, vocabulary - 1  # the first and the last tile
    allowed = random.rand(vocabulary) < 0.7
    allowed[ids] = True
    return hidden, weight, ids, 0.5 + random.rand(ROWS), allowed


def oracle(hidden, weight, ids, temperature, allowed):
    """Log-probability and entropy in float64, by their definitions."""
    logits = hidden @ weight.T / temperature[:, None]
    odds = np.exp(logits - logits.max(axis=1, keepdims=True)) * allowed
    p = odds / odds.sum(axis=1, keepdims=True)
    plogp = np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0)
    return np.log(p[np.arange(len(ids)), ids]), -plogp.sum(axis=1)


def gradients(hidden, weight, ids, temperature, allowed, cotangents, backend):
    def objective(hidden, weight):
        stats = linear_head(
            hidden,
            weight,
            jnp.asarray(ids),
            temperature=jnp.asarray(temperature, jnp.float32),
            allowed=jnp.asarray(allowed),
            backend=backend,
        )
        return sum(
            (jnp.asarray(c, jnp.float32) * s).sum()
            for c, s in zip(cotangents, stats, strict=True)
        )

    return jax.jit(jax.grad(objective, argnums=(0, 1)))(
        jnp.asarray(hidden, jnp.float32), jnp.asarray(weight, jnp.float32)
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_values_equal_float64(vocabulary, backend):
    hidden, weight, ids, temperature, allowed = inputs(vocabulary)
    stats = linear_head(
        jnp.asarray(hidden, jnp.float32),
        jnp.asarray(weight, jnp.float32),
        jnp.asarray(ids),
        temperature=jnp.asarray(temperature, jnp.float32),
        allowed=jnp.asarray(allowed),
        backend=backend,
    )
    expected = oracle(hidden, weight, ids, temperature, allowed)
    for value, wanted in zip(stats, expected, strict=True):
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value, wanted, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_are_the_slopes_of_float64(vocabulary, backend):
    """<gradient, direction> = central difference of the oracle along it."""
    hidden, weight, *rest = inputs(vocabulary)
    random = np.random.RandomState(1)
    cotangents = random.randn(2, ROWS)  # of both outputs at once
    dhidden, dweight = gradients(hidden, weight, *rest, cotangents, backend)

    def value(h, w):
        return sum((c * s).sum() for c, s in zip(cotangents, oracle(h, w, *rest)))  # noqa: B905

    for _ in range(4):
        h, w = random.randn(*hidden.shape), random.randn(*weight.shape)
        for along_h, along_w, got in ((h, 0 * w, dhidden), (0 * h, w, dweight)):
            step = 1e-5
            slope = (
                value(hidden + step * along_h, weight + step * along_w)
                - value(hidden - step * along_h, weight - step * along_w)
            ) / (2 * step)
            direction = h if got is dhidden else w
            found = (np.asarray(got, np.float64) * direction).sum()
            np.testing.assert_allclose(found, slope, rtol=1e-5, atol=1e-5)


def test_gradients_of_both_backends_agree(vocabulary):
    """Entry by entry, where the directions above could hide an error."""
    cotangents = np.random.RandomState(2).randn(2, ROWS)
    one, other = (gradients(*inputs(vocabulary), cotangents, b) for b in BACKENDS)
    for mine, dense in zip(other, one, strict=True):
        np.testing.assert_allclose(mine, dense, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_blocked_ids_have_no_probability_and_no_gradient(vocabulary, backend):
    hidden, weight, ids, temperature, allowed = inputs(vocabulary)
    allowed[:] = True
    blocked = np.setdiff1d(np.arange(vocabulary), ids)[::2]
    allowed[blocked] = False
    # However much the hidden states would like them.
    weight[blocked] = 100 * hidden.sum(axis=0)
    stats = linear_head(
        *(jnp.asarray(x, jnp.float32) for x in (hidden, weight)),
        jnp.asarray(ids),
        temperature=jnp.asarray(temperature, jnp.float32),
        allowed=jnp.asarray(allowed),
        backend=backend,
    )
    keep = np.flatnonzero(allowed)
    without = oracle(
        hidden,
        weight[keep],
        np.searchsorted(keep, ids),
        temperature,
        np.ones(len(keep)),
    )
    np.testing.assert_allclose(stats.logprobs, without[0], rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(stats.entropy, without[1], rtol=2e-6, atol=2e-6)
    cotangents = np.ones((2, ROWS))
    _, dweight = gradients(
        hidden, weight, ids, temperature, allowed, cotangents, backend
    )
    np.testing.assert_array_equal(dweight[blocked], 0)
    assert np.abs(dweight[keep]).sum() > 0


def test_a_blocked_target_gives_the_same_gradient_in_both_backends(vocabulary):
    hidden, weight, ids, temperature, allowed = inputs(vocabulary)
    allowed[:] = True
    allowed[ids[1]] = False
    cotangents = np.ones((2, ROWS))
    arguments = (hidden, weight, ids, temperature, allowed, cotangents)
    one, other = (gradients(*arguments, backend) for backend in BACKENDS)
    for mine, dense in zip(other, one, strict=True):
        np.testing.assert_allclose(mine, dense, rtol=1e-5, atol=2e-6)
    np.testing.assert_array_equal(other[1][ids[1]], 0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("offset", [4096.0, -4096.0])
def test_offset_of_the_logits_cancels(vocabulary, backend, offset):
    # Multiples of 1/64, which float32 holds beside 4096: the sum itself is exact.
    logits = np.random.RandomState(3).randint(-256, 256, vocabulary) / 64
    hidden = np.array([[1.0, offset]] * ROWS, np.float32)
    weight = np.stack([logits, np.ones(vocabulary)], axis=1).astype(np.float32)
    ids = np.arange(ROWS) % vocabulary
    stats = linear_head(hidden, weight, jnp.asarray(ids), backend=backend)
    everywhere = np.ones(vocabulary, bool)
    plain = oracle(hidden[:, :1], weight[:, :1], ids, np.ones(ROWS), everywhere)
    for value, wanted in zip(stats, plain, strict=True):
        np.testing.assert_allclose(value, wanted, rtol=3e-6, atol=3e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_bfloat16_inputs_give_float32_values(vocabulary, backend):
    hidden, weight, ids, temperature, allowed = inputs(vocabulary)
    hidden, weight = (jnp.asarray(x, jnp.bfloat16) for x in (hidden, weight))

    def objective(hidden, weight):
        stats = linear_head(
            hidden,
            weight,
            jnp.asarray(ids),
            temperature=jnp.asarray(temperature, jnp.float32),
            allowed=jnp.asarray(allowed),
            backend=backend,
        )
        return stats.logprobs.sum() + stats.entropy.sum(), stats

    grads, stats = jax.jit(jax.grad(objective, argnums=(0, 1), has_aux=True))(
        hidden, weight
    )
    rounded = [np.asarray(x, np.float64) for x in (hidden, weight)]
    wanted = oracle(*rounded, ids, temperature, allowed)
    assert {s.dtype for s in stats} == {jnp.dtype("float32")}
    for value, expected in zip(stats, wanted, strict=True):
        # The products of two bfloat16 numbers are exact in float32.
        np.testing.assert_allclose(value, expected, rtol=5e-6, atol=5e-6)
    exact = gradients(
        *rounded, ids, temperature, allowed, np.ones((2, ROWS)), "reference"
    )
    for got, expected in zip(grads, exact, strict=True):
        assert got.dtype == jnp.bfloat16
        np.testing.assert_allclose(
            np.asarray(got, np.float32), expected, rtol=0.02, atol=0.02
        )


# Logits, id, logp, entropy; computed in float64 from the definitions (the method
# notes' cases A to D): plain, far apart, uniform, and one column all but blocked.
LOGITS = [
    ([0, 1, 2, 3], 3, -0.440189698561195, 0.947536963975426),
    ([1000, 999, 0, -1000], 1, -1.31326168751822, 0.582203108888218),
    ([0.5] * 5, 0, -1.6094379124341, 1.6094379124341),
    ([10, 10, -1e4, 3], 0, -0.693603017633216, 0.69679315000057),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("logits", "target", "logprob", "entropy"), LOGITS)
def test_golden_logits(backend, logits, target, logprob, entropy, monkeypatch):
    monkeypatch.setattr(tiles, "TILE", 3)
    weight = jnp.array(logits, jnp.float32)[:, None]
    stats = linear_head(jnp.ones((1, 1)), weight, jnp.array([target]), backend=backend)
    np.testing.assert_allclose(stats.logprobs, [logprob], rtol=2e-6)
    np.testing.assert_allclose(stats.entropy, [entropy], rtol=2e-6)


@pytest.mark.parametrize(
    ("backend", "tile"),
    [("reference", 10), ("xla", 1), ("xla", 3), ("xla", 10), ("xla", 4096)],
)
def test_golden_whole_op(backend, tile, monkeypatch):
    """Case E: computed in float64 from closed forms, independently of this code."""
    monkeypatch.setattr(tiles, "TILE", tile)
    hidden = np.sin(0.7 * np.arange(12) + 0.1).reshape(3, 4)
    weight = (2 * np.cos(0.37 * np.arange(40) + 0.2)).reshape(4, 10).T
    ids = np.array([0, 4, 9])
    stats = linear_head(
        *(jnp.asarray(x, jnp.float32) for x in (hidden, weight)),
        jnp.asarray(ids),
        backend=backend,
    )
    close = {"rtol": 2e-6, "atol": 2e-6}
    logprobs = [-2.477401965979, -2.699423793802, -2.723041753544]
    np.testing.assert_allclose(stats.logprobs, logprobs, **close)
    entropy = [2.273580142501, 2.255727474744, 2.241493489009]
    np.testing.assert_allclose(stats.entropy, entropy, **close)
    dhidden, dweight = gradients(
        hidden,
        weight,
        ids,
        np.ones(3),
        np.ones(10, bool),
        ([1, -0.5, 0], [0] * 3),
        backend,
    )
    row = [-0.0044325452, -0.3191812777, 0.5458278486, -0.6066519538]
    np.testing.assert_allclose(dhidden[1], row, **close)
    np.testing.assert_array_equal(dhidden[2], 0)
    np.testing.assert_allclose(np.linalg.norm(dhidden), 3.650612875002, rtol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(dweight), 1.467769159690, rtol=2e-6)


def shapes_inside(jaxpr):
    for equation in jaxpr.eqns:
        yield from (variable.aval.shape for variable in equation.outvars)
        for inner in jaxprs_in_params(equation.params):
            yield from shapes_inside(inner)


@pytest.mark.parametrize(("backend", "dense"), [("reference", True), ("xla", False)])
def test_only_the_reference_holds_all_logits(backend, dense, monkeypatch):
    monkeypatch.setattr(tiles, "TILE", 8)
    monkeypatch.setattr(xla, "CHUNK", 8)
    rows, vocabulary = 50, 43

    def objective(hidden, weight):
        ids = jnp.zeros(rows, int)
        return sum(s.sum() for s in linear_head(hidden, weight, ids, backend=backend))

    jaxpr = jax.make_jaxpr(jax.grad(objective, argnums=(0, 1)))(
        jnp.ones((rows, 3)), jnp.ones((vocabulary, 3))
    )
    sizes = [np.prod(shape) for shape in shapes_inside(jaxpr.jaxpr)]
    assert len(sizes) > 20
    assert (max(sizes) >= rows * vocabulary) == dense


def test_unknown_backend_is_named():
    with pytest.raises(ValueError, match=r"'xla', .*, got 'cuda'"):
        linear_head(
            jnp.ones((2, 3)), jnp.ones((4, 3)), jnp.zeros(2, int), backend="cuda"
        )


@pytest.mark.parametrize(
    ("hidden", "weight", "ids"),
    [((2, 3), (4, 5), (2,)), ((2, 3), (4, 3), (3,))],
)
def test_shapes_that_do_not_fit_are_named(hidden, weight, ids):
    with pytest.raises(ValueError, match=r"must agree, got \(2, 3\), \(4, "):
        linear_head(jnp.ones(hidden), jnp.ones(weight), jnp.zeros(ids, int))
