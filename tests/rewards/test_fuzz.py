"""Whatever a policy writes: a finite number in the declared range, in bounded time.

`make fuzz EXAMPLES=2000` tries more, and says how many; the default is 25 for each of
the properties.
"""

import collections
import functools
import json
import math
import os
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vrl_jax import geometry
from vrl_jax.programs.regions import unit_box
from vrl_jax.recipes import deepeyes, openthinkimg
from vrl_jax.recipes.dip_r1 import inspected
from vrl_jax.rewards import (
    answers,
    average_precision,
    boxed,
    boxes,
    dapo_answer,
    final_answer,
    format,
    grounding,
    groups,
    length,
    mathruler,
    parse,
    parse_boxes,
    primitives,
    quality,
    steps,
    text,
)
from vrl_jax.rewards.combine import call_safely
from vrl_jax.rewards.judge import yes_or_no
from vrl_jax.types import Episode, ImageSize, Sample, Turn

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "25"))
fuzz = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)

TRIED: collections.Counter[str] = collections.Counter()


@pytest.fixture(scope="module", autouse=True)
def counted(request):
    """Says at the end how much was tried."""
    yield
    calls, scores = TRIED.pop("calls", 0), TRIED.pop("scores", 0)
    kinds = ", ".join(f"{count} of {name}" for name, count in TRIED.items())
    capture = request.config.pluginmanager.get_plugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print(
            f"\n{sum(TRIED.values())} examples ({kinds}), {calls} timed calls, "
            f"{scores} scores checked"
        )


PIECES = (
    "[0.1, 0.2, 0.3, 0.4]", "[ 0 , ",
    r"\boxed{", "{", "}", "[", "]", "(", ")", "<answer>", "</answer>", "<think>",
    "</think>", "\n</think>\n<answer>\n", "<tool_call>", "</tool_call>", "```json\n",
    "```", '{"bbox_2d": [0, 1, 2, 3], "label": "a"}', '"rating": ', '"name": "a"',
    '"point_2d": [NaN, 1e999]', r"\frac", r"\text{", r"\sqrt", "Answer:", "A.", "B",
    "answer is ", "(1,2),",
    "yes", "no", "None", "nan", "inf", "1e999", "-", "1", "2", ".", ",", ":", '"', "'",
    "point A (1, -2.5)\n", "line (0, 0) (9, 1)\n", "circle (99, -99) 99\n",
    "circle (1e-400, 0.1) 1e-999\n", "line (0, 0) (1e-300, 0)\n", "(7.142857142857142",
    "point (-7.14285714285714285714, 1e-05)\n", "<watching>", "</watching>",
    " ", "\n", "\\", "%", "=", "9" * 5000, "١", "½", "\u2028", "\ud800", "\x00", "é",
)  # fmt: skip
WRITTEN = st.one_of(
    st.text(max_size=200),
    st.lists(st.sampled_from(PIECES), max_size=30).map("".join),
    # Up to 100 kB of one piece, or of two in turn.
    st.tuples(
        st.sampled_from(PIECES),
        st.sampled_from(PIECES),
        st.sampled_from([1, 1000, 10**5]),
    ).map(lambda t: ((t[0] + t[1]) * (t[2] // len(t[0] + t[1]) + 1))[:100_000]),
    st.sampled_from(PIECES).map(lambda piece: (piece * 100_000)[:100_000]),
)


def of_primitives(rule, prediction, gold):
    """Of what can be read of two texts; what was read can be drawn."""
    given = primitives.read_primitives(prediction)
    primitives.draw(given, pixels=28)
    return rule(given, primitives.read_primitives(gold))


READERS = [
    openthinkimg.actions,
    openthinkimg.terminated,
    deepeyes.last_call,
    deepeyes.in_tags,
    deepeyes.in_one_box,
    parse.last_boxed,
    parse.boxed_or_none_text,
    parse.answer_tag,
    lambda t: parse.first_tag(t, "watching"),
    parse.last_answer_line,
    parse.first_answer_line,
    parse.final_answer_line,
    parse.final_answer,
    parse.box_or_tag,
    parse.said_answer,
    parse.without_thinking,
    parse.last_letter,
    parse.last_number,
    lambda t: parse.last_pair(t, "answer"),
    parse.json_text,
    parse.read_json,
    parse.json_in,
    parse.tool_calls,
    parse_boxes.detections,
    parse_boxes.triune_detections,
    parse_boxes.first_four_integers,
    parse_boxes.four_numbers,
    parse_boxes.first_point,
    unit_box,
    primitives.read_primitives,
    answers.letter_vlm_r1,
    answers.letter_vl_prm,
    answers.letters_curr_reft,
    answers.is_words,
    answers.number,
    answers.amount,
    dapo_answer.normalized,
    mathruler.math_normalized,
    mathruler.prm800k_normalized,
    format.without_blanks_at_brackets,
    quality.rating_of,
    yes_or_no,
]
SCORES_OF_ONE = [  # (rule, low, high)
    (format.think_then_answer, 0, 1),
    (format.think_then_boxed, 0, 1),
    (format.described_then_boxed, 0, 1),
    (format.has_box, 0, 1),
    (format.tag_share, 0, 1),
    (format.tag_share_bare, 0, 1),
    (format.has_think_then_answer, 0, 1),
    (lambda t: format.blocks_in_order(t, ("think", "look", "answer")), 0, 1),
    (format.think_then_json_answer, 0, 1),
    (format.json_answer, 0, 1),
    (format.well_formed_tool_calls, 0, 1),
    (lambda t: format.balanced_tags(t, ("think", "answer")), 0, 1),
    (text.repetition, -1, 0),
    (text.repeats_a_sentence, 0, 1),
    (lambda t: quality.degradation_score(t, "blur", "slight"), 0, 1),
]
SCORES_OF_TWO = [
    (answers.exact, 0, 1),
    (answers.choice, 0, 1),
    (lambda p, g: answers.choice(p, "A", [g, p]), 0, 1),
    (answers.letter_ergo, 0, 1),
    (answers.yes_no, 0, 1),
    (answers.relaxed_numeric, 0, 1),
    (answers.relaxed_accuracy, 0, 1),
    (answers.letter_set, 0, 1),
    (lambda p, g: answers.letter_vlmevalkit(p, {"A": g, "B": "b"}) == "A", 0, 1),
    (final_answer._vlm_r1_text, 0, 1),
    (dapo_answer.answers_dapo, 0, 1),
    (answers.count_in_tag, 0, 1),
    (answers.set_overlap, 0, 1),
    (answers.contains_either_way, 0, 1),
    (lambda p, g: answers.one_of(p, [g]), 0, 1),
    (lambda p, g: answers.span_in_caption(p, g, p + g), 0, 1),
    (text.all_match, 0, 1),
    (text.edit_similarity, 0, 1),
    (text.indel_ratio, 0, 1),
    (lambda p, g: text.anls(p, [g]), 0, 1),
    (text.token_f1, 0, 1),
    (text.token_set_f1, 0, 1),
    (text.gui_text, 0, 1),
    (text.bleu4, 0, 1),
    (text.rouge_l, 0, 1),
    (text.caption_score, 0, 1),
    (lambda p, g: of_primitives(primitives.primitive_score, p, g), 0, 1),
    (lambda p, g: of_primitives(primitives.complete_primitive_score, p, g), 0, 1),
    (lambda p, g: of_primitives(primitives.segment_f1, p, g), 0, 1),
]
SECONDS = 5.0  # for 100 kB, beside other work; quadratic code takes minutes


def in_time(call, *arguments):
    TRIED["calls"] += 1
    begin = time.process_time()
    found = call(*arguments)
    assert time.process_time() - begin < SECONDS
    return found


def check(score, low, high):
    TRIED["scores"] += 1
    assert isinstance(score, float | int) and math.isfinite(score)
    assert low - 1e-9 <= score <= high + 1e-9


@fuzz
@given(WRITTEN)
def test_readers_never_raise(written):
    TRIED["readers"] += 1
    for reader in READERS:
        in_time(reader, written)


@fuzz
@given(WRITTEN)
def test_scores_of_one_text_stay_in_range(written):
    TRIED["texts"] += 1
    for rule, low, high in SCORES_OF_ONE:
        check(in_time(rule, written), low, high)


@fuzz
@given(WRITTEN, WRITTEN)
def test_scores_of_two_texts_stay_in_range(prediction, gold):
    TRIED["pairs of texts"] += 1
    for rule, low, high in SCORES_OF_TWO:
        check(in_time(rule, prediction[:20_000], gold[:5000]), low, high)


REWARDS_OF_GROUPS = [
    boxed.boxed_exact,
    final_answer.multiple_choice,
    final_answer.count,
    final_answer.numeric,
    final_answer.anls,
    final_answer.answer_reward(text.edit_similarity),
    grounding.box_reward(boxes.hungarian_f1, frame=grounding.thousandths, most=8),
    grounding.click_reward(frame=grounding.unit),
    grounding.near_click_reward(frame=grounding.unit),
]


@fuzz
@given(
    st.lists(WRITTEN, min_size=2, max_size=2),
    st.one_of(WRITTEN, st.just("[0, 0, 10, 10]")),
)
def test_rewards_of_groups_stay_in_range(texts, gold):
    TRIED["groups"] += 1
    sample = Sample("1", "fuzz", "?", (), gold[:1000])
    size = (ImageSize(56, 56, 28, 28),)
    group = [Episode(sample, "?", (Turn(t, (1,)),), True, size) for t in texts]
    for reward in REWARDS_OF_GROUPS:
        for score in call_safely(reward, group):
            assert score["errors"] == 0
            if not score["unscored"]:
                check(score["overall"], 0, 1)


@settings(parent=fuzz, max_examples=max(EXAMPLES // 4, 1))
@given(WRITTEN, WRITTEN)
def test_the_pool_answers_whatever_it_is_asked(verifier, prediction, gold):
    TRIED["the pool"] += 1
    pairs = [(prediction[:2000], gold[:500]), (rf"\boxed{{{prediction[:500]}}}", "7")]
    try:
        verdicts = [*verifier.check(pairs), *mathruler.mathruler(verifier, pairs)]
    except UnicodeEncodeError:
        raise AssertionError("lone surrogates must not stop the pool") from None
    assert all(isinstance(verdict.equal, bool) for verdict in verdicts)


NUMBERS = st.one_of(
    st.floats(width=32),
    st.floats(-10, 1010, width=32),
    st.sampled_from(
        [0.0, 1.0, -0.0, 3e38, -3e38, math.nan, math.inf, -math.inf, 1e-40]
    ),
)
FOUR = st.lists(NUMBERS, min_size=4, max_size=4)
BOXES = st.lists(st.one_of(FOUR, st.just([0.0, 0, 10, 10])), max_size=4)
SIZE = 4


def looked(rule, predicted, gold):
    """All of a group of two where each looks at what the other answers.

    Once where both have answered, and once where only the second has.
    """
    answers = jax.tree.map(lambda *x: jnp.stack(x), predicted, gold)
    looks = jax.tree.map(lambda x: x[::-1], answers)
    size, both = jnp.array([10.0, 10.0]), jnp.array([True, True])
    told = [rule(answers, looks, gold, size, a) for a in (both, both.at[0].set(False))]
    return jnp.stack(told)


BOX_RULES = [
    (boxes.first_iou, 0, 1),
    (boxes.pixel_iou, 0, 1),
    (boxes.union_iou, 0, 1),
    (boxes.greedy_f1, 0, 1),
    (boxes.hungarian_f1, 0, 1),
    (boxes.weighted_precision_recall, 0, 1),
    (boxes.matched_iou_share, 0, 1),
    (boxes.confidence_reward, 0, 1),
    (boxes.position_and_completeness, 0, 1),
    (boxes.label_first_score, 0, 1),
    (boxes.iou_first_score, 0, 1),
    (lambda p, g: boxes.area_within(p, g.boxes[0, 2:]), 0, 1),
    (
        lambda p, g: boxes.box_and_point_score(p, g, p.boxes[:, :2], g.boxes[:, :2]),
        0,
        3,
    ),
    (functools.partial(average_precision.mean_average_precision, classes=2), 0, 1),
    (lambda p, g: geometry.giou(p.boxes[0], g.boxes[0]), -1, 1),
    (lambda p, g: groups.matched_gold_iou(p, g).sum(), 0, SIZE),
    (lambda p, g: looked(groups.disagreement_look, p, g), 0, 1),
    (lambda p, g: looked(groups.spread_look, p, g), -1, 1),
]


@jax.jit
def all_box_rules(predicted, gold):
    return [jnp.ravel(rule(predicted, gold)) for rule, _, _ in BOX_RULES]


def raw_boxes(rows, confidence):
    """Arrays as no parser would make them: NaN and infinite boxes marked as boxes."""
    values = np.zeros((SIZE, 4), np.float32)
    values[: len(rows)] = np.reshape(np.array(rows, np.float32), (-1, 4))
    labels = np.arange(SIZE) % 2
    return boxes.Boxes(
        values,
        np.arange(SIZE) < len(rows),
        labels,
        np.full(SIZE, confidence, np.float32),
    )


@fuzz
@given(BOXES, BOXES, NUMBERS)
def test_box_scores_stay_in_range(predicted, gold, confidence):
    TRIED["box sets"] += 1
    found = all_box_rules(raw_boxes(predicted, confidence), raw_boxes(gold, 1.0))
    for scores, (_, low, high) in zip(found, BOX_RULES, strict=True):
        for score in np.asarray(scores):
            check(float(score), low - 1e-6, high + 1e-6)


LISTS = BOXES.map(json.dumps)
LIST = st.integers(0, 3).flatmap(lambda n: LISTS if n else WRITTEN)  # most are lists
BLOCKS = st.tuples(st.text(max_size=9), LIST, LIST).map(
    lambda t: f"<think>{t[0]}</think><look>{t[1]}</look><answer>{t[2]}</answer>"
)
LOOKING = inspected(look_without_gold=groups.spread_look, most=8)


@fuzz
@given(
    st.tuples(BLOCKS, BLOCKS, WRITTEN),
    st.sampled_from(["", "[]", "[[0, 0, 10, 10], [9, 9, 40, 56]]"]),
)
def test_looks_of_all_of_a_group_stay_in_range(texts, gold):
    TRIED["looking groups"] += 1
    sample = Sample("1", "fuzz", "?", (), gold)
    size = (ImageSize(56, 56, 28, 28),)
    group = [Episode(sample, "?", (Turn(t, (1,)),), True, size) for t in texts]
    bounds = (
        {"format": 0, "look": 0, "accuracy": 0} if gold else {"format": 0, "look": -1}
    )
    for score in in_time(LOOKING, group):
        assert score.keys() == {"overall", "left_out", *bounds}
        for name, low in bounds.items():
            check(score[name], low - 1e-6, 1 + 1e-6)
        assert score["overall"] == pytest.approx(sum(score[name] for name in bounds))


JSON = st.recursive(
    NUMBERS | st.text(max_size=9) | st.none() | st.booleans() | FOUR,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["bbox_2d", "label", "score", "point_2d", "x"]), inner
        )
    ),
    max_leaves=9,
)


@fuzz
@given(JSON)
def test_any_json_gives_boxes_or_none(found):
    TRIED["JSON"] += 1
    dumped = json.dumps(found)
    for item in parse_boxes.detections(f"<answer>{dumped}</answer>"):
        assert all(map(math.isfinite, item.box)) and 0 <= item.confidence <= 1


GROUP = 4
LENGTHS = st.lists(st.integers(0, 2**30), min_size=GROUP, max_size=GROUP)
RIGHT = st.lists(st.booleans(), min_size=GROUP, max_size=GROUP)
VALUES = st.lists(NUMBERS, min_size=GROUP, max_size=GROUP)


@jax.jit
def all_array_rules(lengths, right, values, others, mask):
    """Each with the bounds of what it may give."""
    c = right.astype(jnp.float32)
    big = jnp.inf
    unit = jnp.clip(jnp.nan_to_num(values), 0, 1)
    return [
        (length.kimi(lengths, c), -0.5, 0.5),
        (length.l1_max(lengths, c, 1000), 0, 1),
        (length.l1_exact(lengths, c, 1000), -big, 1),
        (length.efficient_length(lengths, budget=1000), 0, 1),
        (
            length.o1_pruner(
                lengths, c, reference_length=100.0, reference_accuracy=0.5
            ),
            -2, 101,
        ),
        (length.dast(lengths, c, max_length=4000), -big, 1),
        (length.cosine(lengths, c, max_length=4000), -10, 2),
        (length.think_prune(lengths, c, limit=1000), 0, 1),
        (length.train_to_be_efficient(lengths, c), 0, 1),
        (length.shorter_better(lengths, c), -big, 2),
        (length.laser(lengths, c, target=1000), 0, 1.5),
        (length.soft_overlong(lengths, max_length=2000, buffer=100), -1, 0),
        (groups.tool_preference(right, mask, mask), 0, 1),
        (groups.tool_curiosity(lengths), -big, 1),
        (groups.agreement(lengths), 0, 1),
        (groups.majority(lengths), 0, 1),
        (quality.within_band(values, others), 0, 1),
        (quality.plcc(values, others, mask), -1, 1),
        (quality.srcc(values, others, mask), -1, 1),
        (steps.fact_share(values, mask), 0, 1),
        (steps.mean_step(unit, mask), 0, 1),
        (steps.worst_step(unit, mask), 0, 1),
        (steps.product_of_steps(unit, mask), 0, 1),
        (steps.last_step(unit, mask), 0, 1),
        (steps.share_to_go(unit, mask), 0, 1),
    ]  # fmt: skip


@fuzz
@given(LENGTHS, RIGHT, VALUES, VALUES, RIGHT)
def test_array_scores_are_finite_and_in_range(lengths, right, values, others, mask):
    TRIED["arrays"] += 1
    arrays = [
        jnp.array(lengths),
        jnp.array(right),
        jnp.array(values, jnp.float32),
        jnp.array(others, jnp.float32),
        jnp.array(mask),
    ]
    for found, low, high in all_array_rules(*arrays):
        for score in np.ravel(found):
            check(float(score), float(low) - 1e-5, float(high) + 1e-5)


@pytest.mark.parametrize("piece", PIECES)
def test_a_hundred_kilobytes_of_one_piece(piece):
    written = (piece * 100_000)[:100_000]
    for reader in READERS:
        in_time(reader, written)
    for rule, low, high in SCORES_OF_ONE:
        check(in_time(rule, written), low, high)
