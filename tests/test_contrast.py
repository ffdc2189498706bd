"""Losses and interventions between views, by hand in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vrl_jax import contrast, perception

MASK = np.array([[1, 1, 1, 0], [1, 1, 0, 0]], bool)
RANDOM = np.random.RandomState(0)


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def close(found, wanted, tolerance=1e-8):
    np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance)


def test_visual_deltas_by_hand():
    own, dark, noisy = (jnp.array([[x]]) for x in (-1.0, -1.5, -0.7))
    k3 = lambda d: np.exp(d) - d - 1
    wanted = -0.01 * k3(-0.5) + 0.01 * k3(0.3) + 0.05 * (1.5 + 0.7)
    close(contrast.visual_deltas(own, dark, noisy), [[wanted]])
    slope = jax.grad(lambda x: contrast.visual_deltas(x, dark, noisy)[0, 0])(own)
    close(slope, [[-0.01 * (1 - np.exp(-0.5)) + 0.01 * (1 - np.exp(0.3))]])


def test_visual_deltas_ignore_poisoned_padding_in_the_gradient():
    own, dark, noisy = (
        jnp.where(MASK, x, jnp.nan) for x in -RANDOM.rand(3, *MASK.shape)
    )

    def total(own):
        return jnp.where(MASK, contrast.visual_deltas(own, dark, noisy), 0).sum()

    slope = np.asarray(jax.grad(total)(own))
    assert np.isfinite(slope).all() and not slope[~MASK].any()
    assert slope[MASK].all()


def test_entropy_gain_chooses_where_the_picture_informs():
    entropy = jnp.array([[0.2, 1.0, 0.1, jnp.nan], [0.5, 0.4, jnp.nan, 0]])
    removed = jnp.array([[0.3, 0.9, 0.9, 5.0], [0.4, 0.6, 7.0, jnp.nan]])
    gain = contrast.entropy_gain(entropy, removed, jnp.array(MASK))
    close(gain, [[0.1, -0.1, 0.8, 0], [-0.1, 0.2, 0, 0]])
    chosen = perception.top_share(gain, jnp.array(MASK), 1 / 3)
    np.testing.assert_array_equal(chosen, [[0, 0, 1, 0], [0, 1, 0, 0]])


def test_contrastive_perception_by_hand():
    kept = jnp.array([[-0.1, -0.1, -0.1, jnp.nan]])
    removed = jnp.array([[-0.6, -0.6, -0.1, jnp.nan]])
    advantages = jnp.array([[1.0, -1.0, 1.0, 1.0]])
    chosen = jnp.array([[True, True, True, False]])
    run = lambda k, r: contrast.contrastive_perception(
        k, r, advantages, chosen, temperature=0.5
    )
    e = np.exp
    first = -np.log(e(-0.2) / (e(-0.2) + e(-1.2)))
    close(run(kept, removed), [[first, 0, np.log(2), 0]])
    slopes = jax.grad(lambda *x: run(*x).sum(), (0, 1))(kept, removed)
    weight = e(-1.2) / (e(-0.2) + e(-1.2)) / 0.5
    close(slopes[0], [[-weight, 0, -1, 0]])
    close(slopes[1], [[weight, 0, 1, 0]])


def test_similarities_by_hand():
    states = jnp.array([[[3.0, 4.0], [0.0, 0.0]], [[1.0, 1.0], [2.0, 0.0]]])
    pictures = jnp.array([[[2.0, 0.0], [0.0, 1.0], [jnp.nan, 1.0]]] * 2)
    shown = jnp.array([[True, True, False], [False, False, False]])
    found = contrast.picture_similarity(states, pictures, shown)
    close(found, [[(0.6 + 0.8) / 2, 0], [0, 0]])
    found = contrast.mean_picture_similarity(states, pictures, shown)
    close(found, [[(0.6 * 1 + 0.8 * 0.5) / np.hypot(1, 0.5), 0], [0, 0]])


def test_counterfactual_attention_is_the_released_rule():
    """Row by row in loops: CFPO's threshold, and its mean value of a head."""
    rows, heads, queries, keys, width = 2, 3, 5, 7, 4
    attention = RANDOM.dirichlet(np.full(keys, 0.3), (rows, heads, queries))
    values = RANDOM.randn(rows, heads, keys, width)
    pictures = np.array([[0, 1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0, 0]], bool)
    text = np.array([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]], bool)
    wanted = np.einsum("bhqk,bhkd->bhqd", attention, values)
    seen = attention[0][:, text[0]][:, :, pictures[0]]
    seen = seen[seen > 1e-8]
    bound, swapped = seen.mean() + 2 * seen.std(ddof=1), 0
    for h in range(heads):
        middle = values[0, h, pictures[0]].mean()
        for q in np.flatnonzero(text[0]):
            for k in np.flatnonzero(pictures[0]):
                weight = attention[0, h, q, k]
                if weight > bound:
                    wanted[0, h, q] += weight * (middle - values[0, h, k])
                    swapped += 1
    assert 0 < swapped < 6
    arguments = (jnp.array(x) for x in (attention, values, pictures, text))
    close(jax.jit(contrast.counterfactual_attention)(*arguments), wanted)
