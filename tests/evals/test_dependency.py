"""Which tokens look: by hand, and on a policy that was really trained."""

import base64
import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vrl_jax import perception, views
from vrl_jax.engine.conversation import Ask, user
from vrl_jax.engine.desk import Limits
from vrl_jax.engine.processing import question
from vrl_jax.evals import dependency, held_out
from vrl_jax.experiment import tiny_actor
from vrl_jax.programs.acting import act
from vrl_jax.programs.single_turn import single_turn
from vrl_jax.rewards.boxed import boxed_exact
from vrl_jax.training.iteration import iteration
from vrl_jax.training.learner import adamw, make_learner
from vrl_jax.worlds import digits

from ..fixtures import small
from ..fixtures.talks import SHOWN, look_again

LOOK_AGAIN = functools.partial(
    act, program=look_again, limits=Limits(row_tokens=64, pictures=1)
)
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
    assert not any("turns" in row for row in rows)


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


def stretches(mask):
    """The columns of each run of the policy's tokens."""
    columns = np.flatnonzero(mask)
    return np.split(columns, np.flatnonzero(np.diff(columns) > 1) + 1)


@pytest.fixture(scope="module")
def conversed():
    """Three turns each on one picture and on none, of a policy that sees them all."""
    samples = [small.samples()[row] for row in (0, 2)]
    measured = dependency.measure(
        small.actor(),
        samples,
        views.blacken_patches,
        jax.random.key(0),
        draws=2,
        act=LOOK_AGAIN,
    )
    return measured, samples


def test_a_token_depends_on_the_pictures_shown_before_it(conversed):
    """Also on those between turns, which `add_logprobs` alone leaves as they are."""
    measured, _ = conversed
    rollout, scores = measured.rollout, measured.dependency
    with_picture, without = scores
    looking = [stretches(mask) for mask in rollout.mask]
    assert [len(turns) for turns in looking] == [3, 3]
    assert all((with_picture[columns] > 1e-6).any() for columns in looking[0])
    first, *later = (without[columns] for columns in looking[1])
    assert first.max() < 1e-9
    assert all((turn > 1e-6).any() for turn in later)
    assert not scores[~rollout.mask].any()
    seen = small.actor().add_logprobs(
        rollout, "x", views.blacken_patches, jax.random.key(1)
    )
    np.testing.assert_allclose(
        seen.extra_logprobs["x"][1], rollout.old_logprobs[1], atol=1e-5
    )


def test_by_kind_counts_the_policy_s_own_tokens_of_every_turn(conversed):
    measured, _ = conversed
    found = dependency.by_kind(
        small.actor(), measured, lambda tokens: ["seen"] * len(tokens)
    )
    own = measured.dependency[measured.rollout.mask]
    wanted = {"mean": pytest.approx(own.mean()), "count": own.size}
    assert found == {"seen": wanted}


def test_tokens_that_look_at_no_picture_depend_on_none():
    """Not on those of the prompt nor on those between turns, whatever is blackened."""
    looking = small.chain_actor()
    actor = dataclasses.replace(looking, params={"table": looking.params["table"]})
    measured = dependency.measure(
        actor,
        small.samples(),
        views.blacken_patches,
        jax.random.key(0),
        act=LOOK_AGAIN,
    )
    assert (measured.rollout.shown.images.frames > 0).any(axis=1).all()
    assert [len(stretches(mask)) for mask in measured.rollout.mask] == [3] * 4
    assert measured.dependency.max() < 1e-9


def test_example_rows_of_conversations_have_turns(conversed):
    measured, samples = conversed
    rows = dependency.example_rows(
        small.actor(), samples, measured, dependency.unmarked
    )
    for row, sample, mask in zip(rows, samples, measured.rollout.mask, strict=True):
        said = [(turn["chosen"], turn["images"]) for turn in row["turns"]]
        told = (False, [base64.b64encode(SHOWN).decode()])
        assert said == [(True, []), told, (True, []), (False, []), (True, [])]
        first, shown, second, asked, third = row["turns"]
        assert (shown["text"], asked["text"]) == ("<image>And now?", "So?")
        assert shown["tokens"] == asked["tokens"] == []
        own = [first["tokens"], second["tokens"], third["tokens"]]
        assert [len(tokens) for tokens in own] == [*map(len, stretches(mask))]
        assert [*itertools.chain(*own)] == row["tokens"]
        assert (row["image_png"] is None) == (not sample.images)


def test_an_answer_that_is_not_measured_has_no_dependency():
    """The first is tried only; a frozen model says the last."""

    def program(sample):
        tried = yield Ask(question(sample), trained=False)
        said = yield Ask(question(sample))
        verdict = yield Ask((user("it?"),), model="judge")
        return tried, said, verdict

    actor = small.chain_actor()
    playing = functools.partial(act, program=program, models={"judge": actor})
    samples = small.samples()
    measured = dependency.measure(
        actor, samples, views.blacken_patches, jax.random.key(0), act=playing
    )
    rows = dependency.example_rows(actor, samples, measured, dependency.unmarked)
    for row in rows:
        tried, said, _, verdict = row["turns"]
        assert tried["chosen"] and tried["tokens"] == []
        assert said["tokens"] == row["tokens"] != []
        assert verdict["tokens"] == [] and verdict["facts"] == {"model": "judge"}


def test_measure_refuses_several_conversations_an_episode():
    def two_minds(sample):
        first = yield Ask(question(sample))
        second = yield Ask((user("What is it?"),))
        return first, second

    playing = functools.partial(act, program=two_minds, rows=2)
    with pytest.raises(ValueError, match=r"one conversation .* rows=2: leave it at 1"):
        dependency.measure(
            small.chain_actor(),
            small.samples(),
            views.blacken_patches,
            jax.random.key(0),
            act=playing,
        )


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


@pytest.mark.proof
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


@pytest.mark.proof
def test_a_trained_policy_answers_from_the_picture(trained):
    """Law 2: with another question's picture its rewards fall."""
    actor, samples = trained

    def accuracy(shown):
        rollout = single_turn(actor, iter([shown]), jax.random.key(1), group_size=1)
        return float(rollout.rewards.mean())

    assert accuracy(samples) > 0.5
    assert accuracy(held_out.shuffle_images(samples)) < 0.25
