"""ReMax: the baseline is what the greedy answer earns, and that alone."""

import dataclasses

import jax
import numpy as np

from vrl_jax.recipes.remax import remax

from ..fixtures import small


def last_token(episodes):
    """A reward that differs from answer to answer."""
    return [float(episode.turns[-1].tokens[-1]) for episode in episodes]


def test_the_baseline_is_what_the_greedy_answer_earns():
    seen = []
    actor = dataclasses.replace(
        small.chain_actor(),
        reward=last_token,
        observe=lambda episodes, scores: seen.extend(episodes),
    )
    samples, key = small.samples(), jax.random.key(0)
    rollout = remax(group_size=3).act(actor, iter([samples]), key)
    assert len(seen) == len(rollout.rewards) == 3 * len(samples)
    greedy = rollout.reward_parts["greedy"].reshape(-1, 3)
    assert (greedy == greedy[:, :1]).all()
    # Another key draws other answers, and the greedy ones are the same.
    again = remax(group_size=1).act(actor, iter([samples]), jax.random.key(1))
    np.testing.assert_array_equal(again.reward_parts["greedy"], greedy[:, 0])
    assert (again.rewards != rollout.rewards[::3]).any()
    assert set(greedy[:, 0].tolist()) != {0.0}
