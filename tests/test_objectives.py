import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vrl_jax import advantages, divergences, objectives, reductions

# Recomputed with the released functions of EasyR1, verl and VPPO: see meta in the file.
CASES = json.loads((Path(__file__).parent / "golden/objectives_cases.json").read_text())
INPUTS = CASES["inputs"]
MASK = np.array(INPUTS["response_mask"]) > 0
KNOBS = ("clip_low", "clip_high")
SURROGATES = tuple(
    jax.jit(function, static_argnames=KNOBS)
    for function in (objectives.clipped_surrogate, objectives.dual_clipped_surrogate)
)


@pytest.fixture(params=[1e-8, 2e-5], ids=["float64", "float32"])
def tolerance(request):
    with jax.enable_x64(request.param == 1e-8):
        yield request.param


def constant_length(x, mask):
    return reductions.constant_length(x, mask, max_length=6)


def sum_over_length(x, mask):
    return reductions.sum_over_length(x, mask, max_length=6)


ZSCORE, CENTERED = advantages.group_zscore, advantages.group_centered
CLIPPED, DUAL = SURROGATES


@pytest.mark.parametrize(
    ("name", "credit", "credit_knobs", "surrogate", "clip_high", "reduce"),
    [
        ("grpo_seq_mean", ZSCORE, {}, CLIPPED, 0.2, reductions.sequence_mean),
        (
            "grpo_trl_seq_mean_std_eps_1e-4",
            ZSCORE,
            {"eps": 1e-4},
            CLIPPED,
            0.2,
            reductions.sequence_mean,
        ),
        ("dr_grpo_trl", CENTERED, {}, CLIPPED, 0.2, constant_length),
        ("dr_grpo_verl_seq_sum_norm", CENTERED, {}, CLIPPED, 0.2, sum_over_length),
        ("dapo_token_mean", ZSCORE, {}, CLIPPED, 0.28, reductions.token_mean),
        ("dapo_token_mean_dual_clip_3", ZSCORE, {}, DUAL, 0.28, reductions.token_mean),
    ],
)
def test_policy_loss_golden(
    name, credit, credit_knobs, surrogate, clip_high, reduce, tolerance
):
    case, mask = CASES["policy_loss"][name], jnp.array(MASK)
    old_logprobs = jnp.array(INPUTS["old_logp"])
    advantage = credit(jnp.array(INPUTS["rewards"]), group_size=4, **credit_knobs)

    def loss(logprobs):
        per_token = surrogate(
            logprobs,
            old_logprobs,
            jnp.broadcast_to(advantage[:, None], logprobs.shape),
            clip_high=clip_high,
        )
        mean = reduce(per_token, mask)
        return mean.total / mean.weight, per_token

    (value, per_token), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(
        jnp.array(INPUTS["logp"])
    )
    close = {"rtol": tolerance, "atol": tolerance}
    with jax.disable_jit():
        np.testing.assert_allclose(loss(jnp.array(INPUTS["logp"]))[0], value, **close)
    np.testing.assert_allclose(value, case["loss"], **close)
    expected = np.array(case["per_token_loss"])
    np.testing.assert_allclose(np.where(MASK, per_token, 0), expected, **close)
    np.testing.assert_allclose(gradient, case["grad_wrt_logp"], **close)


def test_grpo_with_kl_golden(tolerance):
    logprobs, old_logprobs, ref_logprobs = (
        jnp.array(INPUTS[name]) for name in ("logp", "old_logp", "ref_logp")
    )
    advantage = ZSCORE(jnp.array(INPUTS["rewards"]), group_size=4)[:, None]
    per_token = objectives.clipped_surrogate(
        logprobs, old_logprobs, jnp.broadcast_to(advantage, logprobs.shape)
    ) + 0.01 * divergences.low_var_kl(logprobs, ref_logprobs)
    mean = reductions.sequence_mean(per_token, jnp.array(MASK))
    np.testing.assert_allclose(
        mean.total / mean.weight,
        CASES["kl"]["grpo_plus_kl_loss"]["loss"],
        rtol=tolerance,
    )


@pytest.mark.parametrize(
    ("name", "clip_high"), [("grpo_seq_mean", 0.2), ("dapo_token_mean", 0.28)]
)
def test_clip_fractions_golden(name, clip_high):
    logprobs, old_logprobs = jnp.array(INPUTS["logp"]), jnp.array(INPUTS["old_logp"])
    advantage = ZSCORE(jnp.array(INPUTS["rewards"]), group_size=4)[:, None]
    clipped = objectives.clip_fractions(
        objectives.importance_ratio(logprobs, old_logprobs),
        jnp.broadcast_to(advantage, logprobs.shape),
        clip_high=clip_high,
    )
    for bound, side in zip(clipped, ("low", "high"), strict=True):
        mean = reductions.token_mean(bound, jnp.array(MASK))
        np.testing.assert_allclose(
            mean.total / mean.weight, CASES["policy_loss"][name][f"clip_{side}_frac"]
        )


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_surrogate_by_hand(surrogate):
    # A = 1, 1, -1, -1 at r = 2, 1/2, 1/2, 2: the bound that holds stops the gradient.
    advantage = jnp.array([[1.0, 1.0, -1.0, -1.0]])
    logprobs = jnp.log(jnp.array([[2.0, 0.5, 0.5, 2.0]]))
    old_logprobs = jnp.zeros((1, 4))
    value, pull = jax.vjp(lambda x: surrogate(x, old_logprobs, advantage), logprobs)
    np.testing.assert_allclose(value, [[-1.2, -0.5, 0.8, 2.0]], rtol=1e-6)
    np.testing.assert_allclose(
        pull(jnp.ones((1, 4)))[0], [[0, -0.5, 0, 2.0]], atol=1e-6
    )


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_on_policy_gradient_is_minus_the_advantage(surrogate):
    advantage = jnp.array([[1.5, -0.5, 0.0]])
    logprobs = jnp.array([[-1.0, -2.0, -0.1]])
    gradient = jax.grad(lambda x: surrogate(x, logprobs, advantage).sum())(logprobs)
    np.testing.assert_allclose(gradient, -advantage, rtol=1e-6)


def test_dual_clip_bounds_what_the_clip_does_not():
    logprobs = jnp.log(jnp.array([[2.9, 3.1, 3.1]]))
    advantage = jnp.array([[-2.0, -2.0, 2.0]])
    value, pull = jax.vjp(
        lambda x: objectives.dual_clipped_surrogate(x, jnp.zeros((1, 3)), advantage),
        logprobs,
    )
    np.testing.assert_allclose(value, [[5.8, 6.0, -2.4]], rtol=1e-6)
    np.testing.assert_allclose(pull(jnp.ones((1, 3)))[0], [[5.8, 0, 0]], rtol=1e-6)


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_extreme_ratios_stay_finite_and_stop_the_gradient(surrogate):
    logprobs = jnp.array([[0.0, -500.0, 0.0, -500.0, 0.0]])
    old_logprobs = jnp.array([[-500.0, 0.0, -500.0, 0.0, -500.0]])
    advantage = jnp.array([[1.0, 1.0, -1.0, -1.0, 0.0]])
    value, pull = jax.vjp(lambda x: surrogate(x, old_logprobs, advantage), logprobs)
    assert np.isfinite(value).all()
    np.testing.assert_array_equal(pull(jnp.ones((1, 5)))[0], np.zeros((1, 5)))


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_poisoned_padding_reaches_neither_value_nor_gradient(surrogate):
    mask = jnp.array(MASK)
    advantage = ZSCORE(jnp.array(INPUTS["rewards"]), group_size=4)[:, None]
    clean = [jnp.array(INPUTS[name]) for name in ("logp", "old_logp")]
    clean.append(jnp.broadcast_to(advantage, clean[0].shape))

    def loss(*arrays):
        return reductions.token_mean(surrogate(*arrays), mask).total

    both = jax.jit(jax.value_and_grad(loss))
    expected, got = both(*clean), both(*(jnp.where(mask, x, jnp.nan) for x in clean))
    np.testing.assert_array_equal(got[0], expected[0])
    np.testing.assert_array_equal(got[1], expected[1])


def test_sampled_entropy_lowers_the_entropy_when_added():
    logprobs = jnp.array([[-0.5, -2.0]])
    np.testing.assert_array_equal(objectives.sampled_entropy(logprobs), [[0.5, 2.0]])
