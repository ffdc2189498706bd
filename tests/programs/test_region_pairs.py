"""How pairs of regions and answers are made and picked."""

import base64
import dataclasses
import functools
import math
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vrl_jax.programs import acting
from vrl_jax.programs.region_pairs import (
    answer_agrees,
    crop_is_read,
    crop_suffices,
    elsewhere,
    picked,
    preferences,
    score_in,
    two_candidates,
)
from vrl_jax.programs.regions import cut, unit_box
from vrl_jax.recipes.visrl import visrl
from vrl_jax.types import Episode, Turn

from ..fixtures.signs import (
    PICTURE,
    ROOM,
    SAMPLE,
    SHORT,
    answered_right,
    chain_actor,
    on_the_sign,
    pixels,
    recite,
    rows,
    scripted,
    size,
)
from ..fixtures.talk import said

GOOD, FAR, NEAR = "[0.5, 0.5, 1, 1]", "[0, 0, 0.25, 0.5]", "[0.5, 0.5, 0.75, 1]"


@pytest.mark.parametrize(
    ("scores", "found"),
    [
        # The sheet's worked examples.
        ([(1.0, 0.6), (1.0, 0.9), (0.1, 0.1), (0.1, 0.4)], (1, 2)),
        ([(0.7, 0.9), (0.1, 0.1)], "too hard"),
        ([(1.0, 0.9), (0.3, 0.1)], "too easy"),
        # By hand: the bounds count, the best crop of a lesser answer does not.
        ([(0.2, 0.2), (0.8, 0.8)], (1, 0)),
        ([(0.9, 0.9), (1.0, 0.7), (0.0, 0.0)], "no good crop"),
        ([(1.0, 0.9), (0.1, 0.0), (0.0, 0.3)], "no bad crop"),
        ([(math.nan, 0.9), (1.0, math.nan)], "no candidate"),
        ([(math.nan, 0.9), (1.0, 1.0), (0.0, math.nan), (0.1, 0.0)], (1, 3)),
        ([], "no candidate"),
    ],
)
def test_pairs_are_picked_by_both_scores(scores, found):
    assert picked(scores) == found


def test_no_candidate_may_be_chosen_and_rejected():
    with pytest.raises(ValueError, match=r"low < high, got low=0\.5, high=0\.5"):
        picked([(0.5, 0.5)], high=0.5, low=0.5)


def test_another_place_is_disjoint_of_similar_size_and_the_same_each_time():
    box = (0.4, 0.3, 0.6, 0.6)
    found = [elsewhere(box, random.Random(seed)) for seed in range(50)]
    for left, top, right, bottom in found:
        assert min(left, top) >= 0 and max(right, bottom) <= 1
        assert right <= 0.4 or left >= 0.6 or bottom <= 0.3 or top >= 0.6
        # In one of the first 20 tries: 0.2 and 0.3, within 30 %.
        assert 0.14 <= right - left <= 0.26 and 0.21 <= bottom - top <= 0.39
    assert len({*found}) == 50
    assert elsewhere(box, random.Random(3)) == found[3]


class Corner(random.Random):
    """The smallest box, as far to the right and down as it goes."""

    calls = 0

    def uniform(self, a, b):
        self.calls += 1
        return a or b  # sides begin above 0, places at 0


def test_sizes_may_differ_more_after_many_tries():
    """By hand: 0.35 is free beside 0.65, which is 1 - 0.46: within 50 %, at try 41."""
    drawn = Corner()
    found = elsewhere((0.0, 0.0, 0.65, 1.0), drawn)
    assert found == pytest.approx((0.675, 0.5, 1.0, 1.0))
    assert drawn.calls == 4 * 41
    # A quarter of 0.8 would need 75 %, and the last tries have 70.
    assert elsewhere((0.0, 0.0, 0.8, 1.0), Corner()) is None
    assert elsewhere((0.0, 0.0, 1.0, 1.0), random.Random(0)) is None


def attempt(*replies, seed=(0, 0)):
    """What an attempt asks and gives, both boxes and then both answers told at once."""
    program = two_candidates(SAMPLE, seed=seed)
    asked, replies = [next(program)], [*map(said, replies)]
    try:
        asked.append(program.send(replies[:2]))
        program.send(replies[2:])
    except StopIteration as end:
        return asked, end.value
    raise AssertionError("it asks a third time")


def test_an_attempt_gives_two_boxes_with_their_answers():
    (boxes, answers), outcome = attempt(GOOD, FAR, "B", "C")
    assert boxes[0] == boxes[1] and boxes[0].context[0].images == (PICTURE,)
    for ask, crop in zip(answers, [(100, 50), (50, 50)], strict=True):
        (message,) = ask.context  # a context of its own
        assert message.images[0] == PICTURE and size(message.images[1]) == crop
        assert "Which letter?" in message.text and not ask.trained
    assert [turn.text for turn in outcome.turns] == [
        *("[0.5, 0.5, 1.0, 1.0]", "B"),
        *("[0.0, 0.0, 0.25, 0.5]", "C"),
    ]
    assert [turn.chosen for turn in outcome.turns] == [False, True] * 2
    assert outcome.turns[0].images == (answers[0].context[0].images[1],)


def test_a_second_box_on_the_first_goes_elsewhere():
    """By hand: IoU 0.125 / 0.25 and 0.02 / 0.29, both above 0.05."""
    for second in (NEAR, "[0.4, 0.4, 0.6, 0.7]"):
        _, outcome = attempt(GOOD, second, "B", "C")
        right, bottom = unit_box(outcome.turns[2].text)[2:]
        assert right <= 0.5 or bottom <= 0.5
        _, again = attempt(GOOD, second, "B", "C")
        assert again == outcome
        _, other = attempt(GOOD, second, "B", "C", seed=(0, 1))
        assert other.turns[2].text != outcome.turns[2].text
    touching = "[0.4, 0.4, 0.55, 0.55]"  # 0.0025 / 0.27
    _, outcome = attempt(GOOD, touching, "B", "C")
    assert outcome.turns[2].text == touching


@pytest.mark.parametrize(
    ("boxes", "reason"),
    [
        (("there", FAR), "no box"),
        ((GOOD, "[10, 20, 30, 40]"), "no box"),
        (("[0, 0, 1, 1]", GOOD), "no place elsewhere"),
        (("[0, 0, 0.0001, 1]", FAR), "no crop"),
    ],
)
def test_an_attempt_without_two_boxes_says_why(boxes, reason):
    asked, outcome = attempt(*boxes)
    assert len(asked) == 1
    assert outcome == ((), {f"ended/{reason}": 1})


def test_scripted_questions_become_pairs_and_the_rest_is_counted(monkeypatch):
    recite(monkeypatch)
    made = rows(6)
    good = made[1].annotations["chosen_step"]
    correct, wrong = (made[3].annotations[name] for name in ("chosen", "rejected"))
    given = [
        scripted(made[0]),
        scripted(made[1], boxes=(good, good)),
        scripted(made[2], boxes=("there", good)),
        scripted(made[3], answers=(correct, correct)),
        scripted(made[4], answers=(wrong, wrong)),
        dataclasses.replace(made[5], images=(), question="Which number?"),
    ]
    pairs, counts = preferences(
        chain_actor(),
        given,
        jax.random.key(0),
        accuracy=answered_right,
        accuracy_bbox=on_the_sign,
        program=functools.partial(two_candidates, **SHORT),
        limits=ROOM,
    )
    assert made[4].answer not in wrong  # the answer of another row
    assert counts == {
        "questions": 6,
        "questions/no picture": 1,
        "questions/no candidate": 1,
        "questions/too easy": 1,
        "questions/too hard": 1,
        "attempts": 15,
        "attempts/no box": 3,
        "candidates": 24,
        "candidates/cut off": 0,
        "candidates/too long": 0,
        "candidates/no score": 0,
        "pairs": 2,
    }
    assert [pair.id for pair in pairs] == [made[0].id, made[1].id]
    for pair, row in zip(pairs, made, strict=False):
        for name in ("chosen_step", "chosen", "rejected"):
            assert pair.annotations[name] == row.annotations[name]
    assert pairs[0].annotations["rejected_step"] == made[0].annotations["rejected_step"]
    assert pairs[1].annotations["rejected_step"] != good


def paired(key, actor=None, **changes):
    """Of two questions whose second box lies on the first: another is drawn."""
    made = rows(2)
    good = [row.annotations["chosen_step"] for row in made]
    return preferences(
        actor or chain_actor(),
        [scripted(row, boxes=(g, g)) for row, g in zip(made, good, strict=True)],
        key,
        accuracy=answered_right,
        accuracy_bbox=on_the_sign,
        program=functools.partial(two_candidates, **SHORT),
        limits=ROOM,
        **changes,
    )


def test_random_boxes_follow_from_the_key_and_the_row(monkeypatch):
    recite(monkeypatch)
    first, again, other = (paired(jax.random.key(seed)) for seed in (0, 0, 1))
    assert first == again and first[1]["pairs"] == other[1]["pairs"] == 2
    drawn = [pair.annotations["rejected_step"] for pair in first[0] + other[0]]
    assert len({*drawn}) == 4


def test_pairs_are_the_same_whatever_is_played_together(monkeypatch):
    recite(monkeypatch)
    sizes, reciting = [], acting.play

    def noted(actor, program, samples, *others, **how):
        sizes.append(len(samples))
        return reciting(actor, program, samples, *others, **how)

    monkeypatch.setattr(acting, "play", noted)
    together = paired(jax.random.key(0))
    assert paired(jax.random.key(0), size=1) == together
    one = dataclasses.replace(chain_actor(), prompts_per_pass=1)
    assert paired(jax.random.key(0), one) == together
    assert sizes == [2] * 3 + [1] * 12  # in three attempts each


def first_alone(episodes):
    """Of a question's candidates the first is good."""
    return [1.0] + [0.0] * (len(episodes) - 1)


def test_what_cannot_be_spelled_again_is_no_candidate():
    """Byte 128 is half a character: shown as another one, of three bytes."""
    actor = dataclasses.replace(chain_actor(), max_new_tokens=6)
    half = actor.processor.tokenizer.convert_tokens_to_ids("Ģ")
    said = jnp.array([half, actor.stop_ids[0]])
    actor = dataclasses.replace(
        actor,
        params=jax.tree.map(jnp.zeros_like, actor.params),
        allowed=jnp.zeros_like(actor.allowed).at[said].set(True),
    )
    told = {"read_box": lambda text: (0.0, 0.0, 0.5, 0.5), **SHORT}
    how = {"overlap": 2.0, "spell_box": lambda box: "it", **told}
    given = [
        dataclasses.replace(row, id=f"{row.id}-{n}") for n in "012" for row in rows(2)
    ]
    pairs, counts = preferences(
        actor,
        given,
        jax.random.key(0),
        accuracy=first_alone,
        accuracy_bbox=first_alone,
        program=functools.partial(two_candidates, **how),
        limits=ROOM,
    )
    whole = counts["candidates"] - counts["candidates/cut off"]
    assert 0 < counts["candidates/too long"] < whole
    assert len(pairs) > 0
    # All are learnt: nothing raises.
    rollout = visrl(limits=ROOM, **told).act(actor, iter([pairs]), jax.random.key(0))
    assert len(rollout.tokens) == 4 * len(pairs)
    # Fewer tokens for a row than for an answer: no box of four corners fits.
    short = ROOM._replace(row_tokens=3)
    how |= {"spell_box": lambda box: "it it it"}
    _, counts = preferences(
        actor,
        given,
        jax.random.key(0),
        accuracy=first_alone,
        accuracy_bbox=first_alone,
        program=functools.partial(two_candidates, **how),
        limits=short,
    )
    whole = counts["candidates"] - counts["candidates/cut off"]
    assert 0 < counts["candidates/too long"] == whole


def test_a_judge_that_fails_leaves_no_candidate(monkeypatch):
    recite(monkeypatch)
    for unread in (lambda e: [None] * len(e), lambda e: 1 / 0):
        pairs, counts = preferences(
            chain_actor(),
            [scripted(row) for row in rows(1)],
            jax.random.key(0),
            accuracy=answered_right,
            accuracy_bbox=unread,
            attempts=1,
            program=functools.partial(two_candidates, **SHORT),
            limits=ROOM,
        )
        assert pairs == []
        assert counts["candidates/no score"] == counts["candidates"] == 2
        assert counts["questions/no candidate"] == 1


def test_answers_that_were_cut_off_are_no_candidates():
    """The chain policy, unscripted, writes without end; every text is a box."""
    actor = dataclasses.replace(chain_actor(), max_new_tokens=2)
    how = {"read_box": lambda text: (0.0, 0.0, 0.5, 0.5), **SHORT}
    pairs, counts = preferences(
        actor,
        rows(1),
        jax.random.key(0),
        accuracy=answered_right,
        accuracy_bbox=answered_right,
        program=functools.partial(two_candidates, overlap=2.0, **how),
        limits=ROOM,
    )
    assert pairs == [] and counts["attempts"] == 3
    assert counts["candidates/cut off"] == counts["candidates"] == 6


class Noted:
    """A judge that answers 1 and keeps what it was asked."""

    def verdicts(self, questions):
        self.asked = questions
        return [1.0] * len(questions)


def candidate(text="It is B {maybe}.", sample=SAMPLE):
    box = Turn(GOOD, (), chosen=False, images=(cut(SAMPLE, unit_box(GOOD)),))
    return Episode(sample, "?", (box, said(text)), True)


def test_judges_see_the_answer_with_the_picture_and_the_crop_alone():
    crop = candidate().turns[0].images[0]
    for reward, picture, answer in (
        (answer_agrees, PICTURE, True),
        (crop_suffices, crop, False),
    ):
        judge = Noted()
        assert reward(judge)([candidate()]) == [1.0]
        ((message,),) = judge.asked
        shown, text = message["content"]
        head, _, body = shown["image_url"]["url"].partition(",")
        assert head == "data:image/png;base64"
        assert pixels(base64.b64decode(body)) == pixels(picture)
        assert "Question: Which letter?\nReference answer: B" in text["text"]
        assert ("Response: It is B {maybe}." in text["text"]) == answer


def test_placeholders_that_are_mere_text_stay_text():
    asked = r"<image>What does \<image> mean?"
    odd = candidate(sample=dataclasses.replace(SAMPLE, question=asked))
    for reward in (answer_agrees, crop_suffices):
        judge = Noted()
        assert reward(judge)([odd]) == [1.0]
        ((message,),) = judge.asked
        assert "Question: What does <image> mean?\n" in message["content"][-1]["text"]
    seen = []

    def noted(sample, turn):
        seen.append(sample)
        return True

    reader = dataclasses.replace(chain_actor(), max_new_tokens=3)
    assert crop_is_read(reader, noted, alone="<image>{question}")([odd]) == [1.0]
    assert len(seen) == 1  # it had one picture, and one placeholder for it


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ('{"score": 0.75}', 0.75),
        ('```json\n{"score": 1}\n```', 1.0),
        ('{"score": 1.5}', None),
        ('{"score": true}', None),
        ('{"score": "0.5"}', None),
        ('{"score": NaN}', None),
        ("[0.5]", None),
        ("0.5", None),
        ("", None),
    ],
)
def test_scores_are_read_strictly(reply, score):
    assert score_in(reply) == score


def test_a_reader_sees_the_crop_and_nothing_else():
    seen = []

    def even(sample, turn):
        seen.append((sample.images, turn))
        return len(turn.tokens) % 2 == 0

    reader = dataclasses.replace(chain_actor(), max_new_tokens=3)
    found = crop_is_read(reader, even, alone="<image>{question}")([candidate()] * 2)
    (crop, turn), _ = seen
    assert crop == candidate().turns[0].images and turn == seen[1][1]  # greedy
    assert found == [float(len(turn.tokens) % 2 == 0)] * 2
    long = crop_is_read(reader, even, alone="<image>{question}" + "?" * 300)
    assert np.isnan(long([candidate()])).all() and len(seen) == 2
