"""What is written of an evaluation, that it goes on, and its numbers by hand."""

import contextlib
import dataclasses
import functools
import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest

from vrl_jax.engine.conversation import Ask, user
from vrl_jax.engine.desk import Limits, OutOfRoom
from vrl_jax.engine.episode import Outcome
from vrl_jax.engine.processing import question
from vrl_jax.evals import benchmark, held_out
from vrl_jax.evals.command import page
from vrl_jax.programs.acting import measured

from ..fixtures import small

SAMPLES = small.samples()
MANIFEST = {"model": "small", "bounds": (1, 2)}


def reward(episodes):
    return [
        {"overall": sum(e.turns[0].tokens) % 5 / 4, "accuracy": float(number % 2)}
        for number, e in enumerate(episodes)
    ]


def predict(folder, **changes):
    actor = dataclasses.replace(
        small.chain_actor(), reward=reward, prompts_per_pass=2, **changes
    )
    given = {"folder": folder, "manifest": MANIFEST, "each": 2, "greedy": False}
    return benchmark.predict(actor, SAMPLES, jax.random.key(0), **given)


def line(name, correct, prediction="1", *, benchmark="a", finished=True, tokens=1):
    return {
        "benchmark": benchmark,
        "id": name,
        "prediction": prediction,
        "correct": correct,
        "finished": finished,
        "meta": {"scores": {"overall": correct}, "tokens": tokens},
    }


def test_a_line_a_response_with_all_that_others_need(tmp_path):
    rows = predict(tmp_path)
    assert [row["id"] for row in rows] == [s.id for s in SAMPLES for _ in range(2)]
    written = benchmark.files(tmp_path).predictions.read_text().splitlines()
    assert [json.loads(row) for row in written] == rows
    assert json.loads(benchmark.files(tmp_path).manifest.read_text())["bounds"] == [
        1,
        2,
    ]
    first = rows[0]
    assert first["prompt"] == SAMPLES[0].question and first["answer"] == "0"
    assert first["images"] == [benchmark.image_name(SAMPLES[0].images[0])]
    assert first["images"][0].startswith("sha256:")
    assert (first["sample"], first["correct"]) == (0, 0)
    assert (rows[1]["sample"], rows[1]["correct"]) == (1, 1)
    assert first["meta"]["scores"]["overall"] in (0, 0.25, 0.5, 0.75, 1)
    size = first["meta"]["image_sizes"][0]
    assert (size["original_height"], size["original_width"]) == (28, 56)


def test_a_killed_evaluation_goes_on_to_the_same_lines(tmp_path):
    """Killed in the second pass, in the middle of a line."""
    whole = predict(tmp_path / "whole")
    calls = []

    def mortal(episodes):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return reward(episodes)

    killed = tmp_path / "killed"
    actor = dataclasses.replace(small.chain_actor(), reward=mortal, prompts_per_pass=2)
    given = {"folder": killed, "manifest": MANIFEST, "each": 2, "greedy": False}
    with pytest.raises(KeyboardInterrupt):
        benchmark.predict(actor, SAMPLES, jax.random.key(0), **given)
    file = benchmark.files(killed).predictions
    assert len(file.read_text().splitlines()) == 4
    file.write_text(file.read_text()[:-20])  # the last line is half written
    assert predict(killed) == whole
    lines = (tmp_path / folder / file.name for folder in ("whole", "killed"))
    one, other = (sorted(path.read_text().splitlines()) for path in lines)
    assert one == other

    def never(episodes):
        raise AssertionError("nothing is left to be asked")

    actor = dataclasses.replace(actor, reward=never)
    assert benchmark.predict(actor, SAMPLES, jax.random.key(0), **given) == whole


def test_programs_may_have_several_conversations_and_no_room(tmp_path):
    """A question each in a context of its own, then a picture larger than a block."""

    def describe(sample):
        yield Ask(question(sample))
        said = yield Ask((user("What is it?"),))
        facts = {"right": True, "share": math.nan, "kind": "a"}
        return Outcome((said,), facts if sample.id == "row-0" else {"share": 1})

    def rows_of(name, program, models=None, **limits):
        told = {"program": program, "models": models, "limits": Limits(**limits)}
        act = functools.partial(measured, **told)
        given = {"folder": tmp_path / name, "manifest": {}, "each": 1, "greedy": True}
        actor = dataclasses.replace(small.chain_actor(), reward=reward)
        key = jax.random.key(0)
        return benchmark.predict(actor, SAMPLES, key, act=act, **given)

    rows = rows_of("described", describe)
    assert [turn["text"] for turn in rows[0]["turns"]] == [
        *("What is it?", rows[0]["response"])
    ]
    facts = {"right": True, "share": None, "kind": "a"}
    assert [row["meta"]["facts"] for row in rows] == [facts, *[{"share": 1}] * 3]
    found = benchmark.summary(rows)
    assert found["fact/right"] == 0.25 and found["fact/share"] == 1
    assert "fact/kind" not in found and "ended early" not in shown(found)

    def look(sample):
        too_large = small.png(0, 224, 224)
        yield Ask((*question(sample), user("<image>Look.", [too_large])))

    def judged(sample):
        said = yield Ask(question(sample))
        with contextlib.suppress(OutOfRoom):
            yield Ask((user("<image>Look.", [small.png(0, 224, 224)]),), model="judge")
        return said

    judge = {"judge": small.chain_actor()}
    found = benchmark.summary(rows_of("judged", judged, models=judge))
    assert found["fact/no_room/judge"] == 1
    assert "no room              4 asks of judge: raise --frozen-" in shown(found)

    rows = rows_of("no room", look, row_tokens=400, pictures=1)
    assert [row["response"] for row in rows] == [""] * 4
    found = benchmark.summary(rows)
    assert found["fact/ended/OutOfRoom"] == found["cut_off"] == 1
    assert "ended early          4 for OutOfRoom, of 4 episodes" in shown(found)


def shown(found):
    return page({**found, "not_asked": 0, "bad_rows": 0}, Path("out"))


def test_single_turns_have_neither_turns_nor_facts(tmp_path):
    for row in predict(tmp_path):
        assert "turns" not in row and row["meta"].keys() == {
            *("scores", "tokens", "image_sizes")
        }


def test_another_evaluation_in_the_same_folder_is_refused(tmp_path):
    benchmark._open(benchmark.files(tmp_path), MANIFEST)
    benchmark._open(benchmark.files(tmp_path), MANIFEST)
    with pytest.raises(ValueError, match=r"model was 'small' and is 'large'.*--out"):
        benchmark._open(benchmark.files(tmp_path), {**MANIFEST, "model": "large"})


def test_summary_by_hand():
    rows = [
        *(line("one", c, p) for c, p in [(1, "4"), (0, "5"), (1, "4"), (0, "6")]),
        *(line("two", c, p) for c, p in [(0, "5"), (0, "5"), (1, "4"), (0, None)]),
        *(line("three", c, "x", benchmark="b") for c in (1, 1, 1, None)),
    ]
    rows[0]["finished"] = False
    found = benchmark.summary(rows)
    assert (found["questions"], found["responses"], found["unscored"]) == (3, 12, 1)
    assert found["accuracy"] == found["mean@4"] == pytest.approx((0.5 + 0.25 + 1) / 3)
    assert found["unread"] == found["cut_off"] == pytest.approx(1 / 12)
    # Of one and two alone, for a response of three was not scored.
    assert found["pass@1"] == pytest.approx((0.5 + 0.25) / 2)
    assert found["pass@2"] == pytest.approx((1 - 1 / 6 + 1 - 3 / 6) / 2)
    assert found["pass@4"] == 1
    assert found["maj@4"] == pytest.approx((1 + 0 + 1) / 3)
    assert found["benchmarks"]["a"]["accuracy"] == pytest.approx(0.375)
    assert found["benchmarks"]["b"]["accuracy"] == 1
    assert found["score/overall"] == pytest.approx(6 / 11)


def test_all_right_asks_for_every_row_of_a_group():
    """By hand: of figures a, b and c one is right, of questions 1 and 2 the first."""
    rows = [
        *(line("a-1", 1), line("a-2", 0.9), line("b-1", 1), line("b-2", 1)),
        *(line("c-1", 1), line("c-2", None)),
    ]
    assert benchmark.all_right(rows, lambda row: row["id"][0]) == pytest.approx(1 / 3)
    assert benchmark.all_right(rows, lambda row: row["id"][2]) == 0.5
    assert benchmark.all_right([], lambda row: row["id"]) is None


def test_nothing_scored_is_not_a_number():
    found = benchmark.summary([line("one", None)])
    assert found["accuracy"] is None and found["unscored"] == 1
    assert "NaN" not in json.dumps(found)


def test_pass_and_majority_of_any_number():
    right = 0.7 + 0.2 + 0.1  # not quite 1
    rows = [line("one", c, p) for c, p in [(0, None), (0, None), (right, "4")]]
    found = benchmark.summary(rows)
    assert [name for name in found if "@" in name] == [
        *("mean@3", "pass@1", "pass@2", "pass@3", "maj@3")
    ]
    assert found["pass@1"] == pytest.approx(1 / 3) and found["pass@3"] == 1
    assert found["maj@3"] == pytest.approx(1)  # what could not be read has no vote
    nothing = [line("one", c, None) for c in (1, 0)]
    assert benchmark.summary(nothing)["maj@2"] == 0.5


def test_intervals_narrow_with_questions_and_hold_the_mean():
    values = np.tile([0.0, 1.0], 50)
    low, high = benchmark.interval(values)
    # 1.96 standard errors of a share of 0.5 in 100: 0.098.
    assert low == pytest.approx(0.5 - 0.098, abs=0.02)
    assert high == pytest.approx(0.5 + 0.098, abs=0.02)
    assert benchmark.interval(values) == (low, high)
    assert benchmark.interval(np.ones(4)) == (1, 1)


def test_the_same_numbers_as_measurements(tmp_path):
    rows = predict(tmp_path)
    actor = dataclasses.replace(small.chain_actor(), reward=reward)
    answered = held_out.answers(actor, SAMPLES, jax.random.key(0), greedy=False, each=2)
    measured = held_out.measurements(answered)
    found = benchmark.summary(rows)
    assert found["accuracy"] == measured["val/accuracy"]
    assert found["score/overall"] == pytest.approx(measured["val/reward_score"])
    assert found["tokens"] == measured["val/response_length/mean"]
