"""MathIF: every rule on texts that keep and that break it, and scores by hand."""

import dataclasses
import time

import jax
import pytest

from vrl_jax.evals import held_out, mathif
from vrl_jax.evals.benchmark import row
from vrl_jax.evals.mathif import (
    RULES,
    Item,
    asked,
    checked_text,
    constraints,
    correct_and_soft,
    gated,
    graded,
    hard,
    items,
    keeps,
    kept,
    measured,
    soft,
    summary,
)
from vrl_jax.rewards.boxed import boxed_exact
from vrl_jax.rewards.combine import call_safely
from vrl_jax.training.data import read_samples
from vrl_jax.types import Episode, Sample, Turn
from vrl_jax.worlds.writing import write_parquet

from ..fixtures import small

COMMA = ("punctuation:no_comma", {})
QUOTED = ("startend:quotation", {})
LOWER = ("change_case:english_lowercase", {})
THREE_X = (
    "keywords:frequency",
    {"keyword": "x", "frequency": 3, "relation": "at least"},
)


def sample(*given, name="one", answer="3"):
    return Sample(
        name,
        "MATH-500",
        "What is x?",
        (),
        answer,
        {
            "constraint_desc": [f"Keep to {n}." for n, _ in given],
            "constraint_name": [n for n, _ in given],
            "constraint_args": [arguments for _, arguments in given],
        },
    )


def holds(name, arguments, text, language=None):
    return keeps(text, constraints(sample((name, arguments))), language=language) == (
        True,
    )


def episode(text, *given, **how):
    return Episode(sample(*given, **how), "", (Turn(text, ()),), finished=True)


def english(text):
    return "en"


@pytest.mark.parametrize(
    ("name", "arguments", "keep", "breaks"),
    [
        (
            "length_constraint_checkers:number_words",
            {"num_words": 3, "relation": "less than"},
            ["two words", "a-b"],
            ["one two three", "1+1=2"],
        ),
        (
            "length_constraint_checkers:number_words",
            {"num_words": 3, "relation": "at least"},
            ["one two three"],
            ["one two"],
        ),
        (
            "keywords:existence",
            {"keywords": ["art", "b+"]},
            ["part B+", "ART, b+c"],
            ["art", "bb art"],  # a keyword is a text, no pattern
        ),
        (
            "keywords:frequency",
            {"keyword": " x ", "frequency": 2, "relation": "less than"},
            ["x", "none"],
            [r"X and \boxed{1}"],
        ),
        (
            "keywords:forbidden_words",
            {"forbidden_words": ["art", "(x"]},
            ["part", "arts", "x)"],
            ["an Art.", "art"],
        ),
        ("punctuation:no_comma", {}, ["1 000; 2"], ["1,000", "so, 2"]),
        (
            "change_case:capital_word_frequency",
            {"capital_frequency": 2, "capital_relation": "at least"},
            ["A dog, OK", "DON'T STOP", "X-RAY B"],
            ["A Dog", "X-RAY", "3 4"],
        ),
        (
            "change_case:capital_word_frequency",
            {"capital_frequency": 2, "capital_relation": "less than"},
            ["A Dog"],
            ["A B"],
        ),
        (
            "detectable_format:number_bullet_lists",
            {"num_bullets": 4},
            # The sheet's lines: a line that starts with a negative number counts.
            ["- 3\n* a\n** b\n -c\n-4+x"],
            ["- 3\n* a\n** b\n -c", "* a * b - c - d"],
        ),
        (
            "detectable_format:number_highlighted_sections",
            {"num_highlights": 2},
            ["*a* and **b c**", "*a* *b* *c*"],
            ["**a**", "*a\nb* *c*", "** ** * *", "* a * b"],
        ),
        (
            "detectable_format:multiple_sections",
            {"section_spliter": "Section", "num_sections": 2},
            ["Section 1 a\nSection 2 b Section 3", "Section1Section2"],
            ["Section 1", "section 1 section 2", "Section a Section b"],
        ),
        (
            "combination:repeat_prompt",
            {"prompt_to_repeat": "What is x? "},
            [" what is X? It is 3.", "What is x?"],
            ["It is 3. What is x?", "What is y?"],
        ),
        (
            "startend:end_checker",
            {"end_phrase": "Is that all?"},
            ["3. is that all?", '"3. Is that all?" '],
            ["Is that all? Yes.", "3."],
        ),
        ("startend:quotation", {}, [' "so 3" ', '""'], ['"so" 3', '"', "3"]),
    ],
)
def test_rules_without_a_language(name, arguments, keep, breaks):
    for text in keep:
        assert holds(name, arguments, text), text
    for text in [*breaks, "", " \n"]:
        assert not holds(name, arguments, text), text


def test_rules_on_the_language():
    """A language that cannot be told is the right one, as in the code."""
    french = ("language:response_language", {"language": "fr"})
    for language, right in (("fr", True), ("en", False), (None, True)):
        assert holds(*french, "c'est trois", language) is right
    for name, right, wrong in (
        ("change_case:english_lowercase", "so it is 3", "So it is 3"),
        ("change_case:english_capital", "SO IT IS 3", "SO it is 3"),
    ):
        assert holds(name, {}, right, "en") and holds(name, {}, right, None)
        assert not holds(name, {}, right, "de")
        assert not any(holds(name, {}, wrong, code) for code in ("en", None))
        assert not holds(name, {}, "3 + 4", "en")  # no letter has a case


def test_there_are_fifteen_rules_in_four_categories():
    assert len(RULES) == 15
    categories = [rule.category for rule in RULES.values()]
    counts = {name: categories.count(name) for name in categories}
    assert counts == {"length": 1, "lexical": 4, "format": 7, "affix": 3}


def test_the_worked_example():
    """Three items of three, three and one constraints: 1, 2/3 and 0."""
    given = (COMMA, THREE_X, QUOTED)
    right = r'"so x is 3 and x works. \boxed{3}"'
    episodes = [
        episode(right, *given),
        episode(right[:-1], *given),
        episode("The answer is 3", LOWER),
    ]
    softs = [soft(english)([one])[0]["overall"] for one in episodes]
    hards = [hard(english)([one])[0]["overall"] for one in episodes]
    assert softs == pytest.approx([1, 2 / 3, 0]) and hards == [1, 0, 0]
    found = measured(
        [Item("a", 1, 9, h, s, None) for h, s in zip(hards, softs, strict=True)]
    )
    assert found["HAcc"] == pytest.approx(0.333333, abs=1e-6)
    assert found["SAcc"] == pytest.approx(0.555556, abs=1e-6)
    assert (found["correct"], found["ungraded"]) == (None, 3)
    # Inside a word: existence is a substring, a forbidden word is not.
    assert holds("keywords:existence", {"keywords": ["art"]}, "part")
    assert holds("keywords:forbidden_words", {"forbidden_words": ["art"]}, "part")


@pytest.mark.parametrize(
    ("response", "text"),
    [
        ("all of it", "all of it"),
        ("x <think> a </think> b", " b"),
        ("a </think> b </think> c", " b "),
        ("<think> a", " a"),
        ("<think>a</think> b <answer> c </answer> d", " c "),
        ("b <answer> c", " c"),
        ("c </answer> d", "c "),
        ("</think>", ""),
    ],
)
def test_the_text_behind_the_thoughts_is_checked(response, text):
    assert checked_text(response) == text
    other = response.replace("think>", "t>")
    assert checked_text(other, opening="<t>", closing="</t>") == text


def test_thoughts_break_nothing_and_earn_nothing():
    given = (COMMA, QUOTED)
    assert kept(sample(*given), 'so, 3 </think> "3"').each == (True, True)
    assert kept(sample(*given), '"3" </think> so, 3').each == (False, False)
    assert kept(sample(*given), '"3" </think>').each == (False, False)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"constraint_name": None}, "one needs the column 'constraint_name'"),
        ({"constraint_args": []}, "as many 'constraint_args' as.*got 0 and 1"),
        ({"constraint_name": ["nice"]}, "needs rules in 'constraint_name', one of"),
        (
            {"constraint_args": [None]},
            "needs 'frequency' of keywords:frequency|needs 'keyword' of",
        ),
        (
            {"constraint_args": [{**THREE_X[1], "frequency": 0}]},
            "needs 'frequency' of.*at least 1; got 0. Leave the row out",
        ),
        (
            {"constraint_args": [{**THREE_X[1], "relation": "most"}]},
            "needs 'relation' of.*'less than' or 'at least'",
        ),
        ({"constraint_args": ["x"]}, "needs 'keyword' of.*a text; got None"),
        ({"constraint_desc": None}, "needs the column 'constraint_desc'"),
        (
            {
                "constraint_name": [THREE_X[0], COMMA[0]],
                "constraint_args": [THREE_X[1], None],
            },
            "one needs the column 'constraint_desc', a text for each of its 2 const",
        ),
        ({"constraint_desc": [None]}, "'constraint_desc', a text for each of its 1"),
    ],
)
def test_a_row_that_lacks_something_is_named(changes, said):
    given = sample(THREE_X)
    given = dataclasses.replace(given, annotations={**given.annotations, **changes})
    with pytest.raises(ValueError, match=said):
        asked(given)


def test_a_language_without_a_detector_is_named():
    with pytest.raises(ValueError, match="one has a constraint on the language: pass"):
        soft()([episode("so it is 3", LOWER)])
    assert soft()([episode("so it is 3", COMMA)])[0]["overall"] == 1


def test_a_detector_that_fails_is_counted():
    def failing(text):
        raise RuntimeError("no letters")

    for detect in (failing, lambda text: None):
        found = hard(detect)([episode("so it is 3", LOWER)])[0]
        assert found == {"overall": 1, "constraints": 1, "undetected": 1}
    read = []
    hard(lambda text: read.append(text))([episode(" x" * 10**5, LOWER)])
    assert len(read[0]) == mathif.DETECTED
    assert hard(failing)([episode("</think>", LOWER)])[0]["undetected"] == 0


def test_the_prompt_holds_question_cue_and_constraints():
    found = asked(sample(COMMA, QUOTED))
    assert found.question == (
        f"What is x? {mathif.CUE} Keep to punctuation:no_comma. "
        "Keep to startend:quotation."
    )
    assert asked(sample(COMMA), cue="Go.").question.startswith("What is x? Go. Keep")


def test_rewards_by_hand():
    texts = [r"\boxed{4}</think>\boxed{3}", r"\boxed{3},", r"\boxed{4}", "so, 4"]
    group = [episode(text, COMMA) for text in texts]
    # What is thought is no answer.
    assert graded(boxed_exact)(group) == [1, 1, 0, 0]
    assert [one["overall"] for one in gated(boxed_exact)(group)] == [1, 0, 0, 0]
    both = correct_and_soft(boxed_exact)(group)
    assert [one["overall"] for one in both] == [1.5, 1, 0.5, 0]
    assert [one["accuracy"] for one in both] == [1, 1, 0, 0]
    assert [one["hard"] for one in both] == [one["soft"] for one in both]
    told = dataclasses.replace(
        group[0], turns=(Turn("\\boxed{3}", ()), Turn("Sure?", (), chosen=False))
    )
    assert graded(boxed_exact)([told]) == [1]


def test_whatever_is_written_is_scored_in_the_time_of_reading():
    """100 kB of what a slow pattern would choke on."""
    given = [
        (
            "length_constraint_checkers:number_words",
            {"num_words": 3, "relation": "at least"},
        ),
        ("keywords:existence", {"keywords": ["(a+)+$", "["]}),
        ("keywords:forbidden_words", {"forbidden_words": ["a*a*b", "\\"]}),
        THREE_X,
        COMMA,
        QUOTED,
        LOWER,
        ("change_case:english_capital", {}),
        (
            "change_case:capital_word_frequency",
            {"capital_frequency": 2, "capital_relation": "less than"},
        ),
        ("detectable_format:number_bullet_lists", {"num_bullets": 1}),
        ("detectable_format:number_highlighted_sections", {"num_highlights": 1}),
        (
            "detectable_format:multiple_sections",
            {"section_spliter": "S (", "num_sections": 1},
        ),
        ("combination:repeat_prompt", {"prompt_to_repeat": "a"}),
        ("startend:end_checker", {"end_phrase": "a"}),
        ("language:response_language", {"language": "en"}),
    ]
    assert {name for name, _ in given} == set(RULES)
    reward = correct_and_soft(boxed_exact, detect=english)
    pieces = ("\n", " ", "*", "* ", "-\n", "a", '"', "S (1", "<think>", "</think>")
    for piece in (*pieces, "\ud800", "é", "<answer>", "9" * 5000):
        text = piece * (100_000 // len(piece))
        begin = time.perf_counter()
        (found,) = call_safely(reward, [episode(text, *given)])
        assert time.perf_counter() - begin < 5
        assert found["errors"] == 0 and 0 <= found["overall"] <= 1.5


def test_summary_by_hand():
    def line(name, source, number, hard, soft, correct, tokens):
        scores = {"hard": hard, "soft": soft, "soft_constraints": number}
        scores["soft_undetected"] = 0.0
        meta = {"scores": scores, "tokens": tokens}
        return {"id": name, "benchmark": source, "correct": correct, "meta": meta}

    lines = [
        line("a", "gsm8k", 1.0, 1.0, 1.0, 1.0, 5),
        line("b", "gsm8k", 2.0, 0.0, 0.5, 1.0, 2000),
        line("c", "aime", 2.0, 0.0, 0.0, 0.0, 9000),
        line("d", "aime", 2.0, 1.0, 1.0, None, 1023),
    ]
    found = summary(lines)
    assert (found["HAcc"], found["SAcc"]) == (0.5, 0.625)
    assert (found["correct"], found["ungraded"]) == (pytest.approx(2 / 3), 1)
    assert found["sources"]["gsm8k"]["HAcc"] == 0.5
    assert found["sources"]["aime"]["correct"] == 0
    assert found["constraints"]["1"]["items"] == 1
    assert found["constraints"]["2"]["SAcc"] == 0.5
    lengths = {name: part["items"] for name, part in found["tokens"].items()}
    assert lengths == {"0-1023": 2, "1024-2047": 1, "8192+": 1}
    lines[1]["meta"]["scores"] = {"overall": None}
    with pytest.raises(ValueError, match="b was not scored by correct_and_soft"):
        items(lines)


def test_a_policy_is_measured(tmp_path):
    """Rows from a file to the numbers."""
    rows = [asked(sample(COMMA, THREE_X)), asked(sample(LOWER, name="two"))]
    read, report = read_samples(write_parquet(rows, tmp_path / "asked.parquet"))
    assert not report.dropped and [s.question for s in read] == [
        s.question for s in rows
    ]
    reward = correct_and_soft(boxed_exact, detect=english)
    actor = dataclasses.replace(small.chain_actor(), reward=reward, prompts_per_pass=4)
    actor = dataclasses.replace(
        actor, processor=small.with_room(actor.processor, prompt_tokens=(256,))
    )
    told = held_out.answers(actor, read, jax.random.key(0), greedy=False)
    found = summary([row(one, 0) for (one,) in told])
    assert (found["items"], found["ungraded"], found["correct"]) == (2, 0, 0)
    assert list(found["constraints"]) == ["1", "2"]
    assert 0 <= found["HAcc"] <= found["SAcc"] <= 1
