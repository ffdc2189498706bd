"""MMKC-Bench: what is shown in each pass, how answers are read, and rates by hand."""

import dataclasses
import json
import time

import jax
import pytest

from vrl_jax.evals import held_out, mmkc_bench
from vrl_jax.evals.benchmark import row
from vrl_jax.evals.mmkc_bench import (
    Case,
    by_phrase,
    cases,
    context_faithful,
    first_letter,
    letter_is_counter,
    memory_faithful,
    passes,
    plain_or_none,
    rates,
    raw_is_counter,
    read_items,
    remembering,
    strict_letter,
    summary,
)
from vrl_jax.training.data import read_samples
from vrl_jax.worlds.writing import write_parquet

from ..fixtures import small
from ..fixtures.conflicts import APPLE, PERSON, PICTURES, episode, said


def test_three_passes_show_the_evidence_before_the_question():
    original, ie, ee = passes(read_items([APPLE]))
    assert [p.id for p in (original, ie, ee)] == [
        *("1:apple/original", "1:apple/ie", "1:apple/ee"),
    ]
    asked = f"{APPLE['mcq_query'].strip()}\n{mmkc_bench.LETTER}\n<image>"
    assert original.question == asked
    assert original.images == (PICTURES[0],)
    header = mmkc_bench.HEADER
    assert ie.question == f"{header}\n<image>\nA green apple.\n{asked}"
    assert ie.images == (PICTURES[1], PICTURES[0])
    # What a text says of placeholders is text.
    first, second = "<image>\nA green apple.\n", "<image>\nA blue \\<image> apple.\n"
    assert ee.question == f"{header}\n{first}{second}{asked}"
    assert ee.images == (PICTURES[1], PICTURES[2], PICTURES[0])
    assert (original.answer, ie.answer, ee.answer) == ("-", '["B"]', '["B", "D"]')


def test_a_row_about_knowledge_is_an_item_for_each_aspect():
    items = read_items([PERSON])
    assert [item.id for item in items] == ["2:Kobe:temporal", "2:Kobe:Career"]
    _, ie, ee = passes(items[:1])
    assert "Born in 1950." in ie.question and "Born in 1960." in ee.question
    assert "Born when?" in ie.question and ee.answer == '["B", "C"]'


def test_open_questions_ask_for_the_options_of_the_letters():
    _, ie, ee = passes(read_items([APPLE]), asks=by_phrase)
    assert (ie.answer, ee.answer) == ('["green"]', '["green", "blue"]')
    assert mmkc_bench.PHRASE in ie.question and "A. Red" not in ie.question
    lines = said(passes(read_items([APPLE]), asks=by_phrase), ["red", "Green.", "Red "])
    found = summary(lines, read=plain_or_none)
    assert found["ie"]["misled"] == 1 and found["ee"]["retained"] == 1


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"ID": None}, "row 0 needs the column 'ID'"),
        ({"type": None}, "1:apple needs the column 'type'"),
        ({"image_path": ["nowhere.png"] * 3}, "1:apple needs three pictures.*nowhere"),
        ({"image_path": PICTURES[:2]}, "1:apple needs three pictures.*got 2"),
        ({"mcq_query": None}, "1:apple needs the column 'mcq_query'"),
        ({"mcq_disanswer2": "E"}, "1:apple needs a letter in 'mcq_disanswer2'"),
        ({"mis_description": None}, "1:apple needs the texts.*'mis_description'"),
        ({"mis_description": {}}, "1:apple needs the texts.*'mis_description'"),
    ],
)
def test_a_row_that_lacks_something_is_named(change, text):
    with pytest.raises(ValueError, match=text):
        passes(read_items([{**APPLE, **change}]))


def test_rows_that_would_be_one_are_named():
    with pytest.raises(ValueError, match="1:apple comes twice"):
        read_items([APPLE, APPLE])
    with pytest.raises(ValueError, match="1:apple needs the column 'open_query'"):
        passes(read_items([{**APPLE, "open_query": None}]), asks=by_phrase)
    with pytest.raises(ValueError, match="an option a line in its choices, one of A"):
        query = "Which?\nA. Red"
        passes(read_items([{**APPLE, "mcq_query": query}]), asks=by_phrase)


@pytest.mark.parametrize(
    ("text", "released", "strict"),
    [
        ("The answer is C", "A", "C"),  # the sheet's trap
        ("C", "C", "C"),
        ("c", "C", "C"),
        ("(b)", "B", "B"),
        ("B. A red apple", "B", "B"),
        ("**Answer: D**", "A", "D"),
        (r"A or B? \boxed{B}", "A", "B"),
        ("<answer>\nd)\n</answer>", "A", "D"),
        ("A cat is on it, so C", "A", "C"),
        ("B is wrong, so C", "B", None),
        ("none of them", None, None),
        ("Unsure", None, None),
        ("", None, None),
    ],
)
def test_letters_are_read(text, released, strict):
    assert first_letter(text) == released
    assert strict_letter(text) == strict


def test_what_is_written_takes_no_longer_than_it_is():
    for piece in (
        "(",
        "A ",
        "a",
        "\n",
        r"\boxed{",
        "yes",
        "<answer>",
        "*",
        "9",
        "\ud800",
    ):
        text = piece * (200_000 // len(piece))
        for read in (first_letter, strict_letter, plain_or_none):
            begin = time.perf_counter()
            found = read(text)
            assert found is None or isinstance(found, str)
            assert time.perf_counter() - begin < 2


def test_the_worked_example():
    """(a; S; b) of six items: one has no conflict, of one nothing could be read."""
    table = ["ABA", "ABB", "BBC", "CDA", "DA-", "CAC"]
    given = [
        Case("ER", a, None if b == "-" else b, [s], letter_is_counter("", a, [s]))
        for a, s, b in table
    ]
    found = rates(given)
    assert found == {
        "n": 4,
        "retained": 0.5,
        "misled": 0.25,
        "irrelevant": 0.25,
        "memory_preference": pytest.approx(0.666667, abs=1e-6),
        "filtered": 1,
        "unread": 1,
    }


def test_the_code_s_filter_reads_the_whole_response():
    """A wordy answer that is in S stays, and is retained; ours leaves it out."""
    assert raw_is_counter("B", "B", ["B"]) and not raw_is_counter("B.", "B", ["B"])
    lines = said(passes(read_items([APPLE])), ["B.", "B", "B"])
    ours = summary(lines)["ie"]
    released = summary(lines, read=first_letter, filtered=raw_is_counter)["ie"]
    assert (ours["n"], ours["filtered"], ours["retained"]) == (0, 1, None)
    assert (released["n"], released["filtered"], released["retained"]) == (1, 0, 1)


def test_summary_by_hand():
    """Two types: ER retains, of the people's two aspects one is misled, one neither."""
    samples = passes(read_items([APPLE, PERSON]))
    lines = said(samples, [*"AAD", *"ABC", *"ADB"])
    found = summary(lines)
    assert list(found) == ["ie", "ee"]
    assert found["ie"]["types"]["ER"]["retained"] == 1
    people = found["ie"]["types"]["people_knowledge"]
    assert (people["n"], people["misled"], people["irrelevant"]) == (2, 0.5, 0.5)
    assert found["ie"]["retained"] == pytest.approx(1 / 3)
    assert found["ie"]["macro"] == {
        "retained": 0.5,
        "misled": 0.25,
        "irrelevant": 0.25,
        "memory_preference": 0.5,
    }
    assert found["ee"]["misled"] == 1 and found["ee"]["memory_preference"] == 0
    # Without the answers of the first pass nothing can be said, and it is counted.
    later = [line for line in lines if not line["id"].endswith("original")]
    assert summary(later)["ie"]["n"] == 0 and summary(later)["ie"]["unread"] == 3
    assert summary(later)["ie"]["macro"]["retained"] is None


def test_rewards_pay_the_evidence_or_the_memory():
    samples = passes(read_items([APPLE]))
    original, ie, ee = samples
    told = [episode(ee, text) for text in ("D", "The answer is B", "C", "no idea")]
    assert context_faithful(told) == [1, 1, 0, 0]
    assert context_faithful([episode(original, "A")]) == [None]
    with pytest.raises(ValueError, match="1:apple/ie needs the column 'own_answer'"):
        memory_faithful([episode(ie, "A")])
    kept, left = remembering(samples, said([original], ["I say A."]))
    assert [s.id for s in kept] == ["1:apple/ie", "1:apple/ee"] and not left
    assert memory_faithful([episode(kept[0], t) for t in ("A", "B", "")]) == [1, 0, 0]
    for own, gone in (("D", ["1:apple/ee"]), ("?", ["1:apple/ie", "1:apple/ee"])):
        assert remembering(samples, said([original], [own]))[1] == gone


def test_an_actor_is_asked_in_three_passes(tmp_path):
    """And the rows are read back from a file as they were."""
    asked = passes(read_items([APPLE]))
    read, report = read_samples(write_parquet(asked, tmp_path / "passes.parquet"))
    assert not report.dropped and read == asked
    actor = dataclasses.replace(
        small.chain_actor(), reward=context_faithful, prompts_per_pass=4
    )
    actor = dataclasses.replace(
        actor, processor=small.with_room(actor.processor, prompt_tokens=(256,))
    )
    told = held_out.answers(actor, read, jax.random.key(0))
    lines = [row(one, 0) for (one,) in told]
    assert [json.loads(line["answer"]) for line in lines[1:]] == [["B"], ["B", "D"]]
    scores = [line["correct"] for line in lines]
    assert scores[0] is None and {*scores[1:]} <= {0, 1}
    assert len(cases(lines, "ie")) == len(cases(lines, "ee")) == 1
    lines[0]["response"], lines[1]["response"] = "A", "(A)"
    assert summary(lines)["ie"]["retained"] == 1
