"""The released codes' losses, through the recipes themselves, in float64.

Recomputed with the released functions of EasyR1, verl and VPPO: see meta in the file.
"""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vrl_jax.recipes.dapo import dapo
from vrl_jax.recipes.grpo import grpo
from vrl_jax.recipes.vppo import vppo
from vrl_jax.types import Likelihood, Rollout

GOLDEN = Path(__file__).parents[1] / "golden" / "objectives_cases.json"
CASES = json.loads(GOLDEN.read_text())
INPUTS = CASES["inputs"]
GROUP = 4


class Recorded:
    """An actor that knows what the responses scored under the masked picture."""

    def painting(self, view):
        return view

    def add_logprobs(self, rollout, name, view, key):
        seen = {name: jnp.array(INPUTS["masked_image_logp"])}
        return dataclasses.replace(rollout, extra_logprobs=seen)


def golden_rollout() -> Rollout:
    rewards = jnp.array(INPUTS["rewards"])
    mask = jnp.array(INPUTS["response_mask"]) > 0
    return Rollout(
        prompts=None,
        tokens=jnp.zeros(mask.shape, int),
        positions=None,
        mask=mask,
        temperature=jnp.ones(len(rewards)),
        old_logprobs=jnp.array(INPUTS["old_logp"]),
        extra_logprobs={},
        rewards=rewards,
        reward_parts={},
        group=jnp.array(INPUTS["group"]),
    )


@pytest.mark.parametrize(
    ("make", "case"),
    [
        (grpo, CASES["policy_loss"]["grpo_seq_mean"]),
        (dapo, CASES["policy_loss"]["dapo_token_mean"]),
        (vppo, CASES["vppo"]["loss_single_micro_batch"]),
    ],
    ids=["grpo", "dapo", "vppo"],
)
def test_recipe_golden(make, case):
    recipe = make(group_size=GROUP)
    with jax.enable_x64(True):

        @jax.jit
        def step(rollout, logprobs):
            batch, _ = recipe.credit(recipe.score(Recorded(), rollout, None))

            def loss(logprobs):
                new = Likelihood(logprobs, jnp.zeros_like(logprobs))
                mean, metrics = recipe.loss(lambda _: new, batch)
                return mean.total / mean.weight, metrics

            return batch, jax.value_and_grad(loss, has_aux=True)(logprobs)

        batch, ((value, metrics), slope) = step(
            golden_rollout(), jnp.array(INPUTS["logp"])
        )
        assert value.dtype == slope.dtype == batch.advantages.dtype == jnp.float64
    close = {"rtol": 1e-8, "atol": 1e-8}
    np.testing.assert_allclose(value, case["loss"], **close)
    np.testing.assert_allclose(slope, case["grad_wrt_logp"], **close)
    if "pg_loss" in case:
        logged = metrics["actor/pg_loss"]
        np.testing.assert_allclose(
            logged.total / logged.weight, case["pg_loss"], **close
        )
    for side in ("low", "high"):
        if f"clip_{side}_frac" in case:
            logged = metrics[f"actor/pg_clipfrac_{side}er"]
            np.testing.assert_allclose(
                logged.total / logged.weight, case[f"clip_{side}_frac"], rtol=1e-6
            )


def test_vppo_credit_golden():
    """Which tokens it trains, and by how much a response counts."""
    case = CASES["vppo"]
    recipe = vppo(group_size=GROUP)
    with jax.enable_x64(True):
        rollout = recipe.score(Recorded(), golden_rollout(), None)
        batch, metrics = jax.jit(recipe.credit)(rollout)
    mask = np.array(case["token_mask"]) > 0
    shaped = np.array(case["loss_single_micro_batch"]["shaped_advantage"])
    wanted = np.where(mask, shaped[:, None], 0)
    np.testing.assert_allclose(batch.advantages, wanted, rtol=1e-8, atol=1e-8)
    response = np.array(INPUTS["response_mask"]) > 0
    scores = np.array(case["score_per_token"])
    for name, chosen in (
        ("mean", response),
        ("kept", mask),
        ("dropped", response & ~mask),
    ):
        mean = metrics[f"perception/dependency_{name}"]
        np.testing.assert_allclose(mean.total / mean.weight, scores[chosen].mean())
    assert float(metrics["perception/weight_max"].total) == pytest.approx(
        case["tas_all_8_rows"]["beta_max_dynamic"]
    )
