"""Charts: what a row says is what the chart shows, and what V-ToolRL pays."""

import dataclasses
import functools
import io
import json

import numpy as np
import pytest
from PIL import Image

from vrl_jax.engine.tools import run
from vrl_jax.programs.tool_turns import tool_turns
from vrl_jax.recipes.openthinkimg import (
    ACTIONS,
    DRAWING_TOOLS,
    accuracy,
    first_action,
    tool_reward,
)
from vrl_jax.rewards.boxed import boxed_exact
from vrl_jax.training.data import read_samples
from vrl_jax.types import Episode, Turn
from vrl_jax.worlds import charts, digits, shapes, tasks
from vrl_jax.worlds.writing import write_parquet

from ..fixtures.talk import told


def opened(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), int)


def test_charts_are_deterministic_and_grow_by_appending():
    first = charts.bars(8, split="train", seed=3)
    assert charts.bars(12, split="train", seed=3)[:8] == first
    assert charts.bars(8, split="train", seed=4)[0].images != first[0].images
    wider = charts.bars(8, split="train", seed=3, columns=4)
    assert not {row.id for row in first} & {row.id for row in wider}


@pytest.mark.parametrize("columns", [2, 3, 4])
def test_bars_stand_as_high_as_the_axis_says(columns):
    """Read off the picture: a token up is a step, from the middle of the lowest."""
    for row in charts.bars(30, split="test", seed=0, columns=columns, noise=0.0):
        facts, picture = row.annotations, opened(row.images[0])
        assert picture.shape == (140, 28 * (1 + columns), 3)
        assert len(facts["values"]) == columns
        for (name, value), box in zip(
            facts["values"].items(), facts["boxes"], strict=True
        ):
            there = (picture == shapes.COLOURS[name]).all(axis=2)
            rows, places = np.nonzero(there)
            ends = places.min(), rows.min(), places.max() + 1, rows.max() + 1
            assert box == [*map(int, ends)]
            assert value == (126 - rows.min()) / 28 * facts["step"]
            assert rows.max() + 1 == 126


def test_the_axis_is_numbered_by_scans_of_the_split():
    rows = charts.bars(40, split="test", seed=0, noise=0.0)
    held_out = digits.scans().held_out
    for row in rows:
        picture = opened(row.images[0])[:, :28, 0]
        for place in range(5):
            number = picture[140 - 28 * (place + 1) : 140 - 28 * place]
            same = (digits.enlarged(28) == number).all(axis=(1, 2))
            assert held_out[same].all()
            wanted = place * row.annotations["step"]
            assert {*digits.scans().digit[same]} == {wanted}
    assert {row.annotations["step"] for row in rows} == {1, 2}


def test_answers_follow_from_the_values():
    for row in charts.bars(80, split="train", seed=1):
        values, words = row.annotations["values"], row.question[:-1].split()
        named = [word for word in words if word in values]
        if row.source == "charts/value":
            wanted = values[named[0]]
        elif row.source == "charts/highest":
            wanted = max(values, key=values.get)
        elif row.source == "charts/difference":
            wanted = values[named[0]] - values[named[1]]
        else:
            wanted = sum(value > int(words[-1]) for value in values.values())
        assert row.answer == str(wanted)
        assert {*named} <= {*row.annotations["about"]}


@pytest.mark.parametrize("kind", charts.KINDS)
def test_no_answer_is_right_without_looking(kind):
    """The best guess for each wording of the question."""
    rows = charts.bars(160, split="train", seed=0, kinds=[kind])
    said = {}
    for row in rows:
        said.setdefault(row.question, []).append(row.answer)
    best = sum(max(map(answers.count, answers)) for answers in said.values())
    assert best / len(rows) < 0.7


def test_demonstrations_are_right():
    rows = charts.bars(40, split="train", seed=0)
    said = [row.annotations["demonstration"] for row in rows]
    episodes = [
        Episode(row, "?", (Turn(text, (1,)),), True)
        for row, text in zip(rows, said, strict=True)
    ]
    assert boxed_exact(episodes) == [1.0] * 40


def test_tools_are_demonstrated_and_paid(verifier):
    """The line that is drawn touches the top of the bar; another row's answer fails."""
    rows = [*map(tasks.line_at_the_bar, charts.bars(24, split="train", seed=0))]
    program = functools.partial(tool_turns, available=DRAWING_TOOLS, syntax=ACTIONS)
    reward = tool_reward(accuracy(verifier), format_weight=1.0)
    ends = []
    for row in rows:
        said = row.annotations["demonstration"]
        asked, outcome = told(program(row), *said)
        assert outcome.facts["calls/valid"] == outcome.facts["images"] == 1
        drawn = opened(asked[1].context[-1].images[0])
        changed = (drawn != opened(row.images[0])).any(axis=2)
        name = row.annotations["about"][0]
        place = list(row.annotations["values"]).index(name)
        top = row.annotations["boxes"][place][1]
        assert {*np.nonzero(changed)[0]} <= {min(top, 139)}
        assert changed.any()
        ends.append(outcome)
    own = [
        reward([Episode(row, "?", tuple(end.turns), True, facts=end.facts)])[0]
        for row, end in zip(rows, ends, strict=True)
    ]
    assert [score["overall"] for score in own] == [2.0] * 24
    for row, end in zip(rows, ends[1:] + ends[:1], strict=True):
        (score,) = reward([Episode(row, "?", tuple(end.turns), True)])
        same = json.loads(end.turns[-1].text)["actions"][0]["arguments"]["ans"]
        assert score["accuracy"] == float(same == row.answer)


def test_a_demonstrated_call_says_percent_of_the_picture():
    (row,) = charts.bars(1, split="train", seed=0)
    said = tasks.line_at_the_bar(row).annotations["demonstration"][0]
    seen = run(first_action(said), DRAWING_TOOLS, row.images)
    assert seen.images and not seen.error


def test_numbered_charts_show_what_is_noted():
    """The one coloured bar, the heights, and under each bar its number's scan."""
    held_out = digits.scans().held_out
    for row in charts.numbered(12, split="test", seed=0):
        facts, picture = row.annotations, opened(row.images[0])
        assert picture.shape == (672, 672, 3)
        for place, (box, foot) in enumerate(
            zip(facts["boxes"], facts["feet"], strict=True)
        ):
            left, top, right, bottom = box
            bar = picture[top:bottom, left:right].reshape(-1, 3)
            assert (bar == bar[0]).all()
            assert (bar[0] == charts.BARS).all() == (place != facts["about"])
            # Seven levels of half a column, and none above it: the paper is no bar.
            assert bottom - top == 84 * facts["heights"][place]
            assert not top or (picture[top - 1, left:right] != bar[0]).any()
            assert foot == [left, bottom, right, bottom + 84]
            under = picture[foot[1] + 28 : foot[3] - 28, foot[0] + 28 : foot[2] - 28]
            plates = digits.enlarged(28)[..., None]
            same = (plates == under).all(axis=(1, 2, 3))
            assert held_out[same].all()
            assert {*digits.scans().digit[same]} == {facts["numbers"][place]}
        assert row.answer == str(facts["numbers"][facts["about"]])
        assert len({*facts["heights"]}) == 4


def test_the_shade_of_numbered_charts_tells_the_place():
    (row,) = charts.numbered(1, split="train", seed=0)
    lowest = opened(row.images[0])[-1]
    assert (np.diff(lowest[:, 0]) >= 0).all() and (np.diff(lowest[:, 2]) <= 0).all()
    places = [foot[0] for foot in row.annotations["feet"]]
    assert len({tuple(lowest[place]) for place in places}) == 4


def test_cutting_out_a_number_is_demonstrated_and_paid(verifier):
    """What comes back is the square under the coloured bar, at its own size."""
    program = functools.partial(tool_turns, available=DRAWING_TOOLS, syntax=ACTIONS)
    reward = tool_reward(accuracy(verifier), format_weight=1.0)
    for sample in charts.numbered(12, split="train", seed=0):
        row = tasks.number_closely(sample)
        asked, outcome = told(program(row), *row.annotations["demonstration"])
        assert outcome.facts["calls/valid"] == outcome.facts["images"] == 1
        left, top, right, bottom = row.annotations["feet"][row.annotations["about"]]
        seen = opened(asked[1].context[-1].images[0])
        own = opened(row.images[0])[top:bottom, left:right]
        np.testing.assert_array_equal(seen, own)
        episode = Episode(row, "?", tuple(outcome.turns), True, facts=outcome.facts)
        assert reward([episode])[0]["overall"] == 2
        other = dataclasses.replace(row, answer=str((int(row.answer) + 1) % 10))
        assert reward([dataclasses.replace(episode, sample=other)])[0]["overall"] == 1


@pytest.mark.parametrize(
    "rows",
    [
        [*map(tasks.line_at_the_bar, charts.bars(12, split="train", seed=0))],
        [*map(tasks.number_closely, charts.numbered(12, split="train", seed=0))],
    ],
    ids=["bars", "numbered"],
)
def test_rows_come_back_from_parquet(rows, tmp_path):
    back, report = read_samples(write_parquet(rows, tmp_path / "charts.parquet"))
    assert report.used == 12
    for row, same in zip(rows, back, strict=True):
        assert same.annotations == row.annotations


@pytest.mark.parametrize("wrong", [{"columns": 5}, {"columns": 1}, {"kinds": ["pie"]}])
def test_what_cannot_be_drawn_is_told(wrong):
    with pytest.raises(ValueError, match=r"2 to 4 bars|kinds are some of value"):
        charts.bars(1, split="train", seed=0, **wrong)


@pytest.mark.parametrize(
    "wrong",
    [{"columns": 1}, {"column_pixels": 30}, {"digit_pixels": 85}, {"digit_pixels": 0}],
)
def test_what_cannot_be_numbered_is_told(wrong):
    with pytest.raises(ValueError, match="at least 2 columns, of pixels that divide"):
        charts.numbered(1, split="train", seed=0, **wrong)
