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


def test_published_variants_that_depend_on_the_split(tolerance):
    matrix, mask = jnp.array(MATRIX), jnp.array(MASK)
    verl = constant_length(matrix, mask)
    np.testing.assert_allclose(
        verl.total / 6, GOLDEN["sum_over_L_verl"], rtol=tolerance
    )
    pieces = [
        reductions.token_mean(matrix[rows], mask[rows])
        for rows in map(np.array, GOLDEN["micro_batches"])
    ]
    local = sum(mean.total / mean.weight for mean in pieces) / len(pieces)
    expected = GOLDEN["bnpo_or_naive_mean_of_micro_batch_token_means"]
    np.testing.assert_allclose(local, expected, rtol=tolerance)


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
