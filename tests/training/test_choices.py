"""What is chosen to fit the memory: as flags, and as what a run is given."""

from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tyro

from vrl_jax.models import lora
from vrl_jax.models.parameters import init_params
from vrl_jax.models.qwen_vl.parameters import parameter_table
from vrl_jax.training import choices as chosen
from vrl_jax.training.choices import Choices

from ..fixtures import small


def test_choices_as_flags_and_back():
    asked = Choices(fsdp=4, micro_batches=2, per_pass=8, remat="split")
    written = chosen.flags(asked)
    assert written == "--fsdp 4 --micro-batches 2 --per-pass 8 --remat split"
    assert chosen.flags(Choices()) == ""

    def main(*, choices: Annotated[Choices, tyro.conf.OmitArgPrefixes] = Choices()):  # noqa: B008
        return choices

    assert tyro.cli(main, args=written.split()) == asked


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"lora_rank": -1}, "--lora-rank must be at least 0 .* got -1 and 32.0"),
        ({"lora_rank": 4, "lora_alpha": 0.0}, "--lora-alpha above 0, got 4 and 0.0"),
        ({"lora_alpha": 8.0}, "--lora-alpha 8.0 is of adapters, and there are none"),
        (
            {"lora_rank": 4, "precision": "bfloat16_stochastic"},
            "adapters are float32, so that --precision bfloat16_stochastic has nothing",
        ),
    ],
)
def test_adapters_that_cannot_be_are_told(wrong, said):
    with pytest.raises(ValueError, match=said):
        chosen.check(Choices(**wrong))


@pytest.mark.parametrize("name", ["float32", "bfloat16_master"])
@pytest.mark.parametrize("tower", ["trained", "frozen"])
def test_adapters_alone_are_trained_in_float32(name, tower):
    choices = Choices(precision=name, tower=tower, lora_rank=2, lora_alpha=8.0)
    chosen.check(choices)
    table, key = parameter_table(small.spec()), jax.random.key(0)
    policy = init_params(key, table, chosen.dtype(choices))
    split = chosen.trains(choices, table, key)(policy)
    wanted = lora.init(key, table, rank=2)
    jax.tree.map(np.testing.assert_array_equal, split.trained, wanted)
    held = chosen.adapters(choices, jax.tree.map(jnp.ones_like, split.trained))
    assert held.scale == 4
    merged = split.join(held.adapters, split.fixed)
    jax.tree.map(np.testing.assert_array_equal, merged, lora.merge(policy, held))
    assert all(x.dtype == chosen.dtype(choices) for x in jax.tree.leaves(merged))


def test_an_optimiser_in_the_place_of_adamw_is_rounded_as_chosen():
    """1 - 2^-10 lies between 1 - 2^-8 and 1: a quarter of the numbers falls."""
    choices = Choices(precision="bfloat16_stochastic")
    params = jnp.ones(4096, jnp.bfloat16)
    made = chosen.optimizer(choices, 2.0**-10, jax.random.key(0), make=optax.sgd)
    updates, _ = made.update(jnp.ones_like(params), made.init(params), params)
    steps, counts = np.unique(updates, return_counts=True)
    np.testing.assert_array_equal(steps, [-(2.0**-8), 0])
    assert abs(counts[0] / 4096 - 1 / 4) < 5 * (3 / 16 / 4096) ** 0.5
    plain = chosen.optimizer(Choices(), 0.5, jax.random.key(0), make=optax.sgd)
    updates, _ = plain.update(jnp.ones(2), plain.init(jnp.ones(2)), jnp.ones(2))
    np.testing.assert_array_equal(updates, [-0.5, -0.5])


def test_a_reference_lies_where_it_was_chosen():
    rollout = small.rollout()
    params = small.params(1)
    away = Choices(reference="host"), Choices(reference="device")
    seen = [
        chosen.anchor(choices, params, weight=0.5).score(small.actor(), rollout)
        for choices in away
    ]
    for scored in seen:
        wanted = small.actor(params=params).likelihood(rollout).logprobs
        np.testing.assert_array_equal(scored.extra_logprobs["reference"], wanted)
    nobody = chosen.anchor(Choices(), params, weight=0.5)
    assert nobody.weight == 0 and nobody.score(None, rollout) is rollout
