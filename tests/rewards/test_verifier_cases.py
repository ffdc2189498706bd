"""Every case of a file of checker cases: `make cases VERIFIERS=path.json` for another.

Each case says what it was run with or which rule it follows, under `basis`.
"""

import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest

from vrl_jax import geometry
from vrl_jax.rewards import answers, boxes, format, length, parse, parse_boxes, text
from vrl_jax.rewards.mathruler import mathruler

GIVEN = Path(__file__).parents[1] / "golden" / "verifiers_cases.json"
FILE = json.loads(Path(os.environ.get("VERIFIERS") or GIVEN).read_text())


def extract_boxed(verifier, prediction, gold, *, which, missing):
    assert which == "last"
    found = parse.boxed_or_none_text(prediction)
    return missing if found == "None" else found


def extract_answer_tag(verifier, prediction, gold, *, which, dotall):
    readers = {
        ("first", False): parse.first_answer_line,
        ("last", False): parse.last_answer_line,
        ("first", True): lambda t: parse.first_tag(t, "answer"),
        ("last", True): parse.answer_tag,
    }
    return readers[which, dotall](prediction)


def math_verify(verifier, prediction, gold, *, precision):
    assert precision == 6  # math-verify's default, which is what we run
    return float(verifier.check([(prediction, gold)])[0].equal)


def ruler(verifier, prediction, gold):
    return float(mathruler(verifier, [(prediction, gold)])[0].equal)


def relaxed_numeric(verifier, prediction, gold, *, tol, year_guard=True):
    return float(
        answers.relaxed_numeric(prediction, gold, tolerance=tol, year_guard=year_guard)
    )


def boxes_of(found):
    """(label, box) rows of a case, or bare boxes, as detections."""
    return parse_boxes.as_detections(found)


def padded(prediction, gold):
    predicted, golden = boxes_of(prediction), boxes_of(gold)
    labels = sorted({item.label for item in golden})
    # Padding of different sizes: it must not matter.
    return (
        parse_boxes.as_boxes(predicted, size=len(predicted) + 1, labels=labels),
        parse_boxes.as_boxes(golden, size=len(golden) + 2, labels=labels),
    )


def hungarian_f1(verifier, prediction, gold, *, iou_threshold=0.5, threshold=None):
    limit = iou_threshold if threshold is None else threshold
    return jax.jit(boxes.hungarian_f1)(*padded(prediction, gold), iou_threshold=limit)


def detection_weighted(verifier, prediction, gold, **params):
    score = jax.jit(boxes.position_and_completeness)
    return score(*padded(prediction, gold), **params)


def point_in_box(verifier, prediction, gold, *, strict):
    inside = geometry.point_strictly_in_box if strict else geometry.point_in_box
    return float(inside(np.array(prediction, float), np.array(gold, float)))


def iou_with(rule):
    return lambda verifier, prediction, gold: rule(
        np.array(prediction, np.float32), np.array(gold, np.float32)
    )


def tag_count(verifier, prediction, gold, *, newline_sensitive):
    share = format.tag_share if newline_sensitive else format.tag_share_bare
    return share(prediction)


def repetition(verifier, prediction, gold, *, max_penalty=-1.0, **size):
    [n] = size.values()  # n, ngram or ngram_size
    return -max_penalty * text.repetition(prediction, n=n)


def token_f1(verifier, prediction, gold, *, unique_tokens):
    return (text.token_set_f1 if unique_tokens else text.token_f1)(prediction, gold)


CHECKERS = {
    "extract_boxed": extract_boxed,
    "extract_answer_tag": extract_answer_tag,
    "math_verify": math_verify,
    "mathruler": ruler,
    "mcq_letter_vlmr1": lambda v, p, g: answers.letter_vlm_r1(p),
    "mcq_letter_joined": lambda v, p, g: answers.letter_ergo(p, g),
    "relaxed_numeric": relaxed_numeric,
    "count_tag": lambda v, p, g: float(answers.count_in_tag(p, g)),
    "ocr_ratio": lambda v, p, g: text.indel_ratio(p, g),
    "anls": lambda v, p, g, *, threshold: text.anls(
        p, [g] if isinstance(g, str) else g, threshold=threshold
    ),
    "iou": iou_with(geometry.iou),
    "iou_pixel_vlmr1": iou_with(geometry.inclusive_pixel_iou),
    "hungarian_f1": hungarian_f1,
    "detection_weighted_vlmr1": detection_weighted,
    "point_in_box": point_in_box,
    "format_think_answer": lambda v, p, g: float(format.think_then_answer(p)),
    "format_tag_count": tag_count,
    "soft_overlong": lambda v, p, g, *, max_len, buffer: length.soft_overlong(
        p, max_length=max_len, buffer=buffer
    ),
    "repetition_ngram": repetition,
    "token_f1": token_f1,
}


def test_every_rule_of_the_file_has_a_checker():
    assert set(FILE["rules"]) <= set(CHECKERS)


@pytest.mark.parametrize("case", [pytest.param(c, id=c["id"]) for c in FILE["cases"]])
def test_case(verifier, case):
    check = CHECKERS[case["checker"]]
    got = check(verifier, case["prediction"], case["gold"], **case["params"])
    if isinstance(case["expected"], float | int):
        assert got == pytest.approx(case["expected"], abs=FILE["tolerance"])
    else:
        assert got == case["expected"]


# Rules that the file names and the shipped cases leave out, by hand.
BY_HAND = [
    ("extract_answer_tag", {"which": "last", "dotall": True},
     "<answer>1</answer> <answer>\n2</answer>", None, "2"),
    ("extract_answer_tag", {"which": "last", "dotall": False},
     "<answer>1</answer> <answer>\n2</answer>", None, "1"),
    ("extract_answer_tag", {"which": "first", "dotall": True},
     "<answer>\n1</answer> <answer>2</answer>", None, "1"),
    ("mcq_letter_vlmr1", {}, "(B)", "B", None),
    ("mcq_letter_vlmr1", {}, "A. no, the correct answer is C.", "C", "C"),
    ("mcq_letter_joined", {}, "<answer>(B)</answer>", "B", True),
    ("relaxed_numeric", {"tol": 0.05, "year_guard": True}, "2005", "2004", 0.0),
    ("relaxed_numeric", {"tol": 0.05, "year_guard": False}, "2005", "2004", 1.0),
    ("relaxed_numeric", {"tol": 0.05, "year_guard": True}, "105%", "100", 1.0),
    ("relaxed_numeric", {"tol": 0.05, "year_guard": True}, "105.1", "100", 0.0),
    ("relaxed_numeric", {"tol": 0.05, "year_guard": True}, "nan", "3", 0.0),
    ("count_tag", {}, "<answer>12 cats</answer>", "12", 0.0),
    ("anls", {"threshold": 0.5}, "abcd", "wxyd", 0.0),
    ("hungarian_f1", {"iou_threshold": 0.5},  # the sheet's example: greedy gives 0.5
     [[0, 0, 100, 100], [0, 0, 100, 60]], [[0, 0, 100, 80], [0, 20, 100, 140]], 1.0),
    ("point_in_box", {"strict": False}, [10, 50], [10, 20, 60, 80], 1.0),
    ("format_think_answer", {}, "<think>a</think><answer>b</answer>\n", None, 0.0),
    ("format_tag_count", {"newline_sensitive": False},
     "<think>\na\n</think>\n<answer>\nb</answer>", None, 1.0),
    ("repetition_ngram", {"n": 2, "max_penalty": -1.0}, "a b a b", None, -1 / 3),
    ("repetition_ngram", {"ngram_size": 6, "max_penalty": -1.0}, "a b", None, 0.0),
    ("token_f1", {"unique_tokens": False}, "a a b", "a b", 0.8),
    ("mathruler", {}, "2/4", "1/2", 0.0),
    ("mathruler", {}, "0.5", "1/2", 1.0),
    ("mathruler", {}, "1 1/2", "1.5", 1.0),
    ("mathruler", {}, "(1,2)", "[1,2]", 0.0),
    ("mathruler", {}, "(x-1)(x+1)", "x^2-1", 1.0),
    ("mathruler", {}, "A.", "A", 0.0),
]  # fmt: skip


@pytest.mark.parametrize("case", BY_HAND, ids=lambda case: case[0])
def test_case_by_hand(verifier, case):
    checker, params, prediction, gold, expected = case
    got = CHECKERS[checker](verifier, prediction, gold, **params)
    assert got == (pytest.approx(expected) if isinstance(expected, float) else expected)
