"""The baselines' losses, through the recipes themselves: values and gradients.

From the file of test_cases.py unless a test says otherwise.
"""

import dataclasses
import functools
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vrl_jax import divergences, perception, preference, schedules
from vrl_jax.engine.reference import near
from vrl_jax.recipes import noisy_rollout as noisy_file
from vrl_jax.recipes import papo as papo_file
from vrl_jax.recipes import vppo as vppo_file
from vrl_jax.recipes.cispo import cispo
from vrl_jax.recipes.dpo import dpo
from vrl_jax.recipes.dr_grpo import dr_grpo
from vrl_jax.recipes.gmpo import gmpo
from vrl_jax.recipes.grpo import grpo
from vrl_jax.recipes.gspo import gspo
from vrl_jax.recipes.luffy import luffy
from vrl_jax.recipes.noisy_rollout import noisy_rollout
from vrl_jax.recipes.papo import papo
from vrl_jax.recipes.reinforce_pp import reinforce_pp
from vrl_jax.recipes.remax import remax
from vrl_jax.recipes.rloo import rloo
from vrl_jax.recipes.sapo import sapo
from vrl_jax.recipes.vppo import vppo
from vrl_jax.types import Images, Likelihood, Prompts, Rollout

DEFAULT = Path(__file__).parents[1] / "golden/objectives_cases.json"
CASES = json.loads(Path(os.environ.get("OBJECTIVES") or DEFAULT).read_text())
INPUTS, LOSSES = CASES["inputs"], CASES["policy_loss"]
CLOSE = {"rtol": 1e-8, "atol": 1e-8}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def rollout(old, rewards, mask, **extra):
    return Rollout(
        prompts=None,
        tokens=jnp.zeros(mask.shape, int),
        positions=None,
        mask=jnp.array(mask),
        temperature=jnp.ones(len(rewards)),
        old_logprobs=jnp.array(old),
        extra_logprobs={name: jnp.array(x) for name, x in extra.items()},
        rewards=jnp.array(rewards),
        reward_parts={},
        group=jnp.zeros(len(rewards), int),
    )


def golden(**extra):
    mask = np.array(INPUTS["response_mask"]) > 0
    return rollout(INPUTS["old_logp"], INPUTS["rewards"], mask, **extra)


def value_and_slope(recipe, scored, logprobs):
    """The divided loss and its gradient, credit included."""

    @jax.jit
    def step(scored, logprobs):
        batch, _ = recipe.credit(scored)

        def loss(logprobs):
            new = Likelihood(logprobs, jnp.zeros_like(logprobs))
            mean, metrics = recipe.loss(lambda _: new, batch)
            return mean.total / mean.weight, metrics

        return jax.value_and_grad(loss, has_aux=True)(logprobs)

    (value, metrics), slope = step(scored, jnp.array(logprobs))
    return value, slope, metrics


@pytest.mark.parametrize(
    ("recipe", "case"),
    [
        (gspo(group_size=4), "gspo_paper_3e-4_4e-4"),
        (gspo(group_size=4, clip_low=0.2, clip_high=0.28), "gspo_wide_0.2_0.28"),
        (cispo(group_size=4), "cispo_trl_max_5"),
        (rloo(group_size=4), "rloo_trl_sequence_ratio"),
        (reinforce_pp(group_size=4), "reinforce_plus_plus_token_mean"),
        (sapo(group_size=4), "sapo"),
        (gmpo(group_size=4), "gmpo"),
        # Same loss; its own part is what it samples from.
        (noisy_rollout(group_size=4), None),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_recipe_golden(recipe, case):
    value, slope, _ = value_and_slope(recipe, golden(), INPUTS["logp"])
    if case is None:
        ones = jnp.zeros_like(slope)
        assert np.isfinite(value) and (slope != ones).any()
        return
    np.testing.assert_allclose(value, LOSSES[case]["loss"], **CLOSE)
    np.testing.assert_allclose(slope, LOSSES[case]["grad_wrt_logp"], **CLOSE)


def test_dr_grpo_golden():
    case = LOSSES["dr_grpo_trl"]
    # The recipe's longest response is the batch's width, 4; the file's is 6.
    scale = case["config"]["L"] / len(INPUTS["logp"][0])
    value, slope, _ = value_and_slope(dr_grpo(group_size=4), golden(), INPUTS["logp"])
    np.testing.assert_allclose(value, scale * case["loss"], **CLOSE)
    slopes = scale * np.array(case["grad_wrt_logp"])
    np.testing.assert_allclose(slope, slopes, **CLOSE)


def test_papo_golden():
    case = CASES["papo"]
    recipe = papo(group_size=4, clip_high=case["config"]["eps_high"])
    scored = golden(blackened=INPUTS["masked_image_logp"])
    value, slope, metrics = value_and_slope(recipe, scored, INPUTS["logp"])
    np.testing.assert_allclose(value, case["loss"], **CLOSE)
    np.testing.assert_allclose(slope, case["grad_wrt_logp"], **CLOSE)
    for name, key in (("kl_prcp", "kl_prcp"), ("pg_loss", "pg_loss")):
        mean = metrics[f"actor/{name}"]
        np.testing.assert_allclose(mean.total / mean.weight, case[key], **CLOSE)


def anchored(weight, divergence):
    """Near a reference whose log-probs the file has."""
    anchor = near({}, weight=weight, divergence=divergence)
    return anchor, golden(reference=INPUTS["ref_logp"])


def test_grpo_near_a_reference_golden():
    case = CASES["kl"]["grpo_plus_kl_loss"]
    anchor, scored = anchored(case["config"]["beta"], divergences.low_var_kl)
    recipe = grpo(group_size=4, anchor=anchor)
    value, slope, metrics = value_and_slope(recipe, scored, INPUTS["logp"])
    np.testing.assert_allclose(value, case["loss"], **CLOSE)
    kl = metrics["actor/kl_loss"]
    mean = next(v for k, v in CASES["kl"]["seq_mean"].items() if "low_var" in k)
    np.testing.assert_allclose(kl.total / kl.weight, mean, **CLOSE)
    mask = np.array(INPUTS["response_mask"]) > 0
    plain = np.array(LOSSES["grpo_seq_mean"]["grad_wrt_logp"])
    pull = CASES["kl"]["grad_per_token_wrt_logp"]["k3"]  # nothing is clamped here
    lengths = mask.sum(axis=1, keepdims=True)
    expected = plain + case["config"]["beta"] * np.array(pull) / lengths / len(mask)
    np.testing.assert_allclose(slope, np.where(mask, expected, 0), **CLOSE)


def test_rloo_pays_for_the_reference_out_of_the_reward_golden():
    case = CASES["advantages"]["rloo_with_k1_in_reward_beta_0p05"]
    anchor, scored = anchored(0.05, divergences.k1)
    batch, _ = rloo(group_size=4, anchor=anchor).credit(scored)
    np.testing.assert_allclose(batch.advantages[:, 0], case["advantage"], **CLOSE)


def test_reinforce_pp_pays_for_the_reference_token_by_token():
    anchor, _ = anchored(0.5, divergences.k1)
    scored = rollout(
        [[-1.0, -2.0, 9.0], [-1.0, -1.0, -1.0]],
        [1.0, 0.0],
        np.array([[1, 1, 0], [1, 1, 1]], bool),
        reference=[[-2.0, -2.0, 9.0], [-1.0, -3.0, -1.0]],
    )
    batch, metrics = reinforce_pp(group_size=2, anchor=anchor).credit(scored)
    # k1 is 1, 0 | 0, 2, 0: rewards -.5, 1 | 0, -1, 0; to go .5, 1 | -1, -1, 0.
    to_go = np.array([0.5, 1, -1, -1, 0])
    white = (to_go - to_go.mean()) / np.sqrt(to_go.var(ddof=1) + 1e-8)
    np.testing.assert_allclose(np.asarray(batch.advantages)[scored.mask], white)
    assert metrics["critic/kl"].total == 3 and metrics["critic/kl"].weight == 5


def test_reinforce_pp_leaves_out_the_unscored():
    mask = np.array([[1, 1], [1, 0], [1, 1]], bool)
    scored = rollout(np.zeros((3, 2)), [1.0, 0.0, np.nan], mask)
    batch, _ = reinforce_pp(group_size=3).credit(scored)
    known = rollout(np.zeros((2, 2)), [1.0, 0.0], mask[:2])
    alone, _ = reinforce_pp(group_size=2).credit(known)
    np.testing.assert_allclose(batch.advantages[:2], alone.advantages, **CLOSE)
    assert not batch.advantages[2].any()


def greedily(scored, rewards):
    parts = {"greedy": jnp.array(rewards)}
    return dataclasses.replace(scored, reward_parts=parts)


def test_remax_golden():
    case = LOSSES["remax_reinforce"]
    scored = greedily(golden(), INPUTS["greedy_rewards_for_remax"])
    value, slope, _ = value_and_slope(remax(), scored, INPUTS["logp"])
    np.testing.assert_allclose(value, case["loss"], **CLOSE)
    np.testing.assert_allclose(slope, case["grad_wrt_logp"], **CLOSE)


def test_remax_pays_for_the_reference_token_by_token():
    """And what was not scored, greedily or not, teaches nothing."""
    anchor, _ = anchored(0.5, divergences.k1)
    mask = np.array([[1, 1, 0], [1, 1, 1], [1, 1, 1], [1, 1, 1]], bool)
    scored = rollout(
        [[-1.0, -2.0, 9.0], *[[-1.0, -1.0, -1.0]] * 3],
        [1.0, 0.0, np.nan, 1.0],
        mask,
        reference=[[-2.0, -2.0, 9.0], *[[-1.0, -3.0, -1.0]] * 3],
    )
    scored = greedily(scored, [0.25, 1.0, 0.0, np.nan])
    batch, metrics = remax(anchor=anchor).credit(scored)
    # k1 is 1, 0 | 0, 2, 0: half of what is ahead of it is .5, 0 | 1, 1, 0.
    expected = [[0.25, 0.75], [-2, -2, -1], [0, 0, 0], [0, 0, 0]]
    for row, valid, advantage in zip(expected, mask, batch.advantages, strict=True):
        np.testing.assert_allclose(advantage[valid], row, **CLOSE)
    assert metrics["critic/kl"].total == 7 and metrics["critic/kl"].weight == 11


def test_papo_near_a_reference_adds_its_distance():
    anchor, scored = anchored(0.01, divergences.low_var_kl)
    extra = {
        **scored.extra_logprobs,
        "blackened": jnp.array(INPUTS["masked_image_logp"]),
    }
    scored = dataclasses.replace(scored, extra_logprobs=extra)
    free, _, _ = value_and_slope(papo(group_size=4), scored, INPUTS["logp"])
    recipe = papo(group_size=4, anchor=anchor)
    value, _, _ = value_and_slope(recipe, scored, INPUTS["logp"])
    mean = next(v for k, v in CASES["kl"]["token_mean"].items() if "low_var" in k)
    np.testing.assert_allclose(value - free, 0.01 * mean, **CLOSE)


def test_noisy_rollout_fades_as_published():
    # Steps and noise of the paper's run of 60 steps; the same shape in 600.
    case = next(
        v for k, v in CASES["other_perception"].items() if k.startswith("noisy")
    )
    found = [noisy_file.fading(step, case["t_max"]) for step in case["steps"]]
    assert found == case["noise_step"]
    assert noisy_file.fading(400, 600) == 250
    assert schedules.diffusion_noise_std(noisy_file.fading(0, 0)) > 0.5


def test_papo_differentiates_the_second_pass_where_told():
    images = Images(jnp.ones((2, 1, 6)), jnp.zeros((2, 1, 2), int), jnp.ones((2, 1)))
    prompts = Prompts(*[jnp.zeros((2, 1))] * 4, images)
    scored = dataclasses.replace(
        golden(), prompts=prompts, views={"blackened": dataclasses.replace(images)}
    )
    blind = jnp.array(INPUTS["masked_image_logp"])

    def slope(second, scored):
        recipe = papo(group_size=4, second=second)
        batch, _ = recipe.credit(scored)

        def policy(shift, batch):
            seen = blind + shift if batch.prompts.images is not images else None
            logprobs = jnp.array(INPUTS["logp"]) if seen is None else seen
            return Likelihood(logprobs, jnp.zeros_like(logprobs))

        def loss(shift):
            return recipe.loss(functools.partial(policy, shift), batch)[0].total

        return jax.grad(loss)(0.0)

    # d/dl' of -0.01 k3 - 0.03 l', summed; k3' = exp(l' - l) - 1 inside the clamps.
    d = (blind - jnp.array(INPUTS["logp"]))[np.array(INPUTS["response_mask"]) > 0]
    inside = (d < 20) & (jnp.expm1(d) - d < 10)
    by_hand = (-0.01 * jnp.where(inside, jnp.expm1(d), 0) - 0.03).sum()
    got = slope(papo_file.differentiated, scored)
    np.testing.assert_allclose(got, by_hand, rtol=1e-6)


def test_luffy_by_hand():
    """The worked example of its sheet: ratios 1, expert probabilities .05 and .9."""
    old = np.log([[0.5, 0.5]] * 3 + [[1.0, 1.0]])
    new = np.log([[0.5, 0.5]] * 3 + [[0.05, 0.9]])
    scored = rollout(old, [1.0, 0.0, 0.0, 1.0], np.ones((4, 2), bool))
    value, slope, metrics = value_and_slope(luffy(group_size=4), scored, new)
    # -1 + 1 + 1 - .166667 - .45 = .383333, over 4 rows of 2 tokens.
    np.testing.assert_allclose(value, (1 - 0.05 / 0.15 / 2 - 0.45) / 8, rtol=1e-6)
    # -A f'(p) p = -.5 * .222222 and -.5 * .09
    np.testing.assert_allclose(slope[3] * 8, [-0.1111111, -0.045], rtol=1e-6)
    mean = metrics["actor/expert_probability"]
    np.testing.assert_allclose(mean.total / mean.weight, 0.475)
    gap = metrics["actor/logprob_gap"]
    np.testing.assert_allclose(gap.total, 0, atol=1e-12)


def pairs():
    """VisRL's worked example: log-ratios 1 and -1 (a box), -0.5 and -2 (an answer)."""
    reference = np.array([[-5.0, 9.0], [-6.0, 9.0], [-4.0, -6.5], [-6.0, -6.0]])
    new = np.array([[-4.0, 7.0], [-7.0, 7.0], [-4.0, -6.0], [-7.0, -7.0]])
    mask = np.array([[1, 0], [1, 0], [1, 1], [1, 1]], bool)
    scored = rollout(0 * new, [1.0, 0.0] * 2, mask, reference=reference)
    return scored, new


def test_dpo_by_hand():
    scored, new = pairs()
    value, slope, metrics = value_and_slope(dpo(), scored, new)
    np.testing.assert_allclose(value, (0.598139 + 0.575939) / 2, rtol=1e-6)
    # -beta sigmoid(-beta m) / 2 pairs, and its opposite for the rejected.
    side = 0.05 / (1 + np.exp([0.2, 0.25]))
    np.testing.assert_allclose(slope[:, 0], np.outer(side, [-1, 1]).ravel(), rtol=1e-6)
    margin = metrics["rewards/margins"]
    np.testing.assert_allclose(margin.total / margin.weight, 2.25)
    value, _, _ = value_and_slope(dpo(pair_loss=preference.ipo), scored, new)
    np.testing.assert_allclose(value, ((2 - 5) ** 2 + (2.5 - 5) ** 2) / 2)


class Recorded:
    """An actor that knows what the responses score."""

    def painting(self, view):
        return view

    def add_logprobs(self, rollout, name, view, key):
        seen = {name: jnp.array(INPUTS["masked_image_logp"])}
        return dataclasses.replace(rollout, extra_logprobs=seen)

    def likelihood(self, rollout):
        entropy = jnp.array(CASES["top_entropy"]["entropy"])
        return Likelihood(entropy, jnp.where(rollout.mask, entropy, 0))


ABLATIONS = {
    "token filter alone": {"shape": perception.equal_weights},
    "response weights alone": {"select": perception.every_token},
    "random": {"scoring": vppo_file.at_random, "shape": perception.equal_weights},
    "entropy": {"scoring": vppo_file.entropy, "shape": perception.equal_weights},
    "soft": {"select": functools.partial(perception.soft_share, share=0.4)},
    "range": {"shape": perception.fixed_range_weights},
}


@pytest.mark.parametrize("name", ABLATIONS)
def test_vppo_ablations(name):
    recipe = vppo(group_size=4, **ABLATIONS[name])
    scored = recipe.score(Recorded(), golden(), jax.random.key(0))
    batch, metrics = jax.jit(recipe.credit)(scored)
    mask = np.asarray(scored.mask)
    plain = np.array(CASES["advantages"]["per_sequence"]["grpo_verl_easyr1"])
    weights = np.where(mask, np.asarray(batch.advantages) / plain[:, None], 0)
    top = np.array(CASES["vppo"]["token_mask"])
    alpha = np.array(CASES["vppo"]["tas_all_8_rows"]["alpha"])
    fixed = np.array(CASES["vppo"]["fixed_range_0.9_1.1"]["alpha"])
    lengths = mask.sum(1)
    if name == "token filter alone":
        np.testing.assert_allclose(weights, top, **CLOSE)
    elif name == "response weights alone":
        np.testing.assert_allclose(weights, mask * alpha[:, None], **CLOSE)
    elif name == "range":
        np.testing.assert_allclose(weights, top * fixed[:, None], **CLOSE)
    elif name == "soft":
        mean = weights.sum(1) / lengths / alpha
        np.testing.assert_allclose(mean, 0.4, rtol=1e-6)
    else:
        assert set(np.unique(weights.round(6))) == {0, 1}
        np.testing.assert_array_equal(weights.sum(1).round(), -(-4 * lengths // 10))
        chosen = perception.top_share(
            jnp.array(CASES["top_entropy"]["entropy"]), scored.mask, 0.4
        )
        assert (weights.round() == chosen).all() == (name == "entropy")
    share = metrics["perception/share_kept"]
    assert share.weight == mask.sum()
