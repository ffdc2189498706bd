"""The four tasks of a search: what is asked about which region, and the answer."""

import dataclasses

import jax
import numpy as np
import pytest

from vrl_jax.programs import region_search
from vrl_jax.programs.region_search import claims
from vrl_jax.programs.region_tasks import (
    atomic_samples,
    cell_of,
    holds,
    target,
    way_to,
    with_way,
)
from vrl_jax.programs.region_tree import WHOLE, moved, to_global, to_local
from vrl_jax.programs.regions import cut, unit_box
from vrl_jax.recipes.sft import sft
from vrl_jax.types import Sample
from vrl_jax.worlds import scenes
from vrl_jax.worlds.writing import png_bytes

from ..fixtures.signs import chain_actor, decoded, size
from ..fixtures.talk import said

CONTEXT = {"object": "barn", "position": "top left", "relation": None}
BOX = [0.35, 0.7, 0.45, 0.8]
SAMPLE = Sample(
    "one",
    "small",
    "<image>Where?",
    (png_bytes(np.full((900, 900, 3), 90, np.uint8)),),
    "",
    {"context": CONTEXT, "gt_box": BOX},
)


def test_the_way_leads_into_cells_as_long_as_all_is_in_view():
    """By hand: cell 8 of the whole, of that cell 1, which ends at pixels 400 and 700.

    The box does so at 405. A smaller one, from 630 to 648, is cut in two only by cell 4
    of the latter, which begins at 633.
    """
    cell = pytest.approx((1 / 3, 2 / 3, 2 / 3, 1))
    assert cell_of(BOX, WHOLE) == "8"
    assert way_to(BOX, (900, 900)) == [WHOLE, cell]
    smaller = (0.35, 0.7, 0.37, 0.72)
    inner = pytest.approx((1 / 3, 2 / 3, 400 / 900, 700 / 900))
    assert way_to(smaller, (900, 900)) == [WHOLE, cell, inner]
    assert way_to(smaller, (900, 900), depth=1) == [WHOLE, cell]
    # In 200 pixels it ends at a cell of 66, whose cells would be under 28.
    rounded = pytest.approx((67 / 200, 133 / 200, 133 / 200, 1))
    assert way_to(smaller, (200, 200)) == [WHOLE, rounded]


@pytest.mark.parametrize(
    ("box", "cell"),
    [
        ((0, 0, 0.1, 0.1), "1"),
        ((0.9, 0, 1, 0.1), "3"),
        ((0.4, 0.4, 0.6, 0.6), "5"),
        ((0.9, 0.9, 1, 1), "9"),
        ((1, 1, 1, 1), "9"),  # on the edge, and outside of the region
        ((-0.5, 1.5, -0.2, 2), "7"),
    ],
)
def test_the_cell_of_a_box_holds_its_middle(box, cell):
    assert cell_of(box, WHOLE) == cell


def by_task(made):
    tasks = {}
    for row in made:
        tasks.setdefault(row.source.removeprefix("geovis/"), []).append(row)
    return tasks


def test_the_tasks_of_a_row():
    """Of the whole: itself, the right cell and another. Of the cell: out, and two more.

    The cell's own right cell cuts the target; the way out from it holds it all.
    """
    made = atomic_samples(SAMPLE)
    tasks = by_task(made)
    regions = {tuple(row.annotations["region"]) for row in made}
    assert len(regions) == 6 and WHOLE in regions
    there = {region for region in regions if holds(region, BOX)}
    cell, out = moved(WHOLE, "8", (900, 900)), (0.25, 525 / 900, 0.75, 1.0)
    assert there == {WHOLE, cell, out}
    assert len(tasks["check"]) == 2 * len(regions)  # no relation is known
    for row in tasks["check"]:
        assert (row.answer == "yes") == (tuple(row.annotations["region"]) in there)
        assert len(row.images) == 2 and row.images[0] == SAMPLE.images[0]
        assert any(f"this: {claim}?" in row.question for claim in claims(SAMPLE))
    for task, pictures in (("locate", 1), ("zoom", 1), ("ground", 2)):
        assert [len(row.images) for row in tasks[task]] == [pictures] * 3
        assert {tuple(row.annotations["region"]) for row in tasks[task]} == there
    for row in [*tasks["locate"], *tasks["ground"]]:
        found = to_global(unit_box(row.answer), row.annotations["region"])
        np.testing.assert_allclose(found, BOX, atol=1e-3)
    for row in tasks["zoom"]:
        number = row.answer.removeprefix("<zoom>").removesuffix("</zoom>")
        new = moved(tuple(row.annotations["region"]), number, (900, 900))
        left, top, right, bottom = to_local(BOX, new)
        assert 0 <= (left + right) / 2 <= 1 and 0 <= (top + bottom) / 2 <= 1
    for row in tasks["ground"]:
        assert row.question.startswith(SAMPLE.question)
    for row in made:
        assert row.annotations["demonstration"] == row.answer
        wide, high = (round(900 * side) for side in sides(row))
        assert size(row.images[-1]) == (wide, high)
    assert len({row.id for row in made}) == len(made) and made[0].id == "one/0"
    assert atomic_samples(SAMPLE) == made


def sides(row):
    left, top, right, bottom = row.annotations["region"]
    return right - left, bottom - top


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"gt_box": None}, "one needs the column 'gt_box'"),
        ({"gt_box": [0.1, 0.2, 0.1, 0.3]}, "one needs the column 'gt_box'"),
        ({"gt_box": [10, 20, 30, 40]}, "one needs the column 'gt_box'"),
        ({"gt_box": [0, 0, "1", 1]}, "one needs the column 'gt_box'"),
        ({"context": None}, "one needs the column 'context'"),
        ({"gt_box": [0.5, 0.5, 0.5004, 0.6]}, "of one is too small to be spelled"),
    ],
)
def test_a_row_that_cannot_be_asked_about_is_named(columns, message):
    row = dataclasses.replace(SAMPLE, annotations={**SAMPLE.annotations, **columns})
    with pytest.raises(ValueError, match=message):
        atomic_samples(row)
    if "context" not in columns:
        with pytest.raises(ValueError, match=message):
            with_way(row, depth=0)


def test_more_decimals_spell_a_smaller_box():
    columns = {**SAMPLE.annotations, "gt_box": [0.5, 0.5, 0.5004, 0.6]}
    row = dataclasses.replace(SAMPLE, annotations=columns)
    made = with_way(row, depth=0, spell_box=lambda box: str([*box]))
    (answer,) = made.annotations["demonstration"]
    assert unit_box(answer) == (0.5, 0.5, 0.5004, 0.6)


@pytest.mark.parametrize(
    "box", [[1e-05, 0, 0.5, 2e-05], [*np.array(BOX)], tuple(BOX), [0, 0, 1, 1]]
)
def test_any_four_numbers_may_be_a_target(box):
    row = dataclasses.replace(SAMPLE, annotations={"gt_box": box})
    assert target(row) == tuple(map(float, box))


@pytest.mark.parametrize("side", [np.nan, np.inf, True, "1", None])
def test_a_target_is_of_finite_numbers(side):
    row = dataclasses.replace(SAMPLE, annotations={"gt_box": [0, 0, 0.5, side]})
    with pytest.raises(ValueError, match="one needs the column 'gt_box'"):
        target(row)


def test_a_row_without_a_picture_is_named():
    with pytest.raises(ValueError, match="one has no picture"):
        atomic_samples(dataclasses.replace(SAMPLE, images=()))


def test_who_knows_the_tasks_finds_the_target(monkeypatch):
    """A model that is right in all four searches, and answers, rightly."""
    regions = {}

    def noted(sample, region):
        crop = cut(sample, region)
        regions[crop] = region
        return crop

    def right(ask, box):
        (message,) = ask.context
        region = regions[message.images[-1]]
        there = holds(region, box)
        if "yes or no" in message.text:
            return said("yes" if there else "no")
        if "<zoom>" in message.text:
            return said(f"<zoom>{cell_of(box, region)}</zoom>")
        return said(str([*to_local(box, region)]) if there else "nowhere")

    monkeypatch.setattr(region_search, "cut", noted)
    for sample in scenes.targets(2, split="train", seed=0):
        box, program = target(sample), region_search.search_then_ground(sample)
        asked, answer = next(program), None
        while answer is None:
            several = isinstance(asked, list)
            heard = [right(ask, box) for ask in (asked if several else [asked])]
            try:
                asked = program.send(heard if several else heard[0])
            except StopIteration as end:
                answer = end.value
        assert region_search.told_box(answer.turns) == pytest.approx(box)
        assert answer.facts["depth"] >= 1 and answer.facts["share"] <= 0.25
        # All checks are yes, and the target lies in the middle half, or touches it.
        assert answer.facts["value"] > 0.1


def test_the_tasks_are_learnt():
    """In the engine, each with the pictures that the search shows."""
    (sample,) = scenes.targets(1, split="train", seed=0, cells=2, things=2)
    words = region_search.Words("<image><image>?", "<image>?", "<image>", "?<image>")
    short = dataclasses.replace(sample, question="<image>")
    made = by_task(atomic_samples(short, words=words))
    rows = [made[task][0] for task in ("locate", "zoom")]
    rollout = sft().act(chain_actor(), iter([rows]), jax.random.key(0))
    assert decoded(rollout) == [row.answer for row in rows]
