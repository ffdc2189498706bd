"""mathruler's rule against mathruler: verdicts that the package itself has given.

The texts of the two normalisers are by hand, after their published code.
"""

import json
from pathlib import Path

import pytest

from vrl_jax.rewards import math_worker
from vrl_jax.rewards.mathruler import (
    MAX_LENGTH,
    math_normalized,
    mathruler,
    prm800k_normalized,
)

TABLE = json.loads(
    (Path(__file__).parents[1] / "golden" / "mathruler.json").read_text()
)


def test_every_verdict_is_the_package_s(verifier):
    pairs = [(prediction, gold) for prediction, gold, _ in TABLE["pairs"]]
    found = mathruler(verifier, pairs)
    other = [
        (*pair, verdict)
        for pair, verdict, (*_, equal) in zip(pairs, found, TABLE["pairs"], strict=True)
        if verdict.equal != equal
    ]
    assert other == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x=5", "5"),
        ("xyz=5", "xyz=5"),
        (r"\frac12", r"\frac{1}{2}"),
        ("-1/2", r"\frac{-1}{2}"),
        (".5", r"\frac{1}{2}"),
        (r"\sqrt3", r"\sqrt{3}"),
        (r"12\text{ cm}", "12"),
        (r"a\text{ b}\text{ c}", r"a\text{ b}\text{ c}"),
        (r"1 \sqrt", r"1 \sqrt"),
    ],
)
def test_math_normalized(text, expected):
    assert math_normalized(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("+5", "5"),
        ("5 feet^2", "5"),
        ("1,234,567.0", "1234567"),
        (r"3\frac{1}{2}", "3+1/2"),
        (r"\frac{x+1}{2}", "x+1/2"),
        (r"\sqrt[3]{2}", "sqrt(2)"),
        (r"\alpha \le \infty", "α≤inf"),
        ("2 or 3", "2,3"),
        (r"\frac", r"\frac"),
        ("nan", "nan"),
        ("1e999", "1e999"),
    ],
)
def test_prm800k_normalized(text, expected):
    assert prm800k_normalized(text) == expected


def test_long_answers_are_equal_as_texts_or_not_at_all(verifier):
    long = "1+" * MAX_LENGTH + "1"
    pairs = [(f" {long}", long), (long + "+0", long)]
    assert [verdict.equal for verdict in mathruler(verifier, pairs)] == [True, False]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2sqrt(3)", "2*sqrt(3)"),
        ("1/2x", "x/2"),
        ("-x^2", "-x**2"),
        ("2^-1", "1/2"),
        ("x2y", "2*x*y"),
        ("(x+1)(x-1)3", "3*(x - 1)*(x + 1)"),
        ("3!+ln(1)", "6"),
        ("x_1+2pi", "x_1 + 2*pi"),
        ("x2.5", "1.0*x"),
        ("1e3/2", "500.000000000000"),
    ],
)
def test_read_formula(text, expected):
    assert str(math_worker.read_formula(text)) == expected


@pytest.mark.parametrize(
    "text",
    ["", "sqrt", "sqrt3)", "2*", "(1", "1)", "1,2", "x=5", "2 3", "re(x)", "|x|", "012",
     "__import__('os')", "x.y", "½", "^2"],
)  # fmt: skip
def test_read_formula_reads_all_or_nothing(text):
    assert math_worker.read_formula(text) is None
