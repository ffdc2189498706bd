import functools
import json
from fractions import Fraction
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vrl_jax import advantages, objectives, perception, reductions

# Recomputed with the released VPPO functions: see meta in the file.
CASES = json.loads((Path(__file__).parent / "golden/objectives_cases.json").read_text())
INPUTS, VPPO = CASES["inputs"], CASES["vppo"]
MASK = np.array(INPUTS["response_mask"]) > 0
ALL = np.ones(8, bool)


@pytest.fixture(params=[1e-8, 2e-5], ids=["float64", "float32"])
def tolerance(request):
    with jax.enable_x64(request.param == 1e-8):
        yield request.param


@jax.jit
def scores():
    return perception.sampled_k3(
        jnp.array(INPUTS["old_logp"]),
        jnp.array(INPUTS["masked_image_logp"]),
        jnp.array(MASK),
    )


@jax.jit
def dependency():
    return perception.trajectory_dependency(scores(), jnp.array(MASK))


def test_scores_golden(tolerance):
    close = {"rtol": tolerance, "atol": tolerance}
    np.testing.assert_allclose(scores(), VPPO["score_per_token"], **close)
    np.testing.assert_allclose(dependency(), VPPO["trajectory_score"], **close)


def test_sampled_k3_golden_in_a_small_vocabulary(tolerance):
    case, rows = VPPO["full_vocabulary"], np.arange(4)
    image, blind = jnp.array(case["logits_image"]), jnp.array(case["logits_masked"])
    mask = jnp.ones((1, 4), bool)

    def sampled(logits):
        return jax.nn.log_softmax(logits)[rows, jnp.array(case["sampled_token"])][None]

    for temperature, name in (
        (1.0, "k3_at_sampled_token"),
        (0.7, "k3_at_sampled_token_logits_divided_by_temperature_0p7"),
    ):
        score = perception.sampled_k3(
            sampled(image / temperature), sampled(blind / temperature), mask
        )
        np.testing.assert_allclose(
            score[0], case[name], rtol=tolerance, atol=tolerance, err_msg=name
        )
    drop = perception.probability_drop(sampled(image), sampled(blind), mask)[0]
    np.testing.assert_allclose(
        drop, case["top1_prob_drop_sampled"], rtol=tolerance, atol=tolerance
    )


def test_sampled_k3_clamps():
    # The table of the released score, worked out by hand: 10 at -11 and from 2.611 on.
    d = jnp.array([[-500.0, -11.0, -5.0, 0.0, 2.6, 2.611, 500.0]])
    score = perception.sampled_k3(jnp.zeros_like(d), d, jnp.ones_like(d, bool))
    expected = [[10.0, 10.0, 4.0067, 0.0, 9.8637, 10.0, 10.0]]
    np.testing.assert_allclose(score, expected, rtol=1e-4)


def test_poisoned_padding_scores_zero():
    old, blind = (
        jnp.where(MASK, jnp.array(INPUTS[name]), jnp.nan)
        for name in ("old_logp", "masked_image_logp")
    )
    for score in (perception.sampled_k3, perception.probability_drop):
        got = score(old, blind, jnp.array(MASK))
        assert np.isfinite(got).all() and not got[~MASK].any()
    got = perception.sampled_k3(old, blind, jnp.array(MASK))
    np.testing.assert_allclose(got, scores(), atol=1e-6)


def test_top_share_golden(tolerance):
    chosen = perception.top_share(scores(), jnp.array(MASK), VPPO["top_k_ratio"])
    np.testing.assert_array_equal(chosen, np.array(VPPO["token_mask"]) > 0)
    np.testing.assert_array_equal(chosen.sum(1), VPPO["k_per_row"])


def test_top_share_of_entropy_golden():
    golden = CASES["top_entropy"]
    chosen = perception.top_share(jnp.array(golden["entropy"]), jnp.array(MASK), 0.2)
    expected = np.array(golden["response_level_ceil_0p2"]) > 0
    np.testing.assert_array_equal(chosen, expected)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 1 / 3, 1.0])
def test_top_share_counts_are_exact(share):
    # 0.3 of 50 and 0.6 of 25 are 15: float32 rounding, as released, says 16.
    lengths = np.arange(0, 131)
    mask = jnp.arange(130)[None] < lengths[:, None]
    exact = Fraction(share).limit_denominator(100)
    expected = [-(-exact.numerator * n // exact.denominator) for n in lengths.tolist()]
    for chosen in (
        perception.top_share(jnp.zeros(mask.shape), mask, share),
        perception.random_share(jax.random.key(0), mask, share),
    ):
        np.testing.assert_array_equal(chosen.sum(1), expected)
        assert not (chosen & ~mask).any()


def test_top_share_ties_go_to_the_earlier_token():
    score = jnp.array([[1.0, 2.0, 1.0, 1.0, jnp.nan], [jnp.nan, 5.0, 0.0, 0.0, 0.0]])
    mask = jnp.array([[1, 1, 1, 1, 0], [0, 1, 1, 1, 1]], bool)
    expected = np.array([[1, 1, 0, 0, 0], [0, 1, 1, 0, 0]], bool)
    top = jax.jit(perception.top_share, static_argnums=2)
    np.testing.assert_array_equal(perception.top_share(score, mask, 0.5), expected)
    np.testing.assert_array_equal(top(score, mask, 0.5), expected)


@pytest.mark.parametrize("share", [-0.1, 1.1, 40])
def test_top_share_outside_of_one_raises(share):
    with pytest.raises(ValueError, match=f"between 0 and 1, got {share}"):
        perception.top_share(jnp.zeros((1, 2)), jnp.ones((1, 2), bool), share)


def test_random_share_differs_by_key():
    mask = jnp.ones((4, 50), bool)
    one, same, other = (
        perception.random_share(jax.random.key(seed), mask, 0.4) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


WEIGHTS = {
    "tas_all_8_rows": jax.jit(perception.mean_one_weights),
    "fixed_range_0.9_1.1": jax.jit(perception.fixed_range_weights),
    "loss_two_micro_batches": jax.jit(
        functools.partial(perception.per_shard_weights, micro_batch_size=4)
    ),
}
INVARIANT = list(WEIGHTS.values())[:2]


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_golden(name, tolerance):
    got = WEIGHTS[name](dependency(), jnp.array(ALL))
    np.testing.assert_allclose(got, VPPO[name]["alpha"], rtol=tolerance)


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
def test_weights_are_one_where_nothing_differs(weights):
    for values, valid in (
        ([0.0, 0.0, 0.0, 0.0], [1, 1, 1, 1]),  # text only
        ([0.3, 0.3 + 9e-7, 0.3, 0.3], [1, 1, 1, 1]),
        ([0.1, 5.0, 7.0, 9.0], [1, 0, 0, 0]),
        ([np.nan, np.nan, np.nan, np.nan], [0, 0, 0, 0]),
    ):
        got = weights(np.array(values, np.float32), np.array(valid, bool))
        np.testing.assert_array_equal(got, np.ones(4))


@pytest.mark.parametrize("weights", INVARIANT, ids=list(WEIGHTS)[:2])
def test_weights_ignore_rows_without_tokens(weights):
    valid = np.array([True, False, True, True, False, True])
    values = np.array([0.2, np.nan, 1.0, 0.6, 50.0, 0.3], np.float32)
    got = np.asarray(weights(values, valid))
    alone = weights(values[valid], np.ones(4, bool))
    np.testing.assert_allclose(got[valid], alone, rtol=1e-6)
    np.testing.assert_array_equal(got[~valid], [1, 1])


def test_mean_one_weights_keep_the_mean_and_follow_permutations():
    rng, valid = np.random.default_rng(0), jnp.ones(12, bool)
    values, order = rng.uniform(size=12).astype(np.float32), rng.permutation(12)
    weights = INVARIANT[0]
    got = weights(values, valid)
    np.testing.assert_allclose(np.mean(got), 1, rtol=1e-6)
    np.testing.assert_allclose(weights(values[order], valid), got[order], rtol=1e-6)


def test_partial_micro_batches_raise():
    with pytest.raises(ValueError, match="got 8 rows for micro_batch_size=3"):
        perception.per_shard_weights(jnp.ones(8), jnp.array(ALL), micro_batch_size=3)


def vppo_loss(logprobs, weights, *, poison=0.0):
    """The whole method from its parts: pg and entropy penalty, a token mean each."""
    mask = jnp.array(MASK)
    old_logprobs = jnp.where(mask, jnp.array(INPUTS["old_logp"]), poison)
    chosen = perception.top_share(scores(), mask, 0.4)
    advantage = advantages.group_zscore(jnp.array(INPUTS["rewards"]), group_size=4)
    per_token = objectives.dual_clipped_surrogate(
        logprobs,
        old_logprobs,
        jnp.where(chosen, (weights * advantage)[:, None], 0),
        clip_high=0.28,
    )
    policy = reductions.token_mean(per_token, mask)
    entropy = reductions.token_mean(objectives.sampled_entropy(logprobs), mask)
    return policy, entropy


def total(logprobs, weights, **knobs):
    policy, entropy = vppo_loss(logprobs, weights, **knobs)
    return policy.total / policy.weight + 0.06 * entropy.total / entropy.weight


def test_vppo_loss_golden(tolerance):
    close = {"rtol": tolerance, "atol": tolerance}
    case, logprobs = VPPO["loss_single_micro_batch"], jnp.array(INPUTS["logp"])
    weights = perception.mean_one_weights(dependency(), jnp.array(ALL))
    policy, entropy = vppo_loss(logprobs, weights)
    np.testing.assert_allclose(policy.total / policy.weight, case["pg_loss"], **close)
    np.testing.assert_allclose(
        0.06 * entropy.total / entropy.weight, case["entropy_penalty_term"], **close
    )
    np.testing.assert_allclose(total(logprobs, weights), case["loss"], **close)
    value, gradient = jax.jit(jax.value_and_grad(total))(logprobs, weights)
    np.testing.assert_allclose(value, case["loss"], **close)
    np.testing.assert_allclose(gradient, case["grad_wrt_logp"], **close)


def test_vppo_variants_golden(tolerance):
    close = {"rtol": tolerance, "atol": tolerance}
    logprobs, valid = jnp.array(INPUTS["logp"]), jnp.array(ALL)
    for name in ("loss_two_micro_batches", "fixed_range_0.9_1.1"):
        weights = WEIGHTS[name](dependency(), valid)
        np.testing.assert_allclose(
            total(logprobs, weights), VPPO[name]["loss"], err_msg=name, **close
        )


def test_vppo_other_divisors_golden(tolerance):
    close = {"rtol": tolerance, "atol": tolerance}
    mask, logprobs = jnp.array(MASK), jnp.array(INPUTS["logp"])
    chosen = perception.top_share(scores(), mask, 0.4)
    weights = perception.mean_one_weights(dependency(), jnp.array(ALL))
    advantage = weights * advantages.group_zscore(
        jnp.array(INPUTS["rewards"]), group_size=4
    )
    per_token = objectives.clipped_surrogate(
        logprobs,
        jnp.array(INPUTS["old_logp"]),
        jnp.where(chosen, advantage[:, None], 0),
        clip_high=0.28,
    )
    # Neither has the dual clip or the entropy penalty.
    for mean, name in (
        (
            reductions.sequence_mean(per_token, mask),
            "paper_eq6_sequence_mean (no dual clip, no entropy penalty)",
        ),
        (
            reductions.token_mean(per_token, chosen),
            "selected_token_mean_variant (VEPO-style denominator)",
        ),
    ):
        np.testing.assert_allclose(
            mean.total / mean.weight, VPPO[name], err_msg=name, **close
        )


def test_vppo_loss_ignores_poisoned_padding():
    logprobs = jnp.array(INPUTS["logp"])
    poisoned = jnp.where(MASK, logprobs, jnp.nan)
    weights = perception.mean_one_weights(dependency(), jnp.array(ALL))
    both = jax.jit(jax.value_and_grad(total))
    expected = both(logprobs, weights)
    got = both(poisoned, weights, poison=jnp.nan)
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-6)
    np.testing.assert_allclose(got[1], expected[1], rtol=1e-6)


def test_view_symmetric_kl_is_that_of_the_logits():
    with jax.enable_x64(True):
        hidden, other = jax.random.normal(jax.random.key(0), (2, 3, 4))
        head = jax.random.normal(jax.random.key(1), (6, 4))
        allowed, temperature = jnp.arange(6) != 2, jnp.array([1.0, 0.7, 1.3])
        found = perception.view_symmetric_kl(
            hidden, other, head, temperature=temperature, allowed=allowed
        )
        p, q = (
            jax.nn.softmax(
                jnp.where(allowed, x @ head.T / temperature[:, None], -jnp.inf)
            )[:, allowed]
            for x in (hidden, other)
        )
        wanted = ((p - q) * jnp.log(p / q)).sum(axis=1) / 2
        np.testing.assert_allclose(found, wanted, rtol=1e-8)
