"""Programs, spoken to by hand: what they ask for each answer, and what they return."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest

from vrl_jax.engine.conversation import Ask
from vrl_jax.engine.desk import Limits, OutOfRoom, TooManyAsks
from vrl_jax.engine.processing import question
from vrl_jax.engine.tools import Call, crop
from vrl_jax.programs.acting import act
from vrl_jax.programs.anchored_claims import anchored_claims
from vrl_jax.programs.cascade import cascade
from vrl_jax.programs.checklist import checklist_branch, checklist_of
from vrl_jax.programs.critique import critique_and_continue
from vrl_jax.programs.describe_then_answer import (
    answer_and_reread,
    describe_then_answer,
)
from vrl_jax.programs.resample import gated_opening, gated_resample
from vrl_jax.programs.search import best_of_n, of_each, tree_search
from vrl_jax.programs.tool_turns import TAGS, tool_turns
from vrl_jax.programs.verdicts import those_that_fit
from vrl_jax.rewards.combine import fact
from vrl_jax.types import Episode, Turn

from ..fixtures import small
from ..fixtures.compilations import compilations
from ..fixtures.talk import said, talk

SAMPLE = small.samples()[0]


def words(ask):
    return [part.text for part in ask.context]


def test_describe_then_answer_hides_the_picture_from_the_reader():
    program = describe_then_answer(SAMPLE, reader="reader")
    asked, outcome = talk(program, [said("a <image> four"), said("4")])
    assert asked[0].context[0].images == SAMPLE.images
    assert "What is it?" in words(asked[0])[0] and asked[0].model == "policy"
    assert asked[1].model == "reader" and asked[1].context[0].images == ()
    # What a model wrote stands for no picture.
    assert "a \\<image> four" in words(asked[1])[0]
    assert "What is it?" in words(asked[1])[0]
    assert [turn.text for turn in outcome.turns] == ["a <image> four", "4"]


def test_a_description_without_room_is_all_there_is():
    program = describe_then_answer(SAMPLE, reader="reader")
    _, outcome = talk(program, [said("four"), OutOfRoom("no")])
    assert [turn.text for turn in outcome.turns] == ["four"]
    assert outcome.facts == {"ended/description did not fit": 1}


def test_gated_resample_asks_until_it_is_accepted_or_tired():
    right = lambda sample, turn: turn.text == "yes"
    asked, outcome = talk(
        gated_resample(SAMPLE, accept=right), [said("no"), said("no"), said("yes")]
    )
    assert [turn.text for turn in outcome.turns] == ["yes"]
    assert outcome.facts == {"tries": 3, "accepted": True}
    assert len({ask.context for ask in asked}) == 1
    _, outcome = talk(gated_resample(SAMPLE, accept=right, tries=2), [said("no")] * 2)
    assert outcome.facts == {"tries": 2, "accepted": False}


def test_gated_opening_goes_on_with_the_first_that_is_worth_it():
    program = gated_opening(SAMPLE, value=length, threshold=4, closing=".")
    replies = [said("a."), said("abc."), said("abc. And so on.")]
    asked, outcome = talk(program, replies)
    assert [ask.tentative for ask in asked] == [True, True, False]
    assert asked[0].stops == (".",) and asked[2].given is replies[1]
    assert outcome.turns == (replies[2],)
    assert outcome.facts == {"tries": 2, "opening": 4, "accepted": 1}


@pytest.mark.parametrize(
    ("values", "asked", "taken", "opening", "accepted"),
    [
        ((np.nan, 5), 2, 1, 5, 1),
        ((np.nan, 1, np.nan), 3, 1, 1, 0),
        ((1, np.nan, 2), 3, 2, 2, 0),
        ((np.nan, np.nan, np.nan), 3, 0, np.nan, 0),
        ((np.nan, -np.inf, np.nan), 3, 0, np.nan, 0),
    ],
)
def test_an_opening_of_no_value_is_worse_than_any(
    values, asked, taken, opening, accepted
):
    given = iter(values)
    program = gated_opening(
        SAMPLE, value=lambda *_: next(given), threshold=4, closing="."
    )
    replies = [said(f"{n}.") for n in range(asked)]
    asks, outcome = talk(program, [*replies, said("end")])
    assert len(asks) == asked + 1 and asks[-1].given is replies[taken]
    np.testing.assert_equal(
        outcome.facts, {"tries": asked, "opening": opening, "accepted": accepted}
    )


@pytest.mark.parametrize(("answer", "gate"), [("<a1>4</a1>", 1), ("<a1>5</a1>", 0)])
def test_checklist_branch_reasons_where_it_perceived(answer, gate):
    probe = checklist_of(["Which digit?"])
    sample = dataclasses.replace(SAMPLE, annotations={"checklist": probe})
    passes = lambda sample, turn: "4" in turn.text
    program = checklist_branch(sample, passes=passes)
    asked, outcome = talk(program, [said(answer), said("it is 4")])
    assert len(asked) == 1 + gate and outcome.facts == {"gate": gate}
    assert words(asked[0])[0].startswith("<image><q1>Which digit?</q1>")
    assert all(ask.context[-1].images == SAMPLE.images for ask in asked)


def test_critique_goes_to_another_and_the_conversation_goes_on():
    replies = [said("five"), said("count again"), said("four")]
    asked, turns = talk(critique_and_continue(SAMPLE), replies)
    assert [ask.model for ask in asked] == ["policy", "critic", "policy"]
    assert "five" in words(asked[1])[0]
    assert asked[2].context[:2] == (*asked[0].context, replies[0])
    assert "count again" in words(asked[2])[2]
    assert [turn.text for turn in turns] == ["five", "count again", "four"]
    _, turns = talk(critique_and_continue(SAMPLE), [*replies[:2], OutOfRoom()])
    assert [turn.text for turn in turns] == ["five", "count again"]


def length(sample, turn):
    return float(len(turn.text))


def test_best_of_n_shows_the_best():
    answers = [said("a"), said("bbb"), said("cc")]
    (asked,), outcome = talk(best_of_n(SAMPLE, n=3, values=of_each(length)), [answers])
    assert len(asked) == 3 and len(set(asked)) == 1
    assert outcome.turns == (answers[1],) and outcome.facts["best"] == 1


def test_tree_search_grows_the_best_places():
    def grown(asks):
        return [
            Turn("x" * len(a.given) + "y" * (n % 3) + "\n\n", (*a.given, n))
            for n, a in enumerate(asks)
        ]

    program = tree_search(SAMPLE, values=of_each(length), width=3, beam=2, depth=3)
    first = next(program)
    assert len(first) == 3 and {ask.given for ask in first} == {()}
    second = program.send(grown(first))
    # The two longest of three: those that ended in two and in one y.
    assert [ask.given for ask in second] == [(2,)] * 3 + [(1,)] * 3
    third = program.send(grown(second))
    assert len(third) == 6 and all(len(ask.given) == 2 for ask in third)
    with pytest.raises(StopIteration) as end:
        program.send([dataclasses.replace(t, text="end") for t in grown(third)])
    assert end.value.value.facts["steps"] == 3


def test_tree_search_ends_with_the_models_own_end():
    program = tree_search(SAMPLE, values=of_each(length), width=2, beam=1, depth=9)
    next(program)
    with pytest.raises(StopIteration) as end:
        program.send([said("a long answer"), said("short\n\n")])
    assert end.value.value.turns[0].text == "a long answer"


@pytest.mark.parametrize(
    ("error", "ended"),
    [(OutOfRoom, "step left no room"), (TooManyAsks, "TooManyAsks")],
)
def test_a_search_without_room_returns_the_best_so_far(error, ended):
    """Of the steps that were judged."""

    def asking(sample, turns):
        heard = yield [Ask(question(sample), model="judge")] * len(turns)
        return [len(h.text) for h in heard]

    program = tree_search(SAMPLE, values=of_each(length), width=2, beam=1)
    tries, verdicts = [said("a\n\n"), said("bb\n\n")], [said("so"), said("no!")]
    _, outcome = talk(program, [tries, error()])
    assert outcome.turns[0].text == "bb\n\n" and outcome.facts["steps"] == 1
    assert outcome.facts[f"ended/{ended}"] == 1
    with pytest.raises(error):
        talk(tree_search(SAMPLE, values=of_each(length)), [error()])
    program = tree_search(SAMPLE, values=asking, width=2, beam=1)
    _, outcome = talk(program, [tries, verdicts, [said("a\n\nc"), said("d")], error()])
    assert outcome.turns[0].text == "bb\n\n"
    assert outcome.facts == {"steps": 1, "value": 3, "unjudged": 0, f"ended/{ended}": 1}


def fitting(asks, bad):
    """What `those_that_fit` says where some of the asks have no room, and its waits."""
    program, waits = those_that_fit(asks), []
    step = lambda: next(program)
    while True:
        try:
            waits.append(step())
        except StopIteration as end:
            return end.value, waits
        if bad & {*waits[-1]}:
            step = functools.partial(program.throw, OutOfRoom())
        else:
            step = functools.partial(program.send, [said(a) for a in waits[-1]])


@pytest.mark.parametrize("bad", [(), (0,), (79,), (17, 18, 63), range(80)])
def test_what_does_not_fit_is_found_by_halves(bad):
    asks = [f"ask {number}" for number in range(80)]
    unfit = {asks[place] for place in bad}
    found, waits = fitting(asks, unfit)
    assert found == [None if ask in unfit else said(ask) for ask in asks]
    # 80, 40, 20, 10, 5, 3, 2, 1: of each that does not fit its half and the other.
    assert len(waits) <= 1 + 2 * 7 * len(bad)
    assert fitting([], unfit) == ([], [])
    assert fitting(asks[:1], {*asks})[0] == [None]


def test_answers_may_be_judged_by_others_and_not_at_all():
    def asking(sample, turns):
        heard = yield [Ask(question(sample), model="judge")] * len(turns)
        return [len(h.text) if h.text else None for h in heard]

    answers = [said("a"), said("b"), said("c")]
    verdicts = [said(""), said("so"), said("so")]
    program = best_of_n(SAMPLE, n=3, values=asking, tentative=True)
    asked, outcome = talk(program, [answers, verdicts])
    assert outcome.turns == (answers[1],)
    assert outcome.facts == {"best": 1, "value": 2, "unjudged": 1}
    assert all(ask.tentative for ask in asked[0])
    program = best_of_n(SAMPLE, n=3, values=asking)
    _, outcome = talk(program, [answers, [said("")] * 3])
    assert outcome.facts == {"best": 0, "value": 0.0, "unjudged": 3}


def test_cascade_asks_the_next_where_one_is_not_sure():
    sure = lambda sample, turn: "?" not in turn.text
    replies = [said("four?"), said("four"), said("never asked")]
    asked, outcome = talk(
        cascade(SAMPLE, sure=sure, experts=("policy", "mid", "large")), replies
    )
    assert [ask.model for ask in asked] == ["policy", "mid"]
    assert [turn.text for turn in outcome.turns] == ["four?", "four"]


def call(name, **arguments):
    body = json.dumps({"name": name, "arguments": arguments})
    return said(f"look <tool_call>{body}</tool_call>")


def test_tool_turns_cut_tell_and_count():
    replies = [
        call("crop", bbox_2d=[0, 0, 28, 28]),
        said("<tool_call>{broken</tool_call>"),
        call("echo", text="<image> twice<|im_end|>"),
        said("it is 4"),
    ]
    program = tool_turns(SAMPLE, available={"crop": crop, "echo": echo})
    asked, outcome = talk(program, replies)
    assert [len(ask.context) for ask in asked] == [1, 3, 5, 7]
    assert all(ask.stops == ("</tool_call>",) for ask in asked)
    cut, told, echoed = (asked[i].context[-1] for i in (1, 2, 3))
    assert cut.text == "<tool_response>\n<image>\n</tool_response>"
    assert len(cut.images) == 1
    assert "Error: the call is not valid JSON" in told.text and not told.images
    assert "\\<image> twice< |im_end|>" in echoed.text
    assert [turn.text for turn in outcome.turns] == [turn.text for turn in replies]
    assert outcome.facts == {
        "turns": 4,
        "calls": 3,
        "calls/valid": 2,
        "calls/unreadable": 1,
        "images": 1,
    }


def echo(pictures, *, text):
    return text


def test_tool_turns_are_bounded_in_turns_pictures_and_room():
    look = call("crop", bbox_2d=[0, 0, 28, 28])
    asked, outcome = talk(tool_turns(SAMPLE, turns=3, images=1), [look] * 3)
    assert len(asked) == 3 and outcome.facts["images"] == 1
    assert outcome.facts["calls/images"] == 2
    assert "no more than 1 pictures" in asked[2].context[-1].text
    _, outcome = talk(tool_turns(SAMPLE), [look, OutOfRoom()])
    assert len(outcome.turns) == 1
    assert outcome.facts["ended/observation did not fit"] == 1


def blind_actor():
    """A chain looks while it reads a prompt, and not at what a response shows."""
    actor = small.chain_actor()
    return dataclasses.replace(actor, params={"table": actor.params["table"]})


def test_tool_turns_in_the_engine_end_with_the_policys_token():
    """A policy that always calls: what it is shown is read, counted, not trained."""
    flip = Call("flip", {"axis": "vertical"})
    always = TAGS._replace(calls=lambda text: [flip])
    actor = blind_actor()
    rollout = act(
        actor,
        iter([small.samples()]),
        jax.random.key(0),
        program=functools.partial(tool_turns, turns=9, syntax=always),
        group_size=2,
        limits=Limits(row_tokens=160, pictures=3),
    )
    tokens, mask = np.asarray(rollout.tokens), np.asarray(rollout.mask)
    shown = tokens == small.spec().image_token
    pictured = np.array([1, 1, 1, 1, 0, 0, 1, 1], bool)
    np.testing.assert_array_equal(shown.any(axis=1), pictured)
    np.testing.assert_array_equal(np.asarray(rollout.shown.slots) > 0, shown)
    assert not mask[shown].any()
    for row, line in zip(mask, tokens, strict=True):
        assert (line[np.flatnonzero(row)[-1] + 1 :] == 40).all()
    scored = actor.likelihood(rollout).logprobs
    np.testing.assert_allclose(scored, rollout.old_logprobs, rtol=0, atol=1e-5)
    calls, facts = np.asarray(rollout.facts["calls"]), rollout.facts
    np.testing.assert_array_equal(facts["calls/valid"] > 0, pictured)
    # What a text row may flip is nothing, and it is told so.
    np.testing.assert_array_equal(facts["calls/refused"], np.where(pictured, 0, calls))
    np.testing.assert_array_equal(facts["ended/observation did not fit"], 1)


def test_a_search_is_played_and_scored():
    actor = blind_actor()
    program = functools.partial(
        tree_search, values=of_each(length), width=2, beam=1, depth=3, step_tokens=2
    )
    rollout = act(
        actor,
        iter([small.samples()]),
        jax.random.key(0),
        program=program,
        group_size=2,
        rows=6,
    )
    assert rollout.tokens.shape[0] == 4 * 2 * 6
    scored = actor.likelihood(rollout).logprobs
    np.testing.assert_allclose(scored, rollout.old_logprobs, rtol=0, atol=1e-5)
    # No token is trained twice: a step's prefix is given.
    assert rollout.mask.sum(axis=1).max() <= 2


CLAIMED = dataclasses.replace(
    SAMPLE, annotations={"claims": [["It is red.", True], ["It is <image>.", False]]}
)


def always(sample, turn):
    return True


def test_claims_are_judged_after_parts_of_a_right_answer():
    """By hand: marks of clauses only, later cuts count more, a half earns nothing."""
    answer = said("It is 3.5 cm, so <image> it is red. Yes")
    program = anchored_claims(CLAIMED, right=always)
    first = next(program)
    assert words(first) == [SAMPLE.question] and first.trained
    probes = program.send(answer)
    prefixes = ["It is 3.5 cm,", "It is 3.5 cm, so \\<image> it is red."]
    truths = []
    for probe, prefix in zip(probes, prefixes, strict=True):
        (text,) = words(probe)
        assert f"so far:\n\n{prefix}\n\n" in text and text.endswith("Yes or No.")
        assert probe.context[0].images == SAMPLE.images and not probe.trained
        assert (probe.max_new_tokens, probe.top_k) == (1, 1)
        assert probe.allowed == ("Yes", "No")
        truths.append("Yes" if "It is red." in text.rsplit("true of it?")[1] else "No")
    with pytest.raises(StopIteration) as end:
        program.send([said("No" if truths[0] == "Yes" else "Yes"), said(truths[1])])
    outcome = end.value.value
    place = np.array([len("It is 3.5 cm,"), len(answer.text) - len(" Yes")])
    early, late = np.exp(1.5 * place / len(answer.text))
    expected = 2 * late / (early + late) - 1
    assert outcome.turns == (answer,) and outcome.facts["claims"] == 2
    assert outcome.facts["anchored_perception"] == pytest.approx(expected, abs=1e-6)


def test_marks_and_claims_are_drawn_by_row_and_response():
    text = said("one. " * 50)

    def probes(sample):
        program = anchored_claims(sample, right=always, cuts=20)
        next(program)
        return program.send(text)

    assert len(probes(CLAIMED)) == 20 and probes(CLAIMED) == probes(CLAIMED)
    other = dataclasses.replace(CLAIMED, id="another")
    assert probes(CLAIMED) != probes(other)
    cut = [len(words(probe)[0]) for probe in probes(other)]
    assert len(set(cut)) > 10


@pytest.mark.parametrize(
    ("answer", "right"),
    [("no marks at all", always), ("wrong. all.", lambda sample, turn: False)],
)
def test_nothing_is_asked_of_a_wrong_answer_or_of_one_without_marks(answer, right):
    asked, outcome = talk(anchored_claims(CLAIMED, right=right), [said(answer)])
    assert len(asked) == 1
    assert outcome.facts == {"anchored_perception": 0.0, "claims": 0}


WRONG_CLAIMS = [None, [], "It is.", ["It is."], 3, ["ab"], [["It is red.", "false"]]]


@pytest.mark.parametrize("claims", WRONG_CLAIMS)
def test_claims_that_are_missing_or_no_pairs_are_named(claims):
    sample = dataclasses.replace(SAMPLE, annotations={"claims": claims})
    with pytest.raises(ValueError, match=r"row-0 needs annotations\['claims'\]"):
        next(anchored_claims(sample, right=always))


def test_claims_have_bounds():
    with pytest.raises(ValueError, match="not at cuts=0"):
        next(anchored_claims(CLAIMED, right=always, cuts=0))
    replies = [said("one. two."), OutOfRoom()]
    _, outcome = talk(anchored_claims(CLAIMED, right=always), replies)
    assert outcome.turns == (replies[0],)
    assert outcome.facts["ended/claims did not fit"] == 1
    assert outcome.facts["anchored_perception"] == outcome.facts["claims"] == 0


def test_claims_of_other_responses_compile_nothing():
    """Law 6: whatever the number of marks."""

    def played(marks):
        answer = said("one. " * marks)
        program = anchored_claims(CLAIMED, right=always)
        next(program)
        probes = program.send(answer)
        with pytest.raises(StopIteration) as end:
            program.send([said("Yes")] * len(probes))
        return end.value.value.facts["claims"]

    played(3)
    with compilations() as built:
        assert [played(marks) for marks in (1, 7, 20, 50)] == [1, 7, 20, 20]
    assert built == []


@pytest.mark.parametrize(
    ("answer", "described"),
    [
        ("<description> a <image> four </description> so 5", "a \\<image> four"),
        ("<description></description> so 5", ""),
        ("it is 5", "it is 5"),
    ],
)
def test_an_answer_is_reread_without_the_picture(answer, described):
    right = lambda sample, turn: turn.text == "4"
    for reread in "45":
        program = answer_and_reread(SAMPLE, right=right)
        asked, outcome = talk(program, [said(answer), said(reread)])
        assert asked[0].context[0].images == SAMPLE.images and asked[0].trained
        (told,) = words(asked[1])
        assert f"so:\n\n{described}\n\nWhat is it?" in told
        assert asked[1].context[0].images == () and not asked[1].trained
        assert [turn.text for turn in outcome.turns] == [answer]
        assert outcome.facts == {"reread": int(reread == "4")}
    _, outcome = talk(
        answer_and_reread(SAMPLE, right=right), [said(answer), OutOfRoom()]
    )
    assert outcome.facts == {"reread": 0, "ended/description did not fit": 1}


def test_a_fact_that_no_program_told_is_named():
    episode = Episode(SAMPLE, "?", (said("x"),), True, facts={"acc": 1})
    with pytest.raises(ValueError, match=r"row-0 has no fact 'seen', only \['acc'\]"):
        fact("seen")([episode])


def test_claims_in_the_engine_are_judged_and_not_trained():
    """The probes are no rows; their answers are the allowed two, and R is rewarded."""
    actor = blind_actor()
    # A full stop and the end of a line: what is written has marks.
    likely = np.array(small.tokenizer().convert_tokens_to_ids([".", "Ċ"]))
    table = actor.params["table"].at[:, likely].add(20.0)
    actor = dataclasses.replace(
        actor, params={"table": table}, reward=fact("anchored_perception")
    )
    claimed = tuple(
        dataclasses.replace(sample, annotations=CLAIMED.annotations)
        for sample in small.samples()
    )
    program = functools.partial(anchored_claims, right=always, answers=("4", "7"))
    play = functools.partial(
        act,
        actor,
        key=jax.random.key(0),
        program=program,
        group_size=2,
        limits=Limits(row_tokens=400),
    )
    rollout = play(iter([claimed]))
    assert rollout.tokens.shape[0] == 4 * 2
    facts = rollout.facts
    assert facts["claims"].max() > 0
    np.testing.assert_array_equal(facts["asks"], 1 + np.asarray(facts["claims"]))
    np.testing.assert_array_equal(rollout.rewards, facts["anchored_perception"])
    assert len(set(np.asarray(rollout.rewards).tolist())) > 1
    again = play(iter([claimed]))
    np.testing.assert_array_equal(again.rewards, rollout.rewards)
