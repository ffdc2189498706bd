"""CogFlow: what is seen is drawn again until it is good enough, then reasoned from."""

import dataclasses
import functools
import math

import jax
import numpy as np
import pytest

from vrl_jax.engine.desk import Limits, OutOfRoom
from vrl_jax.programs.recital import recited
from vrl_jax.recipes.cogflow import (
    cogflow,
    cogflow_reward,
    complete_geometry_seen,
    geometry_seen,
    laid_out,
    look_alike,
    reference,
    released_reward,
    segments_seen,
    visual_score,
    watched_first,
)
from vrl_jax.types import Episode, Sample

from ..fixtures import small
from ..fixtures.talk import said, talk, told

PICTURE = small.png(0, 28, 28)
GOLD = "point A (0, 0)\npoint B (5, 0)\ncircle (1, 1) 2"
SEEN = "point A (0.05, 0)\npoint B (5, 0.1)\ncircle (1, 1) 2.3"
SAMPLE = Sample("one", "small", "<image>?", (PICTURE,), "4", {"watching": GOLD})


def embed(picture):
    """Of the row's picture and of any drawing; their cosine is 0.8."""
    return np.array([1.0, 0.0] if picture == PICTURE else [0.8, 0.6])


def text(seen=SEEN, answer="4"):
    watching = f"<watching>\n{seen}\n</watching>"
    return f"{watching}\n<thinking>so</thinking>\n<answer>{answer}</answer>"


def scored(make, words, sample=SAMPLE, internalised=0.7, **more):
    judge = lambda episodes: [internalised] * len(episodes)
    reward = make(look=look_alike(embed), internalised=judge, **more)
    return reward([Episode(sample, "?", (said(words),), True)])[0]


def test_the_worked_response():
    """Costs 0.05, 0.10, 0.30 and cosine 0.8, judged 0.7, right and laid out."""
    found = scored(cogflow_reward, text())
    assert found["synergy_vpr"] == pytest.approx(0.860708, abs=1e-6)
    assert found["synergy_vsr"] == pytest.approx(0.9)
    assert found["synergy"] == pytest.approx(0.876425, abs=1e-6)
    assert found["overall"] == pytest.approx(3.576425, abs=1e-6)
    assert found["synergy_unread"] == 0
    other = scored(cogflow_reward, text("a triangle\n" + SEEN, "5"), alpha=1.0)
    assert other["overall"] == pytest.approx(0.860708 + 0.7 + 1, abs=1e-6)
    assert (other["synergy_unread"], other["accuracy"]) == (1, 0)


def test_the_worked_gate_score():
    """S_VPR + S_VSR in training, S_VSR where nothing is known."""
    look = look_alike(embed)
    turn = said(text())
    found = visual_score(geometry_seen, look)(SAMPLE, turn)
    assert found == pytest.approx(1.760708, abs=1e-6)
    unknown = dataclasses.replace(SAMPLE, annotations={})
    assert visual_score(look)(unknown, turn) == pytest.approx(0.9)


def test_the_worked_response_of_the_released_file():
    """3 lines, 2 of them among the row's 4: F1 0.571429, the mean of five 0.834286."""
    gold = (
        "line (-5, 0) (5, 0)\nline (-5, 5) (5, 5)\n"
        "line (-8, -5) (-8, 5)\nline (8, -5) (8, 5)"
    )
    seen = "line (-5, 0) (5, 0)\nline (-5, 5) (5, 5)\nline (0, 0) (5, 5)"
    row = dataclasses.replace(SAMPLE, annotations={"watching": gold})
    assert segments_seen(row, text(seen)) == pytest.approx(0.571429, abs=1e-6)
    found = scored(released_reward, text(seen), row)
    assert found["overall"] == pytest.approx(0.834286, abs=1e-6)
    # Without the layout what was seen earns nothing; a logit is cut.
    torn = scored(released_reward, text(seen) + "!", row, internalised=3.0)
    assert (torn["vsr"], torn["vpr"], torn["format"]) == (0, 0, 0)
    assert torn["overall"] == pytest.approx((1 + 1) / 5)
    assert math.isnan(scored(released_reward, text(), row, math.nan)["overall"])


@pytest.mark.parametrize(
    ("tau", "asked", "taken"), [(1.0, 2, 1), (2.0, 3, 2), (0.5, 1, 0), (1.2, 2, 1)]
)
def test_the_worked_gates(tau, asked, taken):
    """Scores 0.7, 1.2, 1.6."""
    scores = {"first": 0.7, "second": 1.2, "third": 1.6}
    value = lambda sample, turn: scores[turn.text.removesuffix("</watching>")]
    replies = [said(f"{name}</watching>") for name in list(scores)[:asked]]
    final = said("all of it")
    program = watched_first(SAMPLE, gate=value, tau=tau, watching_tokens=50)
    asks, outcome = talk(program, [*replies, final])
    assert len(asks) == asked + 1
    for ask in asks[:-1]:
        assert ask.tentative and ask.given == () and ask.max_new_tokens == 50
        assert ask.stops == ("</watching>",)
    assert asks[-1].given is replies[taken] and asks[-1].context == asks[0].context
    assert not asks[-1].tentative and not asks[-1].stops
    assert outcome.turns == (final,)
    best = list(scores.values())[taken]
    facts = {"tries": asked, "opening": best, "accepted": int(best >= tau)}
    assert outcome.facts == facts


def test_the_best_is_taken_where_none_passes():
    scores = iter([0.3, 0.8, 0.8])
    program = watched_first(SAMPLE, gate=lambda *_: next(scores), tau=1.0)
    replies = [said(f"{n}</watching>") for n in range(3)]
    asks, outcome = talk(program, [*replies, said("end")])
    assert asks[3].given is replies[1]  # the first of the best
    assert (outcome.facts["opening"], outcome.facts["accepted"]) == (0.8, 0)


def test_what_nothing_can_follow_is_all_there_is():
    length = lambda sample, turn: float(len(turn.text))
    _, outcome = told(watched_first(SAMPLE, gate=length, tau=99), "a", "bbb", "cc")
    assert [turn.text for turn in outcome.turns] == ["bbb"]
    assert outcome.facts["ended/opening was not closed"] == 1
    closed = said("a</watching>")
    _, outcome = talk(watched_first(SAMPLE, gate=length, tau=1), [closed, OutOfRoom()])
    assert outcome.turns == (closed,)
    assert outcome.facts["ended/opening left no room"] == 1


@pytest.mark.parametrize(
    ("words", "vpr", "vsr"),
    [
        ("", 0, 0),
        (GOLD, 0, 0),  # without its block
        ("<watching>" + GOLD, 0, 0),
        ("</watching><watching>", 0, 0),
        # Nothing that can be read shows nothing, rather than exp(-1) and 0.9.
        ("<watching>a circle</watching>", 0, 0),
        ("<watching></watching>", 0, 0),
        ("<watching>line (0, 0) (1, 1)</watching>", 0, 0.9),  # of no kind in the row
        (f"<watching>{GOLD}</watching> and more", 1, 0.9),
    ],
)
def test_whatever_is_written_has_a_score(words, vpr, vsr):
    found = scored(cogflow_reward, words)
    assert found["synergy_vpr"] == pytest.approx(vpr)
    assert found["synergy_vsr"] == pytest.approx(vsr)
    assert found["overall"] == pytest.approx(0.6 * vpr + 0.4 * vsr + 0.7)


def test_an_honest_guess_beats_an_empty_block():
    """Points 3 away and nothing else: costs 3 and 3, the circle missed, of three."""
    guess = "<watching>point A (3, 0)\npoint B (5, 3)</watching>"
    empty = "<watching></watching>"
    assert geometry_seen(SAMPLE, guess) == pytest.approx(math.exp(-7 / 3))
    for geometry in (geometry_seen, complete_geometry_seen):
        gate = visual_score(geometry, look_alike(embed))
        assert gate(SAMPLE, said(empty)) == 0 < gate(SAMPLE, said(guess))
    lineless = dataclasses.replace(SAMPLE, annotations={"watching": "point (1, 2)"})
    assert segments_seen(lineless, empty) == 0
    assert segments_seen(lineless, guess) == 1  # neither has lines, as in the file


def test_the_complete_geometry_pays_for_what_is_left_out():
    """One of two points exactly and the circle: 1 of 3 missed, exp(-1/3) by hand."""
    some = f"<watching>point A (0, 0)\n{GOLD.splitlines()[-1]}</watching>"
    assert geometry_seen(SAMPLE, some) == 1
    found = scored(cogflow_reward, some, geometry=complete_geometry_seen)
    assert found["synergy_vpr"] == pytest.approx(math.exp(-1 / 3))
    assert complete_geometry_seen(SAMPLE, some, missed=3) == pytest.approx(math.exp(-1))
    whole = complete_geometry_seen(SAMPLE, text())
    assert whole == pytest.approx(0.860708, abs=1e-6) and whole > found["synergy_vpr"]


def test_a_row_without_a_picture_looks_like_nothing():
    row = dataclasses.replace(SAMPLE, images=())
    assert look_alike(embed)(row, text()) == 0
    assert look_alike(lambda picture: np.zeros(2))(SAMPLE, text()) == 0.5


def test_a_picture_is_embedded_once_for_its_group():
    seen = []
    look = look_alike(lambda picture: seen.append(picture) or embed(picture))
    opening = text().partition("</watching>")[0] + "</watching>"
    assert look(SAMPLE, opening) == look(SAMPLE, text())  # the gate, then the reward
    assert seen.count(PICTURE) == 1 and len(seen) == 2
    look(SAMPLE, text("a circle\n" + SEEN))
    assert len(seen) == 2
    look(SAMPLE, text(GOLD))
    assert len(seen) == 3


@pytest.mark.parametrize("given", [None, "", "a circle", GOLD + "\nsquare (1, 1) 2", 3])
def test_a_row_that_lacks_its_primitives_is_named(given):
    row = dataclasses.replace(SAMPLE, annotations={"watching": given})
    with pytest.raises(ValueError, match="one needs the column 'watching'"):
        reference(row)
    with pytest.raises(ValueError, match="one needs the column 'watching'"):
        scored(cogflow_reward, text(), row)


@pytest.mark.parametrize(
    "given", ["point (1, 2)\n" * 33, "line" + " (1, 2) (3, 4)" * 17]
)
def test_a_row_with_too_many_primitives_is_told_the_limit(given):
    row = dataclasses.replace(SAMPLE, annotations={"watching": given})
    with pytest.raises(ValueError, match="up to 32 of a kind and 32 points of a line"):
        reference(row)


def test_layout():
    assert laid_out(text()) and laid_out(f" {text()}\n")
    assert not laid_out("so " + text())
    assert not laid_out(text() + text())
    assert not laid_out("<thinking></thinking><watching></watching><answer></answer>")


def test_advantages_of_a_group():
    """R = 4, 3, 2, 1: mean 2.5, std (n - 1) 1.290994, by hand."""
    credit = cogflow(gate=visual_score(), tau=1.0, group_size=4).credit
    batch, _ = credit(small.scored([4.0, 3.0, 2.0, 1.0]))
    wanted = [1.161895, 0.387298, -0.387298, -1.161895]
    np.testing.assert_allclose(batch.advantages[:, 0], wanted, atol=2e-6)


CLOSING = "e"
"""What the little policy writes now and then."""


def closing_early(monkeypatch):
    monkeypatch.setattr("vrl_jax.recipes.cogflow.CLOSED", CLOSING)


def test_what_was_taken_is_trained_with_what_follows(monkeypatch):
    """Played for real: law 1 over both parts, and no row of what was rejected."""
    closing_early(monkeypatch)
    heard = []

    def odd(turn):
        return float(sum(turn.tokens) % 2)

    def hearing(sample, turn):
        heard.append((sample.id, turn))
        return odd(turn)

    limits = Limits(row_tokens=2 * small.BUDGET)
    recipe = cogflow(gate=hearing, tau=1.0, group_size=small.GROUP, limits=limits)
    seen = []
    actor = small.actor(observe=lambda episodes, scores: seen.extend(episodes))
    played = recipe.act(actor, iter([small.samples()]), jax.random.key(0))
    tokens, mask = np.asarray(played.tokens), np.asarray(played.mask)
    assert len(tokens) == len(seen) == len(small.samples()) * small.GROUP
    tries, asks = (np.asarray(played.facts[name]) for name in ("tries", "asks"))
    went_on = asks - tries
    assert {*tries.tolist()} == {1, 2, 3} and {*went_on.tolist()} == {0, 1}
    assert len(heard) == tries.sum()
    for row, episode in enumerate(seen):
        (turn,) = episode.turns
        assert tuple(tokens[row][mask[row]]) == turn.tokens and turn.given == 0
        own = [one for name, one in heard if name == episode.sample.id]
        begins = [one for one in own if turn.tokens[: _length(one)] == one.tokens]
        opening = max(begins, key=_length)
        assert played.facts["opening"][row] == odd(opening)
        assert went_on[row] == (CLOSING in opening.text)
        assert went_on[row] == (_length(turn) > _length(opening))
    again = actor.likelihood(played).logprobs
    np.testing.assert_allclose(again, played.old_logprobs, rtol=0, atol=1e-5)


def _length(turn):
    return len(turn.tokens)


def test_a_demonstration_is_learnt_as_it_would_be_played(monkeypatch):
    """Block and rest are one stretch, with one stop token at its end."""
    closing_early(monkeypatch)
    samples = [
        dataclasses.replace(row, annotations={"demonstration": ["is it e", " it is"]})
        for row in small.samples()
    ]
    tau = 1.0
    program = functools.partial(watched_first, gate=lambda *_: tau, tau=tau)
    actor = small.actor()
    limits = Limits(row_tokens=40)
    learnt = recited(
        actor, iter([samples]), jax.random.key(0), program=program, limits=limits
    )
    tokens, mask = np.asarray(learnt.tokens), np.asarray(learnt.mask)
    for row, kept in zip(tokens, mask, strict=True):
        *words, end = row[kept].tolist()
        assert kept[: len(words) + 1].all()
        assert small.tokenizer().decode(words) == "is it e it is"
        assert end == actor.stop_ids[0]
