"""Planner and controller: what they are asked, and the rows that come of it."""

import functools

import jax
import pytest

from vrl_jax.engine.desk import Limits, OutOfRoom
from vrl_jax.engine.play import play
from vrl_jax.programs.dialogue import dialogue
from vrl_jax.programs.plan_and_act import (
    Seen,
    Words,
    finished,
    plan_and_act,
    read_action,
    trajectories,
)
from vrl_jax.types import Episode, Sample

from ..fixtures import small
from ..fixtures.talk import said, talk, told

SAMPLE = Sample("door", "house", "Leave the house.", (), "", {})
ROOM, HALL, STREET = (small.png(n, 28, 28) for n in range(3))
SHORT = Words("What is {task}", "{actions} it {seen}", "it {subtask}", "is {seen}")
SAID = ("Open it", "take key; False", "turn key; TRUE", "Go out", "well; True")


def house(sample):
    """Two good actions pay 0.25 each, the third 0.5 and ends it."""
    heard = [(yield Seen("A locked <image> door.", (ROOM,)))]
    heard.append((yield Seen("You have the key.", (), 0.25)))
    heard.append((yield Seen("It opens.", (HALL, ROOM), 0.25)))
    yield Seen(f"Heard {heard}.", (STREET,), 0.5, done=True)


def played(texts=SAID, **changes):
    program = plan_and_act(SAMPLE, environment=house, **changes)
    asks, outcome = told(program, *texts)
    return asks, outcome, Episode(SAMPLE, "", tuple(outcome.turns), True)


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("open the door; True", ("open the door", True)),
        ("say a; b ;false ", ("say a; b", False)),
        ("open the door", None),
        ("open; perhaps", None),
        ("; True", None),
        ("", None),
    ],
)
def test_actions_are_read(text, read):
    assert read_action(text) == read


def test_two_conversations():
    asks, outcome, _ = played()
    lengths = [len(ask.context) for ask in asks]
    assert lengths == [1, 1, 3, 3, 1]  # plan, act, act, plan, act
    plan, act, later, again, last = (ask.context for ask in asks)
    assert "Leave the house." in plan[0].text and plan[0].images == (ROOM,)
    assert plan[0].text.count("<image>") == 1 + plan[0].text.count("\\<image>") == 2
    assert "Do this: Open it." in act[0].text and "Leave" not in act[0].text
    assert later[:1] == act and "You have the key." in later[2].text
    assert again[0] == plan[0] and again[1].text == "Open it"
    assert again[2].text.endswith("take key, turn key. Seen now: It opens.")
    assert again[2].images == (HALL, ROOM)
    assert "Do this: Go out." in last[0].text and "key" not in last[0].text
    assert asks[0].max_new_tokens == 32 and asks[1].max_new_tokens == 16
    assert outcome.facts == {"reward": 1, "subtasks": 2, "actions": 3, "unread": 0}


def test_what_cannot_be_read_does_nothing():
    _, outcome, _ = played(("Open it", "hm", "well; maybe", "x; False"))
    assert outcome.facts["unread"] == 2 and outcome.facts["subtasks"] == 1
    _, outcome, _ = played(("Open it", "hm"), steps=1)
    assert outcome.facts == {"reward": 0.25, "subtasks": 1, "actions": 1, "unread": 1}


def test_no_room_ends_it():
    program = plan_and_act(SAMPLE, environment=house)
    _, outcome = talk(program, [said(SAID[0]), OutOfRoom("full")])
    assert outcome.facts["ended/OutOfRoom"] == 1
    (row,) = trajectories(Episode(SAMPLE, "", tuple(outcome.turns), False))
    assert row.annotations["rewards"] == [0]  # a subtask without an action


def test_rows_of_both_kinds():
    *_, episode = played()
    plan, first, second = trajectories(episode)
    assert [row.id for row in (plan, first, second)] == [
        "door/plan",
        "door/act-0",
        "door/act-1",
    ]
    assert plan.annotations["demonstration"] == ["Open it", "Go out"]
    assert plan.annotations["rewards"] == [0.5, 0.5]
    assert plan.images == (ROOM, HALL, ROOM) and plan.source == "house/plan"
    assert first.annotations["demonstration"] == list(SAID[1:3])
    assert "rewards" not in first.annotations
    assert finished(first).annotations["rewards"] == [0, 1]
    assert finished(plan) is plan
    # What is learnt is what was asked, to the letter.
    asks, *_ = played()
    for row, numbers in ((plan, (0, 3)), (first, (1, 2)), (second, (4,))):
        again, _ = told(dialogue(row), *row.annotations["demonstration"])
        for ask, number in zip(again, numbers, strict=True):
            shown = [getattr(part, "images", ()) for part in ask.context]
            words = [part.text for part in ask.context]
            assert words == [part.text for part in asks[number].context]
            assert shown == [getattr(p, "images", ()) for p in asks[number].context]


def test_an_unfinished_subtask_earns_nothing():
    *_, episode = played(("Open it", "a; False", "b; False", "c; False"))
    _, row = trajectories(episode)
    assert finished(row).annotations["rewards"] == [0, 0, 0]
    with pytest.raises(ValueError, match="door needs the column 'finished'"):
        finished(SAMPLE)


def test_an_environment_that_breaks_leaves_no_rows(caplog):
    def broken(sample):
        yield Seen("it")
        raise OSError("the house is on fire")

    program = functools.partial(plan_and_act, environment=broken)
    limits = Limits(row_tokens=40)
    actor, key = small.chain_actor(), jax.random.key(0)
    program = functools.partial(program, words=SHORT)
    ((one,),) = play(actor, program, [SAMPLE], key, limits=limits)
    assert one.episode.facts["ended/OSError"] == 1
    assert trajectories(one.episode) == []


def test_a_small_policy_plays_it():
    def world(sample):
        yield Seen("it", (ROOM,))
        yield Seen("is", (ROOM,), 0.5)
        yield Seen("one", (), 0.5, done=True)

    program = functools.partial(plan_and_act, environment=world, words=SHORT)
    limits = Limits(row_tokens=40, pictures=2)
    ((one,),) = play(
        small.chain_actor(), program, [SAMPLE], jax.random.key(0), limits=limits
    )
    facts = one.episode.facts
    assert facts["actions"] == 2 and facts["reward"] == 1 and facts["unread"] == 2
    assert len(one.rows) == 2  # the planner's, the controller's
    plan, act = trajectories(one.episode)
    assert plan.annotations["rewards"] == [1] and len(act.annotations["asks"]) == 2
