"""Large pictures with small things: a sign to read, and things to find by a query."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from vrl_jax import geometry
from vrl_jax.programs.regions import unit_box
from vrl_jax.recipes.ergo import closer, coarse_to_fine, shrunk
from vrl_jax.worlds import digits, scenes, shapes, tasks

from ..fixtures.talk import told


def opened(png):
    return Image.open(io.BytesIO(png)).convert("RGB")


def test_scenes_are_deterministic_and_grow_by_appending():
    first = scenes.signs(4, split="train", seed=3)
    assert scenes.signs(6, split="train", seed=3)[:4] == first
    assert scenes.signs(4, split="train", seed=4)[0].images != first[0].images
    two = scenes.signs(4, split="train", seed=3, digits=2)
    assert not {row.id for row in first} & {row.id for row in two}


@pytest.mark.parametrize("count", [1, 2])
def test_a_sign_stands_in_its_box_and_says_the_answer(count):
    for sample in scenes.signs(20, split="test", seed=0, digits=count):
        facts, picture = sample.annotations, opened(sample.images[0])
        assert picture.size == (504, 504)
        ((left, top, right, bottom),) = facts["boxes"]
        assert (right - left, bottom - top) == (28 * count + 28, 56)
        assert (left % 84, top % 84) == ((84 - 28 * count) // 2 - 14, 14)
        assert sample.answer == "".join(map(str, facts["digits"]))
        for place, scan in enumerate(facts["scans"]):
            assert digits.scans().held_out[scan]
            assert digits.scans().digit[scan] == facts["digits"][place]
            start = left + 14 + 28 * place
            there = (start, top + 14, start + 28, bottom - 14)
            grey = np.asarray(picture.crop(there).convert("L").resize((8, 8)), float)
            ink = digits.scans().ink[scan]
            assert np.corrcoef(255 - grey.ravel(), ink.ravel())[0, 1] > 0.95


def test_signs_stand_in_every_cell():
    found = {
        tuple(edge // 56 for edge in sample.annotations["boxes"][0][:2])
        for sample in scenes.signs(80, split="train", seed=0, cells=3, cell_pixels=56)
    }
    assert len(found) == 9


def test_the_demonstrated_region_shows_the_sign_in_full():
    """In 9 tokens a digit is under 5 pixels wide; in the crop it has all of its own."""
    for sample in map(tasks.sign_in_region, scenes.signs(20, split="train", seed=0)):
        pointed, said, read = sample.annotations["demonstration"]
        assert opened(shrunk(sample.images[0], 9, 28)).size == (84, 84)
        look = closer(sample.images[0], pointed, 9, 28)
        assert look.found and look.share == pytest.approx(1 / 36)
        inside = opened(look.picture).crop((14, 14, 70, 70))
        whole = opened(sample.images[0]).crop(sample.annotations["boxes"][0])
        np.testing.assert_array_equal(inside, whole)
        assert said == read == f"<answer>{sample.answer}</answer>"


def test_the_demonstration_earns_all_that_ergo_pays():
    for sample in map(tasks.sign_in_region, scenes.signs(4, split="train", seed=0)):
        said = sample.annotations["demonstration"]
        _, outcome = told(coarse_to_fine(sample, tokens=9), *said)
        parts = ("region", "box", "accuracy", "format")
        assert [outcome.facts[part] for part in parts] == [1, 1, 1, 1]


@pytest.mark.parametrize("sizes", [{"digits": 3}, {"digits": 0}, {"cells": 0}])
def test_a_sign_must_fit_its_cell(sizes):
    with pytest.raises(ValueError, match="must fit one of"):
        scenes.signs(1, split="train", seed=0, **sizes)


def test_regions_are_whole_pixels():
    (row,) = scenes.signs(1, split="train", seed=0)
    wanted = "-train-0-0: `shown` must divide by `cells`.*got shown=85, cells=6"
    with pytest.raises(ValueError, match=wanted):
        tasks.sign_in_region(row, shown=85)


@pytest.mark.parametrize("region", [{"cells": 12}, {"cells": 7}])
def test_a_region_must_hold_the_sign(region):
    rows = scenes.signs(20, split="train", seed=0, digits=2)
    with pytest.raises(ValueError, match=r"scenes-signs-6-2-train-0-.*holds the sign"):
        [tasks.sign_in_region(row, **region) for row in rows]
    with pytest.raises(ValueError, match=r"scenes-signs-6-2-train-0-.*holds the sign"):
        [tasks.better_region(row, **region) for row in rows]


def test_the_better_region_shows_the_sign_in_full_and_the_worse_one_does_not():
    for sample in map(tasks.better_region, scenes.signs(20, split="train", seed=0)):
        facts = sample.annotations
        better, worse = (unit_box(facts[f"{n}_step"]) for n in ("chosen", "rejected"))
        sign = np.array(facts["boxes"][0]) / 504
        assert (sign[:2] >= better[:2]).all() and (sign[2:] <= better[2:]).all()
        assert geometry.iou(np.array(worse), sign) == 0
        assert facts["demonstration"] == [facts["chosen_step"], facts["chosen"]]
        assert facts["chosen"] == f"<answer>{sample.answer}</answer>"
        other = facts["rejected"].removeprefix("<answer>").removesuffix("</answer>")
        assert len(other) == len(sample.answer) and other != sample.answer
        assert tasks.better_region(sample).annotations == facts
    with pytest.raises(ValueError, match="cells >= 2, got 1"):
        tasks.better_region(sample, cells=1)


def test_targets_are_deterministic_and_grow_by_appending():
    first = scenes.targets(4, split="train", seed=3)
    assert scenes.targets(6, split="train", seed=3)[:4] == first
    for other in ({"split": "train", "seed": 4}, {"split": "test", "seed": 3}):
        (row,) = scenes.targets(1, **other)
        assert row.images != first[0].images and row.id != first[0].id


def test_a_query_is_true_of_its_target_and_of_no_other():
    quarters, relations = set(), set()
    for sample in scenes.targets(24, split="test", seed=0):
        facts, picture = sample.annotations, opened(sample.images[0])
        assert picture.size == (504, 504)
        names = [f"{o['colour']} {o['shape']}" for o in facts["objects"]]
        boxes, context = facts["boxes"], facts["context"]
        assert len({*names}) == 6 and [o["box"] for o in facts["objects"]] == boxes
        assert context["object"] == names[0]
        assert all(part in sample.question for part in context.values())
        assert json.loads(sample.answer) == facts["gt_box"]
        np.testing.assert_allclose(np.array(facts["gt_box"]) * 504, boxes[0])
        cells = {(left // 84, top // 84) for left, top, *_ in boxes}
        assert len(cells) == 6
        for left, top, right, bottom in boxes:
            assert (right - left, bottom - top) == (28, 28)
            assert left // 84 == (right - 1) // 84 and top // 84 == (bottom - 1) // 84
        left, top, *_ = boxes[0]
        across, down = ("left", "right")[left >= 252], ("top", "bottom")[top >= 252]
        assert context["position"] == f"{down} {across}"
        where, _, other = context["relation"].partition(" the ")
        dx, dy = np.subtract(boxes[names.index(other)], boxes[0])[:2]
        far, side = (abs(dx), dx) if "of" in where else (abs(dy), dy)
        assert far >= 2 * min(abs(dx), abs(dy))
        assert (where in ("left of", "above")) == (side > 0)
        for thing, box in zip(facts["objects"], boxes, strict=True):
            middle = ((box[0] + box[2]) // 2, (box[1] + box[3]) // 2)
            assert picture.getpixel(middle) == shapes.COLOURS[thing["colour"]]
        quarters.add(context["position"])
        relations.add(where)
    assert len(quarters) == 4
    assert relations == {"left of", "right of", "above", "below"}


@pytest.mark.parametrize(
    "sizes",
    [{"things": 1}, {"things": 13}, {"cells": 2}, {"thing_pixels": 85}, {"cells": 0}],
)
def test_targets_must_have_names_and_cells(sizes):
    with pytest.raises(ValueError, match="there can be 2 to"):
        scenes.targets(1, split="train", seed=0, **sizes)
