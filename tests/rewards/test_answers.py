"""Cases: tests/golden/verifiers_cases.json; each says what it was run with."""

import json
from pathlib import Path

import pytest

from vrl_jax.rewards import answers, format, parse

CASES = json.loads(
    (Path(__file__).parents[1] / "golden" / "verifiers_cases.json").read_text()
)["cases"]


def cases(checker):
    return [pytest.param(c, id=c["id"]) for c in CASES if c["checker"] == checker]


@pytest.mark.parametrize("case", cases("extract_boxed"))
def test_last_boxed_golden(case):
    found = parse.last_boxed(case["prediction"])
    # The reference returns a substitute string where we return None.
    assert (case["params"]["missing"] if found is None else found) == case["expected"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", None),
        (r"\boxed 3", None),
        (r"\boxed{3} and \boxed", None),
        (r"\boxed{3} and \boxed{4", None),
        (r"\boxedfoo{3}", None),
        (r"\boxed {3}", "3"),
        (r"\boxed{\boxed{3}}", "3"),
        (r"\boxed{\{1, 2\}} then }", r"\{1, 2\}"),
        (r"\boxed{\left\{x\right.}", r"\left\{x\right."),
        (r"\boxed{}", ""),
    ],
)
def test_last_boxed_balances_braces(text, expected):
    assert parse.last_boxed(text) == expected


@pytest.mark.parametrize("case", cases("extract_answer_tag"))
def test_first_answer_line_golden(case):
    assert case["params"] == {"which": "first", "dotall": False}
    assert parse.first_answer_line(case["prediction"]) == case["expected"]
    assert parse.answer_tag(case["prediction"]) == "7"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("none", None),
        ("<answer>1", None),
        ("<answer>1</answer><answer> 2\n</answer>", "2"),
        ("<answer> torn <answer>3</answer>", "3"),
    ],
)
def test_answer_tag_takes_the_last_pair(text, expected):
    assert parse.answer_tag(text) == expected


def test_final_answer_prefers_the_box():
    assert parse.final_answer(r"<answer>\boxed{1}</answer>") == "1"
    assert parse.final_answer("<answer>2</answer>") == "2"
    assert parse.final_answer("3") is None


def test_exact_ignores_white_space_only():
    assert answers.exact(" 9  left\n", "9 left")
    assert not answers.exact("9left", "9 left")
    assert not answers.exact("9 Left", "9 left")
    assert not answers.exact(None, "None")


@pytest.mark.parametrize(
    ("gold", "expected"),
    [
        ("triangle", True),
        ("9 left", True),
        ("no", True),
        (r"\frac{1}{2}", False),
        (r"12\text{ miles}", False),
        ("2x + 3y", False),
        ("90^\\circ", False),
        ("13", False),
    ],
)
def test_is_words_tells_text_from_mathematics(gold, expected):
    assert answers.is_words(gold) is expected


@pytest.mark.parametrize("case", cases("format_tag_count"))
def test_tag_share_golden(case):
    assert format.tag_share(case["prediction"]) == case["expected"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>a</think><answer>b</answer>", True),
        ("<think>a\nb</think>\n <answer>b\n</answer>", True),
        ("<think>a</think><answer>b</answer>\n", False),  # the rule as published
        ("so <think>a</think><answer>b</answer>", False),
        ("<answer>b</answer>", False),
    ],
)
def test_think_then_answer_takes_the_whole_text(text, expected):
    assert format.think_then_answer(text) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"<think>a</think> so \boxed{3}.", True),
        ("< think >a\n< / think >\nso \\boxed{3}\n", True),
        (r"<think>\boxed{3}</think>", False),
        (r"well <think>a</think> \boxed{3}", False),
    ],
)
def test_think_then_boxed_wants_the_box_after_the_thinking(text, expected):
    assert format.think_then_boxed(text) is expected


def test_has_box_wants_the_last_box_closed():
    assert format.has_box(r"\boxed{3}")
    assert not format.has_box(r"\boxed{3} \boxed{4")
