"""Slots are refilled and moved: few programs, and the law holds all the while."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vrl_jax.engine.decoding import Model, row_sizes, window_sizes
from vrl_jax.engine.responses import sample
from vrl_jax.engine.sampling import row_keys
from vrl_jax.programs.single_turn import single_turn

from ..fixtures import small
from ..fixtures.chain import chain, chain_prompts
from ..fixtures.compilations import compilations


@pytest.mark.parametrize(
    ("slots", "sizes"),
    [(64, [8, 16, 32, 48, 64]), (16, [8, 12, 16]), (4, [4]), (9, [8, 9])],
)
def test_row_sizes_are_few_and_at_least_eight(slots, sizes):
    assert row_sizes(slots) == sizes


@pytest.mark.parametrize(
    ("limit", "sizes"),
    [(6, [6]), (100, [25, 50, 75, 100]), (256, [32, 64, 96, 128, 192, 256])],
)
def test_window_sizes_double_and_have_three_quarters(limit, sizes):
    assert window_sizes(limit) == sizes


def test_few_programs_are_compiled_whatever_the_lengths():
    """Law 6: one for each number of slots and columns, and none for other draws."""
    policy, vocabulary = chain(50), 50
    table = jnp.asarray(np.random.RandomState(0).randn(vocabulary, vocabulary))
    model = Model(policy, {"table": table}, jnp.ones(vocabulary, bool), 100, 16)

    def lengths(seed, stops):
        keys = row_keys(jax.random.key(seed), jnp.arange(10), 4)
        sampled = sample(model, chain_prompts([*range(10)]), keys, stops)
        return np.asarray(sampled.mask.sum(axis=1))

    with compilations() as built:
        found = lengths(0, (7, 8))
    assert found.min() < 10 and found.max() > 60
    runs = built.count("jit(run)")
    assert 1 < runs <= len(row_sizes(16)) * len(window_sizes(100))
    with compilations() as built:
        for seed in (1, 2):
            lengths(seed, (7, 8))
        lengths(3, (9,))
    assert runs + built.count("jit(run)") <= 6
    with compilations() as built:
        lengths(1, (7, 8))
    assert built == []


def test_scoring_equals_sampling_while_slots_are_refilled_and_moved():
    """Law 1 with responses of 1 to 80 tokens in 4 slots: windows grow and shift."""
    actor = small.actor(max_new_tokens=80, slots=4, stop_ids=jnp.arange(40, 45))
    rollout = single_turn(
        actor, iter([small.samples()]), jax.random.key(1), group_size=3
    )
    lengths = np.asarray(rollout.mask.sum(axis=1))
    assert lengths.min() < 32 and lengths.max() == 80
    scored = actor.likelihood(rollout).logprobs
    np.testing.assert_allclose(scored, rollout.old_logprobs, rtol=0, atol=2e-5)
