import json

import pytest

from vrl_jax.rewards import format, parse, parse_boxes


def test_json_text_takes_the_last_fence():
    assert parse.json_text("x ```json\n[1]\n``` y ```\n[2]``` z") == "[2]"
    assert parse.json_text("x ```json\n[1, 2") == "[1, 2"
    assert parse.json_text(" [3] ") == "[3]"
    assert parse.json_text('["```x\\n[4]```"] ') == '["```x\\n[4]```"]'
    assert parse.json_text('"```[5]```"') == "[5]"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one\n\ntwo\nhalves\n \t\n\nthree\n", ["one", "two\nhalves", "three"]),
        ("\n\n one", ["one"]),
        (" \n\n ", []),
        ("", []),
        ("\n" * 200_000 + "x" + "\n " * 100_000, ["x"]),
    ],
)
def test_blank_lines_part_paragraphs(text, expected):
    assert parse.paragraphs(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": 1}', {"a": 1}),
        ("{'a': [1, 2,],}", {"a": [1, 2]}),
        ("\u201ca\u201d", None),
        ("{\u201ca\u201d: 1}", {"a": 1}),
        ('[{"a": 1}, {"a": 2', [{"a": 1}, {"a": 2}]),
        ("3", None),
        ("", None),
        ("__import__('os').getcwd()", None),
        ("[" * 10_000, None),
        ('{"a": ' * 90_000, None),
    ],
)
def test_read_json_repairs_or_gives_none(text, expected):
    assert parse.read_json(text) == expected


def test_tool_calls_skips_what_is_no_call():
    call = {"name": "zoom", "arguments": {"bbox_2d": [1, 2, 3, 4]}}
    text = json.dumps(call)
    assert parse.tool_calls(f"a <tool_call>\n{text}\n</tool_call> b") == [call]
    assert parse.tool_calls(
        "<tool_call>{</tool_call><tool_call>[1]</tool_call>"
        '<tool_call>{"name": "a", "arguments": "{}"}</tool_call>'
        '<tool_call>{"name": "b", "arguments": 3}</tool_call>'
        f"<tool_call>{text}"
    ) == [{"name": "a", "arguments": {}}]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Answer: 3\nAnswer: $4$ \nso", "$4$"),
        ("Answer: 3" + "." * 300, None),
        ("answer: 42", "42"),
        ("ANSWER :  42", "42"),
        ("Answer:\n42", "42"),
        ("Answer: 1 Answer: 2", "1 Answer: 2"),
        ("Answer:\n", None),
    ],
)
def test_final_answer_line_of_dapo(text, expected):
    """By hand, after the pattern of verl's `math_dapo.py`."""
    assert parse.final_answer_line(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", "a"),
        ("<think>a</think>b", "b"),
        ("a</think>b", "b"),
        ("a<think>b", "a"),
        ("a<think>b</think>c<think>d</think>e", "ace"),
        ("<think>a<think>b</think>c</think>d", "d"),
    ],
)
def test_without_thinking(text, expected):
    assert parse.without_thinking(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Answer: B", "B"),
        ("**Answer:** B", "B"),
        ("**Answer**: (B)", "(B)"),
        ("The answer is B.", "B"),
        ("The final answer is:\n\n3.5.", "3.5"),
        ("The answer is A. No, the answer is B", "B"),
        ("The answer isn't B", None),
        ("Answers: B", None),
        ("Answer:", None),
        ("B", None),
    ],
)
def test_said_answer(text, expected):
    assert parse.said_answer(text) == expected


def test_last_letter_and_number_stand_alone():
    assert parse.last_letter("A cat, so B, I think") == "B"
    assert parse.last_letter("It is A") == "A"
    assert parse.last_letter("In the U.S. it's OK, I'd say") is None
    assert parse.last_letter("<think>A</think>") is None
    assert parse.last_number("3 of 1,234.5, I see.") == "1,234.5"
    assert parse.last_number("from 12 on, -4.") == "-4"
    assert parse.last_number("1/2 x2 3rd 1.2.3") is None


def test_last_pair_is_read_from_the_left():
    """What `re.findall("<answer>(.*?)</answer>", text, re.DOTALL)[-1]` gives."""
    torn = "<answer> torn <answer>3</answer> 4</answer>"
    assert parse.last_pair(torn, "answer") == "torn <answer>3"
    assert parse.last_tag(torn, "answer") == "3"
    assert parse.last_pair("<answer>1</answer><answer>2", "answer") == "1"
    assert parse.last_pair("</answer>", "answer") is None


def test_detections_reads_objects_and_bare_boxes():
    text = """<answer>```json
    [{"bbox_2d": [1, 2, 3, 4], "label": "a", "confidence": 0.5},
     {"bbox_2d": [3, 2, 1, 4]}, {"bbox_2d": [1, 2, 3]}, {"label": "b"},
     {"bbox_2d": [1, 2, NaN, 4]}, {"bbox_2d": [1, 2, true, 4]}, [5, 6, 7, 8],
     {"bbox_2d": [1, 2, 9, 9""".replace("\n", " ")
    read = parse_boxes.detections(text.replace("```json ", "```json\n") + "</answer>")
    assert [(item.box, item.label, item.confidence) for item in read[:2]] == [
        ((1.0, 2.0, 3.0, 4.0), "a", 0.5),
        ((5.0, 6.0, 7.0, 8.0), "", 1.0),
    ]
    assert [d.box for d in parse_boxes.detections("[1, 2, 3, 4]")] == [(1, 2, 3, 4)]
    assert len(parse_boxes.detections("[[[1, 2, 3, 4], [5, 6, 7, 8]]]")) == 2
    assert parse_boxes.detections("none") == []


@pytest.mark.parametrize(
    "text",
    [
        "<answer>(10,20),(30,40)</answer>",
        "<|object_ref_start|>a<|object_ref_end|><|box_start|>(10,20),(30,40)<|box_end|>",
        "<answer>[[10,20],[30,40]]</answer>",
        "at (10, 20) (30.0, 40)",
    ],
)
def test_a_box_may_be_two_corners(text):
    [found] = parse_boxes.detections(text)
    assert found.box == (10, 20, 30, 40)
    assert parse_boxes.first_point(text) == (20, 30)


def test_a_confidence_may_be_text():
    told = "{'Position': [1, 2, 3, 4], 'Confidence': '0.9'}"
    assert parse_boxes.detections(told)[0].confidence == 0.9
    assert parse_boxes.detections(told.replace("0.9", "sure"))[0].confidence == 0


def test_without_repeats_keeps_the_first():
    same = [parse_boxes.Detection((0, 0, 1, 1), label) for label in "ab"]
    assert parse_boxes.without_repeats(same) == same[:1]


def test_triune_detections_closes_what_was_cut():
    text = '<answer>[{"bbox_2d": [1, 2, 3, 4], "Label": "Car"}, {"bbox_2d": [1</answer>'
    assert [d.label for d in parse_boxes.triune_detections(text)] == ["car"]
    assert parse_boxes.triune_detections("[[1, 2, 3, 4]]") == []


def test_first_four_integers_reads_the_tag():
    assert parse_boxes.first_four_integers("<answer>[9,2, 3, 4]</answer>") == (
        9,
        2,
        3,
        4,
    )
    assert parse_boxes.first_four_integers("[1, 2, 3, 4]") is None
    two = "<answer>[1, 2, 3, 4]</answer><answer>[5, 6, 7, 8]</answer>"
    assert parse_boxes.first_four_integers(two) == (1, 2, 3, 4)
    assert parse_boxes.first_four_integers("<answer>[0.1, 2, 3, 4]</answer>") is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('<answer>{"point_2d": [3, 4]}</answer>', (3, 4)),
        ('<answer>[{"bbox_2d": [0, 0, 4, 8]}]</answer>', (2, 4)),
        ("<answer>(3.5, -4)</answer>", (3.5, -4)),
        ("<answer>1, 2, 3</answer>", None),
        ("<answer>(.5, .25)</answer>", (0.5, 0.25)),
        ("none", None),
        ("<answer>[10, 20, 30, 60]</answer>", (20, 40)),
        ("<answer>[[10, 20, 30, 60]]</answer>", (20, 40)),
    ],
)
def test_first_point(text, expected):
    assert parse_boxes.first_point(text) == expected


def test_q_insight_layout():
    good = '<think>\na\n</think>\n<answer>\n{"rating": 3.1}\n</answer>'
    assert format.think_then_json_answer(good)
    assert not format.think_then_json_answer(good.replace("<answer>\n", "<answer>"))
    assert not format.think_then_json_answer(good + "\n")


def test_blocks_in_order_wants_each_once():
    names = ("think", "look", "answer")
    good = " <think>a</think>\n<look>[]</look> <answer>b</answer>\n"
    assert format.blocks_in_order(good, names)
    assert not format.blocks_in_order(good, names[::-1])
    assert not format.blocks_in_order(good + "<look>b</look>", names)
    assert not format.blocks_in_order("x" + good, names)
    assert not format.blocks_in_order(good.replace("a<", "<look><"), names)


def test_lenient_formats():
    assert format.has_think_then_answer("so <think>a</think> <answer>b</answer>.")
    assert not format.has_think_then_answer("<answer>b</answer><think>a</think>")
    assert format.json_answer("<answer>{'a': 1}</answer>")
    assert not format.json_answer("{'a': 1}")
    assert format.well_formed_tool_calls("none")
    assert not format.well_formed_tool_calls("<tool_call>{}</tool_call>")
    assert not format.balanced_tags("<think>a", ["think", "answer"])
