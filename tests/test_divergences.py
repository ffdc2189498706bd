import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vrl_jax import divergences, reductions

# Recomputed with the released functions of EasyR1 and verl: see meta in the file.
CASES = json.loads((Path(__file__).parent / "golden/objectives_cases.json").read_text())
KL = CASES["kl"]
MASK = np.array(CASES["inputs"]["response_mask"]) > 0
ESTIMATORS = {
    "k1": divergences.k1,
    "abs": lambda *args: jnp.abs(divergences.k1(*args)),
    "k2": divergences.k2,
    "k3": divergences.k3,
    "low_var_kl_clamped": divergences.low_var_kl,
}


@pytest.fixture(params=[1e-8, 2e-5], ids=["float64", "float32"])
def tolerance(request):
    with jax.enable_x64(request.param == 1e-8):
        yield request.param


def inputs():
    names = ("logp", "ref_logp")
    return tuple(jnp.array(CASES["inputs"][name]) for name in names)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimators_golden(name, tolerance):
    close = {"rtol": tolerance, "atol": tolerance}
    got = np.asarray(jax.jit(ESTIMATORS[name])(*inputs()))
    np.testing.assert_allclose(
        got[MASK], np.array(KL["per_token"][name])[MASK], **close
    )
    for key, reduce in (
        ("token_mean", reductions.token_mean),
        ("seq_mean", reductions.sequence_mean),
    ):
        mean = jax.jit(reduce)(got, MASK)
        np.testing.assert_allclose(mean.total / mean.weight, KL[key][name], **close)


@pytest.mark.parametrize("name", ["k1", "k2", "k3"])
def test_estimators_gradient_golden(name, tolerance):
    logprobs, ref_logprobs = inputs()
    gradient = jax.jit(jax.grad(lambda *x: ESTIMATORS[name](*x).sum()))(
        logprobs, ref_logprobs
    )
    expected = KL["grad_per_token_wrt_logp"][name]
    np.testing.assert_allclose(
        np.asarray(gradient)[MASK],
        np.array(expected)[MASK],
        rtol=tolerance,
        atol=tolerance,
    )


def test_low_var_kl_clamps_value_and_gradient(tolerance):
    demo = KL["clamp_demo"]
    ref_logprobs = jnp.array([demo["ref_minus_logp"]])
    value, pull = jax.vjp(
        lambda x: divergences.low_var_kl(x, ref_logprobs), jnp.zeros_like(ref_logprobs)
    )
    close = {"rtol": tolerance, "atol": tolerance}
    np.testing.assert_allclose(value[0], demo["low_var_kl"], **close)
    gradient = pull(jnp.ones_like(value))[0][0]
    np.testing.assert_allclose(gradient, demo["grad_wrt_logp"], **close)


def test_k3_keeps_small_differences_in_float32():
    d = jnp.array([[1e-3, -1e-4, 1e-5]])
    np.testing.assert_allclose(
        divergences.k3(d, jnp.zeros_like(d)), d**2 / 2, rtol=0.1, atol=0
    )


def test_full_divergences_golden(tolerance):
    case = CASES["vppo"]["full_vocabulary"]
    image, blind = jnp.array(case["logits_image"]), jnp.array(case["logits_masked"])
    forward = divergences.full_kl(image, blind)
    reverse = divergences.full_kl(blind, image)
    for got, name in (
        (forward, "kl_forward_P_image_to_masked"),
        (reverse, "kl_reverse"),
        ((forward + reverse) / 2, "symmetric_kl_mean"),
        (divergences.full_jensen_shannon(image, blind), "jsd"),
        (divergences.full_entropy(image), "entropy_image"),
        (divergences.full_entropy(blind), "entropy_masked"),
    ):
        np.testing.assert_allclose(
            got, case[name], rtol=tolerance, atol=tolerance, err_msg=name
        )


def test_full_kl_is_the_expectation_of_k3():
    image, blind = np.random.default_rng(0).normal(size=(2, 6, 7)).astype(np.float32)
    logp, logq = (np.asarray(jax.nn.log_softmax(x)) for x in (image, blind))
    expectation = (np.exp(logp) * divergences.k3(logp, logq)).sum(-1)
    np.testing.assert_allclose(
        divergences.full_kl(image, blind), expectation, atol=1e-5
    )


@pytest.mark.parametrize(
    "function",
    [
        divergences.full_kl,
        divergences.full_jensen_shannon,
        lambda x, _: divergences.full_entropy(x),
    ],
    ids=["kl", "jensen_shannon", "entropy"],
)
def test_full_divergences_ignore_forbidden_tokens(function):
    image, blind = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32)
    forbidden = ((0, 0), (0, 2))

    def forbid(x):
        return jnp.pad(x, forbidden, constant_values=-jnp.inf)

    both = jax.jit(jax.value_and_grad(lambda *x: function(*x).sum()))
    plain, expected = both(image, blind)
    value, gradient = both(forbid(image), forbid(blind))
    np.testing.assert_allclose(value, plain, rtol=1e-6)
    np.testing.assert_allclose(gradient, np.pad(expected, forbidden), atol=1e-6)


def test_nucleus_entropy_by_hand(tolerance):
    odds = jnp.array([[0.5, 0.02, 0.3, 0.18], [0.96, 0.01, 0.02, 0.01]])
    wanted = [-sum(p * np.log(p) for p in (0.5 / 0.98, 0.3 / 0.98, 0.18 / 0.98)), 0]
    found = divergences.nucleus_entropy(jnp.log(odds) + 3, top_p=0.95)
    np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance)
    whole = divergences.nucleus_entropy(jnp.log(odds), top_p=1.0)
    entropy = divergences.full_entropy(jnp.log(odds))
    np.testing.assert_allclose(whole, entropy, rtol=tolerance, atol=tolerance)
    forbidden = jnp.array([[0.0, -jnp.inf, 0.0]])
    found = divergences.nucleus_entropy(forbidden, top_p=0.9)
    np.testing.assert_allclose(found, [np.log(2)], rtol=tolerance)
