"""Groups are kept whole, until there are enough of them; else a clear end."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vrl_jax.programs.dynamic_sampling import (
    dynamic_sampling,
    every_group,
    mixed_accuracy,
)
from vrl_jax.types import Rollout

from ..fixtures import small
from ..fixtures.chain import chain_prompts

PROMPTS, SIZE = 3, 4
MIXED, SOLVED, HOPELESS = [1.0, 0.0, 0.0, 1.0], [1.0] * 4, [0.0] * 4


def rollout_of(number: int, scores: list[list[float]], **parts) -> Rollout:
    """Round `number`: every token, prompt and log-prob says where it comes from."""
    count = len(scores)
    last = [100 * number + prompt for prompt in range(count)]
    rows = jnp.repeat(jnp.array(last), SIZE)
    flat = jnp.array(scores).reshape(-1)
    table = jnp.broadcast_to(rows[:, None], (count * SIZE, 5))
    return Rollout(
        prompts=chain_prompts(last),
        tokens=table,
        positions=jnp.broadcast_to(table[..., None], (*table.shape, 3)),
        mask=jnp.ones(table.shape, bool),
        temperature=rows + jnp.arange(len(rows)) % SIZE / 10,
        old_logprobs=-table.astype(jnp.float32),
        extra_logprobs={},
        rewards=flat,
        reward_parts={"accuracy": flat, **parts},
        group=jnp.repeat(jnp.arange(count), SIZE),
    )


def play(rounds, keep=mixed_accuracy, **knobs):
    """The rollout, and how many of the given rounds were played."""
    left = iter(rounds)
    found = dynamic_sampling(
        small.actor(),
        iter([]),
        jax.random.key(0),
        act=lambda actor, batches, key: next(left),
        keep=keep,
        **knobs,
    )
    return found, len(rounds) - len(list(left))


def test_dynamic_sampling_keeps_whole_mixed_groups_and_cuts_the_surplus():
    found, played = play(
        [
            rollout_of(1, [SOLVED, MIXED, HOPELESS]),
            rollout_of(2, [HOPELESS, SOLVED, SOLVED]),
            rollout_of(3, [MIXED, SOLVED, MIXED]),
            rollout_of(4, [MIXED, MIXED, MIXED]),
        ]
    )
    assert played == 3
    origins = [101, 300, 302]
    np.testing.assert_array_equal(found.prompts.tokens[:, 1], origins)
    rows = np.repeat(origins, SIZE)
    np.testing.assert_array_equal(found.tokens, np.repeat(rows[:, None], 5, axis=1))
    np.testing.assert_array_equal(found.positions[..., 2], found.tokens)
    np.testing.assert_array_equal(found.old_logprobs, -np.asarray(found.tokens))
    np.testing.assert_allclose(found.temperature, rows + np.tile(np.arange(4) / 10, 3))
    np.testing.assert_array_equal(found.rewards, MIXED * 3)
    np.testing.assert_array_equal(found.group, np.repeat([0, 1, 2], SIZE))

    found, played = play(
        [rollout_of(1, [MIXED, MIXED, SOLVED]), rollout_of(2, [MIXED] * 3)]
    )
    assert played == 2
    np.testing.assert_array_equal(found.prompts.tokens[:, 1], [100, 101, 200])


def test_dynamic_sampling_plays_each_round_with_its_own_key():
    keys = []

    def act(actor, batches, key):
        keys.append(tuple(jax.random.key_data(key).tolist()))
        return rollout_of(len(keys), [MIXED, SOLVED, SOLVED])

    dynamic_sampling(
        small.actor(), None, jax.random.key(0), act=act, keep=mixed_accuracy
    )
    assert len(set(keys)) == 3


def test_dynamic_sampling_says_when_nothing_survives():
    with pytest.raises(
        RuntimeError, match=r"kept 2 of 12 groups in 4 rounds and needs 3: .*max_rounds"
    ):
        play(
            [rollout_of(i, [SOLVED, HOPELESS, SOLVED]) for i in range(2)]
            + [rollout_of(i, [SOLVED, MIXED, SOLVED]) for i in range(2)],
            max_rounds=4,
        )


def test_every_group_needs_one_round():
    found, played = play([rollout_of(1, [SOLVED, MIXED, SOLVED])] * 2, every_group)
    assert played == 1
    np.testing.assert_array_equal(found.prompts.tokens[:, 1], [100, 101, 102])


def test_dynamic_sampling_survives_a_round_whose_rewards_all_failed():
    """Law 7: a judge that is down for a moment does not end the run."""
    failed = dataclasses.replace(
        rollout_of(1, [HOPELESS] * 3), reward_parts={"errors": jnp.ones(12)}
    )
    good = rollout_of(2, [MIXED] * 3, errors=jnp.zeros(12))
    found, played = play([failed, good])
    assert played == 2
    np.testing.assert_array_equal(found.prompts.tokens[:, 1], [200, 201, 202])
    assert set(found.reward_parts) == {"accuracy", "errors"}


def test_a_part_that_one_round_was_not_told_is_unknown_there():
    """As in a batch of both: the mean is over the groups that have it."""
    rounds = [rollout_of(1, [MIXED] * 2, ocr=jnp.ones(8))]
    rounds += [rollout_of(2, [MIXED] * 2, math=jnp.ones(8))]
    noted = [
        dataclasses.replace(r, facts={f"play/{i}": jnp.ones(8)})
        for i, r in enumerate(rounds)
    ]
    found, _ = play(noted, lambda rollout: jnp.array([True, False]))
    unknown, one = [np.nan] * 4, [1.0] * 4
    np.testing.assert_array_equal(found.reward_parts["ocr"], one + unknown)
    np.testing.assert_array_equal(found.reward_parts["math"], unknown + one)
    np.testing.assert_array_equal(found.facts["play/0"], one + [0.0] * 4)


def test_mixed_accuracy_needs_the_part_and_reads_no_other():
    rollout = rollout_of(1, [MIXED, SOLVED, [0.0, 0.0, 0.02, 0.0]])
    rewarded = dataclasses.replace(rollout, rewards=jnp.arange(12.0))
    np.testing.assert_array_equal(mixed_accuracy(rewarded), [True, False, False])
    keep = functools.partial(mixed_accuracy, low=0.001)
    np.testing.assert_array_equal(keep(rewarded), [True, False, True])
    unnamed = dataclasses.replace(rollout, reward_parts={"format": rollout.rewards})
    with pytest.raises(
        ValueError, match=r"`accuracy`, and the reward returned \['form"
    ):
        mixed_accuracy(unnamed)
    bare = dataclasses.replace(rollout, reward_parts={"unscored": jnp.zeros(12)})
    bare = dataclasses.replace(bare, rewards=rollout.rewards)
    np.testing.assert_array_equal(mixed_accuracy(bare), mixed_accuracy(rollout))
