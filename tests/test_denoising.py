"""Denoising as a policy: the papers' worked numbers, and what must hold of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vrl_jax import advantages, denoising, objectives


def test_the_worked_step_of_a_flow():
    """t 0.8 -> 0.7, noise 0.7, x 1, v 0.5, and the policy after an update, v 0.52."""
    with jax.enable_x64(True):
        x, sampled = jnp.ones((1, 1)), jnp.full((1, 1), 0.9)
        logprobs = []
        for velocity, mean in ((0.5, 0.81525), (0.52, 0.81276)):
            step = denoising.flow_step(x, jnp.full((1, 1), velocity), 0.8, 0.7)
            assert step.mean == pytest.approx(mean, abs=1e-6)
            assert step.deviation == pytest.approx(0.442719, abs=1e-6)
            assert step.clean == pytest.approx(1 - 0.8 * velocity)
            logprobs.append(
                denoising.gaussian_logprob(sampled, step.mean, step.deviation, -1)
            )
        old, new = logprobs
        assert old == pytest.approx(-0.122441, abs=1e-6)
        old, new = old[None], new[None]  # of one token
        ratio = objectives.importance_ratio(new, old)
        assert ratio == pytest.approx(0.998908, abs=1e-6)
        clips = {"clip_low": 1e-4, "clip_high": 1e-4}
        lost = objectives.clipped_surrogate(new, old, -jnp.ones((1, 1)), **clips)
        assert lost == pytest.approx(0.9999)


def test_a_flow_without_noise_is_eulers_and_the_first_step_is_finite():
    x, velocity = jnp.array([[1.0, -2.0]]), jnp.array([[0.5, 1.0]])
    step = denoising.flow_step(x, velocity, 0.8, 0.7, noise=0.0)
    np.testing.assert_allclose(step.mean, x - 0.1 * velocity, rtol=1e-6)
    assert step.deviation == 0
    first = denoising.flow_step(x, velocity, 1.0, 0.9)
    assert first.deviation == pytest.approx(0.7 * (1 / 0.02) ** 0.5 * 0.1**0.5)
    assert np.isfinite(first.mean).all()


def test_a_flow_keeps_the_marginals():
    """Of x_t = (1 - t) x_0 + t e with x_0 = 0 the velocity is e: x' is t' wide.

    To first order in dt, from one step of many samples with the exact velocity.
    """
    noise = jax.random.normal(jax.random.key(0), (200_000,))
    fresh = jax.random.normal(jax.random.key(1), (200_000,))
    step = denoising.flow_step(0.6 * noise, noise, 0.6, 0.59)
    after = step.mean + step.deviation * fresh
    assert after.std() == pytest.approx(0.59, abs=0.004)
    assert step.deviation > 0.05


def test_ddim_steps():
    """Without noise it goes to the clean latent's own next one; with it as wide."""
    clean, noise = jnp.array([[0.3, -1.2]]), jnp.array([[0.7, 0.1]])
    kept, next_kept = 0.36, 0.64
    x = 0.6 * clean + 0.8 * noise
    step = denoising.ddim_step(x, noise, kept, next_kept, eta=0.0)
    np.testing.assert_allclose(step.clean, clean, rtol=1e-6)
    np.testing.assert_allclose(step.mean, 0.8 * clean + 0.6 * noise, rtol=1e-6)
    assert step.deviation == 0
    step = denoising.ddim_step(x, noise, kept, next_kept)
    assert step.deviation**2 == pytest.approx(0.36 / 0.64 * (1 - 0.36 / 0.64))
    left = step.mean - 0.8 * clean  # the part that is noise, in all 1 - a'
    assert (left / noise)[0, 0] ** 2 + step.deviation**2 == pytest.approx(0.36)
    last = denoising.ddim_step(x, noise, kept, 1.0)
    np.testing.assert_allclose(last.mean, clean, rtol=1e-6)
    assert last.deviation == 0


def test_densities_are_means_over_a_latent():
    x = jax.random.normal(jax.random.key(0), (3, 2, 4, 4))
    mean = jnp.zeros(x.shape)
    found = denoising.gaussian_logprob(x, mean, jnp.float32(0.5), (1, 2, 3))
    density = jax.scipy.stats.norm.logpdf(x, scale=0.5)
    np.testing.assert_allclose(found, density.mean((1, 2, 3)), rtol=1e-6)
    distance = denoising.gaussian_kl(mean, mean + 0.2, jnp.float32(0.5), (1, 2, 3))
    np.testing.assert_allclose(distance, 0.2**2 / (2 * 0.5**2), rtol=1e-6)


WORKED = jnp.array([0.2, 0.4, 0.6, 0.7, 1.0])


def test_the_worked_shares():
    """T = 4 in windows of 2; two trajectories with A = 1.5 and -1."""
    shares = denoising.step_shares(WORKED, window=2)
    np.testing.assert_allclose(shares, [0.230769] * 2 + [0.269231] * 2, atol=1e-6)
    advantage = jnp.array([1.5, -1.0])
    found = denoising.shares_to_go(advantage, jnp.stack([shares, shares]))
    to_go = np.array([1, 0.769231, 0.538462, 0.269231])
    np.testing.assert_allclose(found[0], [1.5, 1.153846, 0.807692, 0.403846], atol=1e-6)
    np.testing.assert_allclose(found[1], -to_go, atol=1e-6)
    np.testing.assert_allclose(
        denoising.pooled_zscore(found),
        [
            [1.527919, 1.132910, 0.737900, 0.277055],
            [-1.324928, -1.061588, -0.798249, -0.491019],
        ],
        atol=2e-6,
    )


def test_even_shares_and_no_shares():
    even = denoising.shares_to_go(jnp.ones(1), denoising.even_shares(4)[None])
    np.testing.assert_allclose(even[0], [1, 0.75, 0.5, 0.25])
    shares = denoising.step_shares(WORKED, window=2)[None]
    ddpo = denoising.shares_to_go(jnp.full(1, 2.0), shares, alpha=1.0)
    np.testing.assert_allclose(ddpo, 2)


def test_shares_sum_to_one_and_are_even_where_nothing_changed():
    similarity = jax.random.uniform(jax.random.key(0), (5, 11))
    shares = denoising.step_shares(similarity, window=5)
    np.testing.assert_allclose(shares.sum(-1), 1, rtol=1e-4)
    flat = denoising.step_shares(jnp.full((2, 11), 0.5), window=5)
    np.testing.assert_allclose(flat, 0.1)
    with pytest.raises(ValueError, match="10 steps are not whole windows of window=4"):
        denoising.step_shares(similarity, window=4)


def test_similarity_is_a_cosine_and_ends_in_one():
    states = jnp.array([[[1.0, 0.0], [0.0, 0.0], [-2.0, 0.0], [1.0, 1.0]]])
    found = denoising.final_similarity(states, jnp.array([[3.0, 0.0]]))
    np.testing.assert_allclose(found, [[1, 0, -1, 0.5**0.5, 1]], atol=1e-6)


def test_the_worked_global_std():
    """PaCo-RL: two prompts of two images, rewards summed after log-taming."""
    rewards = jnp.array([0.921854, 0.395310, 0.730004, 0.452322])
    found = advantages.batch_zscore_population(rewards, group_size=2)
    np.testing.assert_allclose(
        found, [1.235177, -1.235177, 0.651392, -0.651392], atol=1e-5
    )
