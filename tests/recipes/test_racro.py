"""RACRO: the captioner is paid by whether a frozen reasoner comes right."""

import dataclasses

import jax
import numpy as np
import pytest

from vrl_jax.recipes.racro import (
    caption_reward,
    captioned,
    checked_caption,
    racro,
    reasoned,
    solved,
)
from vrl_jax.rewards.boxed import boxed_exact
from vrl_jax.types import Episode

from ..fixtures import small
from ..fixtures.talk import said, told

SAMPLE = small.samples()[3]  # its answer is 3


def test_the_reasoner_sees_caption_and_question_alone():
    (first, second), outcome = told(captioned(SAMPLE), "three dots", r"\boxed{3}")
    assert first.model == "policy" and first.context[0].images == SAMPLE.images
    assert "Do not answer" in first.context[0].text
    assert second.model == "reasoner" and second.context[0].images == ()
    assert "so:\n\nthree dots\n\nIs it one of them?" in second.context[0].text
    assert outcome.facts["solved"] == 1
    _, outcome = told(captioned(SAMPLE), "three dots", "it is 3")  # no box
    assert outcome.facts["solved"] == 0


def test_the_policy_says_whether_its_text_is_a_caption():
    replies = {"Yes.": 1, "no, it solves": 0, "**No**": 0, "Notable": 1, "": 1}
    for reply, caption in replies.items():
        program = checked_caption(SAMPLE)
        asks, outcome = told(program, "3 <image>", r"\boxed{3}", reply)
        assert asks[2].model == "policy" and not asks[2].trained
        assert asks[2].context[0].text.startswith("3 \\<image>\n\nDoes this")
        assert outcome.facts == {"solved": 1, "caption": caption}


def rewards(reward, came, caption):
    pairs = zip(came, caption, strict=True)
    facts = [{"solved": s, "caption": c} for s, c in pairs]
    turns = (said("a"),)
    return reward([Episode(SAMPLE, "?", turns, True, facts=f) for f in facts])


def test_the_worked_groups():
    """The sheet's R and A, without and with the penalty."""
    credit = racro(reasoner=small.actor()).credit
    advantage = lambda found: credit(small.scored(found))[0].advantages[:, 0]
    came = [1, 0, 1, 1]
    plain = rewards(solved, came, [1] * 4)
    np.testing.assert_allclose(advantage(plain), [0.5, -1.5, 0.5, 0.5], atol=1e-5)
    found = rewards(caption_reward(), came, [1, 1, 0, 1])
    np.testing.assert_allclose(found, [1, 0, 0.9, 1])
    wanted = [0.56628, -1.49291, 0.36036, 0.56628]
    np.testing.assert_allclose(advantage(found), wanted, atol=1e-5)
    tied = rewards(caption_reward(), [1] * 4, [1, 1, 1, 0])
    wanted = [0.49999, 0.49999, 0.49999, -1.49997]
    np.testing.assert_allclose(advantage(tied), wanted, atol=2e-5)
    failed = rewards(caption_reward(), [0] * 4, [0, 1, 0, 1])
    np.testing.assert_array_equal(advantage(failed), 0)


def test_a_reward_may_judge_what_the_reasoner_answered():
    """Of captions with a box of their own, with no answer, and as played."""
    caption = said(r"it is \boxed{3}")
    right, wrong = (
        dataclasses.replace(said(text), chosen=False, facts={"model": "reasoner"})
        for text in (r"so \boxed{3}", r"so \boxed{4}")
    )
    turns = [(caption, right), (caption, wrong), (caption,)]
    episodes = [Episode(SAMPLE, "?", one, True, facts={"solved": 0}) for one in turns]
    assert boxed_exact(episodes) == [1, 1, 1]
    assert reasoned(boxed_exact)(episodes) == [1, 0, 0]
    seen = []
    reasoned(lambda shown: seen.extend(shown) or [0] * len(shown))(episodes)
    assert [one.text for one in seen] == [right.text, wrong.text, ""]
    assert all(one.facts == {"solved": 0} and len(one.turns) == 1 for one in seen)


def test_a_program_that_did_not_ask_is_named():
    episode = Episode(SAMPLE, "?", (said("a"),), True, facts={"solved": 1})
    with pytest.raises(ValueError, match="no fact 'caption'"):
        caption_reward()([episode])


def test_the_caption_alone_is_trained():
    """By what the reasoner, a model of its own, wrote: half its answers are right."""
    even = lambda sample, turn: sum(turn.tokens) % 2 == 0
    recipe = racro(
        reasoner=small.actor(params=small.params(1)),
        group_size=small.GROUP,
        right=even,
        describe="{question}",
        answer="{seen}. {question}",
    )
    seen = []
    actor = small.actor(
        reward=solved, observe=lambda episodes, scores: seen.extend(episodes)
    )
    played = recipe.act(actor, iter([small.samples()]), jax.random.key(0))
    assert len(played.tokens) == len(small.samples()) * small.GROUP == len(seen)
    assert set(np.asarray(played.rewards).tolist()) == {0.0, 1.0}
    for row, episode in enumerate(seen):
        caption, answer = episode.turns
        assert played.rewards[row] == even(None, answer)
        assert tuple(played.tokens[row][played.mask[row]].tolist()) == caption.tokens
