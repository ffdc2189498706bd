"""Every value of a fact file, recomputed with the functions of the library.

`make cases OBJECTIVES=path.json` runs this on another file of the same form. Each case
is found by the beginning of its name and computed from the file's own inputs and
configuration; a name that no rule knows fails.
"""

import functools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vrl_jax import (
    advantages,
    divergences,
    filters,
    masked,
    mismatch,
    objectives,
    perception,
    reductions,
    schedules,
    token_weights,
)
from vrl_jax.rewards.length import soft_overlong

# Recomputed with released functions of EasyR1, verl and VPPO-RL: see meta in the file.
DEFAULT = Path(__file__).parent / "golden/objectives_cases.json"
CASES = json.loads(Path(os.environ.get("OBJECTIVES") or DEFAULT).read_text())
INPUTS = CASES["inputs"]
MASK = np.array(INPUTS["response_mask"]) > 0
GROUP = INPUTS["group"].count(INPUTS["group"][0])
LENGTHS = MASK.sum(axis=1)


@pytest.fixture(params=[1e-8, 2e-5], ids=["float64", "float32"], scope="module")
def tolerance(request):
    with jax.enable_x64(request.param == 1e-8):
        yield request.param


def same(got, expected, tolerance, name=""):
    """Equal where the file has a value; boolean and 0/1 masks exactly."""
    np.testing.assert_allclose(
        np.asarray(got, float),
        np.asarray(expected, float),
        rtol=tolerance,
        atol=tolerance,
        err_msg=name,
    )


def of(name):
    return jnp.array(INPUTS[name])


def rule_of(name, rules):
    """The rule with the longest beginning that the name shares."""
    known = [start for start in rules if name.startswith(start)]
    assert known, f"no rule computes {name}: write one"
    return rules[max(known, key=len)]


def mean(reduced):
    return reduced.total / reduced.weight


def on_tokens(rows):
    return jnp.broadcast_to(jnp.asarray(rows)[:, None], MASK.shape)


# Advantages


def returns(discount):
    sparse = advantages.at_last_token(of("rewards"), MASK)
    return advantages.reward_to_go(sparse, MASK, discount=discount)


PER_SEQUENCE = {
    "grpo": advantages.group_zscore,
    "grpo_trl": functools.partial(advantages.group_zscore, eps=1e-4),
    "grpo_population": advantages.group_zscore_population,
    "grpo_passk": advantages.pass_at_k,
    "dr_grpo": advantages.group_centered,
    "batch_std": advantages.batch_zscore,
    "rloo": advantages.leave_one_out,
    "opo": lambda r, group_size: advantages.length_weighted(
        r, jnp.array(LENGTHS), group_size=group_size
    ),
    "remax": lambda r, group_size: advantages.greedy_baseline(
        r, of("greedy_rewards_for_remax")
    ),
    "gpg_verl": advantages.gpg_released,
    "gpg_paper": advantages.gpg,
}


def per_sequence(name):
    function = rule_of(name, PER_SEQUENCE)
    return jax.jit(lambda r: function(r, group_size=GROUP))(of("rewards"))


def per_token(name):
    """Advantages of the named rule for each token."""
    if name.startswith("reinforce_plus_plus_baseline"):
        centered = advantages.group_centered(of("rewards"), group_size=GROUP)
        return advantages.whiten(on_tokens(centered), MASK)
    if name.startswith("reinforce_plus_plus_gamma_"):
        return advantages.whiten(returns(float(name.rsplit("_", 1)[1])), MASK)
    return on_tokens(per_sequence(name))


@pytest.mark.parametrize("name", CASES["advantages"]["per_sequence"])
def test_advantages_per_sequence(name, tolerance):
    expected = CASES["advantages"]["per_sequence"][name]
    same(per_sequence(name), expected, tolerance)
    with jax.disable_jit():
        same(per_sequence(name), expected, tolerance)


@pytest.mark.parametrize("name", CASES["advantages"]["per_token"])
def test_advantages_per_token(name, tolerance):
    case = CASES["advantages"]["per_token"][name]
    if "returns" in case:
        discount = float(name.rsplit("_", 1)[1])
        same(jnp.where(MASK, returns(discount), 0), case["returns"], tolerance)
    same(per_token(name), case["advantages"], tolerance)


def of_groups(statistic):
    return jnp.repeat(statistic(of("rewards").reshape(-1, GROUP), axis=1), GROUP)


def check_gpg_alpha(name, expected, tolerance):
    centered = advantages.group_centered(of("rewards"), group_size=GROUP)
    scaled = advantages.gpg_released(of("rewards"), group_size=GROUP)
    some = jnp.argmax(jnp.abs(centered))
    same(scaled[some] / centered[some], expected, tolerance)


def check_rloo_with_kl(name, case, tolerance):
    # The KL of the response as it was sampled: a reward, not a loss.
    kl = masked.sum(divergences.k1(of("old_logp"), of("ref_logp")), MASK, axis=1)
    beta = float(name.rsplit("_", 1)[1].replace("0p", "0."))
    reward = of("rewards") - beta * kl
    same(kl, case["kl_sum"], tolerance)
    same(reward, case["reward"], tolerance)
    advantage = advantages.leave_one_out(reward, group_size=GROUP)
    same(advantage, case["advantage"], tolerance)


def check_gpg_degenerate(name, case, tolerance):
    rewards = jnp.array(case["rewards"])
    size = case["group"].count(case["group"][0])
    centered = advantages.group_centered(rewards, group_size=size)
    for key, function in (
        ("adv_verl", advantages.gpg_released),
        ("adv_paper", advantages.gpg),
    ):
        got = function(rewards, group_size=size)
        same(got, case[key], tolerance, key)
        alpha = next(v for k, v in case.items() if k.startswith(f"alpha_{key[4:]}"))
        same(got[0] / centered[0], alpha, tolerance, key)


OTHER_ADVANTAGES = {
    "group_mean": lambda name, e, tol: same(of_groups(jnp.mean), e, tol),
    "group_std_unbiased": lambda name, e, tol: same(
        of_groups(functools.partial(jnp.std, ddof=1)), e, tol
    ),
    "gpg_alpha": check_gpg_alpha,
    "rloo_with_k1": check_rloo_with_kl,
    "gpg_degenerate": check_gpg_degenerate,
}


@pytest.mark.parametrize(
    "name", [n for n in CASES["advantages"] if not n.startswith("per_")]
)
def test_advantages_other(name, tolerance):
    rule_of(name, OTHER_ADVANTAGES)(name, CASES["advantages"][name], tolerance)


# Policy losses


def bounds(config):
    return {"clip_low": config["eps_low"], "clip_high": config["eps_high"]}


def ppo(case, new, old, advantage):
    config = case["config"]
    if "clip_ratio_c" in config:
        return objectives.dual_clipped_surrogate(
            new, old, advantage, **bounds(config), dual=config["clip_ratio_c"]
        )
    return objectives.clipped_surrogate(new, old, advantage, **bounds(config))


def by_ratio(ratio):
    def per_token(case, new, old, advantage):
        return objectives.clipped(
            ratio(new, old, MASK), advantage, **bounds(case["config"])
        )

    return per_token


def gmpo(case, new, old, advantage):
    clip = case["config"]["eps_low"]
    ratio = objectives.geometric_ratio(new, old, advantage, MASK, clip=clip)
    return objectives.weighted(ratio, advantage)


def sapo(case, new, old, advantage):
    config = case["config"]
    return objectives.sapo(
        new,
        old,
        advantage,
        tau_positive=config["tau_pos"],
        tau_negative=config["tau_neg"],
    )


def kl_cov(case, new, old, advantage):
    config = case["config"]
    return objectives.kl_cov(
        new,
        old,
        advantage,
        MASK,
        share=config["kl_cov_ratio"],
        coefficient=config["ppo_kl_coef"],
    )


def clip_cov(case, new, old, advantage):
    config = case["config"]
    return objectives.clip_cov(
        jax.random.key(0),
        new,
        old,
        advantage,
        MASK,
        **bounds(config),
        share=config["clip_cov_ratio"],
        low=config["clip_cov_lb"],
        high=config["clip_cov_ub"],
    )


LOSSES = {
    "": ppo,
    "two_sided": lambda case, *x: objectives.two_sided_surrogate(
        *x, **bounds(case["config"]), delta=case["config"]["delta"]
    ),
    "rloo_trl_sequence": by_ratio(objectives.response_ratio),
    "gspo": by_ratio(objectives.sequence_ratio),
    "gspo_token": by_ratio(objectives.sequence_token_ratio),
    "luspo": by_ratio(objectives.sequence_ratio),
    "cispo_trl": lambda case, *x: objectives.cispo(
        *x, max_weight=case["config"]["eps_max"]
    ),
    "cispo_verl": lambda case, *x: objectives.cispo_near_one(
        *x, **bounds(case["config"])
    ),
    "sapo": sapo,
    "gmpo": gmpo,
    "gpg": lambda case, new, old, a: objectives.policy_gradient(new, a),
    "remax": lambda case, new, old, a: objectives.policy_gradient(new, a),
    "vespo": lambda case, *x: objectives.vespo(*x, MASK),
    "kl_cov": kl_cov,
    "clip_cov": clip_cov,
}


def reduce(case, matrix):
    """The average that the case's configuration names."""
    how = case["config"].get("aggregation", "mean over sequences")
    length = case["config"].get("L", INPUTS["max_completion_length_L"])
    if how.startswith("token-mean"):
        return mean(reductions.token_mean(matrix, MASK))
    if how.startswith("sum/(B*L)"):
        return mean(reductions.constant_length(matrix, MASK, max_length=length))
    if how.startswith("sum/L"):
        return reductions.constant_length(matrix, MASK, max_length=1).total / length
    if how.startswith("mean_i( len_i"):
        return mean(reductions.constant_length(matrix, MASK, max_length=1))
    assert how.startswith(("seq-mean", "mean over sequences")), how
    return mean(reductions.sequence_mean(matrix, MASK))


def loss_of(name):
    case = CASES["policy_loss"][name]
    old, advantage = of("old_logp"), per_token(case["advantages"])
    function = rule_of(name, LOSSES)

    def loss(new):
        matrix = function(case, new, old, advantage)
        return reduce(case, matrix), matrix

    return loss


@pytest.mark.parametrize("name", CASES["policy_loss"])
def test_policy_loss(name, tolerance):
    case, loss = CASES["policy_loss"][name], loss_of(name)
    both = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, matrix), gradient = both(of("logp"))
    same(value, case["loss"], tolerance, "loss")
    same(gradient, case["grad_wrt_logp"], tolerance, "gradient")
    same(loss(of("logp"))[0], case["loss"], tolerance, "without jit")
    if "per_token_loss" in case:
        same(jnp.where(MASK, matrix, 0), case["per_token_loss"], tolerance)
    if "per_sequence_loss" in case:
        rows = masked.mean(matrix, MASK, axis=1)
        same(rows, case["per_sequence_loss"], tolerance)
    more = set(case) - {"loss", "grad_wrt_logp", "config", "advantages", "k", "note"}
    for extra in more - {"per_token_loss", "per_sequence_loss", "max_detached"}:
        rule_of(extra, LOSS_EXTRAS)(case, name, tolerance)


def check_clip_fractions(case, name, tolerance):
    found = objectives.clip_fractions(
        objectives.importance_ratio(of("logp"), of("old_logp")),
        per_token(case["advantages"]),
        **bounds(case["config"]),
    )
    for side, fraction in zip(("low", "high"), found, strict=True):
        got = mean(reductions.token_mean(fraction, MASK))
        same(got, case[f"clip_{side}_frac"], tolerance)


def check_sequence_ratio(case, name, tolerance):
    ratio = objectives.sequence_ratio(of("logp"), of("old_logp"), MASK)
    same(ratio[:, 0], case["sequence_ratio"], tolerance)


def check_cispo_weights(case, name, tolerance):
    def weights(new):  # d loss / d (A logprobs), token by token
        ones = jnp.ones_like(new)
        return rule_of(name, LOSSES)(case, new, of("old_logp"), ones).sum()

    got = -jax.grad(weights)(of("logp"))
    same(jnp.where(MASK, got, 0), case["weights"], tolerance)


def check_covariance(case, name, tolerance):
    got = objectives.covariance(of("logp"), per_token(case["advantages"]), MASK)
    same(got, case["covariance"], tolerance)


def check_selected(case, name, tolerance):
    """Where the loss differs from the same one without anything held back."""
    plain = {**case, "config": {**case["config"], "ppo_kl_coef": 0.0}}
    x = (of("logp"), of("old_logp"), per_token(case["advantages"]))
    differs = kl_cov(case, *x) != kl_cov(plain, *x)
    found = np.argwhere(np.asarray(differs) & MASK).tolist()
    assert len(case["selected"]) == case["k"]
    assert sorted(found) == sorted(case["selected"])


def check_candidates(case, name, tolerance):
    x = (of("logp"), of("old_logp"), per_token(case["advantages"]))
    plain = objectives.clipped_surrogate(*x, **bounds(case["config"]))
    differs = np.asarray(clip_cov(case, *x) != plain) & MASK
    # The rule is random; the file says when every candidate must be drawn.
    if len(case["candidates"]) <= case["max_detached"]:
        assert np.argwhere(differs).tolist() == sorted(case["candidates"])


def check_already_clipped(case, name, tolerance):
    ratio = objectives.importance_ratio(of("logp"), of("old_logp"))
    x = (ratio, per_token(case["advantages"]))
    found = sum(objectives.clip_fractions(*x, **bounds(case["config"]))) > 0
    got = np.argwhere(np.asarray(found) & MASK).tolist()
    assert got == sorted(case["already_ppo_clipped"])


LOSS_EXTRAS = {
    "clip_": check_clip_fractions,
    "sequence_ratio": check_sequence_ratio,
    "weights": check_cispo_weights,
    "covariance": check_covariance,
    "selected": check_selected,
    "candidates": check_candidates,
    "already_ppo_clipped": check_already_clipped,
}


@pytest.mark.parametrize("name", CASES["policy_loss"])
def test_policy_loss_ignores_poisoned_padding(name):
    case = CASES["policy_loss"][name]
    function, advantage = rule_of(name, LOSSES), per_token(case["advantages"])
    clean = (of("logp"), of("old_logp"), advantage)

    def loss(*arrays):
        return reduce(case, function(case, *arrays))

    both = jax.jit(jax.value_and_grad(loss))
    expected = both(*clean)
    got = both(*(jnp.where(MASK, x, jnp.nan) for x in clean))
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-6)
    np.testing.assert_allclose(got[1], expected[1], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", CASES["policy_loss"])
def test_policy_loss_gradient_is_that_of_finite_differences(name):
    if "token" in name.split("gspo_")[-1] and "gspo_token" in name:
        pytest.skip("its value does not follow its gradient, by construction")
    if name.startswith(("cispo", "vespo")):
        pytest.skip("the weight carries no gradient, by construction")
    with jax.enable_x64(True):
        loss, x = loss_of(name), of("logp")
        value = jax.jit(lambda y: loss(y)[0])
        gradient = jax.grad(value)(x)
        rng = np.random.default_rng(0)
        for _ in range(3):
            way = jnp.array(rng.normal(size=x.shape))
            h = 1e-6
            slope = (value(x + h * way) - value(x - h * way)) / (2 * h)
            np.testing.assert_allclose(slope, (gradient * way).sum(), rtol=1e-4)


# Aggregation


def matrix():
    path = CASES["aggregation"]["matrix"].split(".")
    return jnp.array(functools.reduce(lambda x, key: x[key], path, CASES))


def released(reduction):
    """Micro-batches as the learner adds them up."""
    parts = [
        reduction(matrix()[np.array(rows)], MASK[np.array(rows)])
        for rows in CASES["aggregation"]["micro_batches"]
    ]
    return sum(p.total for p in parts) / sum(p.weight for p in parts)


def constant(length):
    return reductions.constant_length(matrix(), MASK, max_length=length)


def over_length(length):
    return mean(reductions.sum_over_length(matrix(), MASK, max_length=length))


AGGREGATION = {
    "token_mean": lambda: mean(reductions.token_mean(matrix(), MASK)),
    "seq_mean_token_mean": lambda: mean(reductions.sequence_mean(matrix(), MASK)),
    "seq_mean_token_sum": lambda: mean(constant(1)),
    "sum_over_B_times_L": lambda: mean(constant(INPUTS["max_completion_length_L"])),
    "sum_over_L_verl": lambda: over_length(INPUTS["max_completion_length_L"]),
    "sum_over_T_verl": lambda: over_length(MASK.shape[1]),
    "bnpo": lambda: released(reductions.mean_of_token_means),
    "easyr1_token_mode": lambda: released(reductions.token_mean),
    "easyr1_seq_mode": lambda: released(reductions.easyr1_sequence_mean),
}


@pytest.mark.parametrize(
    "name", [n for n in CASES["aggregation"] if n not in ("matrix", "micro_batches")]
)
def test_aggregation(name, tolerance):
    got = rule_of(name, AGGREGATION)()
    same(got, CASES["aggregation"][name], tolerance)


# Divergences

KL = CASES["kl"]
ESTIMATORS = {
    "k1": divergences.k1,
    "abs": divergences.absolute,
    "k2": divergences.k2,
    "k3": divergences.k3,
    "k3_straight": lambda *x: divergences.straight_through(
        divergences.k3(*x), divergences.k2(*x)
    ),
    "low_var_kl": divergences.low_var_kl,
}


def estimate(name, new=None):
    function = rule_of(name, ESTIMATORS)
    return function(of("logp") if new is None else new, of("ref_logp"))


@pytest.mark.parametrize("name", KL["per_token"])
def test_kl_per_token(name, tolerance):
    got = jnp.where(MASK, estimate(name), 0)
    same(got, KL["per_token"][name], tolerance)


@pytest.mark.parametrize(
    ("average", "name"),
    [(how, name) for how in ("token_mean", "seq_mean") for name in KL[how]],
)
def test_kl_means(average, name, tolerance):
    how = {"token_mean": reductions.token_mean, "seq_mean": reductions.sequence_mean}
    same(mean(how[average](estimate(name), MASK)), KL[average][name], tolerance)


@pytest.mark.parametrize("name", KL["grad_per_token_wrt_logp"])
def test_kl_gradient(name, tolerance):
    gradient = jax.grad(lambda x: masked.sum(estimate(name, x), MASK))(of("logp"))
    same(gradient, KL["grad_per_token_wrt_logp"][name], tolerance)


def check_k3_times_ratio(case, tolerance):
    ratio = objectives.importance_ratio(of("logp"), of("old_logp"))
    same(jnp.where(MASK, ratio * estimate("k3"), 0), case, tolerance)


def check_clamp_demo(case, tolerance):
    ref = jnp.array([case["ref_minus_logp"]])
    value, pull = jax.vjp(lambda x: divergences.low_var_kl(x, ref), ref * 0)
    same(value[0], case["low_var_kl"], tolerance)
    same(pull(jnp.ones_like(ref))[0][0], case["grad_wrt_logp"], tolerance)
    inner = divergences.k3(ref * 0, masked.clamp(ref, -20.0, 20.0))
    same(inner[0], case["k3_after_input_clamp_20"], tolerance)


def check_grpo_plus_kl(case, tolerance):
    config = case["config"]
    policy = loss_of(config["pg"])(of("logp"))[0]
    penalty = mean(reductions.sequence_mean(estimate(config["kl"]), MASK))
    same(policy + config["beta"] * penalty, case["loss"], tolerance)


OTHER_KL = {
    "k3_times_ratio": check_k3_times_ratio,
    "clamp_demo": check_clamp_demo,
    "grpo_plus_kl_loss": check_grpo_plus_kl,
}


@pytest.mark.parametrize(
    "name",
    [
        n
        for n in KL
        if n not in ("inputs", "per_token", "token_mean", "seq_mean")
        and not n.startswith("grad_")
    ],
)
def test_kl_other(name, tolerance):
    rule_of(name, OTHER_KL)(KL[name], tolerance)


# Rewards and filters of DAPO


def check_overlong(case, tolerance):
    config = case["config"]
    got = config["penalty_factor"] * soft_overlong(
        np.array(case["lengths"]), max_length=config["max_len"], buffer=config["buffer"]
    )
    same(got, case["dapo_trl_easyr1"], tolerance)
    # verl has no floor: the same below the limit, which truncation never exceeds.
    inside = np.array(case["lengths"]) <= config["max_len"]
    same(got[inside], np.array(case["verl"])[inside], tolerance)


def test_dapo_rewards(tolerance):
    check_overlong(CASES["dapo_rewards"], tolerance)


def test_dynamic_sampling():
    case = CASES["dapo_rewards"]["dynamic_sampling"]
    scores = jnp.array(list(case["groups"].values()), jnp.float32)
    size = scores.shape[1]
    mixed = filters.mixed_groups(scores.ravel(), group_size=size)
    differ = ~filters.zero_variance_groups(scores.ravel(), group_size=size)
    for keep, key in ((mixed, "easyr1_mean"), (differ, "verl_std")):
        expected = next(value for name, value in case.items() if name.startswith(key))
        assert [n for n, k in zip(case["groups"], keep, strict=True) if k] == expected


# The sampler against the learner

MISMATCH = CASES["train_infer_mismatch"]


def rho(kind="token"):
    ratio = {
        "token": objectives.importance_ratio,
        "sequence": lambda *x: objectives.response_ratio(*x, MASK),
    }[kind]
    return ratio(of("old_logp"), of("rollout_logp"))


def after(text, name, default):
    """The number that follows a word in a case's name."""
    return float(name.split(text)[1].split("_")[0]) if text in name else default


def weights_of(name):
    """Weights by their name, such as trl_token_mask_min0.5_max2."""
    parts = name.split("_")
    kind = next(k for k in ("token", "sequence") if k in parts)
    low, high = after("min", name, 0.0), after("max", name, math.inf)
    high = after("threshold", name, high)
    function = mismatch.rejected if "mask" in parts else mismatch.truncated
    weights = function(rho(kind), MASK, low=low, high=high)
    return mismatch.mean_one(weights, MASK) if "normalised" in parts else weights


def check_weights(name, expected, tolerance):
    got = weights_of(name)
    # TRL keeps one weight a response, verl copies it to the tokens.
    same(got[:, 0] if np.ndim(expected) == 1 else got, expected, tolerance)


def check_ratio(name, expected, tolerance):
    ratio = jnp.where(MASK, rho(name.rsplit("_", 1)[1]), 0)
    same(ratio[:, 0] if np.ndim(expected) == 1 else ratio, expected, tolerance)


def check_weighted_loss(name, expected, tolerance):
    weights = weights_of(name.removeprefix("dapo_loss_with_"))
    matrix = loss_of("dapo_token_mean")(of("logp"))[1]
    same(mean(reductions.token_mean(weights * matrix, MASK)), expected, tolerance)


def check_rejection_by_k3(name, case, tolerance):
    k3 = divergences.k3(of("rollout_logp"), of("old_logp"))
    same(masked.mean(k3, MASK, axis=1), case["stat"], tolerance)
    keep = mismatch.agreeing_responses(k3, MASK, threshold=case["threshold"])
    same(keep.any(axis=1), case["keep"], 0)


def check_rejection_by_k1(name, case, tolerance):
    low, high = map(float, name.split("_")[-2:])
    ratio = objectives.importance_ratio(of("rollout_logp"), of("old_logp"))
    keep = mismatch.agreeing_tokens(ratio, MASK, low=low, high=high)
    same(keep, case["keep"], 0)


def check_off_policy(name, case, tolerance):
    x = (of("logp"), of("rollout_logp"))
    gap = masked.mean(divergences.k1(*x[::-1]), MASK, axis=1)
    same(gap, case["mean_k1"], tolerance)
    keep = mismatch.on_policy_responses(
        *x, per_token("grpo_verl_easyr1"), MASK, threshold=case["threshold"]
    )
    same(keep.any(axis=1), case["keep"], 0)


MISMATCH_RULES = {
    "ratio_": check_ratio,
    "trl_": check_weights,
    "verl_": check_weights,
    "verl_rs_seq_mean_k3": check_rejection_by_k3,
    "verl_rs_token_k1": check_rejection_by_k1,
    "dapo_loss_with_": check_weighted_loss,
    "off_policy_sequence_mask": check_off_policy,
}


@pytest.mark.parametrize("name", MISMATCH)
def test_train_infer_mismatch(name, tolerance):
    rule_of(name, MISMATCH_RULES)(name, MISMATCH[name], tolerance)


# Entropy


@pytest.mark.parametrize("name", [n for n in CASES["top_entropy"] if n != "entropy"])
def test_top_entropy(name, tolerance):
    case, entropy = CASES["top_entropy"], jnp.array(CASES["top_entropy"]["entropy"])
    share = float(name.rsplit("_", 1)[1].replace("p", "."))
    if name.startswith("response_level_ceil"):
        same(perception.top_share(entropy, MASK, share), case[name], 0)
    else:
        assert name.startswith("trl_top_entropy_quantile")
        threshold = masked.quantile(entropy, MASK, 1 - share)
        same(threshold, case[name]["threshold"], tolerance)
        same(perception.above_quantile(entropy, MASK, share), case[name]["mask"], 0)


# Perception: VPPO

VPPO = CASES["vppo"]


def scores():
    return perception.sampled_k3(of("old_logp"), of("masked_image_logp"), MASK)


def dependency():
    return perception.trajectory_dependency(scores(), MASK)


def every_row():
    return jnp.ones(len(MASK), bool)


def chosen():
    return perception.top_share(scores(), MASK, VPPO["top_k_ratio"])


def check_all_rows(case, tolerance):
    low = case["beta_min"]
    alpha = perception.mean_one_weights(dependency(), every_row(), beta_min=low)
    same(alpha, case["alpha"], tolerance)
    same(alpha.mean(), case["alpha_mean"], tolerance)
    same(alpha.max(), case["beta_max_dynamic"], tolerance)
    share = (alpha - low) / (alpha.max() - low)
    same(share, case["normalised"], max(tolerance, 1e-7))


def shaped_loss(alpha, config):
    """Value and gradient of VPPO's loss, from its parts."""
    advantage = alpha * per_sequence(config["advantages"])

    def loss(new):
        policy = objectives.dual_clipped_surrogate(
            new,
            of("old_logp"),
            chosen() * advantage[:, None],
            **bounds(config),
            dual=config["clip_ratio_dual"],
        )
        policy = mean(reductions.token_mean(policy, MASK))
        penalty = config["entropy_penalty_coef"] * mean(
            reductions.token_mean(objectives.sampled_entropy(new), MASK)
        )
        return policy + penalty, (policy, penalty, advantage)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(of("logp"))


CONFIG = VPPO["loss_single_micro_batch"]["config"]
BETA_MIN = VPPO["tas_all_8_rows"]["beta_min"]


def mean_one():
    return perception.mean_one_weights(dependency(), every_row(), beta_min=BETA_MIN)


def check_vppo_loss(case, tolerance):
    alpha = mean_one()
    (value, (policy, penalty, advantage)), gradient = shaped_loss(alpha, case["config"])
    same(advantage, case["shaped_advantage"], tolerance)
    same(policy, case["pg_loss"], tolerance)
    same(penalty, case["entropy_penalty_term"], tolerance)
    same(value, case["loss"], tolerance)
    same(gradient, case["grad_wrt_logp"], tolerance)


def check_micro_batches(case, tolerance):
    size = len(case["micro_batches"][0])
    alpha = perception.per_shard_weights(
        dependency(), every_row(), micro_batch_size=size, beta_min=BETA_MIN
    )
    same(alpha, case["alpha"], tolerance)
    # beta_max is alpha of a row with n = 1; alpha is linear in n.
    n = dependency() - dependency().min()
    n = (n / n.max()).reshape(-1, size)
    lift = (alpha.reshape(-1, size) - BETA_MIN).max(axis=1)
    top = BETA_MIN + lift / n.max(axis=1)
    same(top, case["beta_max"], tolerance)
    same(shaped_loss(alpha, CONFIG)[0][0], case["loss"], tolerance)


def check_fixed_range(name, case, tolerance):
    low, high = map(float, name.rsplit("_", 2)[1:])
    alpha = perception.fixed_range_weights(
        dependency(), every_row(), beta_min=low, beta_max=high
    )
    same(alpha, case["alpha"], tolerance)
    same(shaped_loss(alpha, CONFIG)[0][0], case["loss"], tolerance)


def check_vppo_divisor(reduction):
    def check(expected, tolerance):
        alpha = mean_one()
        advantage = alpha * per_sequence(CONFIG["advantages"])
        matrix = objectives.clipped_surrogate(
            of("logp"),
            of("old_logp"),
            chosen() * advantage[:, None],
            **bounds(CONFIG),
        )
        same(mean(reduction(matrix)), expected, tolerance)

    return check


def check_full_vocabulary(case, tolerance):
    image, blind = (jnp.array(case[f"logits_{x}"]) for x in ("image", "masked"))
    rows, token = np.arange(len(image)), jnp.array(case["sampled_token"])
    valid = jnp.ones((1, len(image)), bool)

    def sampled(logits):
        return jax.nn.log_softmax(logits)[rows, token][None]

    def k3(temperature):
        x = (sampled(logits / temperature) for logits in (image, blind))
        return perception.sampled_k3(*x, valid)[0]

    forward, reverse = (
        divergences.full_kl(image, blind),
        divergences.full_kl(blind, image),
    )
    logp, logq = jax.nn.log_softmax(image), jax.nn.log_softmax(blind)
    drop = perception.probability_drop(sampled(image), sampled(blind), valid)
    found = {
        "kl_forward_P_image_to_masked": forward,
        "kl_reverse": reverse,
        "jsd": divergences.full_jensen_shannon(image, blind),
        "symmetric_kl_mean": (forward + reverse) / 2,
        "entropy_image": divergences.full_entropy(image),
        "entropy_masked": divergences.full_entropy(blind),
        "top1_prob_drop_sampled": drop[0],
        "k3_at_sampled_token": k3(1.0),
        "expectation_of_k3_under_P": (jnp.exp(logp) * divergences.k3(logp, logq)).sum(
            1
        ),
    }
    given = {"logits_image", "logits_masked", "sampled_token", "temperature"}
    for name in set(case) - given:
        if name.startswith("k3_at_sampled_token_logits_divided_by_temperature_"):
            found[name] = k3(float(name.rsplit("_", 1)[1].replace("p", ".")))
        same(found[name], case[name], tolerance, name)


def total_of(matrix):
    return reductions.token_mean(matrix, chosen())


VPPO_RULES = {
    "score_per_token": lambda e, tol: same(scores(), e, tol),
    "score_definition": lambda e, tol: None,  # words
    "trajectory_score": lambda e, tol: same(dependency(), e, tol),
    "top_k_ratio": lambda e, tol: None,  # read by `chosen`
    "k_per_row": lambda e, tol: same(chosen().sum(axis=1), e, 0),
    "token_mask": lambda e, tol: same(chosen(), e, 0),
    "tas_all": check_all_rows,
    "loss_single": check_vppo_loss,
    "loss_two_micro_batches": check_micro_batches,
    "paper_eq6": check_vppo_divisor(lambda x: reductions.sequence_mean(x, MASK)),
    "selected_token_mean": check_vppo_divisor(total_of),
    "full_vocabulary": check_full_vocabulary,
}


@pytest.mark.parametrize("name", VPPO)
def test_vppo(name, tolerance):
    if name.startswith("fixed_range"):
        check_fixed_range(name, VPPO[name], tolerance)
    else:
        rule_of(name, VPPO_RULES)(VPPO[name], tolerance)


# Perception: PAPO and others


def test_papo(tolerance):
    case, config = CASES["papo"], CASES["papo"]["config"]
    blind, advantage = of("masked_image_logp"), per_token("grpo_verl_easyr1")

    def loss(new):
        kp = divergences.low_var_kl(new, blind)
        policy = objectives.dual_clipped_surrogate(
            new,
            of("old_logp"),
            advantage,
            **bounds(config),
            dual=config["clip_ratio_dual"],
        )
        matrices = (
            policy,
            kp,
            objectives.sampled_entropy(new),
            objectives.sampled_entropy(blind),
        )
        parts = [mean(reductions.token_mean(x, MASK)) for x in matrices]
        factors = (1, -config["gamma"], config["eta1"], config["eta2"])
        total = sum(f * x for f, x in zip(factors, parts, strict=True))
        return total, (parts, kp)

    (value, (parts, kp)), gradient = jax.value_and_grad(loss, has_aux=True)(of("logp"))
    found = ("pg_loss", "kl_prcp", "ori_entropy", "aug_entropy")
    for name, got in zip(found, parts, strict=True):
        same(got, case[name], tolerance, name)
    same(jnp.where(MASK, kp, 0), case["kl_prcp_per_token"], tolerance)
    same(value, case["loss"], tolerance)
    same(gradient, case["grad_wrt_logp"], tolerance)


def entropies():
    return jnp.array(CASES["top_entropy"]["entropy"])


def check_pgpo(case, tolerance):
    weights = token_weights.pgpo_weights(
        scores(), MASK, tau=case["tau"], beta=case["beta"]
    )
    same(weights, case["weights"], tolerance)
    share = masked.min_max(jnp.log1p(scores()), MASK, axis=1)
    same(share, case["normalised"], tolerance)


def check_cgpo(case, tolerance):
    for part, median in (
        (case, masked.median),
        (case["torch_lower_median"], masked.lower_median),
    ):
        centre = median(dependency(), every_row())
        same(centre, part["median"], tolerance)
        same(
            median(jnp.abs(dependency() - centre), every_row()), part["mad"], tolerance
        )
        alpha = token_weights.median_weights(
            dependency(), every_row(), strength=case["lam"], median=median
        )
        same(alpha, part["alpha"], tolerance)


def check_pepo(case, tolerance):
    x = (jnp.array(case["similarity"]), entropies(), MASK)
    same(token_weights.pepo_gate(*x, alpha=case["alpha"]), case["gate"], tolerance)
    weights = token_weights.pepo_weights(
        *x, alpha=case["alpha"], temperature=case["temperature"]
    )
    same(weights, case["weights"], tolerance)
    for name in case:
        if name.startswith("weights_at_lambda_"):
            part = float(name.rsplit("_", 1)[1].replace("p", "."))
            got = jnp.where(MASK, (1 - part) + part * weights, 0)
            same(got, case[name], tolerance)


def check_tor(case, tolerance):
    gap = jnp.abs(of("masked_image_logp") - of("old_logp"))
    for values, name in ((entropies(), "reasoning"), (gap, "perception")):
        got = perception.top_share_of_batch(values, MASK, case["fraction"])
        same(got, case[f"{name}_mask"], 0)
        assert got.sum() == case["k"]
    weights = token_weights.tor_weights(
        entropies(),
        gap,
        MASK,
        share=case["fraction"],
        reasoning=case["gamma_r"],
        perception=case["gamma_p"],
    )
    same(weights, case["weights"], tolerance)


def check_dupl(case, tolerance):
    advantage = per_token("grpo_verl_easyr1")
    for u, kind in ((jnp.array(case["u_per"]), "p"), (entropies(), "o")):
        got = token_weights.dupl_bonus(
            advantage, u, MASK, alpha=case[f"alpha_{kind}"], beta=case[f"beta_{kind}"]
        )
        same(got, case["g_per" if kind == "p" else "g_out"], tolerance)


def check_noise_schedule(case, tolerance):
    for step, k, std in zip(
        case["steps"], case["noise_step"], case["noise_std"], strict=True
    ):
        got = schedules.sigmoid_decay(
            step,
            start=case["alpha0"],
            slope=case["lam"],
            middle=case["gamma"],
            total=case["t_max"],
        )
        assert got == k
        same(schedules.diffusion_noise_std(got), std, tolerance)


OTHER_PERCEPTION = {
    "pgpo": check_pgpo,
    "cgpo": check_cgpo,
    "pepo": check_pepo,
    "tor": check_tor,
    "dupl": check_dupl,
    "noisyrollout": check_noise_schedule,
}


@pytest.mark.parametrize("name", CASES["other_perception"])
def test_other_perception(name, tolerance):
    rule_of(name, OTHER_PERCEPTION)(CASES["other_perception"][name], tolerance)


def test_every_section_has_a_test():
    tested = {
        "advantages",
        "policy_loss",
        "aggregation",
        "kl",
        "dapo_rewards",
        "train_infer_mismatch",
        "top_entropy",
        "vppo",
        "papo",
        "other_perception",
    }
    assert set(CASES) == tested | {"meta", "inputs"}


def test_a_wrong_number_in_another_file_fails_and_names_the_case(tmp_path):
    """What `make cases OBJECTIVES=path.json` is for."""
    other = json.loads(DEFAULT.read_text())
    other["advantages"]["per_sequence"]["rloo"][0] += 1e-3
    file = tmp_path / "other.json"
    file.write_text(json.dumps(other))
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", __file__]
    chosen = ["-k", "test_advantages_per_sequence and rloo"]
    told = subprocess.run(
        [*command, *chosen],
        env={**os.environ, "OBJECTIVES": str(file)},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 1, told.stdout + told.stderr
    assert "FAILED" in told.stdout
    assert "test_advantages_per_sequence[float64-rloo]" in told.stdout
