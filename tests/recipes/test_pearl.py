"""PEARL: what the checklist earns, whom it lets pass, and both terms of the loss."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vrl_jax import filters
from vrl_jax.engine.conversation import Ask
from vrl_jax.programs.dynamic_sampling import every_group, mixed_accuracy
from vrl_jax.recipes.pearl import (
    GATE,
    PERCEPTION,
    both_branches,
    checklist,
    pearl,
    perceived_share,
    soft,
)
from vrl_jax.types import Likelihood, Rollout, Sample, Turn

from ..fixtures import small

PROBE = "<q1>How many?</q1><q2>Which colour?</q2><q3>Left of what?</q3>"
SAMPLE = Sample(
    "one",
    "small",
    "<image>What is it?",
    small.samples()[0].images,
    "4",
    {"probe_problem": PROBE, "probe_answer": ["3", "Red", "the box"]},
)
SEEN = np.array([3, 2, 2, 1, 3]) / 3  # the sheet's group
RIGHT = np.array([1.0, 0, 1, 0, 0])


def group(perception=SEEN, rewards=RIGHT, gate=1.0, tokens=3) -> Rollout:
    """Five episodes of two rows: first those that perceive, then those that reason."""
    shape = (10, tokens)
    mask = np.arange(tokens) < 1 + np.arange(10)[:, None] % tokens
    return dataclasses.replace(
        small.scored([0.0] * 10),
        tokens=jnp.zeros(shape, int),
        mask=jnp.array(mask),
        old_logprobs=jnp.zeros(shape),
        rewards=jnp.array(rewards, jnp.float32),
        reward_parts={
            PERCEPTION: jnp.array(perception, jnp.float32),
            GATE: jnp.full(5, gate),
            "accuracy": jnp.array(rewards, jnp.float32),
        },
        group=jnp.zeros(5, int),
        episode=jnp.tile(jnp.arange(5), 2),
        place=jnp.repeat(jnp.arange(2), 5),
    )


def given(recipe, rollout):
    """(perception's, reasoning's) advantages of the five episodes."""
    batch, _ = recipe.credit(rollout)
    first = np.asarray(batch.advantages[:, 0])
    return first[:5], first[5:]


def test_the_worked_group():
    sees, reasons = given(pearl(), group())
    wanted = [0.95618, -0.23904, -0.23904, -1.43427, 0.95618]
    np.testing.assert_allclose(sees, wanted, atol=1e-5)
    wanted = [0.80332, -0.53555, 0.80332, -0.53555, -0.53555]
    np.testing.assert_allclose(reasons, wanted, atol=1e-5)
    _, capped = given(pearl(weigh=filters.capped_gate), group())
    wanted = [0.54772, -0.36515, 0.54772, -0.36515, -0.36515]
    np.testing.assert_allclose(capped, wanted, atol=1e-5)
    # Whoever saw a fifth of it: half as much.
    _, little = given(pearl(), group(perception=[0.2] * 5))
    wanted = [0.54772, -0.36515, 0.54772, -0.36515, -0.36515]
    np.testing.assert_allclose(little, wanted, atol=1e-5)


def test_the_soft_filter_keeps_what_still_teaches_perception():
    solved = group(rewards=np.ones(5))
    assert not mixed_accuracy(solved).any()
    assert soft(solved).all()
    blind = group(perception=np.zeros(5), gate=0.0)
    assert mixed_accuracy(blind).all()
    assert not soft(blind).any()
    assert soft(group(perception=np.zeros(5), gate=1.0)).all()


def loss_by_hand(batch, new, weight):
    """mean over the answers' tokens + weight mean over the checklists' tokens."""
    mask, each = np.asarray(batch.mask), -np.asarray(batch.advantages) * np.exp(new)
    sees, reasons = mask[:5], mask[5:]
    term = each[5:][reasons].sum() / reasons.sum()
    return term + weight * each[:5][sees].sum() / sees.sum()


def test_each_branch_has_a_mean_of_its_own():
    recipe, rollout = pearl(perception_weight=0.25), group()
    batch, _ = recipe.credit(rollout)
    new = 0.01 * np.sin(np.arange(30.0)).reshape(10, 3)  # inside the clip
    shown = jnp.where(batch.mask, new, 0)
    mean, _ = recipe.loss(lambda _: Likelihood(shown, 0 * shown), batch)
    found = float(mean.total / mean.weight)
    assert found == pytest.approx(loss_by_hand(batch, new, 0.25), rel=1e-5)


def test_answers_behind_a_closed_gate_teach_nothing():
    recipe, rollout = pearl(), group()
    shut = jnp.array([1.0, 1, 0, 1, 1])
    parts = {**rollout.reward_parts, GATE: shut}
    batch, _ = recipe.credit(dataclasses.replace(rollout, reward_parts=parts))

    def loss(shift):
        new = jnp.where(batch.mask, shift, 0)
        return recipe.loss(lambda _: Likelihood(new, 0 * new), batch)[0]

    slope = jax.grad(lambda x: loss(x).total)(jnp.zeros(batch.mask.shape))
    np.testing.assert_array_equal(slope[7], 0)
    assert np.abs(slope[2]).max() > 0  # what it was asked to see, still
    # On-policy each branch's term is minus the mean advantage of its tokens.
    mask, given = np.asarray(batch.mask), np.asarray(batch.advantages)
    opened = mask[[5, 6, 8, 9]]
    wanted = -given[[5, 6, 8, 9]][opened].mean() - 0.1 * given[:5][mask[:5]].mean()
    mean = loss(jnp.zeros(batch.mask.shape))
    assert float(mean.total / mean.weight) == pytest.approx(wanted, rel=1e-5)


def test_perception_is_trained_where_every_gate_is_shut():
    recipe = pearl()
    batch, _ = recipe.credit(group(gate=0.0))
    zero = jnp.zeros(batch.mask.shape)
    mean, _ = recipe.loss(lambda _: Likelihood(zero, zero), batch)
    mask, given = np.asarray(batch.mask), np.asarray(batch.advantages)
    wanted = -0.1 * given[:5][mask[:5]].mean()
    assert wanted and float(mean.total / mean.weight) == pytest.approx(wanted, rel=1e-5)


def test_both_are_asked_at_once_and_the_checklist_comes_first():
    program = both_branches(SAMPLE)
    asks = next(program)
    assert all(isinstance(ask, Ask) for ask in asks)
    first, second = asks
    assert first.context[0].text.startswith("<image><q1>How many?")
    assert first.context[0].text.endswith("<a2>...</a2>.")
    assert second.context[0].text == SAMPLE.question
    assert [ask.context[0].images for ask in asks] == [SAMPLE.images] * 2
    seen = Turn("<a1>3</a1><a2> red</a2><a3>a box</a3>", (1,))
    answer = Turn("4", (2,))
    with pytest.raises(StopIteration) as end:
        program.send([seen, answer])
    assert end.value.value.turns == (seen, answer)
    assert end.value.value.facts == {PERCEPTION: pytest.approx(2 / 3)}


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("<a1>3</a1> <a2>RED</a2> <a3>the box</a3>", 1),
        ("<a3>the box</a3>", 1 / 3),
        ("<a1>3</a1><a2>blue</a2>", 1 / 3),
        ("3, red, the box", 0),
        ("", 0),
    ],
)
def test_a_missing_answer_is_a_wrong_one(text, share):
    assert perceived_share(text, ["3", "Red", "the box"]) == pytest.approx(share)


def test_rows_in_the_released_form():
    """Its own placeholders, and answers in one text."""
    row = dataclasses.replace(
        SAMPLE,
        annotations={
            "probe_problem": "<image>\n<q1>How many?</q1><q2>Which colour?</q2>",
            "probe_answer": "<a1>3</a1><a2>red</a2>",
        },
    )
    assert checklist(row)[1] == ["3", "red"]
    listed = {**row.annotations, "probe_answer": [r"<a1>\frac12</a1>", "red"]}
    assert checklist(dataclasses.replace(row, annotations=listed))[1] == [
        *(r"\frac12", "red")
    ]
    first, _ = next(both_branches(row))
    assert first.context[0].text.count("<image>") == 1


def test_one_question_is_answered_in_a_box():
    row = dataclasses.replace(
        SAMPLE, annotations={"probe_problem": "How many?", "probe_answer": 3}
    )
    asked, golds = checklist(row)
    assert asked.endswith(r"\boxed{}.") and golds == ["3"]
    assert perceived_share(r"\boxed{3}", golds) == 1
    assert perceived_share("3", golds) == 0


@pytest.mark.parametrize(
    ("annotations", "said"),
    [
        ({}, "one needs the column 'probe_problem'"),
        ({"probe_problem": PROBE}, "one needs the column 'probe_answer'"),
        (
            {"probe_problem": PROBE, "probe_answer": ["3", "red"]},
            "3 questions, and probe_answer 2 answers",
        ),
        (
            {"probe_problem": "How many?", "probe_answer": ["3", "4"]},
            "1 questions, and probe_answer 2 answers",
        ),
    ],
)
def test_rows_that_lack_something_are_named(annotations, said):
    row = dataclasses.replace(SAMPLE, annotations=annotations)
    with pytest.raises(ValueError, match=said):
        checklist(row)


def test_the_gate_is_the_group_s_as_played(monkeypatch):
    """What was seen is told by the length of what was written; none passes anyway."""
    told = lambda text, golds, match: float(len(text) % 5 == 0)
    monkeypatch.setattr("vrl_jax.recipes.pearl.perceived_share", told)
    changes = {"group_size": small.GROUP, "keep": every_group}

    def played(**more):
        act = pearl(**changes, **more).act
        batches = itertools.repeat(small.samples())
        return act(small.actor(), batches, jax.random.key(0))

    rollout = played(bypass=0.0)
    perception = np.asarray(rollout.reward_parts[PERCEPTION]).reshape(4, -1)
    passed = perception.mean(axis=1) > 0
    assert passed.any() and not passed.all()
    gate = np.asarray(rollout.reward_parts[GATE]).reshape(4, -1)
    np.testing.assert_array_equal(gate, np.repeat(passed[:, None], small.GROUP, 1))
    assert rollout.place.tolist() == ([0] * small.GROUP + [1] * small.GROUP) * 4
    assert played(bypass=1.0).reward_parts[GATE].all()
    assert played(bypass=0.0, threshold=1.0).reward_parts[GATE].all()  # none would be
