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


@pytest.mark.parametrize("lines", [2, 3, 4])
def test_demonstrations_are_right_and_others_are_not(lines):
    rows = transit.maps(60, split="train", seed=0, lines=lines)
    by_kind = {}
    for row in rows:
        score = paid(row, row.annotations["demonstration"])
        assert score["accuracy"] == 1
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


def test_yes_and_no_are_about_as_frequent():
    rows = transit.maps(200, split="train", seed=0, kinds=["TorF1", "TorF2"])
    assert 0.4 < np.mean([int(row.answer) for row in rows]) < 0.6


@pytest.mark.parametrize("lines", [2, 3, 4])
def test_every_stop_lies_on_its_line(lines):
    """The share of a stop's cell that has a line's colour tells whether it stops."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        drawn = transit.draw_map(lines, 3, rng)
        png = transit.picture_of(drawn, (3, 3), "train", 0.0, rng)
        picture = np.asarray(Image.open(io.BytesIO(png)), int)
        for name, cells in drawn.lines.items():
            same = (np.abs(picture - shapes.COLOURS[name]).sum(2) < 30).reshape(
                3, 28, 3, 28
            )
            share = same.mean((1, 3))
            served = {(int(r), int(c)) for r, c in np.argwhere(share > 0.02)}
            assert served >= {*cells}, (name, share)
            assert all(share[cell] < 0.1 for cell in served - {*cells})


def test_rows_come_back_from_parquet(tmp_path):
    rows = transit.maps(12, split="train", seed=0)
    back, report = read_samples(write_parquet(rows, tmp_path / "maps.parquet"))
    assert report.used == 12
    for row in back:
        assert paid(row, row.annotations["demonstration"])["accuracy"] == 1


def test_what_cannot_be_drawn_is_told():
    with pytest.raises(ValueError, match="2 to 4 lines and 3 columns"):
        transit.maps(1, split="train", seed=0, lines=5)
