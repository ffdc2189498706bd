"""The Hopper kernel: interpreted on a CPU, and lowered for CUDA; run on a Hopper GPU.

Where there is such a GPU (`make test-hopper`) the same tests run on it. The interpreter
runs warpgroups, barriers, TMA and wgmma, fills shared memory with NaN and raises at a
race; it takes code that the compiler does not, hence the lowering. What becomes of it
in an H200's registers: `make compile-mgpu`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from vrl_kernels.linear_head import linear_head, linear_head_pair, pallas_mgpu, xla
from vrl_kernels.linear_head.backend import Backend
from vrl_kernels.linear_head.state import MASKED, finish

new_jax = pytest.mark.skipif(
    jax.__version_info__ < (0, 11),
    reason=f"the kernel needs jax 0.11, this is {jax.__version__}: make test-new",
)
KERNEL = Backend(pallas_mgpu.states, pallas_mgpu.pair_states)


HOPPER = getattr(jax.devices()[0], "compute_capability", None) == "9.0"
hopper = pytest.mark.skipif(
    not HOPPER, reason=f"needs a Hopper GPU, this is {jax.devices()[0]}"
)


def result(function, *arrays):
    """From a Hopper GPU if there is one, else as interpreted on the CPU."""
    if HOPPER:
        return jax.block_until_ready(function(*arrays))
    from jax.experimental.pallas import mosaic_gpu as plgpu

    with plgpu.force_gpu_interpret_mode(plgpu.InterpretGPUParams(detect_races=True)):
        return jax.block_until_ready(function(*arrays))


def oracle(hidden, other, weight, ids, temperature, allowed):
    """The five statistics in float64 by their definitions, of the ids allowed."""
    keep = np.flatnonzero(allowed)

    def log_softmax(x):
        z = np.asarray(x, float) @ np.asarray(weight, float)[keep].T
        z = z / np.asarray(temperature, float)[:, None]
        z = z - z.max(axis=1, keepdims=True)
        return z - np.log(np.exp(z).sum(axis=1, keepdims=True))

    p, q = log_softmax(hidden), log_softmax(other)
    at = np.arange(len(ids)), np.searchsorted(keep, ids)
    return {
        "logprobs": p[at],
        "entropy": -(np.exp(p) * p).sum(axis=1),
        "other_logprobs": q[at],
        "kl": (np.exp(p) * (p - q)).sum(axis=1),
        "reverse_kl": (np.exp(q) * (q - p)).sum(axis=1),
    }


def assert_close(stats, expected, *, largest=16.0):
    """The tolerances of the method notes, section 7, for `largest` of the logits."""
    for name, value in stats._asdict().items():
        assert value.dtype == jnp.float32
        tolerance = {"rtol": 0, "atol": 2e-5 * max(1, largest / 16)}
        if name in ("kl", "reverse_kl"):
            tolerance = {"rtol": 1e-4, "atol": 3e-6}
        np.testing.assert_allclose(value, expected[name], **tolerance, err_msg=name)


# Two blocks of rows (one for one stream), the last with two; three tiles of the
# vocabulary, the last of 44 columns; three steps, the last of 8 hidden units.
ROWS, WIDTH, VOCABULARY = 130, 136, 300


def inputs(seed=0):
    """A second tile of which nothing is allowed, and NaN wherever nothing is."""
    random = np.random.RandomState(seed)
    hidden = random.randn(ROWS, WIDTH)
    other = hidden + 0.1 * random.randn(ROWS, WIDTH)
    weight = 0.3 * random.randn(VOCABULARY, WIDTH)
    allowed = random.rand(VOCABULARY) < 0.7
    allowed[128:256] = False
    allowed[-1] = True
    ids = random.choice(np.flatnonzero(allowed), ROWS)
    ids[:2] = np.flatnonzero(allowed)[0], VOCABULARY - 1
    weight[~allowed] = np.nan
    temperature = jnp.asarray(0.5 + random.rand(ROWS), jnp.float32)
    bfloat = [jnp.asarray(x, jnp.bfloat16) for x in (hidden, other, weight)]
    return *bfloat, jnp.asarray(ids), temperature, jnp.asarray(allowed)


@new_jax
@pytest.mark.parametrize("cores", [1, 132])
def test_pair_equals_float64(cores, monkeypatch):
    """One block takes all tiles in turn, or three take one each."""
    monkeypatch.setattr(pallas_mgpu, "CORES", cores)
    found = finish(result(pallas_mgpu.pair_states, *inputs()))
    assert_close(found, oracle(*inputs()))


@new_jax
def test_one_stream_equals_float64():
    """Two blocks of 256 rows, the second with 4, and three runs of one tile."""
    hidden, _, weight, ids, temperature, allowed = inputs()
    hidden, ids, temperature = (
        jnp.concatenate([x, x[::-1]]) for x in (hidden, ids, temperature)
    )
    rest = weight, ids, temperature, allowed
    found = finish(result(pallas_mgpu.states, hidden, *rest))
    assert_close(found, oracle(hidden, hidden, *rest))


# Cases A to D of the method notes, float64 from the definitions: z and z', all exact in
# float16; id; lse'; and logp, entropy, KL(p||q), KL(q||p).
GOLDEN = [
    (
        ([0, 1, 2, 3], [3, 2, 1, 0], 3, 3.4401896985612),
        (-0.440189698561195, 0.947536963975426, 1.98530546917154, 1.98530546917154),
    ),
    (
        ([1000, 999, 0, -1000], [-5, 5, 0, 100], 1, 100),
        (-1.31326168751822, 0.582203108888218, 101.728382677412, 2000.31326168752),
    ),
    (
        ([0.5] * 5, [0, 1, 2, 3, 4], 0, 4.45191443593759),
        (-1.6094379124341, 1.6094379124341, 0.842476483503493, 0.609465084158702),
    ),
    (
        ([10, 10, -1e4, 3], [10, 10.5, -1e4, 3], 0, 10.9744211974591),
        (-0.693603017633216, 0.69679315000057, 0.0309321131246766, 0.030304374826944),
    ),
]


@new_jax
def test_golden_cases():
    """A row each; the logits of a case are one hidden unit's column of the weight."""
    cases, results = zip(*GOLDEN, strict=True)
    weight = np.full((5, 8), -6e4)  # e to that is 0: the case has fewer columns
    for i, (z, other, *_) in enumerate(cases):
        weight[: len(z), 2 * i], weight[: len(other), 2 * i + 1] = z, other
    found = result(
        pallas_mgpu.pair_states,
        *(jnp.asarray(x, jnp.float16) for x in (np.eye(8)[0::2], np.eye(8)[1::2])),
        jnp.asarray(weight, jnp.float16),
        jnp.array([target for _, _, target, _ in cases]),
        jnp.ones(4),
        jnp.ones(5, bool),
    )
    names = "logprobs", "entropy", "kl", "reverse_kl"
    expected = dict(zip(names, zip(*results, strict=True), strict=True))
    expected["other_logprobs"] = [
        other[target] - lse for _, other, target, lse in cases
    ]
    assert_close(finish(found), expected, largest=1000)


@new_jax
def test_rising_logits_far_from_zero():
    """A new maximum in the second tile, an offset of 512 that cancels, and q = p."""
    vocabulary = 256
    weight = np.stack([np.arange(vocabulary), np.full(vocabulary, 512)], axis=1)
    weight = jnp.asarray(weight, jnp.float16)
    hidden = jnp.array([[0.25, 1.0], [-0.25, 1.0]], jnp.float16)
    arrays = hidden, hidden, weight, jnp.array([255, 255]), jnp.ones(2)
    arrays = *arrays, jnp.ones(vocabulary, bool)
    found = finish(result(pallas_mgpu.pair_states, *arrays))
    assert_close(found, oracle(*arrays), largest=576)
    np.testing.assert_array_equal(found.kl, 0)
    np.testing.assert_array_equal(found.reverse_kl, 0)


@new_jax
def test_ids_that_are_nowhere_and_ids_that_are_not_allowed():
    """g is 0 for the first, even in the padding of the last tile, `MASKED` else."""
    weight = jnp.ones((70, 64), jnp.bfloat16)
    hidden = jnp.ones((4, 64), jnp.bfloat16)
    ids = jnp.array([-1, 70, 69, 3])
    allowed = jnp.arange(70) != 3
    found = result(pallas_mgpu.states, hidden, weight, ids, 2 * jnp.ones(4), allowed)
    np.testing.assert_array_equal(found.g, np.float32([0, 0, 32, MASKED]))
    np.testing.assert_array_equal(found.s, 69)
    np.testing.assert_array_equal(found.m, 32)


@new_jax
def test_where_nothing_is_allowed_nothing_is_summed():
    """As `state` has it: what another shard holds is all there is."""
    arrays = jnp.ones((1, 64), jnp.bfloat16), jnp.ones((8, 64), jnp.bfloat16)
    nothing = jnp.zeros(1, int) - 1, jnp.ones(1), jnp.zeros(8, bool)
    found = result(pallas_mgpu.states, *arrays, *nothing)
    assert [float(x[0]) for x in found] == [float(np.float32(MASKED)), 0, 0, 0]


@new_jax
def test_gradients_through_the_public_function_are_those_of_xla():
    random = np.random.RandomState(1)
    hidden, weight = (
        jnp.asarray(random.randn(rows, 64) / 4, jnp.bfloat16) for rows in (3, 40)
    )
    ids, scales = jnp.array([0, 39, 7]), jnp.asarray(random.randn(2, 3), jnp.float32)

    def gradients(backend):
        def objective(hidden, weight):
            stats = linear_head(hidden, weight, ids, backend=backend)
            return sum((c * x).sum() for c, x in zip(scales, stats, strict=True))

        return jax.grad(objective, argnums=(0, 1))(hidden, weight)

    found = result(gradients, KERNEL)
    expected = gradients(Backend(xla.states, xla.pair_states))
    for mine, other in zip(found, expected, strict=True):
        assert mine.dtype == jnp.bfloat16
        mine, other = np.asarray(mine, float), np.asarray(other, float)
        # The same backward pass, from sums that differ in their last bits.
        assert np.linalg.norm(mine - other) <= 1e-3 * np.linalg.norm(other)
        assert np.linalg.norm(other) > 0


# The heads of Qwen2.5-VL 7B and 3B at 16384 tokens, and a shape that fits no tile.
SHAPES = [(16384, 3584, 152064), (16384, 2048, 151936), (1000, 3580, 151655)]


@new_jax
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_lowers_for_cuda_without_dense_logits(shape):
    """Forward and backward of both: the compiler's front end takes the kernel."""
    rows, width, vocabulary = shape
    array = jax.ShapeDtypeStruct
    hidden = array((rows, width), jnp.bfloat16)
    weight = array((vocabulary, width), jnp.bfloat16)
    ids = array((rows,), jnp.int32)

    def objective(hidden, other, weight, ids):
        one = linear_head(hidden, weight, ids, backend=KERNEL)
        pair = linear_head_pair(hidden, other, weight, ids, backend=KERNEL)
        return sum(x.sum() for x in (*one, *pair))

    traced = jax.jit(jax.grad(objective, argnums=(0, 1, 2))).trace(
        hidden, hidden, weight, ids
    )
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("@mosaic_gpu_v2") == 2
    assert f"{rows}x{vocabulary}x" not in text


@hopper
@pytest.mark.parametrize("shape", [(4096, 3584, 152064), SHAPES[-1]], ids=str)
def test_full_vocabulary_is_that_of_xla_and_the_same_every_time(shape):
    """Many runs and blocks at a time, logits of std 2: the sums are near, and exact."""
    rows, width, vocabulary = shape
    keys = jax.random.split(jax.random.key(0), 4)
    hidden = jax.random.normal(keys[0], (rows, width))
    other = hidden + 0.1 * jax.random.normal(keys[1], hidden.shape)
    weight = jax.random.normal(keys[2], (vocabulary, width)) * 2 / width**0.5
    hidden, other, weight = (x.astype(jnp.bfloat16) for x in (hidden, other, weight))
    ids = jax.random.randint(keys[3], (rows,), 0, vocabulary)
    rest = weight, ids, jnp.ones(rows), jnp.ones(vocabulary, bool)
    for streams, name in (((hidden,), "states"), ((hidden, other), "pair_states")):
        sums = jax.jit(getattr(pallas_mgpu, name))
        found = sums(*streams, *rest)
        for _ in range(3):
            for again, first in zip(sums(*streams, *rest), found, strict=True):
                np.testing.assert_array_equal(again, first)
        expected = jax.jit(getattr(xla, name))(*streams, *rest)
        assert_close(finish(found), finish(expected)._asdict())


@pytest.mark.parametrize("width", [1024, 3584, 8192])
@pytest.mark.parametrize("row_blocks", [1, 64, 128, 133])
def test_runs_keep_the_cores_busy_and_their_rows_in_the_cache(row_blocks, width):
    assert pallas_mgpu.run_length(row_blocks, 1, width) == 1
    tiles = 1188  # of V = 152064
    length = pallas_mgpu.run_length(row_blocks, tiles, width)
    runs = -(-tiles // length)
    waves = -(-row_blocks * runs // 132)
    work = row_blocks * tiles / 132  # tiles that every core takes at least
    assert work <= waves * length <= 1.05 * work
    # 128 rows of two streams, two bytes a number; an H200 has 50 MB of L2.
    assert 132 / runs * 128 * 2 * width * 2 <= 40e6


@pytest.mark.skipif(jax.__version_info__ >= (0, 11), reason="this jax is new enough")
def test_an_old_jax_is_named():
    with pytest.raises(ValueError, match=r"needs jax 0.11 or newer .* this is 0.10"):
        linear_head(*call_arguments(), backend="pallas_mgpu")


@new_jax
@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        pytest.param(
            "bfloat16",
            "needs a Hopper GPU",
            marks=pytest.mark.skipif(HOPPER, reason="here is one"),
        ),
        ("float32", "takes bfloat16 or float16"),
    ],
)
def test_what_cannot_run_is_named(dtype, message):
    with pytest.raises(ValueError, match=f"'pallas_mgpu' cannot run here: .*{message}"):
        linear_head(*call_arguments(dtype), backend="pallas_mgpu")


def call_arguments(dtype="bfloat16"):
    return jnp.ones((2, 64), dtype), jnp.ones((8, 64), dtype), jnp.zeros(2, int)
