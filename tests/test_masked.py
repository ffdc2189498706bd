import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vrl_jax import masked

NAN = jnp.nan
X = jnp.array([[3.0, NAN, 1.0], [NAN, NAN, NAN], [-2.0, 5.0, NAN]])
MASK = ~jnp.isnan(X)


@pytest.mark.parametrize(
    ("statistic", "rows", "whole"),  # by hand
    [
        (masked.sum, [4.0, 0.0, 3.0], 7.0),
        (masked.mean, [2.0, 0.0, 1.5], 1.75),
        (masked.min, [1.0, np.inf, -2.0], -2.0),
        (masked.max, [3.0, -np.inf, 5.0], 5.0),
    ],
)
def test_statistics_ignore_what_the_mask_excludes(statistic, rows, whole):
    np.testing.assert_array_equal(statistic(X, MASK, axis=1), rows)
    np.testing.assert_array_equal(statistic(X, MASK), whole)
    np.testing.assert_array_equal(jax.jit(statistic)(X, MASK), whole)
    gradient = jax.grad(lambda x: statistic(x * 2, MASK))(X)
    assert np.isfinite(gradient).all()
    assert not gradient[~MASK].any()


def test_clamp_selects_the_gradient():
    x = jnp.array([-3.0, -1.0, 0.5, 9.0, 200.0, NAN])
    value, pull = jax.vjp(lambda x: jnp.exp(masked.clamp(x, -1.0, 8.0)), x)
    np.testing.assert_allclose(
        value, np.exp([-1.0, -1.0, 0.5, 8.0, 8.0, NAN]), rtol=1e-6
    )
    gradient = pull(jnp.ones(6))[0]
    np.testing.assert_allclose(gradient, [0, 0, np.exp(0.5), 0, 0, 0], rtol=1e-6)
    assert masked.clamp(x.astype(jnp.bfloat16), 0.0, 1.0).dtype == jnp.bfloat16


def test_correlation_is_numpy_s_over_the_mask():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 9)).astype(np.float32)
    mask = np.arange(9) % 3 > 0
    poisoned = (np.where(mask, v, np.nan) for v in (x, y))
    got = masked.correlation(*map(jnp.asarray, poisoned), jnp.asarray(mask))
    np.testing.assert_allclose(got, np.corrcoef(x[mask], y[mask])[0, 1], rtol=1e-5)
    assert masked.correlation(jnp.ones(3), jnp.arange(3.0), jnp.ones(3, bool)) == 0


@pytest.mark.parametrize(
    ("share", "count", "floor", "ceil"),
    [  # by hand
        (0.3, 50, 15, 15),
        (0.4, 7, 2, 3),
        (1 / 3, 10**6, 333333, 333334),
        (3e-5, 10**6, 30, 30),
        (1.5e-4, 10**5, 15, 15),
        (1e-5, 10**5, 1, 1),
        (2e-4, 7, 0, 1),
        (1.0, 2**31 - 1, 2**31 - 1, 2**31 - 1),
        (0.9999, 2_000_000_000, 1_999_800_000, 1_999_800_000),
        (0.0, 5, 0, 0),
    ],
)
def test_shares_are_those_of_the_fraction_that_was_meant(share, count, floor, ceil):
    count = jnp.array(count)
    assert count.dtype == jnp.int32
    assert masked.floor_share(share, count) == floor
    assert masked.ceil_share(share, count) == ceil
