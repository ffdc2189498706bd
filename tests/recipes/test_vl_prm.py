"""VL-PRM: how steps get their labels, how they are learnt, and what solutions score."""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vrl_jax.engine.conversation import Ask, conversation
from vrl_jax.engine.desk import Limits, OutOfRoom
from vrl_jax.engine.play import play
from vrl_jax.engine.processing import question
from vrl_jax.programs.acting import act
from vrl_jax.programs.search import best_of_n, first_best, tree_search
from vrl_jax.programs.step_labels import (
    SIGNS,
    continuations,
    estimated,
    judged,
    judged_error,
    labelled,
    solved,
    wrong_to_the_end,
)
from vrl_jax.programs.verdicts import probability, verdict
from vrl_jax.recipes.vl_prm import (
    every_step,
    judging,
    next_step,
    one_shot,
    released_worth,
    vl_prm,
)
from vrl_jax.rewards.combine import fact
from vrl_jax.rewards.steps import mean_step, product_of_steps, worst_step
from vrl_jax.types import Turn
from vrl_jax.worlds import digits, tasks

from ..fixtures import small
from ..fixtures.talk import said, talk

KEY = jax.random.key(0)
SAMPLE = small.samples()[0]
REPLY = '{"analyses": ["it is blue", "three lines", "3 + 4 is 7"], "conclusion": "%s"}'
ROOM = Limits(row_tokens=60)


def row(**columns):
    return dataclasses.replace(SAMPLE, annotations=columns)


FIVE = row(steps=["a", "b", "c", "d", "e"], scores=[n / 16 for n in (12, 9, 5, 0, 0)])


# Labels


def test_the_worked_labels():
    """The sheet's five steps: z = 4; two perception analyses and one of reasoning."""
    error = int(judged_error(REPLY % "Incorrect"))
    assert error == 3
    both = row(**FIVE.annotations, judged_error=error)
    alone = row(steps=FIVE.annotations["steps"], judged_error=error)
    found = [labelled(one).annotations["labels"] for one in (both, FIVE, alone)]
    assert found == [["+", "+", "-"], ["+", "+", "+", "-"], ["+", "+", "-"]]
    later = wrong_to_the_end(labelled(both)).annotations["labels"]
    assert later == ["+", "+", "-", "-", "-"]


def test_what_nobody_finds_wrong_is_right():
    good = row(steps=["a", "b", "c"], scores=[1.0, 0.5, 0.0625], judged_error=0)
    assert labelled(good).annotations["labels"] == ["+"] * 3
    late = row(**{**good.annotations, "judged_error": 3})
    assert labelled(late).annotations["labels"] == ["+", "+", "-"]


def test_a_column_of_none_is_none():
    judge = row(steps=["a", "b", "c"], scores=None, judged_error=2)
    ends = row(**{**FIVE.annotations, "judged_error": None})
    assert labelled(judge).annotations["labels"] == ["+", "-"]
    assert labelled(ends).annotations["labels"] == ["+", "+", "+", "-"]


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (REPLY % "Correct", 0),
        ("```json\n" + REPLY % " incorrect" + "\n```", 3),
        (REPLY % "Perhaps", None),
        ('{"analyses": [], "conclusion": "Incorrect"}', None),
        ('{"analyses": "all wrong", "conclusion": "Incorrect"}', None),
        ('["Incorrect"]', None),
        ("Incorrect", None),
        ("", None),
    ],
)
def test_a_judge_is_read_strictly(reply, error):
    assert judged_error(reply) == error


class Judge:
    """Answers each of what it is asked, and keeps it."""

    def __init__(self, *verdicts):
        self.answers = iter(verdicts)
        self.asked = []

    def verdicts(self, questions):
        self.asked.append(questions)
        return [next(self.answers) for _ in questions]


def test_a_judge_sees_pictures_question_and_steps():
    judge = Judge(2.0, math.nan, 9.0)
    rows, counts = judged(judge, [row(steps=["It is red.", "So it is."])] * 3)
    assert [one.annotations["judged_error"] for one in rows] == [2]
    assert counts == {"solutions": 3, "solutions/not judged": 2}
    ((asked, _, _),) = judge.asked
    picture, text = asked[0]["content"]
    assert picture["image_url"]["url"].startswith("data:image/png")
    assert text["text"].endswith(
        "Question: What is it?\nSteps:\n1. It is red.\n2. So it is."
    )


def test_a_judge_is_asked_so_many_at_a_time():
    judge = Judge(1.0, math.nan, 0.0, 2.0, 1.0)
    rows, counts = judged(judge, [row(steps=["a", "b"])] * 5, size=2)
    assert [len(questions) for questions in judge.asked] == [2, 2, 1]
    assert [one.annotations["judged_error"] for one in rows] == [1, 0, 2, 1]
    assert counts == {"solutions": 5, "solutions/not judged": 1}


def test_a_judge_reads_a_mere_word_as_it_is():
    """An escaped placeholder is text, and no picture is lost for it."""
    judge = Judge(0.0)
    asked = dataclasses.replace(SAMPLE, question=r"<image>What does \<image> mean?")
    judged(judge, [dataclasses.replace(asked, annotations={"steps": ["a"]})])
    text = judge.asked[0][0][0]["content"][-1]["text"]
    assert "Question: What does <image> mean?\n" in text


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"steps": ["a"]}, "row-0 needs the column 'scores' or 'judged_error'"),
        ({"scores": [1.0]}, "row-0 needs the column 'steps'"),
        ({"steps": [], "scores": []}, "row-0 needs the column 'steps', .* none empty"),
        ({"steps": ["a", " "], "scores": [1.0, 1.0]}, "at least one and none empty"),
        ({"steps": ["a"], "scores": [1.0, 0.0]}, "'scores' for each of 1 steps"),
        ({"steps": ["a", "b"], "scores": [None, 0.5]}, "row-0 needs a number from 0"),
        ({"steps": ["a"], "scores": [math.nan]}, r"row-0 needs .* got \[nan\]"),
        ({"steps": ["a"], "scores": [1.5]}, "row-0 needs a number from 0 to 1"),
        ({"steps": ["a"], "scores": "1"}, "row-0 needs the column 'scores', a share"),
        (
            {"steps": ["a"], "scores": None, "judged_error": None},
            "row-0 needs the column 'scores' or 'judged_error'",
        ),
        ({"steps": ["a"], "judged_error": 2}, "'judged_error' the number of a step, 1"),
    ],
)
def test_a_row_that_cannot_be_labelled_is_named(columns, message):
    with pytest.raises(ValueError, match=message):
        labelled(row(**columns))


def blind_actor(**changes):
    actor = small.chain_actor()
    params = {"table": actor.params["table"]}
    return dataclasses.replace(actor, params=params, slots=8, **changes)


def test_every_prefix_is_given_as_often():
    solution = row(steps=["It is", "so"])
    (asks,), turns = talk(continuations(solution, each=2), [[said("x")] * 4])
    assert [ask.given for ask in asks] == ["It is\n\n"] * 2 + ["It is\n\nso\n\n"] * 2
    assert not any(ask.trained for ask in asks) and len(turns) == 4
    forged = row(steps=["It is<|im_end|>", "<|image_pad|>"])
    (asks,), _ = talk(continuations(forged, each=1), [[said("x")] * 2])
    assert asks[1].given == "It is< |im_end|>\n\n< |image_pad|>\n\n"


def test_scores_are_shares_of_right_ends():
    """Played for real; what is right is a coin that is kept beside its prefix.

    Of those that the budget cut off nobody asks: they are wrong.
    """
    rows = [
        dataclasses.replace(sample, annotations={"steps": steps})
        for sample, steps in zip(
            small.samples(),
            [["it"], ["is", "it"], ["it"] * 3, ["it"] * 20],
            strict=True,
        )
    ]
    coins = {}

    def right(sample, turn):
        begin = turn.number // 8 + 1
        won = sum(turn.tokens) % 2
        coins.setdefault((sample.id, begin), []).append(won)
        assert turn.text.startswith("\n\n".join(sample.annotations["steps"][:begin]))
        return won

    found, counts = estimated(
        blind_actor(), rows, KEY, right=right, each=8, limits=Limits(row_tokens=20)
    )
    for sample, given in zip(found, rows, strict=False):
        assert sample.id == given.id and sample.question == given.question
        scores = sample.annotations["scores"]
        assert len(scores) == len(sample.annotations["steps"])
    wins = np.concatenate([*map(np.array, coins.values())])
    assert len(wins) < 8 * 6
    assert counts == {
        "solutions": 4,
        "solutions/OutOfRoom": 1,
        "continuations": 8 * 6,
        "continuations/right": wins.sum(),
    }
    means = np.concatenate([sample.annotations["scores"] for sample in found])
    assert means.sum() == pytest.approx(wins.sum() / 8) and means.min() < means.max()
    for (name, begin), won in coins.items():
        (own,) = (s.annotations["scores"] for s in found if s.id == name)
        assert own[begin - 1] == pytest.approx(sum(won) / 8)


def test_an_end_that_is_cut_off_is_wrong():
    """All say what is right, and the budget ends some of them."""
    heard = []
    right = lambda sample, turn: heard.append(turn.finished) or True
    solution = [row(steps=["it"])]
    (found,), counts = estimated(
        blind_actor(), solution, KEY, right=right, each=32, limits=ROOM
    )
    (score,) = found.annotations["scores"]
    assert 0 < score < 1 and all(heard)
    assert counts["continuations/right"] == 32 * score == len(heard)


def test_solutions_become_rows_with_steps():
    ids = jnp.array([*small.tokenizer().convert_tokens_to_ids(["Ċ", "it"]), 40])
    actor = blind_actor(allowed=jnp.zeros_like(small.actor().allowed).at[ids].set(True))
    table = jnp.zeros_like(actor.params["table"]).at[:, ids[0]].set(1.0)
    actor = dataclasses.replace(actor, params={"table": table})
    rows, counts = solved(actor, small.samples(), KEY, each=8)
    lost = counts.get("solutions/cut off", 0) + counts.get("solutions/empty", 0)
    assert counts["questions"] == 4 and counts["solutions"] == 32
    assert 0 < len(rows) == 32 - lost < 32
    assert len({one.id for one in rows}) == len(rows)
    steps = [step for one in rows for step in one.annotations["steps"]]
    assert all(step and "\n\n" not in step for step in steps) and len(steps) > len(rows)
    nothing = solved(actor, small.samples()[:1], KEY, limits=Limits(asks=1))
    assert nothing[1]["solutions"] == 6  # asks are raised to what is needed
    long = dataclasses.replace(small.samples()[2], question="What is it? " * 60)
    assert solved(actor, [long], KEY) == (
        [],
        {"questions": 1, "questions/OutOfRoom": 1},
    )


# Training


STEPS = ("it + is", "- so", "it is +")


def acted(rows):
    recipe = vl_prm(limits=ROOM)
    rollout = recipe.act(small.chain_actor(), iter([rows]), KEY)
    return recipe, rollout


def marked(labels):
    return [
        dataclasses.replace(sample, annotations={"steps": [*STEPS], "labels": labels})
        for sample in small.samples()
    ]


def test_labels_alone_are_learnt():
    """Not the signs inside steps, nor what ends the assistant's turns."""
    recipe, rollout = acted(marked(["+", "+", "-"]))
    tokens, mask = np.asarray(rollout.tokens), np.asarray(rollout.mask)
    decode = small.tokenizer().decode
    for own, kept in zip(tokens, mask, strict=True):
        assert [decode([token]) for token in own[kept]] == ["+", "+", "-"]
        told = decode(own)
        assert "- so" in told and "it is +" in told and STEPS[0] not in told
    assert STEPS[0] in decode(np.asarray(rollout.prompts.tokens)[0])
    batch, _ = recipe.credit(rollout)
    new = small.chain_actor().likelihood(rollout)
    mean, _ = recipe.loss(lambda _: new, batch)
    assert float(mean.weight) == 3 * 4
    wanted = -np.asarray(new.logprobs)[mask].mean()
    assert float(mean.total / mean.weight) == pytest.approx(wanted, rel=1e-6)


def test_steps_without_a_label_are_not_read():
    _, rollout = acted(marked(["+", "-"]))
    assert np.asarray(rollout.mask).sum(axis=1).tolist() == [2] * 4
    assert "it is +" not in small.tokenizer().decode(np.asarray(rollout.tokens)[0])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"labels": ["+"] * 4}, r"row-0 needs the column 'labels', .* 1 to 3 steps"),
        ({"labels": []}, "row-0 needs the column 'labels', a . or - for each of its"),
        ({"labels": ["+", "?"]}, r"got \['\+', '\?'\]"),
        ({"labels": "+"}, "row-0 needs the column 'labels', a . or - for each step"),
        (
            {"steps": ["it " * 90, "it"], "labels": ["+"] * 2},
            "row-0 ends early, by Out",
        ),
    ],
)
def test_a_row_that_cannot_be_learnt_is_named(columns, message):
    first, *others = marked(["+", "+", "-"])
    bad = dataclasses.replace(first, annotations={**first.annotations, **columns})
    with pytest.raises(ValueError, match=message):
        acted([bad, *others])


def test_what_judges_reads_what_was_learnt():
    """The context of a verdict is the row up to its label, token by token."""
    _, rollout = acted(marked(["+", "+", "-"]))
    processor = small.actor().processor
    for number, sample in enumerate(small.samples()):
        prompts, mask = rollout.prompts, np.asarray(rollout.mask)[number]
        before = np.asarray(prompts.tokens)[number][np.asarray(prompts.mask)[number]]
        for place, end in enumerate(np.flatnonzero(mask)):
            read = np.concatenate([before, np.asarray(rollout.tokens)[number][:end]])
            ask = judging(sample, STEPS[: place + 1])
            asked = conversation(processor, ask.context, {}).tokens
            np.testing.assert_array_equal(asked, read)


def test_rows_of_the_world_are_what_the_recipe_learns():
    made = [tasks.steps_of_a_sum(one) for one in digits.sums(40, split="train", seed=0)]
    lengths = set()
    for one in made:
        told, right = one.annotations, one.annotations["digits"]
        claims = [int(step.rstrip(".}")[-2:].strip("{ ")) for step in told["steps"]]
        true = [a == b for a, b in zip(claims, [*right, sum(right)], strict=True)]
        first = true.index(False) + 1 if False in true else 0
        assert told["judged_error"] == first
        assert labelled(one).annotations["labels"] == told["demonstration"]
        assert told["labels"] == told["demonstration"]
        assert (told["labels"][-1] == "-") == (not all(true))
        assert first == 3 or claims[0] + claims[1] == claims[2]
        lengths.add((len(told["labels"]), told["labels"][-1]))
    assert lengths == {(1, "-"), (2, "-"), (3, "-"), (3, "+")}


# Scores


def judge_with(right, wrong):
    """The chain of which + and - have these logits at the answer's start."""
    actor = blind_actor()
    token = small.tokenizer().convert_tokens_to_ids
    ids = jnp.array(token(["+", "-"]))
    table = actor.params["table"].at[token("Ċ"), ids].set(jnp.array([right, wrong]))
    return dataclasses.replace(actor, params={"table": table})


def test_the_worked_probability_whichever_sign_is_drawn():
    """l+ = 2, l- = 0.5: 0.817574, at the actor's temperature of 0.8 too."""
    heard = []

    def program(sample):
        ask = verdict(question(sample), model="prm", words=SIGNS)
        heard.extend((yield [ask] * 30))
        yield Ask(question(sample))

    models = {"prm": judge_with(2.0, 0.5)}
    play(blind_actor(), program, [SAMPLE], KEY, models=models)
    assert {turn.text for turn in heard} == {"+", "-"}
    found = [probability(turn, SIGNS) for turn in heard]
    np.testing.assert_allclose(found, 0.817574, atol=1e-6)
    read = conversation(small.actor().processor, question(SAMPLE), {})
    assert {turn.read for turn in heard} == {len(read.tokens)}


def test_a_word_may_end_with_the_other():
    turn = Turn("incorrect", (1,), logprob=math.log(0.8))
    assert probability(turn, ("correct", "incorrect")) == pytest.approx(0.2)


def sign(right, read=100):
    """The verdict of a model that is so sure, by the sign that it rather says."""
    word = SIGNS[0] if right >= 0.5 else SIGNS[1]
    return Turn(word, (1,), read=read, logprob=math.log(max(right, 1 - right)))


def values_of(values, texts, *replies):
    """What is asked of the judge, and what the answers are worth."""
    return talk(values(SAMPLE, [said(text) for text in texts]), replies)


def test_the_worked_one_shot():
    """The sheet's A, B, C, D: D wins, then B, for A is long."""
    verdicts = [sign(0.95, 900), sign(0.80, 400), sign(0.40, 500), sign(0.97, 420)]
    texts = ["one\n\na", "one\n\nb", "one\n\nc", "one\n\nd"]
    (asks,), worth = values_of(one_shot(), texts, verdicts)
    wanted = [0.0166254, 0.0256857, 0.4 - 2, 0.0264291]
    np.testing.assert_allclose(worth, wanted, rtol=1e-5)
    assert first_best(worth) == 3 and first_best(worth[:3]) == 1
    told = [ask.context[0].text for ask in asks]
    assert told == [f"{SAMPLE.question}\n\n{text}" for text in texts]
    assert asks[0].context[0].images == SAMPLE.images
    assert all(ask.model == "prm" and not ask.trained for ask in asks)


def test_where_all_are_refused_the_least_wrong_is_taken():
    """The sheet's p-: 0.9, 0.55, 0.7, 0.8; any that is not refused is better."""
    refused = released_worth(1 - jnp.array([0.9, 0.55, 0.7, 0.8]), jnp.full(4, 9))
    assert first_best(refused.tolist()) == 1 and refused.max() < -1
    assert released_worth(jnp.array([0.5]), jnp.array([10**6])) > 0
    assert first_best([None, None]) == 0 and first_best([None, -1.9]) == 1


def test_the_worked_steps():
    """p+ = 0.9, 0.8, 0.3: mean 0.666667, least 0.3, product 0.216."""
    replies = [[*map(sign, (0.9, 0.8, 0.3))]] * 3
    for aggregate, wanted in (
        (mean_step, 0.666667),
        (worst_step, 0.3),
        (product_of_steps, 0.216),
    ):
        values = every_step(aggregate=aggregate)
        (asks,), (worth,) = values_of(values, ["one\n\ntwo\n \nthree"], replies[0])
        assert worth == pytest.approx(wanted, abs=1e-6)
    roles = [[part.role for part in ask.context] for ask in asks]
    assert roles == [
        ["user"],
        ["user", "assistant", "user"],
        ["user", "assistant", "user", "assistant", "user"],
    ]
    assert [part.text for part in asks[-1].context[1:]] == ["+", "two", "+", "three"]


def test_equal_candidates_are_judged_once_and_empty_ones_not():
    texts = ["one", "one", " \n\n ", "one\n\ntwo"]
    (asks,), worth = values_of(next_step(), texts, [sign(0.6), sign(0.9)])
    assert len(asks) == 2 and worth[0] == worth[1] and worth[2] is None
    assert first_best(worth) == 3
    (asks,), worth = values_of(every_step(), texts, [sign(0.6), sign(0.9)])
    assert len(asks) == 2 and worth[2] is None
    np.testing.assert_allclose([worth[0], worth[3]], [0.6, 0.75], atol=1e-6)


def test_blanks_and_ends_alone_are_no_step():
    """Searched by hand: behind "one" they would be judged as "one" is, and shorter."""
    program = tree_search(SAMPLE, values=next_step(), width=4, beam=1, depth=2)
    first = [said("one\n\n"), said("\n\n"), said(""), said("two\n\n")]
    later = [f"one\n\n{more}" for more in (" \n\n", "", " ", "three\n\n")]
    replies = [first, [sign(0.9), sign(0.6)], [*map(said, later)], [sign(0.51, 900)]]
    asks, outcome = talk(program, replies)
    _, opening, tried, (judged_alone,) = asks
    assert len(opening) == 2 and {ask.given for ask in tried} == {first[0].tokens}
    assert judged_alone.context[-1].text == "three"
    assert outcome.turns == (said(later[3]),) and not outcome.turns[0].facts
    assert outcome.facts["unjudged"] == 5
    # A step that the budget cut goes on without a blank line.
    program = tree_search(SAMPLE, values=next_step(), width=1, beam=1, depth=2)
    talk(program, [[said("on")], [sign(0.9)], [said("on\n\n")]])


def test_a_search_asks_as_often_as_is_told():
    program = tree_search(SAMPLE, values=next_step(), width=16, beam=1, depth=100)
    count = 0
    asks = next(program)
    with pytest.raises(StopIteration) as end:
        while True:
            count += len(asks)
            if asks[0].model == "prm":
                heard = [sign(0.9)] * len(asks)
            else:
                steps = f"step {count}\n\n"
                heard = [said(f"{steps}{n}\n\n") for n in range(len(asks))]
            asks = program.send(heard)
    assert end.value.value.facts["steps"] == 100 and count == 3200


def test_what_has_no_room_is_not_judged():
    """First all are asked at once, then each half of them."""
    replies = [OutOfRoom(), [sign(0.6)], OutOfRoom()]
    asks, worth = values_of(next_step(), ["one", "two"], *replies)
    assert [len(some) for some in asks] == [2, 1, 1]
    assert worth[0] > 0 and worth[1] is None
    replies = [OutOfRoom(), [sign(0.6)], OutOfRoom(), OutOfRoom(), [sign(0.7)]]
    _, worth = values_of(every_step(), ["one\n\ntwo", "three"], *replies)
    assert worth == [None, pytest.approx(0.7)]


def test_a_solution_is_searched_step_by_step():
    """Played for real: what goes on is what the judge finds best, and one row."""
    newline = small.tokenizer().convert_tokens_to_ids("Ċ")
    policy = blind_actor(max_new_tokens=12, temperature=1.0, reward=fact("value"))
    table = policy.params["table"].at[:, newline].add(4.0)
    policy = dataclasses.replace(policy, params={"table": table})
    heard = []

    def noting(sample, turns):
        worth = yield from next_step()(sample, turns)
        heard.append((sample.id, [turn.text for turn in turns], worth))
        return worth

    program = functools.partial(
        tree_search,
        values=noting,
        width=3,
        beam=1,
        depth=3,
        step_tokens=4,
        tentative=True,
    )
    rollout = act(
        policy,
        iter([small.samples()]),
        KEY,
        program=program,
        group_size=1,
        models={"prm": dataclasses.replace(judge_with(2.0, 0.5), processor=wide())},
        limits=Limits(row_tokens=12),
    )
    assert rollout.tokens.shape[0] == 4
    assert (rollout.facts["steps"] > 1).any()
    for name in {one.id for one in small.samples()}:
        levels = [(texts, worth) for own, texts, worth in heard if own == name]
        for (texts, worth), (after, _) in itertools.pairwise(levels):
            begin = texts[first_best(worth)]
            assert all(text.startswith(begin) for text in after)
    known = [w for _, _, worth in heard for w in worth if w is not None]
    assert len(set(known)) > 6 and rollout.rewards.tolist() != [0.0] * 4


def wide():
    return small.with_room(small.actor().processor, prompt_tokens=(160,))


def test_a_value_is_what_a_reward_reads():
    policy = blind_actor(reward=fact("value"))
    rollout = act(
        policy,
        iter([small.samples()]),
        KEY,
        program=functools.partial(best_of_n, n=1, values=every_step()),
        group_size=2,
        models={"prm": dataclasses.replace(judge_with(2.0, 0.5), processor=wide())},
    )
    there = np.asarray(rollout.facts["unjudged"]) == 0
    np.testing.assert_allclose(rollout.rewards, np.where(there, 0.817574, 0), atol=1e-6)
    assert there.any()
