"""MMKC-Bench: does a text agree with what the model knows? Rates by hand."""

import time

import pytest

from vrl_jax.evals.mmkc_bench import read_items
from vrl_jax.evals.mmkc_detection import (
    coarse,
    detected,
    detection,
    detection_rates,
    fine,
    notices,
    yes_or_no,
)

from ..fixtures.conflicts import APPLE, PERSON, PICTURES, episode, said


def test_detection_by_hand():
    """The worked example: 3 of 4 counterfactuals called No, 2 of 2 true texts Yes."""
    told = [("no", "no")] * 3 + [("no", "yes")] + [("yes", "yes")] * 2
    found = detection_rates(told)
    assert found["accuracy"] == pytest.approx(0.833333, abs=1e-6)
    assert found["balanced"] == pytest.approx(0.875)
    assert found["unread"] == 0
    assert detection_rates([("no", None)]) == {
        **{"n": 1, "accuracy": 0, "balanced": None, "unread": 1},
    }


def test_detection_shows_one_text_and_one_picture():
    items = read_items([APPLE, PERSON])
    asked, skipped = detection(items, texts=coarse)
    assert len(asked) == 6 and not skipped
    true, counter = asked[:2]
    assert true.images == counter.images == (PICTURES[1],)
    assert true.question.endswith("<image>\nA red apple.")
    assert counter.question.endswith("<image>\nA green apple.")
    assert (true.answer, counter.answer) == ("yes", "no")
    found = detected(said(asked, ["Yes."] * 5 + ["**No**, it is not."]))
    assert found["accuracy"] == pytest.approx(4 / 6)


def test_the_fine_form_shows_the_sentence_of_the_aspect():
    """Of no aspect, and of a text that is too short, there is none."""
    items = read_items([APPLE, PERSON])
    assert fine(items[1]) == ("Born in 1978", "Born in 1950")
    asked, skipped = detection(items, texts=fine)
    assert [s.id for s in asked] == ["2:Kobe:temporal/true", "2:Kobe:temporal/counter"]
    assert skipped == ["1:apple", "2:Kobe:Career"]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("Yes", "yes"),
        (" **no**, it", "no"),
        ("I know. No.", None),
        ("Nothing", None),
        ("<think>Yes?</think><answer>No</answer>", "no"),
    ],
)
def test_the_first_word_is_read(text, word):
    assert yes_or_no(text) == word


def test_a_long_text_takes_no_longer_than_it_is():
    for piece in ("yes", "*", " ", "<answer>"):
        text = piece * (200_000 // len(piece))
        begin = time.perf_counter()
        yes_or_no(text)
        assert time.perf_counter() - begin < 2


def test_noticing_is_paid():
    (true, counter), _ = detection(read_items([APPLE]))
    assert notices([episode(true, "Yes."), episode(counter, "Maybe")]) == [1, 0]
