"""RewardMap: routes, their parts, and the sheet's worked map."""

import json

import numpy as np
import pytest

from vrl_jax import advantages
from vrl_jax.recipes.rewardmap import (
    Section,
    last_answer,
    map_reward,
    plain,
    rewardmap,
    route_sections,
    stages,
)
from vrl_jax.types import Episode, Sample, Turn

from ..fixtures import small

LINES = {"Line 1": ["North", "Old Town", "South"], "Line 2": ["Old Town", "West"]}
RIDE = "Route Name: {}\nDeparture Stop: {}\nArrival Stop: {}"
PERFECT = [("Line 1", "North", "Old Town"), ("Line 2", "Old Town", "West")]
APART = [("Line 1", "North", "South"), ("Line 2", "Old Town", "West")]
ELSEWHERE = [("Line 1", "South", "Old Town"), ("Line 2", "Old Town", "West")]
LONG = [
    ("Line 1", "North", "Old Town"),
    ("Line 1", "Old Town", "Old Town"),
    ("Line 2", "Old Town", "West"),
]


def written(rides):
    return "\n--\n".join(RIDE.format(*ride) for ride in rides)


def route(city="hard", transfers=1, ends=("North Station", "West"), **columns):
    return Sample(
        "row",
        "map",
        "<image>?",
        (b"",),
        "",
        {
            "type": "planning",
            "difficulty_city": city,
            "question_transfer_count": transfers,
            "station_1": ends[0],
            "station_2": ends[1],
            "json": json.dumps(LINES),
            **columns,
        },
    )


def asked(kind, answer, city="middle"):
    columns = {"type": kind, "difficulty_city": city}
    return Sample("row", "map", "<image>?", (b"",), answer, columns)


def scores(sample, *texts, **how):
    episodes = [Episode(sample, "?", (Turn(text, (1,)),), True) for text in texts]
    return map_reward(**how)(episodes)


@pytest.mark.parametrize(
    ("beyond", "details", "paid", "zscored", "digits"),
    [
        (0, [4, 3, 0, 2], [24, 3, 0, 22], [0.940, -0.740, -0.980, 0.780], 3),
        (
            1,
            [9, 8, 0, 8],
            [29, 8, 0, 28],
            [0.877920, -0.568066, -1.118917, 0.809063],
            6,
        ),
    ],
)
def test_the_worked_routes(beyond, details, paid, zscored, digits):
    """A hard map, one transfer: perfect, a gap, wrong ends, one change too many."""
    texts = map(written, [PERFECT, APART, ELSEWHERE, LONG])
    found = scores(route(), *texts, beyond=beyond)
    assert [score["detail"] for score in found] == details
    assert [score["overall"] for score in found] == paid
    assert [score["accuracy"] for score in found] == [1, 0, 0, 1]
    rollout = small.scored([float(x) for x in paid])
    given = rewardmap().credit(rollout)[0].advantages[:, 0]
    np.testing.assert_allclose(given, zscored, atol=0.6 * 10**-digits)
    if beyond == 0:
        centred = rewardmap(advantage=advantages.group_centered).credit(rollout)
        wanted = [11.75, -9.25, -12.25, 9.75]
        np.testing.assert_allclose(centred[0].advantages[:, 0], wanted)


@pytest.mark.parametrize(("beyond", "paid"), [(0, 12.6), (1, 15.6)])
def test_a_direct_line_is_one_section(beyond, paid):
    row = route("middle", 0, ("North", "South"))
    text = written([("Line 1", "North", "South")])
    (score,) = scores(row, text, beyond=beyond)
    assert score["overall"] == pytest.approx(paid)


@pytest.mark.parametrize(
    ("city", "transfers", "weight"),
    [
        ("easy", 0, 1.0),
        ("middle", 0, 1.2),
        ("hard", 0, 1.5),
        ("easy", 1, 1.5),
        ("hard", 2, 2.0),
    ],
)
def test_the_weights(city, transfers, weight):
    (score,) = scores(route(city, transfers), written(PERFECT), alpha=0.0)
    assert score["overall"] == pytest.approx(10 * weight)


@pytest.mark.parametrize(
    ("kind", "answer", "text", "right"),
    [
        ("TorF1", "1", r"\boxed{Yes}", 1),
        ("TorF2", "0", "So the answer is no. Yes.", 1),
        ("TorF2", "no", r"\boxed{yes}", 0),
        ("TorF1", "1", "yes", 0),
        ("Counting1", "2", r"\boxed{C}", 1),
        ("Counting1", "c", r"\boxed{c}", 1),
        ("Counting1", "2", r"\boxed{2}", 0),
        ("Counting1", "2", r"\boxed{e}", 0),
        ("Counting2", "12", r"\boxed{1} or \boxed{12}", 1),
        ("Counting3", "12", "The answer is 12 stops", 0),
        ("Counting3", "12", "", 0),
        ("Counting3", "12.0", r"\boxed{12}", 1),
        ("Counting3", "many", r"\boxed{12}", 0),
        ("Counting1", "2.0", r"\boxed{c}", 1),
        ("TorF1", "1.0", r"\boxed{yes}", 1),
        ("TorF1", "false", r"\boxed{no}", 1),
        ("TorF1", "1", "The answer is: **yes**.", 1),
        ("Counting2", "12", "**Answer:** 12", 1),
    ],
)
def test_short_answers(kind, answer, text, right):
    (score,) = scores(asked(kind, answer), text)
    assert score == {"overall": 12.0 * right, "accuracy": right, "detail": 0}


def test_sections_are_read_with_marks_and_other_spellings():
    text = (
        f"<think>{written(PERFECT)}</think>\n**Route Name**: Line  1\n"
        "Departure Stop: North (Metro)\n"
        "Arrival Stop: Old Town Station\n---\nRoute Name: Line 2\nno stops"
    )
    assert route_sections(text) == [Section("line 1", "north", "oldtown")]
    assert plain("King's Cross, St. Pancras") == "kingscrossst.pancras"
    assert last_answer("nothing") == ""


def test_lines_of_other_maps_and_of_branches():
    """As a struct of parquet has them, and two that differ in brackets alone."""
    lines = {**LINES, "Line 1 (Branch)": ["Old Town", "East"], "Red": None}
    row = route(transfers=0.0, ends=("North", "South"), json=lines)
    right, branch = scores(
        row,
        written([("Line 1", "North", "South")]),
        written([("Line 1 (Branch)", "North", "South")]),
    )
    assert (right["accuracy"], branch["accuracy"]) == (1, 0)


def test_stages_go_from_easy_to_hard():
    kinds = ["planning", "Counting1", "TorF2", "Counting3", "TorF1", "planning"]
    found = stages([asked(kind, "1") for kind in kinds])
    assert [[s.annotations["type"] for s in stage] for stage in found] == [
        *(["TorF1", "TorF2"], ["Counting3"], ["Counting1"], ["planning"] * 2)
    ]
    with pytest.raises(ValueError, match="a type, one of TorF1"):
        stages([asked("Counting9", "1")])


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (asked("Maze", "1"), "row needs a type, one of TorF1.*planning"),
        (route(transfers="some"), "'some' is no number of transfers"),
        (asked("TorF1", "1", city="huge"), "row needs difficulty_city, one of easy"),
        (route(json="{"), "row needs the column 'json'"),
        (route(station_1=None), "row needs the column 'station_1'"),
    ],
)
def test_rows_that_lack_something_are_named(row, said):
    with pytest.raises(ValueError, match=said):
        scores(row, "")
