import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vrl_jax import reductions

# Recomputed with the released functions of EasyR1, verl and TRL: see meta in the file.
CASES = json.loads((Path(__file__).parent / "golden/objectives_cases.json").read_text())
MATRIX = CASES["policy_loss"]["dapo_token_mean"]["per_token_loss"]
MASK = np.array(CASES["inputs"]["response_mask"]) > 0
GOLDEN = CASES["aggregation"]


def constant_length(x, mask):
    return reductions.constant_length(x, mask, max_length=6)


def sequence_sum(x, mask):
    return reductions.constant_length(x, mask, max_length=1)


REDUCTIONS = {
    "token_mean": jax.jit(reductions.token_mean),
    "seq_mean_token_mean": jax.jit(reductions.sequence_mean),
    "sum_over_B_times_L": jax.jit(constant_length),
    "seq_mean_token_sum": jax.jit(sequence_sum),
}


@pytest.fixture(params=[1e-8, 2e-5], ids=["float64", "float32"])
def tolerance(request):
    with jax.enable_x64(request.param == 1e-8):
        yield request.param


@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions_golden(name, tolerance):
    mean = REDUCTIONS[name](jnp.array(MATRIX), jnp.array(MASK))
    assert mean.total.dtype == mean.weight.dtype
    np.testing.assert_allclose(mean.total / mean.weight, GOLDEN[name], rtol=tolerance)


def sum_over_length(x, mask):
    return reductions.sum_over_length(x, mask, max_length=6)


RELEASED = {
    "mean_of_token_means": reductions.mean_of_token_means,
    "sum_over_length": sum_over_length,
    "easyr1_sequence_mean": reductions.easyr1_sequence_mean,
}


@pytest.mark.parametrize("name", RELEASED)
def test_micro_batches_without_tokens_do_not_change_the_released_variants(name):
    matrix, mask = jnp.array(MATRIX), jnp.array(MASK)
    nothing = RELEASED[name](matrix * jnp.nan, mask & False)
    np.testing.assert_array_equal(nothing, (0, 0))
    poisoned = jnp.where(mask, matrix, jnp.nan)
    expected, got = RELEASED[name](matrix, mask), RELEASED[name](poisoned, mask)
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    gradient = jax.grad(lambda x: RELEASED[name](x, mask).total)(poisoned)
    assert np.isfinite(gradient).all() and not gradient[~mask].any()


def test_a_sum_over_length_does_not_divide_by_the_rows():
    """verl's form by hand: halves of the batch, each sum over 6, and their mean."""
    matrix, mask = jnp.array(MATRIX), jnp.array(MASK)
    halves = [sum_over_length(matrix[h], mask[h]) for h in (slice(4), slice(4, 8))]
    together = sum(h.total for h in halves) / sum(h.weight for h in halves)
    whole = jnp.where(mask, matrix, 0).sum() / 6
    np.testing.assert_allclose(together, whole / 2, rtol=1e-6)
    np.testing.assert_allclose(whole, GOLDEN["sum_over_L_verl"], rtol=1e-5)


def test_a_row_without_tokens_does_not_count_in_the_constant_divisor():
    """Two rows, one all masked, L = 6: 4 / 6, where TRL has 4 / 12."""
    mask = jnp.array([[True] * 4, [False] * 4])
    got = constant_length(jnp.ones((2, 4)), mask)
    np.testing.assert_allclose(got.total / got.weight, 4 / 6, rtol=1e-6)


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("size", [1, 2, 4])
def test_micro_batches_add_up(name, size):
    matrix, mask = jnp.array(MATRIX), jnp.array(MASK)
    whole = REDUCTIONS[name](matrix, mask)
    parts = [
        REDUCTIONS[name](matrix[i : i + size], mask[i : i + size])
        for i in range(0, 8, size)
    ]
    np.testing.assert_allclose(sum(p.total for p in parts), whole.total, rtol=1e-5)
    np.testing.assert_allclose(sum(p.weight for p in parts), whole.weight)


@pytest.mark.parametrize("name", REDUCTIONS)
def test_padding_and_empty_rows_change_nothing(name):
    matrix, mask = jnp.array(MATRIX), jnp.array(MASK)
    poisoned = jnp.pad(
        jnp.where(mask, matrix, jnp.nan), ((0, 2), (0, 3)), constant_values=jnp.nan
    )
    wide = jnp.pad(mask, ((0, 2), (0, 3)))
    expected, got = REDUCTIONS[name](matrix, mask), REDUCTIONS[name](poisoned, wide)
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    eager = REDUCTIONS[name].__wrapped__(poisoned, wide)
    np.testing.assert_allclose(eager, got, rtol=1e-6)
    gradient = jax.jit(jax.grad(lambda x: REDUCTIONS[name](x, wide).total))(poisoned)
    assert np.isfinite(gradient).all()
    assert not gradient[~wide].any()


def test_nothing_at_all_has_weight_zero():
    x, mask = jnp.full((2, 3), jnp.nan), jnp.zeros((2, 3), bool)
    for reduce in REDUCTIONS.values():
        np.testing.assert_array_equal(reduce(x, mask), (0, 0))
