"""Questions asked in turn, and learnt with their answers."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from vrl_jax.engine.desk import Limits
from vrl_jax.programs.dialogue import dialogue
from vrl_jax.programs.recital import recited
from vrl_jax.programs.single_turn import answer
from vrl_jax.recipes.sft import sft
from vrl_jax.types import Sample, Turn

from ..fixtures import small

KEY = jax.random.key(1)
LIMITS = Limits(row_tokens=60, pictures=7)
TALK = Sample(
    "talk",
    "small",
    "<image>What is it?\n\n<image>or<image>Which one?",
    tuple(small.png(seed, 28, 28) for seed in range(3)),
    "a",
    {
        "system": "it is",
        "asks": ["<image>What is it?", "<image>or<image>Which one?"],
        "demonstration": [" it", " a"],
    },
)


def test_each_question_is_asked_with_its_own_pictures_after_what_was_said():
    steps = dialogue(TALK)
    first = next(steps).context
    assert [(m.role, m.text, m.images) for m in first] == [
        ("system", "it is", ()),
        ("user", "<image>What is it?", TALK.images[:1]),
    ]
    said = Turn(" it", (1,))
    second = steps.send(said).context
    assert second[:3] == (*first, said)
    assert second[3].text == "<image>or<image>Which one?"
    assert second[3].images == TALK.images[1:]
    with pytest.raises(StopIteration) as end:
        steps.send(said)
    assert end.value.value == (said, said)


def test_what_a_row_without_turns_asks_is_its_question():
    sample = small.samples()[1]
    assert next(dialogue(sample)).context == next(answer(sample)).context


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"asks": "<image>What?"},
            "talk needs the column 'asks', the questions as a l",
        ),
        ({"asks": []}, "talk needs the column 'asks'"),
        ({"asks": ["<image><image><image>", 3]}, "talk needs the column 'asks'"),
        ({"asks": ["<image>What?", "So?"]}, "talk has 3 pictures, and its questions p"),
        ({"asks": ["<image>" * 4]}, "talk has 3 pictures, and its questions place 4"),
    ],
)
def test_questions_that_are_no_list_of_texts_are_named(changes, said):
    row = dataclasses.replace(TALK, annotations={**TALK.annotations, **changes})
    with pytest.raises(ValueError, match=said):
        next(dialogue(row))


def test_a_column_that_a_row_does_not_fill_is_none():
    row = dataclasses.replace(TALK, annotations={"asks": None})
    (asked,) = next(dialogue(row)).context
    assert (asked.text, asked.images) == (TALK.question, TALK.images)


def test_dialogues_are_learnt_turn_by_turn():
    """Both answers are trained, and nothing of what was asked between them."""
    actor = small.actor()
    recipe = sft(functools.partial(recited, program=dialogue, limits=LIMITS))
    alone = dataclasses.replace(small.samples()[0], annotations={"demonstration": "a"})
    rollout = recipe.act(actor, iter([[TALK, alone]]), KEY)
    tokens, mask = np.asarray(rollout.tokens), np.asarray(rollout.mask)
    decode, stop = actor.processor.tokenizer.decode, decode_stop(actor)
    assert decode(tokens[0][mask[0]]) == f" it{stop} a{stop}"
    assert decode(tokens[1][mask[1]]) == f"a{stop}"
    assert "Which one" in decode(tokens[0][~mask[0]])
    assert len({*np.asarray(rollout.shown.images.frames[0])} - {0}) == 2


def decode_stop(actor):
    return actor.processor.tokenizer.decode([int(actor.stop_ids[0])])
