"""ERGO: where to look closely, and whether what is there was enough."""

import dataclasses
import io

import jax
import numpy as np
import pytest
from PIL import Image

from vrl_jax.engine.actor import Actor
from vrl_jax.engine.desk import Limits
from vrl_jax.recipes.ergo import (
    closer,
    coarse_to_fine,
    ergo,
    ergo_reward,
    fitted,
    in_original,
    right_answer,
    shrunk,
    zoom_box,
)
from vrl_jax.types import Episode, Sample

from ..fixtures import small
from ..fixtures.talk import said, told

LARGE = small.png(0, 1500, 2000)
SAMPLE = Sample(
    "one",
    "small",
    "<image>Which letter is on the roof?",
    (LARGE,),
    "B",
    {"options": ["A hat", "A cat"]},
)
POINTED = "<think>on top</think><zoom>[200, 150, 500, 400]</zoom>"


def size(png):
    return Image.open(io.BytesIO(png)).size


def test_the_worked_picture():
    """2000 x 1500 with 640 tokens: the sheet's sizes, box and area."""
    assert fitted(2000, 1500, tokens=640) == (812, 616)
    assert size(shrunk(LARGE, 640, 28)) == (812, 616)
    box = in_original((200, 150, 500, 400), (812, 616), (2000, 1500))
    assert box == (492, 365, 1231, 974)
    look = closer(LARGE, POINTED, 640, 28)
    assert look.found and look.share == pytest.approx(0.150017, abs=1e-6)
    assert size(look.picture) == (728, 616)
    tokens = (812 * 616 + 728 * 616) // 28**2
    assert tokens == 1210


def test_sizes_are_whole_tokens_and_small_pictures_grow_to_four():
    assert fitted(560, 56, tokens=640) == (560, 56)
    assert fitted(10, 10, tokens=640) == (56, 56)
    assert fitted(5, 500, tokens=640) == (28, 560)  # its shorter side is one token
    assert fitted(30, 64, tokens=640) == (56, 84)  # and never less
    assert fitted(42, 98, tokens=640) == (56, 112)  # 1.5 and 3.5: halves to even
    assert fitted(70, 70, tokens=640) == (56, 56)


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("<zoom>[10, 20, 30, 40]</zoom>", (10, 20, 30, 40)),
        ("<zoom>zoom [10,20 ,30,40] there</zoom>", (10, 20, 30, 40)),
        ("<zoom>[10,20,30,40] or [1,2,3,4]</zoom>", None),
        ("<zoom>[10,20,30,40] or [1,2]</zoom>", None),
        ("<zoom>[0.1, 0.2, 0.3, 0.4]</zoom>", None),
        ("<zoom>[-1, 2, 3, 4]</zoom>", None),
        ("<zoom>[1, 2, 3]</zoom>", None),
        ("[10, 20, 30, 40]", None),
        ("<zoom>[10, 20, 30, 40]", None),
        ("", None),
    ],
)
def test_boxes_are_read_strictly(text, box):
    assert zoom_box(text) == box


@pytest.mark.parametrize(
    "box", ["[500, 400, 200, 150]", "[10, 10, 10, 90]", "[900, 0, 990, 50]", "[1, 2]"]
)
def test_a_box_without_area_in_the_picture_shows_all_of_it(box):
    look = closer(LARGE, f"<zoom>{box}</zoom>", 640, 28)
    assert not look.found and look.share == 1
    assert look.picture == shrunk(LARGE, 640, 28)


def test_boxes_are_cut_off_at_the_edge():
    assert in_original((700, 600, 999, 999), (812, 616), (2000, 1500)) == (
        *(1724, 1461),
        *(2000, 1500),
    )


def test_the_reader_sees_the_crop_and_the_question_alone():
    asks, outcome = told(
        coarse_to_fine(SAMPLE), POINTED, "<answer>B</answer>", "<answer>A</answer>"
    )
    first, second, third = asks
    (opening,) = first.context
    assert size(opening.images[0]) == (812, 616)
    assert "A hat" not in opening.text  # the options come with the crop
    assert second.context[:2] == (opening, said(POINTED)) and second.model == "policy"
    crop = second.context[2]
    assert size(crop.images[0]) == (728, 616)
    asked = "Which letter is on the roof?\nA. A hat\nB. A cat\nAnswer with the letter"
    assert asked in crop.text
    assert crop.text.count("<image>") == 1
    assert (third.model, third.context) == ("reader", (crop,))
    facts = {"region": 0, "box": 1, "accuracy": 1, "format": 1}
    assert outcome.facts == {**facts, "zoom/share": pytest.approx(0.150017, abs=1e-6)}


def test_options_keep_their_letters_and_a_row_says_how_to_answer():
    options = ["A: hat", "(B) cat", "", "Boat"]  # none is called C
    annotations = {"options": options, "postfix": "A letter!"}
    row = dataclasses.replace(SAMPLE, annotations=annotations)
    (_, second, _), _ = told(coarse_to_fine(row), POINTED, "B", "B")
    lines = second.context[2].text.splitlines()
    assert lines[3:7] == ["A: hat", "(B) cat", "D. Boat", "A letter!"]
    torn = dataclasses.replace(SAMPLE, annotations={"options": "A. hat"})
    with pytest.raises(ValueError, match="one: `options` must be a list"):
        told(coarse_to_fine(torn), POINTED, "B", "B")


def test_a_sliver_is_no_region():
    """Fitted it would have 1 x 286 tokens, which models refuse."""
    wide = small.png(0, 80, 8000)
    assert fitted(8000, 40, tokens=640) == (8008, 28)
    shown = fitted(8000, 80, tokens=640)[1]
    look = closer(wide, f"<zoom>[0, 0, 9999, {shown // 2}]</zoom>", 640, 28)
    assert not look.found and look.share == 1


def test_a_box_that_cannot_be_read_leaves_the_answer_alone():
    asks, outcome = told(coarse_to_fine(SAMPLE), "there", "<answer>B</answer>")
    assert size(asks[1].context[2].images[0]) == (812, 616)
    facts = {"region": 0, "box": 0, "accuracy": 1, "format": 0, "zoom/share": 1}
    assert outcome.facts == facts


def test_the_whole_picture_is_too_large_a_region():
    whole = "<think>all</think><zoom>[0, 0, 812, 616]</zoom>"
    answers = ["<answer>B</answer>"] * 2
    _, outcome = told(coarse_to_fine(SAMPLE), whole, *answers)
    assert (outcome.facts["region"], outcome.facts["box"]) == (1, 0)
    torn = "<zoom>[0, 0, 81, 61]</zoom><think>all</think>"
    _, outcome = told(coarse_to_fine(SAMPLE), torn, *answers)
    assert (outcome.facts["box"], outcome.facts["format"]) == (1, 0)


def test_letters_and_words_are_right_by_different_rules():
    words = dataclasses.replace(SAMPLE, answer="red")
    assert right_answer(SAMPLE, said("<answer>(b)</answer>"))
    assert not right_answer(SAMPLE, said("<answer>B. A cat</answer>"))  # as released
    assert not right_answer(SAMPLE, said("<answer>A</answer><answer>B</answer>"))
    assert right_answer(SAMPLE, said("so <answer>B"))
    assert right_answer(words, said("<answer>red</answer>"))
    assert not right_answer(words, said("<answer>dark red</answer>"))


def test_the_worked_group():
    """(region, box, accuracy, format): R = 3.5, 3, 1.5, 0 and the sheet's A."""
    names = ("region", "box", "accuracy", "format")
    facts = [(1, 1, 1, 1), (1, 0, 1, 1), (0, 1, 0, 1), (0, 0, 0, 0)]
    episodes = [
        Episode(
            SAMPLE, "?", (said("a"),), True, facts=dict(zip(names, one, strict=True))
        )
        for one in facts
    ]
    found = [score["overall"] for score in ergo_reward()(episodes)]
    assert found == [3.5, 3.0, 1.5, 0.0]
    credit = ergo(reader=small.actor(), group_size=4).credit
    advantages = credit(small.scored(found))[0].advantages[:, 0]
    wanted = [0.94868, 0.63246, -0.31623, -1.26491]
    np.testing.assert_allclose(advantages, wanted, atol=1e-5)


@pytest.mark.parametrize("box", [None, (0, 0, 40, 40)])
def test_both_turns_are_trained_and_the_crop_between_is_not(monkeypatch, box):
    """Played for real; what the policy points at is told, for it cannot point yet."""
    monkeypatch.setattr("vrl_jax.recipes.ergo.zoom_box", lambda text: box)
    even = lambda sample, turn: len(turn.tokens) % 2 == 0
    recipe = ergo(
        reader=small.actor(params=small.params(1)),
        group_size=2,
        tokens=4,
        find="{question}",
        zoomed="<image>{question}",
        right=even,
        limits=Limits(row_tokens=64, pictures=2),
    )
    seen, scores = [], []
    actor: Actor = small.actor(
        reward=ergo_reward(),
        observe=lambda episodes, given: (seen.extend(episodes), scores.extend(given)),
    )
    samples = [small.samples()[0], small.samples()[3]]
    played = recipe.act(actor, iter([samples]), jax.random.key(0))
    tokens, mask = np.asarray(played.tokens), np.asarray(played.mask)
    for row, episode in enumerate(seen):
        pointed, answered = episode.turns
        assert tuple(tokens[row][mask[row]]) == pointed.tokens + answered.tokens
        first, last = len(pointed.tokens), np.flatnonzero(mask[row])[-1]
        assert not mask[row, first] and last + 1 > first + len(answered.tokens)
        assert scores[row]["accuracy"] == even(None, answered)
        assert scores[row]["box"] == (box is not None)
    # Of a whole picture nobody asks the reader; of a crop it is right now and then.
    assert any(score["region"] for score in scores) == (box is not None)
    again = actor.likelihood(played).logprobs
    np.testing.assert_allclose(again[mask], played.old_logprobs[mask], atol=1e-5)
    wanted = [s["region"] + 0.5 * s["box"] + s["accuracy"] for s in scores]
    assert np.asarray(played.rewards).tolist() == wanted
