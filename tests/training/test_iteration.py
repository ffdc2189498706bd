"""The algorithm box on the small policy: compiled once, and invariant."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from vrl_jax.evals import held_out
from vrl_jax.training.iteration import iteration
from vrl_jax.training.learner import make_learner, update
from vrl_jax.training.metrics import as_floats

from ..fixtures import small
from ..fixtures.compilations import compilations


def rare_reward(episodes):
    """Right in one case of seventeen: most groups are all wrong."""
    right = [float(sum(e.turns[0].tokens) % 17 == 0) for e in episodes]
    return [{"overall": score, "accuracy": score} for score in right]


def step(learner, seed, actor=None):
    """The learner, its metrics as numbers, and how many batches were played."""
    played = []

    def batches():
        for batch in itertools.repeat(small.samples()):
            played.append(batch)
            yield batch

    learner, metrics = iteration(
        small.recipe("vppo"),
        actor or small.actor(),
        learner,
        batches(),
        jax.random.key(seed),
    )
    return learner, as_floats(metrics), len(played)


def evaluate():
    return held_out.accuracy(small.actor(), small.samples(), jax.random.key(0))


def test_nothing_is_compiled_after_the_first_iteration():
    """Law 6, for however many rounds the dynamic sampling needs."""
    actor, rounds = small.actor(reward=rare_reward), []
    learner, _, first = step(small.learner(micro_batches=2), 0, actor)
    evaluate()
    with compilations() as heard:
        jax.jit(lambda x: x + 1)(jnp.ones(3))
    assert heard
    varied = lambda: len({first, *rounds}) > 2 and max(rounds) > first
    with compilations() as later:
        # What is drawn depends on the machine's last bits.
        for seed in range(1, 41):
            learner, _, played = step(learner, seed, actor)
            rounds.append(played)
            if seed >= 12 and varied():
                break
        evaluate()
    assert varied(), (first, rounds)
    assert later == []


def test_iteration_does_not_depend_on_micro_batches():
    """Law 4, with pictures, text and a whole update."""
    one, other = (step(small.learner(micro_batches=n), 0) for n in (1, 2))
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5),
        one[0].opt_state,
        other[0].opt_state,
    )
    assert one[1].keys() == other[1].keys()
    for name, value in one[1].items():
        np.testing.assert_allclose(
            value, other[1][name], rtol=1e-4, atol=1e-5, err_msg=name
        )


def test_iteration_takes_one_update_a_minibatch():
    """The gap of sampler and learner is that of the first update: no policy moved."""
    actor = small.chain_actor()
    learner = make_learner(
        actor.policy, actor.params, small.optimizer(), actor.allowed, minibatches=2
    )
    learner, logged, _ = step(learner, 0, actor)
    assert int(learner.step) == 2
    assert logged["training/logprob_gap"] < 1e-5 < 1e-3 < logged["actor/logprob_gap"]


def test_no_tracer_leaks():
    """What a traced function would leave behind, jax finds only when asked to look."""
    actor, recipe = small.chain_actor(), small.recipe("grpo")
    learner = make_learner(actor.policy, actor.params, small.optimizer(), actor.allowed)
    rollout = recipe.act(actor, iter([small.samples()]), jax.random.key(0))
    batch, _ = recipe.credit(rollout)
    with jax.checking_leaks():
        actor.likelihood(rollout)
        learner, _ = update(recipe.loss, learner, batch)
    assert learner.step == 1
