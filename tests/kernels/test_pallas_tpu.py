"""The TPU kernel without a TPU: float64 NumPy, the TPU interpreter, cross-lowering."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic.interpret import interpret_pallas_call as interpreter
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from vrl_kernels.linear_head import linear_head_pair, pallas_tpu
from vrl_kernels.linear_head.backend import Backend
from vrl_kernels.linear_head.pallas_tpu import CHIPS, Tiles, choose_tiles, vmem_bytes
from vrl_kernels.linear_head.state import MASKED, finish

# dtype, N, d, V, tiles: ragged in everything; d in two parts; smaller than a tile.
CASES = {
    "ragged": ("bfloat16", 200, 300, 1000, Tiles(128, 256, 300)),
    "split": ("float32", 130, 256, 700, Tiles(128, 128, 128)),
    "small": ("bfloat16", 5, 64, 50, Tiles(128, 128, 64)),
}
FULL = (16384, 3584, 152064)


def inputs(dtype, rows, width, vocabulary, seed=0):
    """hidden, other, weight of that dtype; ids, temperature, allowed.

    Rows of the weight that are not allowed are NaN: nobody may look at them.
    """
    random = np.random.RandomState(seed)
    hidden = random.randn(rows, width)
    other = hidden + 0.3 * random.randn(rows, width)
    weight = 3 * random.randn(vocabulary, width) / np.sqrt(width)
    allowed = random.rand(vocabulary) < 0.8
    ids = random.choice(np.flatnonzero(allowed), rows)
    ids[:2] = np.flatnonzero(allowed)[[0, -1]]
    weight[~allowed] = np.nan
    arrays = (jnp.asarray(x, dtype) for x in (hidden, other, weight))
    temperature = jnp.asarray(0.5 + random.rand(rows), jnp.float32)
    return *arrays, jnp.asarray(ids), temperature, jnp.asarray(allowed)


def oracle(hidden, other, weight, ids, temperature, allowed):
    """The statistics of the pair by their definitions, in float64."""
    keep = np.asarray(allowed)
    divisor = np.asarray(temperature, np.float64)[:, None]
    columns = np.asarray(weight, np.float64)[keep]
    target = (np.cumsum(keep) - 1)[np.asarray(ids)]

    def log_softmax(h):
        z = np.asarray(h, np.float64) @ columns.T / divisor
        z = z - z.max(axis=1, keepdims=True)
        return z - np.log(np.exp(z).sum(axis=1, keepdims=True))

    logp, logq = log_softmax(hidden), log_softmax(other)
    p, q = np.exp(logp), np.exp(logq)
    chosen = np.arange(len(target)), target
    return (
        logp[chosen],
        -(p * logp).sum(axis=1),
        logq[chosen],
        (p * (logp - logq)).sum(axis=1),
        (q * (logq - logp)).sum(axis=1),
    )


def assert_close(found, wanted):
    """Tolerances for logits up to 16, of which only the order of addition differs."""
    logprobs, entropy, other_logprobs, kl, reverse_kl = wanted
    assert wanted[3].max() > 0.01
    np.testing.assert_allclose(found.logprobs, logprobs, rtol=0, atol=2e-5)
    np.testing.assert_allclose(found.entropy, entropy, rtol=0, atol=2e-5)
    np.testing.assert_allclose(found.other_logprobs, other_logprobs, rtol=0, atol=2e-5)
    np.testing.assert_allclose(found.kl, kl, rtol=1e-4, atol=3e-6)
    np.testing.assert_allclose(found.reverse_kl, reverse_kl, rtol=1e-4, atol=3e-6)


@pytest.fixture(params=CASES, scope="module")
def case(request):
    """Inputs, and the sums of both kernels over them."""
    dtype, rows, width, vocabulary, tiles = CASES[request.param]
    given = inputs(dtype, rows, width, vocabulary)
    hidden, _, *rest = given
    one = pallas_tpu.states(hidden, *rest, tiles=tiles, interpret=True)
    two = pallas_tpu.pair_states(*given, tiles=tiles, interpret=True)
    return given, one, two


def test_pair_equals_float64(case):
    given, _, two = case
    assert_close(finish(two), oracle(*given))


def test_one_stream_has_the_sums_of_the_first_of_two(case):
    given, one, two = case
    assert all(x.dtype == jnp.float32 and x.shape == given[3].shape for x in two)
    for name, value in one._asdict().items():
        np.testing.assert_array_equal(value, getattr(two, name))


@pytest.mark.parametrize(("parts", "seed"), [(1, 0), (2, 1)])
def test_two_simulated_cores_do_not_race(parts, seed):
    """NaN-filled scratch, late DMAs, random order of the parallel dimension."""
    given = inputs("float32", 200, 256, 300, seed)
    mode = pltpu.InterpretParams(
        detect_races=True, num_cores_or_threads=2, random_seed=seed
    )
    tiles = Tiles(128, 128, 256 // parts)
    found = pallas_tpu.pair_states(*given, tiles=tiles, interpret=mode)
    assert_close(finish(jax.block_until_ready(found)), oracle(*given))
    assert not interpreter.races.races_found
    pltpu.reset_tpu_interpret_mode_state()


def test_the_race_detector_detects():
    def kernel(out):
        out[...] = jnp.full_like(out, pl.program_id(0))

    mode = pltpu.InterpretParams(detect_races=True, num_cores_or_threads=2)
    shape = jax.ShapeDtypeStruct((8, 128), jnp.float32)
    run = pl.pallas_call(
        kernel,
        grid=(4,),
        out_shape=shape,
        out_specs=pl.BlockSpec((8, 128), lambda i: (0, 0)),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)),
        interpret=mode,
    )
    try:
        jax.block_until_ready(run())
        assert interpreter.races.races_found
    except jax.errors.JaxRuntimeError as error:  # from jax 0.12 on
        assert "RACE DETECTED" in str(error)
    finally:
        pltpu.reset_tpu_interpret_mode_state()


def direct(z, z2, ids, tiles=None, allowed=None):
    """Sums of logits that are given themselves: hidden = (1, 0), other = (0, 1)."""
    rows, vocabulary = len(ids), len(z)
    hidden, other = (jnp.tile(jnp.eye(2)[n], (rows, 1)) for n in range(2))
    weight = jnp.stack([jnp.asarray(z), jnp.asarray(z2)], axis=1).astype(jnp.float32)
    allowed = jnp.ones(vocabulary, bool) if allowed is None else jnp.asarray(allowed)
    return pallas_tpu.pair_states(
        hidden,
        other,
        weight,
        jnp.asarray(ids),
        jnp.ones(rows),
        allowed,
        tiles=tiles or Tiles(128, 128, 2),
        interpret=True,
    )


# z, z', id; log p[id], entropy, KL(p||q), KL(q||p): by the definitions, in float64.
GOLDEN = [
    (
        ([0, 1, 2, 3], [3, 2, 1, 0], 3),
        (-0.440189698561195, 0.947536963975426, 1.98530546917154, 1.98530546917154),
    ),
    (
        ([1000, 999, 0, -1000], [-5, 5, 0, 100], 1),
        (-1.31326168751822, 0.582203108888218, 101.728382677412, 2000.31326168752),
    ),
    (
        ([0.5] * 5, [0, 1, 2, 3, 4], 0),
        (-1.6094379124341, 1.6094379124341, 0.842476483503493, 0.609465084158702),
    ),
    (
        ([10, 10, -1e4, 3], [10, 10.5, -1e4, 3], 0),
        (-0.693603017633216, 0.69679315000057, 0.0309321131246766, 0.030304374826944),
    ),
]


@pytest.mark.parametrize(("given", "wanted"), GOLDEN)
def test_golden_cases(given, wanted):
    *logits, chosen = given
    logprobs, entropy, _, kl, reverse_kl = finish(direct(*logits, [chosen]))
    found = np.concatenate([logprobs, entropy, kl, reverse_kl])
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=3e-7)


@pytest.mark.parametrize("order", ["ascending", "descending"])
@pytest.mark.parametrize("offset", [0.0, 4096.0])
def test_order_and_offset_of_the_logits_change_nothing(order, offset):
    """Ascending, every tile brings a new maximum. Multiples of 1/64 stay exact."""
    z = np.sort(np.random.RandomState(3).randint(-256, 256, 500)) / 64
    z = z if order == "ascending" else z[::-1]
    z2 = np.roll(z, 7)
    stats = finish(direct(z + offset, z2 - offset, [3]))
    p, q = (np.exp(x - x.max()) / np.exp(x - x.max()).sum() for x in (z, z2))
    np.testing.assert_allclose(stats.logprobs, np.log(p[3]), rtol=1e-6)
    np.testing.assert_allclose(stats.entropy, -(p * np.log(p)).sum(), rtol=2e-6)
    np.testing.assert_allclose(stats.kl, (p * np.log(p / q)).sum(), rtol=1e-5)
    np.testing.assert_allclose(stats.reverse_kl, (q * np.log(q / p)).sum(), rtol=1e-5)


def test_ids_outside_are_nowhere_and_blocked_ids_have_the_masked_logit():
    allowed = np.arange(200) != 5
    state = direct(np.arange(200) / 9, np.ones(200), [-1, 200, 255, 5], allowed=allowed)
    np.testing.assert_array_equal(state.g, np.float32([0, 0, 0, MASKED]))
    np.testing.assert_array_equal(state.g2, np.float32([0, 0, 0, MASKED]))


@pytest.mark.parametrize("first", [0, 130])
def test_columns_before_the_first_allowed_one_leave_no_trace(first):
    """Tiles that are blocked as a whole, before or after those that are not."""
    z = np.random.RandomState(4).randn(2, 400)
    some = np.zeros(400, bool)
    some[first : first + 100] = True
    found = direct(*z, [first], allowed=some)
    alone = direct(*z[:, some], [0])
    for value, wanted in zip(found, alone, strict=True):
        np.testing.assert_allclose(value, wanted, rtol=2e-6, atol=2e-6)


def test_nothing_allowed_is_the_sum_over_nothing():
    state = direct(np.ones(300), np.ones(300), [3], allowed=np.zeros(300, bool))
    wanted = state._replace(**dict.fromkeys(state._fields, 0.0))
    wanted = wanted._replace(m=MASKED, m2=MASKED, g=MASKED, g2=MASKED)
    for value, exact in zip(state, wanted, strict=True):
        np.testing.assert_array_equal(value, np.float32(exact))


def test_equal_streams_are_exactly_zero_apart():
    hidden, _, *rest = inputs("bfloat16", 20, 64, 300)
    state = pallas_tpu.pair_states(
        hidden, hidden, *rest, tiles=Tiles(128, 128, 64), interpret=True
    )
    np.testing.assert_array_equal(state.u, 0)
    np.testing.assert_array_equal(state.r, 0)


def test_hidden_and_weight_may_differ_in_dtype():
    hidden, other, weight, *rest = inputs("bfloat16", 20, 64, 300)
    exact = pallas_tpu.pair_states(
        hidden,
        other,
        weight.astype(jnp.float32),
        *rest,
        tiles=Tiles(128, 128, 64),
        interpret=True,
    )
    assert_close(finish(exact), oracle(hidden, other, weight, *rest))


def test_public_function_takes_the_kernel_and_its_gradient():
    *streams, weight, ids, temperature, allowed = inputs("float32", 20, 64, 300)
    weight = jnp.where(allowed[:, None], weight, 0)
    how = {"tiles": Tiles(128, 128, 64), "interpret": True}
    kernel = Backend(
        functools.partial(pallas_tpu.states, **how),
        functools.partial(pallas_tpu.pair_states, **how),
    )

    def objective(streams, weight, backend):
        stats = linear_head_pair(
            *streams,
            weight,
            ids,
            temperature=temperature,
            allowed=allowed,
            backend=backend,
        )
        return sum((n + 1) * x.mean() for n, x in enumerate(stats))

    slopes = jax.value_and_grad(objective, argnums=(0, 1))
    mine, theirs = (slopes(tuple(streams), weight, b) for b in (kernel, "reference"))
    for x, y in zip(*map(jax.tree.leaves, (mine, theirs)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


SHAPES = [
    ("bfloat16", *FULL),
    ("bfloat16", 16384, 2048, 151936),
    ("bfloat16", 1000, 3580, 151655),
    ("bfloat16", 4096, 8192, 152064),
    ("float32", 4096, 5120, 152064),
]


def structs(streams, dtype, rows, width, vocabulary):
    """Shapes of the arguments of `states` or `pair_states`."""
    struct = jax.ShapeDtypeStruct
    return (
        *[struct((rows, width), dtype)] * streams,
        struct((vocabulary, width), dtype),
        struct((rows,), jnp.int32),
        struct((rows,), jnp.float32),
        struct((vocabulary,), bool),
    )


@pytest.mark.parametrize("streams", [1, 2])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_lowers_for_tpu_at_full_size(shape, streams):
    function = pallas_tpu.states if streams == 1 else pallas_tpu.pair_states
    traced = jax.jit(function).trace(*structs(streams, *shape))
    text = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert "tpu_custom_call" in text
    # [N] sums lie along the lanes: [N, 1] would be padded 128-fold.
    assert f"tensor<{4 if streams == 1 else 9}x{shape[1]}xf32>" in text


@pytest.mark.parametrize("kind", CHIPS)
@pytest.mark.parametrize("streams", [1, 2])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_chosen_tiles_fit_the_chip(shape, streams, kind):
    dtype, *sizes = shape
    tiles = choose_tiles(kind, streams, *sizes, dtype)
    assert vmem_bytes(tiles, streams, dtype) <= CHIPS[kind].vmem
    assert sizes[1] % tiles.width == 0 and tiles.width <= 4096
    assert tiles.rows % 128 == tiles.columns % 128 == 0


def test_full_size_keeps_the_tiles_of_the_table():
    for kind, chip in CHIPS.items():
        for streams, wanted in ((1, chip.one), (2, chip.two)):
            tiles = choose_tiles(kind, streams, *FULL, "bfloat16")
            assert (tiles.rows, tiles.columns, tiles.width) == (*wanted, 3584)


def test_obstacles_are_named(monkeypatch):
    assert "needs a TPU" in pallas_tpu.obstacle(2, *FULL, "bfloat16")

    def on(kind, *shape):
        device = type("Device", (), {"platform": "tpu", "device_kind": kind})
        monkeypatch.setattr(jax, "devices", lambda: [device])
        return pallas_tpu.obstacle(2, *shape)

    assert on("TPU v5 lite", *FULL, "bfloat16") is None
    assert "TPU v3" in on("TPU v3", *FULL, "bfloat16")
    assert "float16" in on("TPU v5 lite", *FULL, "float16")
    assert "width 4100" in on("TPU v5 lite", 16384, 4100, 152064, "bfloat16")
