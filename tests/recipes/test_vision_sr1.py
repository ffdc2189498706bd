"""Vision-SR1: who reads the description is paid for, and not trained."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from vrl_jax import divergences
from vrl_jax.engine.reference import near
from vrl_jax.recipes.vision_sr1 import self_reward, vision_sr1
from vrl_jax.rewards.boxed import boxed_exact, boxed_right
from vrl_jax.types import Episode, Likelihood, Turn

from ..fixtures import small


def even(sample, turn):
    """Half of all answers, at random."""
    return sum(turn.tokens) % 2 == 0


def accuracy(episodes):
    return [float(even(e.sample, e.turns[0])) for e in episodes]


def test_the_reward_of_the_worked_group():
    """acc = 1, 1, 0, 0; format = 1, 1, 1, 0; reread = 1, 0, 1, 0: the sheet's R."""
    laid = r"<description>d</description><think>t</think>\boxed{%d}"
    texts = [laid % 4, laid % 4, laid % 5, "it is 4"]
    sample = dataclasses.replace(small.samples()[0], answer="4")
    group = [
        Episode(sample, "?", (Turn(text, (1,)),), True, facts={"reread": reread})
        for text, reread in zip(texts, (1, 0, 1, 0), strict=True)
    ]
    scores = self_reward(boxed_exact)(group)
    found = [score["overall"] for score in scores]
    np.testing.assert_allclose(found, [2.0, 1.0, 1.1, 0.0], rtol=1e-12)


def test_the_reader_is_asked_for_a_box():
    """And sees no picture."""
    program = vision_sr1().act.keywords["program"](small.samples()[0])
    next(program)
    ask = program.send(Turn("<description>a cat</description>", (1,)))
    (message,) = ask.context
    assert message.images == ()
    assert "so:\n\na cat\n\nWhat is it?\n\nThink" in message.text
    assert message.text.endswith(r"in \boxed{}.")


def test_the_reader_is_paid_for_and_not_trained():
    """R = 0.9 accuracy + 0.1 format + reread, one row an episode."""
    short = "{seen}. {question}"  # the small policy has little room
    recipe = vision_sr1(group_size=small.GROUP, right=even, read=short)
    actor = small.actor(reward=self_reward(accuracy))
    played = recipe.act(actor, iter([small.samples()]), jax.random.key(0))
    assert len(played.tokens) == len(small.samples()) * small.GROUP
    assert played.episode is None
    parts = played.reward_parts
    np.testing.assert_allclose(
        played.rewards,
        0.9 * parts["accuracy"] + 0.1 * parts["format"] + parts["reread"],
        atol=1e-6,
    )
    np.testing.assert_array_equal(parts["reread"], played.facts["reread"])
    for part in ("accuracy", "reread"):
        assert set(np.asarray(parts[part]).tolist()) == {0.0, 1.0}
    assert (np.asarray(parts["accuracy"]) != np.asarray(parts["reread"])).any()


def test_advantages_of_the_worked_group():
    """R = 2, 1, 1.1, 0: mean 1.025, std (n - 1) 0.818026, by hand."""
    batch, _ = vision_sr1(group_size=4).credit(small.scored([2.0, 1.0, 1.1, 0.0]))
    np.testing.assert_allclose(
        batch.advantages[:, 0],
        [1.191892, -0.030561, 0.091684, -1.253015],
        atol=3e-6,
    )


def test_loss_is_clipped_on_three_sides():
    """Ratios 2, 0.5 and 5 with A = 1, -1, -1: -1.3, 0.8, and 3 by the dual clip."""
    recipe = vision_sr1(group_size=3)
    batch, _ = recipe.credit(small.scored([0.0, 1.0, 2.0]))
    given = jnp.array([[1.0], [-1.0], [-1.0]])
    batch = dataclasses.replace(batch, advantages=given)
    new = Likelihood(jnp.log(jnp.array([[2.0], [0.5], [5.0]])), jnp.ones((3, 1)))
    mean, _ = recipe.loss(lambda _: new, batch)
    np.testing.assert_allclose(mean.total, -1.3 + 0.8 + 3.0, rtol=1e-5)
    assert mean.weight == 3


def test_the_anchor_is_paid_for_each_token():
    """k = 0.01 (e - 1 - 1) where the reference is one nat above: clipped ratio 1."""
    anchor = near({}, weight=0.01, divergence=divergences.k3)
    recipe = vision_sr1(group_size=2, anchor=anchor)
    seen = {"reference": jnp.ones((2, 1))}
    played = dataclasses.replace(small.scored([0.0, 1.0]), extra_logprobs=seen)
    batch, _ = recipe.credit(played)
    new = Likelihood(jnp.zeros((2, 1)), jnp.ones((2, 1)))
    mean, metrics = recipe.loss(lambda _: new, batch)
    np.testing.assert_allclose(
        metrics["actor/kl_loss"].total, 2 * (np.e - 2), rtol=1e-6
    )
    np.testing.assert_allclose(mean.total, 0.01 * 2 * (np.e - 2), rtol=1e-4)


def test_boxed_right_reads_the_last_box():
    sample = small.samples()[3]
    said = functools.partial(Turn, tokens=(1,))
    assert boxed_right(sample, said(r"\boxed{2}, no: \boxed{ 3 }"))
    assert not boxed_right(sample, said("3"))
