import pytest

from vrl_jax.rewards import answers, format, parse


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
    assert parse.final_answer(r"<think>\boxed{1}</think> Answer: 2") == "2"
    assert parse.box_or_tag(r"<think>\boxed{1}</think> Answer: 2") == "1"


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


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"<description>d</description><think>t</think>\boxed{4}", True),
        ("\n< description >d\n</description>\n<think> t </ think>\n\\boxed{4} ", True),
        (r"<description>d</description><think>t</think>\boxed{4} so", False),
        (r"<description>d</description><think>t</think> it is \boxed{4}", False),
        (r"<description>d</description>and<think>t</think>\boxed{4}", False),
        (r"<think>t</think><description>d</description>\boxed{4}", False),
        (r"<description>d</description>\boxed{4}", False),
        (r"<think>t</think>\boxed{4}", False),
        ("<description>d</description><think>t</think>", False),
        ("", False),
    ],
)
def test_described_then_boxed_is_the_whole_text(text, expected):
    """The pattern of Vision-SR1's sheet, by hand."""
    assert format.described_then_boxed(text) is expected


def test_has_box_wants_the_last_box_closed():
    assert format.has_box(r"\boxed{3}")
    assert not format.has_box(r"\boxed{3} \boxed{4")


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        ("B", True),
        ("(B)", True),
        ("b.", True),
        (r"so \boxed{B}", True),
        ("B. a cat", True),
        ("A  Cat.", True),
        ("B. a dog", False),
        ("a dog", False),
        ("B or C", False),
        (r"\boxed{\text{B}}", True),
        (r"\mathbf{B}", True),
        ("$B$", True),
        ("**B**", True),
        ("**(B)** a cat", True),
        ("B: a cat", True),
        ("Ba cat", False),
        ("BB", False),
        ("", False),
        (None, False),
    ],
)
def test_choice_reads_the_letter_or_its_text(prediction, expected):
    assert answers.choice(prediction, "(B)", ["a dog", "a cat"]) is expected


def test_choice_takes_a_letter_for_a_letter():
    assert not answers.choice("B", "A", ("B", "A"))
    assert answers.choice("A", "A", ("B", "A"))
    assert answers.choice("x", "A", ("x", "y"))
    assert not answers.choice("box", "B", ("cat", "ox"))
    assert answers.choice("A cat", "B", ("dog", "a cat"))  # the second option's text
    assert answers.choice("3", "C", ("1", "", "3"))
    assert not answers.choice("3", "A", ("3", "3"))  # it names both


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        ("A, C", True),
        ("CA", True),
        ("(a) and (c)", True),
        (r"\text{A; C}", True),
        ("**A** & **C**", True),
        ("A", False),
        ("A, B, C", False),
        ("A cat", False),
        ("", False),
        (None, False),
    ],
)
def test_letter_set_of_logicvista(prediction, expected):
    assert answers.letter_set(prediction, "A,C") is expected


def test_letter_set_needs_a_gold_set():
    assert not answers.letter_set("", "")


def test_relaxed_accuracy_divides_percent():
    assert answers.relaxed_accuracy("50%", "0.5")
    assert answers.relaxed_accuracy("0.52", "50%")
    assert not answers.relaxed_accuracy("50%", "50")
    assert answers.relaxed_accuracy("2005", "2004")  # no guard for years
    assert not answers.relaxed_accuracy("0.0", "0")
    assert answers.relaxed_accuracy(" Blue", "blue")
    assert not answers.relaxed_accuracy(None, "None")


def test_amount_reads_words():
    assert answers.amount("Three.") == answers.amount("3") == 3
    assert answers.amount("twenty") == 20
    assert answers.amount("three cats") is None


def test_count_in_tag_is_the_first_of_digits_alone():
    text = "<answer>a</answer><answer>3</answer><answer>4</answer>"
    assert answers.count_in_tag(text, "3") and not answers.count_in_tag(text, "4")


def test_choice_without_options_takes_the_letter_alone():
    assert answers.choice("B.", "B")
    assert not answers.choice("B. a cat", "B")
    assert answers.choice("a Cat", "a cat.")  # gold is a text
    assert not answers.choice("", "")


def test_yes_no_reads_whole_words():
    assert answers.yes_no("Yes, I know.", "yes")
    assert not answers.yes_no("I know", "no")
    assert not answers.yes_no("", "maybe")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(B)", "B"),
        ("It is **B**.", "B"),
        ("B is not what I would have said", None),  # not one of the last four
        ("B is not so, C", None),
        ("not B, the answer is C", "C"),
        ("The answer is: (b) I think so, or perhaps", "B"),
        ("a black cat", "B"),
        ("a black cat or a dog", None),
        ("a cat " * 20, None),
        ("", None),
    ],
)
def test_letter_of_vlmevalkit(text, expected):
    """By hand, after the rule of the project's matcher."""
    options = {"A": "dog", "B": "black cat", "C": "horse"}
    assert answers.letter_vlmevalkit(text, options) == expected


def test_letters_by_the_published_rules():
    assert answers.letters_curr_reft("A,C or A, not CAB") == "A,C"
    assert [answers.letter_vl_prm(t) for t in ("B.", "(B)", "B. cat")] == [
        "B",
        "B",
        "B. cat",
    ]


def test_overlaps_of_words():
    # Curr-ReFT's worked example: 2 of 4.
    assert answers.set_overlap("['dog', 'car', 'bus']", "dog, cat, car") == 0.5
    assert answers.set_overlap("", "") == 0.0
    assert answers.contains_either_way("Golden Retriever", "golden_retriever dog")
    assert not answers.contains_either_way("", "dog")


def test_span_in_caption_of_vicrit():
    span, caption = "a solid white glass cup", "She holds a solid white glass cup on it"
    assert answers.span_in_caption('["a solid white glass cup"]', span, caption)
    assert answers.span_in_caption("holds a solid white glass cup on", span, caption)
    assert not answers.span_in_caption("glass", span, caption)
    assert not answers.span_in_caption("a paper cup", span, caption)
    assert answers.span_in_caption(caption, span, caption)  # 4 words more
    long = f"{caption} and the words of the whole caption are copied here"
    assert not answers.span_in_caption(long, span, long)
    assert answers.span_in_caption(long, span, long, more_words=99)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1,234.5", 1234.5), ("nan", None), ("1e999", None), ("1_0", None), ("1,2", None)],
)
def test_number_is_finite(text, expected):
    assert answers.number(text) == expected
