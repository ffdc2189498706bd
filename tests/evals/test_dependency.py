"""Which tokens look: by hand, and on a policy that was really trained."""

import base64
import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vrl_jax import perception, views
from vrl_jax.evals import dependency, held_out
from vrl_jax.experiment import tiny_actor
from vrl_jax.programs.single_turn import single_turn
from vrl_jax.rewards.boxed import boxed_exact
from vrl_jax.training.iteration import iteration
from vrl_jax.training.learner import adamw, make_learner
from vrl_jax.worlds import digits

from ..fixtures import small

RESPONSES = [r"4 + 9 = \boxed{13}", "7+0=7", "eight"]


def measured_by_hand():
    """Token t of every response has dependency t."""
    encode = small.tokenizer()
    ids = [encode(text)["input_ids"] for text in RESPONSES]
    length = max(map(len, ids))
    tokens = np.array([row + [0] * (length - len(row)) for row in ids])
    mask = np.arange(length) < np.array([[len(row)] for row in ids])
    rollout = dataclasses.replace(
        small.rollout(),
        tokens=jnp.asarray(tokens),
        mask=jnp.asarray(mask),
        old_logprobs=-jnp.ones(tokens.shape),
        rewards=jnp.array([1.0, 0.0, 0.5]),
    )
    scores = np.where(mask, np.arange(length), np.nan)
    return dependency.Measured(rollout, scores), ids


def test_by_kind_by_hand():
    measured, ids = measured_by_hand()
    texts = [[small.tokenizer().decode([token]) for token in row] for row in ids]
    assert dependency.token_texts(small.actor(), measured.rollout) == texts
    found = dependency.by_kind(small.actor(), measured, digits.sum_token_kinds)
    places = {
        (row, text, texts[row].index(text))
        for row in (0, 1)
        for text in "490137"
        if text in texts[row]
    }
    seen = {(0, "4"), (0, "9"), (1, "7"), (1, "0")}
    wanted = [place for row, text, place in places if (row, text) in seen]
    derived = [texts[0].index("1"), texts[0].index("3"), len(texts[1]) - 1]
    assert found == {
        "seen": {"mean": np.mean(wanted), "count": 4},
        "derived": {"mean": np.mean(derived), "count": 3},
    }


def test_example_rows_say_what_the_report_shows():
    measured, ids = measured_by_hand()
    samples = [small.samples()[row] for row in (0, 1, 3)]
    rows = dependency.example_rows(
        small.actor(), samples, measured, digits.sum_token_kinds
    )
    assert [row["response"] for row in rows] == RESPONSES
    assert [row["reward"] for row in rows] == [1, 0, 0.5]
    assert base64.b64decode(rows[1]["image_png"]) == samples[1].images[0]
    first = rows[0]["tokens"]
    assert [token["dependency"] for token in first] == list(range(len(ids[0])))
    kinds = [token["kind"] for token in first if token["text"].strip().isdigit()]
    assert kinds == ["seen", "seen", "derived", "derived"]


def test_measure_is_the_mean_of_its_draws():
    """Each draw scores the same responses; what shows no picture does not look."""
    actor, key = small.chain_actor(), jax.random.key(0)
    samples, view = small.samples(), views.blacken_patches
    measured = dependency.measure(actor, samples, view, key, draws=3)
    play_key, view_key = jax.random.split(key)
    rollout = single_turn(actor, iter([samples]), play_key, group_size=1)
    np.testing.assert_array_equal(measured.rollout.tokens, rollout.tokens)
    scores = [
        perception.sampled_k3(
            rollout.old_logprobs,
            actor.add_logprobs(
                rollout, "x", view, jax.random.fold_in(view_key, draw)
            ).extra_logprobs["x"],
            rollout.mask,
        )
        for draw in range(3)
    ]
    np.testing.assert_allclose(measured.dependency, np.mean(scores, axis=0), atol=1e-6)
    assert (scores[0] != scores[1]).any()
    first = measured.dependency[:, 0]  # the only token of this policy that looks
    assert (first[[0, 1, 3]] > 1e-6).all()
    # The sampler's log-prob and the scorer's are equal up to rounding.
    assert measured.dependency[2].max() < 1e-9
    assert measured.dependency[:, 1:].max() < 1e-9


@pytest.fixture(scope="module")
def trained():
    """The tiny policy after 40 supervised steps on 32 sums, and these sums."""
    samples = digits.sums(32, split="train", seed=2)
    actor = tiny_actor(samples, boxed_exact, seed=2)
    recipe = small.recipe("sft")
    learner = make_learner(
        actor.policy, actor.params, optax.flatten(adamw(2e-3)), actor.allowed
    )
    for _ in range(40):
        learner, _ = iteration(
            recipe, actor, learner, itertools.repeat(samples), jax.random.key(0)
        )
    return dataclasses.replace(actor, params=learner.params), samples


def test_dependency_tells_tokens_apart_on_a_trained_policy(trained):
    r"""In `4 + 9 = \boxed{13}`: 4 and 9 are read off the picture, 13 follows.

    Over four seeds of data and parameters the quotient lay between 10 and 65.
    """
    actor, samples = trained
    measured = dependency.measure(
        actor, samples, views.blacken_patches, jax.random.key(1), draws=2
    )
    kinds = dependency.by_kind(actor, measured, digits.sum_token_kinds)
    assert kinds["seen"]["count"] > 50
    assert kinds["derived"]["count"] > 30
    assert kinds["seen"]["mean"] > 1
    assert kinds["seen"]["mean"] > 3 * kinds["derived"]["mean"]


def test_a_trained_policy_answers_from_the_picture(trained):
    """Law 2: with another question's picture its rewards fall."""
    actor, samples = trained

    def accuracy(shown):
        rollout = single_turn(actor, iter([shown]), jax.random.key(1), group_size=1)
        return float(rollout.rewards.mean())

    assert accuracy(samples) > 0.5
    assert accuracy(held_out.shuffle_images(samples)) < 0.25
