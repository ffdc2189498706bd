"""Diagrams: what is drawn is what is said, and it answers the question."""

import collections
import functools
import io
import json
import math

import numpy as np
import pytest
from PIL import Image

from vrl_jax.recipes.cogflow import (
    cogflow_reward,
    complete_geometry_seen,
    geometry_seen,
    look_alike,
    reference,
    released_reward,
    visual_score,
    watched_first,
)
from vrl_jax.rewards.primitives import draw
from vrl_jax.training.data import read_samples
from vrl_jax.types import Episode, Turn
from vrl_jax.worlds import diagrams
from vrl_jax.worlds.shapes import split_of
from vrl_jax.worlds.writing import write_parquet

from ..fixtures.talk import told


def rows(count=40, split="train"):
    return diagrams.points_in_circle(count, split=split, seed=0)


def opened(picture):
    return np.asarray(Image.open(io.BytesIO(picture)).convert("L"), float)


def ink(picture):
    """An embedding: how dark each place is."""
    small = Image.fromarray(opened(picture).astype(np.uint8)).resize((28, 28))
    return 255.0 - np.asarray(small, float).ravel()


def test_rows_follow_from_the_seed_and_split():
    assert rows(4) == rows()[:4]
    assert rows(4) != diagrams.points_in_circle(4, split="train", seed=1)
    for split in ("train", "test"):
        for row in rows(split=split):
            picture = np.asarray(Image.open(io.BytesIO(row.images[0])))
            assert split_of(picture) == split


def test_answers_are_as_often_and_follow_from_what_is_drawn():
    made = rows(400)
    counts = collections.Counter(row.answer for row in made)
    assert sorted(counts) == ["0", "1", "2", "3"] and min(counts.values()) > 70
    for row in made:
        seen = reference(row)
        ((x, y, radius),) = seen.circles
        depths = [radius - math.dist(point, (x, y)) for point in seen.points]
        assert min(map(abs, depths)) >= 1
        assert int(row.answer) == sum(depth > 0 for depth in depths)
        thought = row.annotations["thinking"].split(", ")
        said = [(name[0], name.endswith("inside")) for name in thought]
        assert said == list(zip("ABC", [d > 0 for d in depths], strict=True))
        assert [point[0] for point in seen.points] == sorted(p[0] for p in seen.points)
        drawn = np.asarray(draw(seen, pixels=84).convert("L"), float)
        np.testing.assert_array_equal(drawn, opened(row.images[0]))


@pytest.mark.parametrize(
    ("make", "most"),
    [
        (cogflow_reward, 4.0),
        (functools.partial(cogflow_reward, geometry=complete_geometry_seen), 4.0),
        (released_reward, 1.0),
    ],
)
def test_the_demonstration_passes_the_gate_and_earns_everything(make, most):
    look = look_alike(ink, pixels=84)
    reward = make(look=look, internalised=lambda episodes: [1.0] * len(episodes))
    made = rows(12)
    texts = ["".join(row.annotations["demonstration"]) for row in made]

    def paid(row, text):
        return reward([Episode(row, "?", (Turn(text, (1,)),), True)])[0]["overall"]

    own = [paid(*pair) for pair in zip(made, texts, strict=True)]
    np.testing.assert_allclose(own, most, atol=1e-6)
    others = [paid(*pair) for pair in zip(made, texts[1:] + texts[:1], strict=True)]
    assert max(others) < most and np.mean(others) < 0.8 * most
    for row in made:
        program = watched_first(row, gate=visual_score(geometry_seen, look), tau=1.999)
        asks, outcome = told(program, *row.annotations["demonstration"])
        assert len(asks) == 2 and outcome.facts["accepted"]


def test_rows_come_back_from_parquet(tmp_path):
    made = rows(10)
    read, report = read_samples(write_parquet(made, tmp_path / "rows.parquet"))
    assert (report.used, dict(report.dropped)) == (10, {})
    for one, other in zip(made, read, strict=True):
        assert (one.question, one.answer) == (other.question, other.answer)
        assert other.annotations == json.loads(json.dumps(dict(one.annotations)))
