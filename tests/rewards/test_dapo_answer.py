"""By hand, after `normalize_final_answer` of verl's `math_dapo.py`, commit 012542c."""

import pytest

from vrl_jax.rewards import dapo_answer

from .test_final_answer import group


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("x = 42", "42"),
        ("1,234", "1234"),
        ("(1,2)", "(1,2)"),
        (r"$\frac12$.", r"\frac{1}{2}"),
        (r"so $\frac{1}{2}$ it is", r"\frac{1}{2}"),
        (r"\boxed{3}", "3"),
        (r"\sqrt2", r"\sqrt{2}"),
        ("an apple", "apple"),
        ("12 inches", "12"),
        (r"90^\circ", "90"),
        (r"\text{yes}", "yes"),
        (r"5\text{m}", "5"),
        (r"2\ \text{and}\ 3", "23"),
        ("0.50", "0.50"),
        ("", ""),
    ],
)
def test_normalized(answer, expected):
    assert dapo_answer.normalized(answer) == expected


def test_a_long_answer_stays_as_it_is():
    long = " a " + "x=1" * dapo_answer.MAX_LENGTH
    assert dapo_answer.normalized(long) == long.strip()


def test_dapo_style_pays_or_fines():
    texts = ["Answer: 42", "answer:\n$x=42$", "Answer: 43", "42", ""]
    scores = dapo_answer.dapo_style(group("42", *texts))
    assert [score["overall"] for score in scores] == [1, 1, -1, -1, -1]
    assert [score["accuracy"] for score in scores] == [1, 1, 0, 0, 0]


def test_nothing_is_not_the_answer_that_the_published_code_puts_for_it():
    """It compares "[INVALID]" where no line is found."""
    assert not dapo_answer.answers_dapo("42", "[INVALID]")
