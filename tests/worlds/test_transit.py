"""Transit maps: what a row says is what the map shows, and what RewardMap pays."""

import io

import numpy as np
import pytest
from PIL import Image

from vrl_jax.recipes.rewardmap import STAGES, map_reward, stages
from vrl_jax.training.data import read_samples
from vrl_jax.types import Episode, ImageSize, Turn
from vrl_jax.worlds import shapes, transit
from vrl_jax.worlds.writing import write_parquet

SIZE = ImageSize(84, 84, 84, 84)


def paid(row, text):
    episode = Episode(row, "?", (Turn(text, (1,)),), True, (SIZE,))
    (score,) = map_reward()([episode])
    return score


def test_maps_are_deterministic_and_grow_by_appending():
    first = transit.maps(8, split="train", seed=3)
    assert transit.maps(12, split="train", seed=3)[:8] == first
    assert transit.maps(8, split="train", seed=4)[0].images != first[0].images
    harder = transit.maps(8, split="train", seed=3, lines=3)
    assert not {row.id for row in first} & {row.id for row in harder}


@pytest.mark.parametrize("lines", [2, 3, 4])
def test_demonstrations_are_right_and_others_are_not(lines):
    rows = transit.maps(60, split="train", seed=0, lines=lines)
    by_kind = {}
    for row in rows:
        score = paid(row, row.annotations["demonstration"])
        assert score["accuracy"] == 1
        weight = {2: 1.0, 3: 1.2, 4: 1.5}[lines]
        transfers = row.annotations.get("question_transfer_count")
        if transfers:  # the released rule takes 5 for the last section
            weight, partly = weight + 0.5, 2 + 4 * transfers + 3 - 5
        else:
            partly = 0 if transfers is None else 2 + 4 - 5
        assert score["overall"] == pytest.approx(weight * (10 + 0.5 * partly))
        by_kind.setdefault(row.annotations["type"], []).append(row)
    assert {*by_kind} == {kind for stage in STAGES for kind in stage}
    routes = by_kind["planning"]
    for row, other in zip(routes, routes[1:] + routes[:1], strict=True):
        if row.answer != other.answer:
            assert paid(row, other.annotations["demonstration"])["accuracy"] == 0
    assert [len(stage) for stage in stages(rows)] == [20, 20, 10, 10]


def test_routes_change_as_seldom_as_can_be():
    changes = []
    for row in transit.maps(90, split="test", seed=1, kinds=["planning"], lines=4):
        lines, text = row.annotations["json"], row.annotations["demonstration"]
        rides = text.split("\n--\n")
        assert len(rides) == row.annotations["question_transfer_count"] + 1
        ends = {row.annotations["station_1"], row.annotations["station_2"]}
        assert (len(rides) == 1) == any(ends <= {*stops} for stops in lines.values())
        changes.append(len(rides) - 1)
    assert {*changes} == {0, 1, 2}


@pytest.mark.parametrize("lines", [2, 3, 4])
@pytest.mark.parametrize("kind", transit.KINDS)
def test_no_answer_is_right_without_looking(kind, lines):
    """The best guess, knowing the question's kind and its line."""
    rows = transit.maps(200, split="train", seed=0, kinds=[kind], lines=lines)
    said = {}
    for row in rows:
        answer = row.answer
        if kind == "Counting1":  # what stands behind the letter
            answer = row.question.split("\n")[1 + int(answer)][3:]
        about = {*row.question.split()} & {*shapes.COLOURS}
        said.setdefault(tuple(sorted(about)), []).append(answer)
    best = sum(max(map(answers.count, answers)) for answers in said.values())
    assert best / len(rows) < 0.8
    assert len(said) == (4 if kind in ("TorF1", "Counting1", "Counting2") else 1)


@pytest.mark.parametrize("lines", [2, 3, 4])
def test_every_stop_lies_on_its_line(lines):
    """The share of a stop's cell that has a line's colour tells whether it stops."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        drawn = transit.draw_map(lines, 4, rng)
        png = transit.picture_of(drawn, (3, 4), "train", 0.0, rng)
        picture = np.asarray(Image.open(io.BytesIO(png)), int)
        for name, cells in drawn.lines.items():
            same = np.abs(picture - shapes.COLOURS[name]).sum(2) < 30
            share = same.reshape(3, 28, 4, 28).mean((1, 3))
            served = {(int(r), int(c)) for r, c in np.argwhere(share > 0.02)}
            assert served >= {*cells}, (name, share)
            assert all(share[cell] < 0.1 for cell in served - {*cells})


def test_rows_come_back_from_parquet(tmp_path):
    rows = transit.maps(12, split="train", seed=0)
    back, report = read_samples(write_parquet(rows, tmp_path / "maps.parquet"))
    assert report.used == 12
    for row in back:
        assert paid(row, row.annotations["demonstration"])["accuracy"] == 1


@pytest.mark.parametrize("columns", [3, 8])
def test_wide_maps_have_ten_stops_at_most(columns):
    for row in transit.maps(30, split="train", seed=0, lines=4, columns=columns):
        stops = {stop for line in row.annotations["json"].values() for stop in line}
        assert 4 <= len(stops) <= 10


@pytest.mark.parametrize(
    "wrong", [{"lines": 5}, {"columns": 9}, {"kinds": ["route"]}, {"kinds": []}]
)
def test_what_cannot_be_drawn_is_told(wrong):
    with pytest.raises(
        ValueError, match=r"3 to 8 columns, got|kinds are some of TorF1"
    ):
        transit.maps(1, split="train", seed=0, **wrong)
