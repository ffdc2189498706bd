"""What keeps a policy near another one."""

import dataclasses

import jax
import numpy as np

from vrl_jax import divergences
from vrl_jax.engine.reference import free, measured_by, near

from ..fixtures import small


def test_near_adds_the_reference_s_log_probs_and_measures_from_them():
    actor, rollout = small.chain_actor(), small.rollout()
    reference = jax.tree.map(lambda x: 0.5 * x, actor.params)
    anchor = near(reference, weight=0.04)
    scored = anchor.score(actor, rollout)
    moved = dataclasses.replace(actor, params=reference)
    seen = scored.extra_logprobs["reference"]
    np.testing.assert_array_equal(seen, moved.likelihood(rollout).logprobs)
    own = actor.likelihood(rollout).logprobs
    got = anchor.distance(own, scored.extra_logprobs)
    np.testing.assert_allclose(got, divergences.k3(own, seen))
    assert np.abs(got[rollout.mask]).max() > 0.01
    nearer = measured_by(divergences.k1, anchor)
    got = nearer.distance(own, scored.extra_logprobs)
    np.testing.assert_allclose(got, own - seen, atol=1e-6)
    assert nearer[::2] == anchor[::2]  # score and weight
    assert measured_by(divergences.k1, free) is free
    assert not near(actor.params, weight=1).distance(own, {"reference": own}).any()


def test_free_adds_nothing_and_costs_nothing():
    rollout = small.rollout()
    assert free.score(small.chain_actor(), rollout) is rollout
    assert free.weight == 0 and not free.distance(rollout.old_logprobs, {}).any()
