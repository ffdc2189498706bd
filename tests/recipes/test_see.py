"""SEE: rows that say whose they are, experts that decide, and who answers.

Numbers are those of the worked examples of its sheet unless a test says otherwise.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vrl_jax.evals.continual import routing
from vrl_jax.evals.held_out import answers
from vrl_jax.models import lora
from vrl_jax.models.parameters import Parameter
from vrl_jax.programs.acting import act
from vrl_jax.programs.cascade import (
    acceptance,
    answered_by,
    decide_then_answer,
    first_to_accept,
)
from vrl_jax.recipes.see import (
    balanced,
    experts,
    reconstructed,
    remembered,
    routed,
    see,
)
from vrl_jax.rewards.answers import exact
from vrl_jax.rewards.combine import per_response
from vrl_jax.training.data import read_samples
from vrl_jax.training.learner import make_learner, update
from vrl_jax.training.metrics import as_floats, merged
from vrl_jax.types import Episode, Likelihood, Sample, Turn
from vrl_jax.worlds import digits, shapes
from vrl_jax.worlds.writing import png_bytes, write_parquet

from ..fixtures import small
from ..fixtures.talk import talk

KEY = jax.random.key(0)
MARKS = {"accept": "it", "reject": "What"}
"""Words that are one token of the small tokenizer."""

SAMPLE = small.samples()[0]
MASK = jnp.array([[1, 1, 1], [1, 0, 0]], bool)
NEW = jnp.array([[-0.1, -0.5, -0.3], [-0.2, 9, 9]])


def loss(mask=MASK, new=NEW, **how):
    recipe = see(**how)
    rollout = dataclasses.replace(small.scored([math.nan] * len(mask)), mask=mask)
    batch, _ = recipe.credit(rollout)
    new = Likelihood(jnp.where(mask, new, 0), jnp.zeros(mask.shape))
    return recipe.loss(lambda _: new, batch)


def test_the_worked_rows():
    """An acceptance of .300000, a rejection of .200000, and their mean."""
    for row, wanted in enumerate((0.3, 0.2)):
        mean, _ = loss(MASK[row : row + 1], NEW[row : row + 1])
        np.testing.assert_allclose(mean.total / mean.weight, wanted, rtol=1e-6)
    mean, metrics = loss()
    np.testing.assert_allclose(mean.total / mean.weight, 0.25, rtol=1e-6)
    logged = as_floats(metrics)
    np.testing.assert_allclose(logged["see/decision_loss"], 0.15, rtol=1e-6)
    assert logged["see/decided"] == 1  # e^-.1 and e^-.2 are more than a half


def test_rejections_are_weighed_whatever_the_micro_batches():
    """(.3 + 10 .2) / 2; by hand."""
    whole = loss(rejection=10.0)
    np.testing.assert_allclose(whole[0].total / whole[0].weight, 1.15, rtol=1e-6)
    rows = [loss(MASK[i : i + 1], NEW[i : i + 1], rejection=10.0) for i in (0, 1)]
    for one, other in zip(
        jax.tree.leaves(merged(*rows)), jax.tree.leaves(whole), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_a_decision_counts_where_nothing_can_be_likelier():
    _, metrics = loss(new=jnp.log(jnp.array([[0.4, 0.9, 0.9], [0.51, 1, 1]])))
    assert as_floats(metrics)["see/decided"] == 0.5


def test_the_worked_weight():
    """25, of which no more than 10 is taken; the others by hand."""
    assert balanced(1000, 40) == 10
    assert balanced(1000, 40, most=100) == 25
    assert balanced(100, 400) == 0.25
    assert balanced(100, 0) == 10


def worlds(count=4):
    return (
        digits.sums(count, split="train", seed=0),
        shapes.colour(count, split="train", seed=0),
    )


def test_rows_of_two_worlds_say_whose_they_are(tmp_path):
    task, old = worlds()
    rows = reconstructed(task, remembered(old, KEY, share=0.5))
    assert len(rows) == 6
    for row, before in zip(rows, task, strict=False):
        told = row.annotations["demonstration"]
        assert told == "accept" + before.annotations["demonstration"]
        assert row.annotations["own"] is True and row.answer == before.answer
        assert "accept" not in before.annotations["demonstration"]
    for row in rows[4:]:
        assert row.annotations["demonstration"] == "reject"
        assert row.annotations["own"] is False and row.source == "shapes/colour"
        assert row.question in {sample.question for sample in old}
    read, report = read_samples(write_parquet(rows, tmp_path / "rows.parquet"))
    assert (report.used, dict(report.dropped)) == (6, {})
    for row, other in zip(rows, read, strict=True):
        for name in ("own", "demonstration"):
            assert other.annotations[name] == row.annotations[name]


def test_a_row_without_an_answer_is_named_and_so_is_one_on_both_sides():
    task, old = worlds()
    bare = [dataclasses.replace(task[0], annotations={})]
    with pytest.raises(ValueError, match=f"{task[0].id} needs the column 'demonstrat"):
        reconstructed(bare, old)
    assert reconstructed(old, bare)[-1].annotations["demonstration"] == "reject"
    with pytest.raises(ValueError, match=rf"{task[1].id} is a row of the task and one"):
        reconstructed(task, [*old, task[1]])


def test_a_share_is_remembered_in_order():
    rows = [dataclasses.replace(SAMPLE, id=str(number)) for number in range(200)]

    def kept(key, share):
        return [
            int(row.id) for row in remembered(rows, jax.random.key(key), share=share)
        ]

    for share, count in ((0.1, 20), (0.01, 2), (0.001, 1), (1, 200)):
        found = kept(0, share)
        assert len({*found}) == len(found) == count and found == sorted(found)
    assert kept(0, 0.1) == kept(0, 0.1) != kept(1, 0.1)
    counts = np.bincount(np.concatenate([kept(key, 0.1) for key in range(40)]))
    assert len(counts) > 190 and counts.max() < 15  # of 4 on average: uniform
    for task, share in ((rows, 0.0), (rows, 1.5), ([], 0.5)):
        with pytest.raises(ValueError, match=r"a share in \(0, 1\] of some rows"):
            remembered(task, KEY, share=share)


def saying(*texts):
    return [
        dataclasses.replace(row, annotations={"demonstration": text})
        for row, text in zip(small.samples(), texts, strict=False)
    ]


def acted(*texts):
    return see(**MARKS).act(small.chain_actor(), iter([saying(*texts)]), KEY)


def test_a_rejection_is_one_token_and_an_answer_follows_an_acceptance():
    actor = small.chain_actor()
    rollout = acted("it is", "What", "it", "it What is it?")
    tokenizer = actor.processor.tokenizer
    stop = int(actor.stop_ids[0])
    found = [
        row[kept].tolist()
        for row, kept in zip(
            *map(np.asarray, (rollout.tokens, rollout.mask)), strict=True
        )
    ]
    it, what, its = (
        tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in ("it", "What", " is")
    )
    assert found[:3] == [[*it, *its, stop], what, [*it, stop]]
    assert tokenizer.decode(found[3][:-1]) == "it What is it?"
    assert np.isnan(rollout.rewards).all()
    batch, _ = see(rejection=3.0, **MARKS).credit(rollout)
    np.testing.assert_array_equal(batch.advantages[:, 0], [1, 3, 1, 1])


@pytest.mark.parametrize("text", ["is it", "What is it", "", None, ["it", "is"]])
def test_a_demonstration_without_a_decision_is_named(text):
    with pytest.raises(
        ValueError, match="row-1 needs the column 'demonstration', 'it'"
    ):
        acted("it is", text)


def test_decisions_are_two_tokens_that_can_be_told_apart():
    with pytest.raises(ValueError, match="one token, and 'accept' has 6"):
        see().act(small.chain_actor(), iter([saying("accept")]), KEY)
    for reject in ("it", "item"):
        with pytest.raises(ValueError, match="does not begin with 'it'"):
            see(accept="it", reject=reject)


def decision(probability, *, drawn):
    """p(accept) as the sampler tells it, by the word that it drew."""
    likely = probability if drawn == "accept" else 1 - probability
    return Turn(drawn, (7,), finished=False, logprob=math.log(likely))


@pytest.mark.parametrize("drawn", [("accept", "reject") * 2, ("reject", "accept") * 2])
@pytest.mark.parametrize(
    ("order", "accepting", "threshold", "who", "probes"),
    [
        ((3, 2, 1), (0.10, 0.93, 0.80), 0.5, "2", 2),
        ((1, 2, 3), (0.80, 0.93, 0.10), 0.5, "1", 1),
        ((3, 2, 1), (0.2, 0.4, 0.3), 0.5, "general", 3),
        ((3, 2, 1), (0.2, 0.4, 0.3), 0.35, "2", 2),
    ],
)
def test_the_worked_cascades(order, accepting, threshold, who, probes, drawn):
    """Newest first, oldest first, nobody's question, and a lower threshold."""
    program = first_to_accept(SAMPLE, experts=[*map(str, order)], threshold=threshold)
    replies = [decision(p, drawn=d) for p, d in zip(accepting, drawn, strict=False)]
    text, tokens = ("acceptfour", (7, 4)) if who != "general" else ("four", (4,))
    reply = Turn(text, tokens, chosen=False, facts={"model": who})
    asked, outcome = talk(program, [*replies[:probes], reply])
    assert [ask.model for ask in asked] == [*map(str, order[:probes]), who]
    for ask in asked[:-1]:
        assert (ask.allowed, ask.max_new_tokens) == (("accept", "reject"), 1)
        assert (ask.temperature, ask.top_k, ask.top_p) == (1, 0, 1)
    assert asked[-1].given == ("" if who == "general" else "accept")
    assert not asked[-1].trained and asked[-1].allowed is None
    assert outcome.facts == {"probes": probes, f"answered/{who}": 1}
    (turn,) = outcome.turns
    assert (turn.text, turn.tokens, turn.chosen) == ("four", (4,), True)
    assert turn.facts == {"model": who}


def test_a_word_that_is_no_decision_is_told():
    with pytest.raises(ValueError, match="'accept' or 'reject', got ''"):
        acceptance(Turn("", (7,)))
    with pytest.raises(ValueError, match="'accept' or 'reject', got 'maybe'"):
        talk(first_to_accept(SAMPLE), [Turn("maybe", (7,))])


def test_a_decision_comes_first_and_is_not_in_the_answer():
    yes, whole = decision(0.9, drawn="accept"), Turn("accept4", (7, 4))
    asked, outcome = talk(decide_then_answer(SAMPLE), [yes, whole])
    assert asked[0].allowed == ("accept", "reject") and asked[0].top_k is None
    assert asked[1].given is yes and asked[1].allowed is None
    assert [turn.text for turn in outcome.turns] == ["accept", "4"]
    assert [turn.tokens for turn in outcome.turns] == [(7,), (4,)]
    asked, outcome = talk(decide_then_answer(SAMPLE), [decision(0.1, drawn="reject")])
    assert len(asked) == 1 and outcome.facts == {"accepted": 0}
    assert [turn.text for turn in outcome.turns] == ["reject"]
    assert outcome.turns[0].finished  # the budget of one token is all of it


right = per_response(lambda episode: float(exact(episode.text, episode.sample.answer)))


def paid(own, *texts):
    sample = Sample("one", "", "?", (), "4", {"own": own})
    turns = tuple(Turn(text, (1,)) for text in texts)
    return routed(right)([Episode(sample, "?", turns, True)])[0]


@pytest.mark.parametrize(
    ("own", "texts", "overall"),
    [
        (True, ("accept", "4"), 2),
        (True, ("accept", "5"), 1),
        (True, ("reject",), 0),
        (False, ("reject",), 1),
        (False, ("accept", "5"), 0),
        (False, ("accept", "4"), 1),
        # Not of the sheet: what is no decision earns nothing.
        (True, ("",), 0),
        (True, ("4",), 0),
        (False, ("Accept4",), 0),
        (False, ("rejected",), 0),
    ],
)
def test_the_worked_rewards(own, texts, overall):
    assert paid(own, *texts)["overall"] == overall


def test_rewards_have_parts_and_need_to_know_whose_a_row_is():
    found = paid(True, "accept", "5")
    assert (found["route"], found["answer"], found["answer_condition"]) == (1, 0, 1)
    with pytest.raises(ValueError, match="one needs the column 'own', whether the row"):
        paid(None, "accept", "5")


def test_decisions_learnt_by_reward_are_scored_as_they_were_drawn():
    """One row for both; where it was rejected, one token."""
    rows = [
        dataclasses.replace(row, annotations={"own": number % 2 == 0})
        for number, row in enumerate(small.samples())
    ]
    reward = routed(per_response(lambda episode: 1.0), **MARKS)
    # A chain that looks would see the picture in a given word, and not in its own.
    table = {"table": small.chain_actor().params["table"]}
    actor = dataclasses.replace(small.chain_actor(), params=table, reward=reward)
    program = functools.partial(decide_then_answer, **MARKS)
    rollout = act(actor, iter([rows]), KEY, program=program, group_size=8)
    assert rollout.episode is None
    taken = np.asarray(rollout.facts["accepted"]) == 1
    assert 0 < taken.sum() < len(taken)
    np.testing.assert_array_equal(np.asarray(rollout.mask.sum(axis=1)) > 1, taken)
    own = np.repeat([True, False, True, False], 8)
    np.testing.assert_array_equal(rollout.rewards, (own == taken) + 1.0 * taken)
    np.testing.assert_allclose(
        actor.likelihood(rollout).logprobs, rollout.old_logprobs, atol=1e-5
    )


def shown(source, level, count=4):
    """A question about a picture in one grey, or about none."""
    picture = png_bytes(np.full((28, 56, 3), level, np.uint8)) if level else None
    asked = "<image>What is it?" if level else "What is it?"
    images = (picture,) if level else ()
    columns = {"demonstration": source}
    return [
        Sample(f"{source}-{n}", source, asked, images, source, columns)
        for n in range(count)
    ]


BRIGHT, DARK, NONE = shown(" it", 255), shown(" is", 1), shown(" a", 0)


RECIPE, ADAM = see(**MARKS), optax.adam(0.1)
"""The same objects for each expert, so that jit compiles once."""


@functools.cache
def base():
    """A chain that says anything, and sees how bright it is where an answer begins."""
    actor = small.chain_actor()
    begin, stop = (
        actor.processor.tokenizer.convert_tokens_to_ids(token)
        for token in ("\u010a", "<|im_end|>")
    )

    def prefill(params, prompts, features):
        own = jax.nn.one_hot(prompts.tokens, len(params["look"]))
        here = (prompts.tokens == begin)[..., None]
        return own + here * features[:, None, None] * params["look"], None

    return dataclasses.replace(
        actor,
        policy=actor.policy._replace(prefill=prefill),
        params={**actor.params, "table": 0.1 * actor.params["table"]},
        stop_ids=jnp.array([stop]),
        reward=right,
    )


def trained(task, others, steps=60):
    """An expert: adapters of the chain's table, of which the base stays what it is."""
    actor, size = base(), len(base().params["look"])
    row = Parameter(
        "table", (size, size), (None, None), "t.weight", (size, size), transposed=True
    )
    trains = lora.adapters(KEY, [row], rank=8, alpha=8.0, targets=lambda path: True)
    learner = make_learner(
        actor.policy, actor.params, ADAM, actor.allowed, trains=trains
    )
    rows = reconstructed(task, others, **MARKS)
    batch, _ = RECIPE.credit(RECIPE.act(actor, iter([rows]), KEY))
    for _ in range(steps):
        learner, metrics = update(RECIPE.loss, learner, batch)
    return lora.Lora(learner.trained, jnp.float32(1.0)), as_floats(metrics)


def test_experts_are_trained_one_by_one_and_route_by_themselves():
    """Bright pictures came first, then dark ones; nobody learnt about none at all."""
    first, logged = trained(BRIGHT, NONE)
    assert logged["see/decided"] == 1
    second, logged = trained(DARK, [*remembered(BRIGHT, KEY, share=0.5), *NONE[:2]])
    assert logged["see/decided"] == 1
    models = experts(base(), {"bright": first, "dark": second})
    for one in models.values():
        assert one.params["look"] is base().params["look"]
        assert not np.allclose(one.params["table"], base().params["table"])

    program = functools.partial(first_to_accept, experts=("policy", "bright"), **MARKS)
    others = {"bright": models["bright"], "general": base()}
    measured = answers(
        models["dark"],
        [*BRIGHT, *DARK, *NONE],
        KEY,
        act=functools.partial(act, program=program, models=others),
    )
    owners = {" it": "bright", " is": "policy"}
    found = routing(measured, lambda sample: owners.get(sample.source))
    assert found["routing/accuracy"] == found["routing/rejection"] == 1
    for (one,) in measured[:8]:
        assert one.episode.text == one.episode.sample.answer
        assert one.scores["overall"] == 1
    probes = [one.episode.facts["probes"] for (one,) in measured]
    assert probes == [2] * 4 + [1] * 4 + [2] * 4
    assert {answered_by(one.episode) for (one,) in measured[8:]} == {"general"}
