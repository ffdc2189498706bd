"""VisRL: what is learnt of pairs of boxes and answers."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vrl_jax.programs.region_pairs import preferences, two_candidates
from vrl_jax.recipes.visrl import own_region, visrl
from vrl_jax.training.iteration import iteration
from vrl_jax.training.learner import make_learner
from vrl_jax.training.metrics import as_floats, merged
from vrl_jax.types import Likelihood

from ..fixtures import small
from ..fixtures.signs import (
    ROOM,
    SHORT,
    answered_right,
    chain_actor,
    decoded,
    on_the_sign,
    recite,
    rows,
    scripted,
)


def acted(made, **how):
    recipe = visrl(limits=ROOM, **SHORT, **how)
    return recipe, recipe.act(chain_actor(), iter([made]), jax.random.key(0))


def test_both_answers_are_shown_the_chosen_crop():
    made = rows(2)
    _, rollout = acted(made)
    names = ("chosen_step", "rejected_step", "chosen", "rejected")
    words = [row.annotations[name] for row in made for name in names]
    assert decoded(rollout) == words
    assert rollout.rewards.tolist() == [1, 0, 1, 0]
    assert rollout.place.tolist() == [0, 0, 1, 1] * 2
    assert rollout.episode.tolist() == [0, 1, 0, 1, 2, 3, 2, 3]
    # A prompt for both boxes, and one for both answers: its crop is read once.
    assert len(rollout.prompts.tokens) == 4

    _, apart = acted(made, region=own_region)
    assert decoded(apart) == words and len(apart.prompts.tokens) == 8
    patches = np.asarray(apart.prompts.images.patches)
    shared = np.asarray(rollout.prompts.images.patches)
    np.testing.assert_array_equal(patches[2], shared[1])
    assert np.abs(patches[3] - patches[2]).max() > 0.1


def test_a_pair_without_a_picture_is_asked_in_words_that_show_no_crop():
    (row,) = rows(1)
    bare = dataclasses.replace(row, images=(), question="Which number?")
    _, rollout = acted([bare], uncut="Say it. {question}")
    decode = chain_actor().processor.tokenizer.decode
    box, answer = map(decode, np.asarray(rollout.prompts.tokens))
    assert "Which number?" in box and "Say it" not in box
    assert "Say it. Which number?" in answer


def test_stage_one_reads_no_answer():
    made = [
        dataclasses.replace(
            row,
            annotations={
                name: row.annotations[name] for name in ("chosen_step", "rejected_step")
            },
        )
        for row in rows(2)
    ]
    recipe, rollout = acted(made, weights=(1.0,))
    assert decoded(rollout) == [
        row.annotations[name] for row in made for name in row.annotations
    ]
    scored = recipe.score(chain_actor(), rollout, jax.random.key(1))
    batch, _ = recipe.credit(scored)
    mean, metrics = recipe.loss(chain_actor().likelihood, batch)
    assert float(mean.total / mean.weight) == pytest.approx(math.log(2), abs=1e-5)
    assert "rewards/box_margins" in metrics and "rewards/answer_margins" not in metrics


def worked(steps):
    """The sheet's log-probs: boxes, and with two steps the answers."""
    rollout = small.scored([1.0, 0.0])
    count = 2 * steps
    new = jnp.array([-4.0, -7.0, -10.0, -14.0])[:count, None]
    reference = jnp.array([-5.0, -6.0, -10.5, -12.0])[:count, None]
    rollout = dataclasses.replace(
        rollout,
        tokens=jnp.zeros((count, 1), int),
        mask=jnp.ones((count, 1), bool),
        old_logprobs=new,
        temperature=jnp.ones(count),
        extra_logprobs={"reference": reference},
    )
    if steps > 1:
        rollout = dataclasses.replace(
            rollout,
            episode=jnp.array([0, 1, 0, 1]),
            place=jnp.array([0, 0, 1, 1]),
        )
    return rollout


def policy(batch):
    return Likelihood(batch.old_logprobs, jnp.zeros_like(batch.old_logprobs))


@pytest.mark.parametrize(
    ("weights", "wanted"),
    [
        ((1.0,), 0.598139),  # the sheet's stage 1
        ((0.5, 0.5), 0.587039),  # and its stage 2
        ((1.0, 0.0), 0.598139),
        ((0.0, 1.0), 0.575939),
        ((0.25, 1.0), 0.25 * 0.598139 + 0.575939),
    ],
)
def test_the_worked_pairs(weights, wanted):
    recipe = visrl(weights=weights)
    batch, _ = recipe.credit(worked(len(weights)))
    mean, metrics = recipe.loss(policy, batch)
    assert float(mean.total / mean.weight) == pytest.approx(wanted, abs=1e-6)
    logged = as_floats(metrics)
    assert logged["actor/box_loss"] == pytest.approx(0.598139, abs=1e-6)
    assert logged["rewards/box_margins"] == 2.0
    means = ((-4, -7), (-7, -10.5))[len(weights) - 1]  # of boxes, of both
    assert (logged["logps/chosen"], logged["logps/rejected"]) == means
    if len(weights) > 1:
        assert logged["actor/answer_loss"] == pytest.approx(0.575939, abs=1e-6)
        assert logged["rewards/answer_margins"] == 2.5
        assert logged["rewards/answer_accuracies"] == 1
    assert batch.advantages[:, 0].tolist() == [1, -1] * len(weights)


def test_boxes_and_answers_may_lie_in_different_micro_batches():
    recipe = visrl(weights=(0.25, 1.0))
    batch, _ = recipe.credit(worked(2))
    halves = [jax.tree.map(lambda x, s=s: x[s : s + 2], batch) for s in (0, 2)]
    apart = [recipe.loss(policy, half) for half in halves]
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-6),
        merged(*apart),
        recipe.loss(policy, batch),
    )


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"chosen_step": None}, "-0 needs the column 'chosen_step', a box"),
        ({"rejected": 3}, "-0 needs the column 'rejected', the rejected answer"),
        ({"chosen_step": "there"}, "-0 needs boxes in the columns .* got 'there'"),
        ({"chosen_step": "[4, 4, 9, 9]"}, "-0 needs boxes in the columns"),
    ],
)
def test_a_row_that_is_no_pair_is_named(columns, message):
    (row,) = rows(1)
    bad = dataclasses.replace(row, annotations={**row.annotations, **columns})
    with pytest.raises(ValueError, match=message):
        acted([bad])


def test_a_bad_rejected_box_matters_where_it_is_shown():
    (row,) = rows(1)
    columns = {**row.annotations, "rejected_step": "there"}
    bad = dataclasses.replace(row, annotations=columns)
    assert decoded(acted([bad])[1])[1] == "there"
    with pytest.raises(ValueError, match="got 'there'"):
        acted([bad], region=own_region)


def test_there_are_one_or_two_weights():
    for weights in ((), (1.0, 1.0, 1.0)):
        with pytest.raises(ValueError, match="1 or 2 weights"):
            visrl(weights=weights)


def test_scripted_questions_become_pairs_and_pairs_a_better_policy(monkeypatch):
    recite(monkeypatch)
    actor = chain_actor()
    pairs, counts = preferences(
        actor,
        [scripted(row) for row in rows(2)],
        jax.random.key(0),
        accuracy=answered_right,
        accuracy_bbox=on_the_sign,
        attempts=1,
        program=functools.partial(two_candidates, **SHORT),
        limits=ROOM,
    )
    assert counts["pairs"] == 2
    columns = ("chosen_step", "rejected_step", "chosen", "rejected")
    for pair, row in zip(pairs, rows(2), strict=True):
        assert all(pair.annotations[c] == row.annotations[c] for c in columns)
    learner = make_learner(
        actor.policy, actor.params, small.optimizer(), actor.allowed, micro_batches=2
    )
    recipe = visrl(reference=actor.params, limits=ROOM, **SHORT)
    logged = []
    for step in range(2):
        learner, metrics = iteration(
            recipe, actor, learner, iter([pairs]), jax.random.key(step)
        )
        logged.append(as_floats(metrics))
    # By hand: no margin before the first update, -log(1/2) for both steps.
    first, second = logged
    for name in ("actor/loss", "actor/box_loss", "actor/answer_loss"):
        assert first[name] == pytest.approx(math.log(2), abs=1e-6)
        assert second[name] < first[name]
    for step in ("box", "answer"):
        assert first[f"rewards/{step}_margins"] == pytest.approx(0, abs=1e-5)
        assert second[f"rewards/{step}_margins"] > 0
        assert second[f"rewards/{step}_accuracies"] == 1
