"""GeoViS: a path of zooms, the box at its end, and what both are paid."""

import dataclasses
import functools
import io

import jax
import numpy as np
import pytest
from PIL import Image

from vrl_jax.engine.desk import Limits, OutOfRoom
from vrl_jax.evals.held_out import Answered, measurements
from vrl_jax.models.qwen_vl.front_end import front_end
from vrl_jax.programs.recital import recited
from vrl_jax.programs.region_search import placed, told_box
from vrl_jax.programs.region_tasks import unjudged, with_way
from vrl_jax.programs.region_tree import WHOLE, moved
from vrl_jax.recipes.geovis import (
    geovis,
    geovis_reward,
    grounding_reward,
    overlap,
    reaches,
    zoom_path,
)
from vrl_jax.types import Episode, Sample
from vrl_jax.worlds import scenes
from vrl_jax.worlds.writing import png_bytes

from ..fixtures import small
from ..fixtures.signs import ROOM, chain_actor, decoded
from ..fixtures.talk import said, talk, told

CONTEXT = {"object": "barn"}
BOX = [450 / 900, 750 / 900, 525 / 900, 825 / 900]
SAMPLE = Sample(
    "one",
    "small",
    "<image>Where?",
    (png_bytes(np.full((900, 900, 3), 90, np.uint8)),),
    "",
    {"context": CONTEXT, "gt_box": BOX},
)
IN = "so <zoom>8</zoom>"
RIGHT = "<answer>[0.5, 0.5, 0.75, 0.75]</answer>"
path = functools.partial(zoom_path, worth=unjudged)


def episode(turns, facts=(), **columns):
    annotations = {**SAMPLE.annotations, **columns}
    row = dataclasses.replace(SAMPLE, annotations=annotations)
    return Episode(row, "?", tuple(turns), True, facts=dict(facts))


def placed_at(box, **columns):
    return episode(placed((said("there"),), box, WHOLE, {}).turns, **columns)


def test_the_worked_measures():
    """From the sheet: IoUs 0.82, 0.55, 0.40, 0.71; each is a part of the whole."""
    shares = (0.82, 0.55, 0.40, 0.71)
    made = [placed_at((0.0, 0.0, share, 1.0), gt_box=[0, 0, 1, 1]) for share in shares]
    found = [[Answered(e, grounding_reward()([e])[0])] for e in made]
    measured = measurements(
        [[one._replace(scores={**one.scores, "unscored": 0})] for (one,) in found]
    )
    assert measured["val/pr50_reward"] == 0.75
    assert measured["val/pr70_reward"] == 0.50
    assert measured["val/iou_reward"] == pytest.approx(0.62)
    assert measured["val/reward_score"] == pytest.approx(0.62)
    assert reaches(0.5)(0.5) == 1


def test_a_path_shows_what_it_zooms_to_and_ends_with_a_box_there():
    asks, outcome = told(path(SAMPLE), IN, RIGHT)
    opening, first, crop = asks[1].context
    assert asks[0].context == (opening,) and opening.images == SAMPLE.images
    assert opening.text.startswith("<image>Where?") and first.text == IN
    assert crop.text.startswith("<image>") and "Where?" in crop.text
    assert Image.open(io.BytesIO(crop.images[0])).size == (300, 300)
    assert told_box(outcome.turns) == pytest.approx(BOX)  # the sheet's mapping
    facts = {"path": 0, "zooms": 1, "format": 1, "box": 1}
    assert outcome.facts == facts and all(ask.trained for ask in asks)


def test_the_path_is_worth_the_mean_of_its_parts():
    """By hand: 8, out, 5; worths 0.2, 0.9, 0.4."""
    seen, worths = [], iter([0.2, 0.9, 0.4])

    def worth(sample, region):
        seen.append(region)
        yield from ()
        return next(worths)

    moves = ("8", "out", "5")
    said_ = [f"<zoom>{move}</zoom>" for move in moves]
    _, outcome = told(zoom_path(SAMPLE, worth=worth), *said_, RIGHT)
    region = WHOLE
    for move, there in zip(moves, seen, strict=True):
        region = moved(region, move, (900, 900))
        assert there == region
    assert outcome.facts["path"] == pytest.approx(0.5) and outcome.facts["zooms"] == 3


def test_the_policy_is_asked_what_a_part_is_worth_and_not_trained_for_it():
    replies = [said(IN), [said("yes"), said("[0.25, 0.25, 0.75, 0.75]")], said(RIGHT)]
    asks, outcome = talk(zoom_path(SAMPLE), replies)
    assert [ask.trained for ask in asks[1]] == [False, False]
    assert len(asks[2].context) == 3 and outcome.facts["path"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("texts", "zooms", "format_", "box", "ended"),
    [
        ([RIGHT], 0, 1, 1, None),
        (["[0, 0, 1, 1]"], 0, 0, 1, None),  # a box without its tag
        (["<answer>there</answer>"], 0, 0, 0, None),
        (["<answer>[2, 2, 3, 3]</answer>"], 0, 0, 0, None),
        ([""], 0, 0, 0, None),
        (["<zoom>8"], 0, 0, 0, None),
        (["<zoom>10</zoom>"], 0, 0, 0, "no such zoom"),
        (["<zoom></zoom>" + RIGHT], 0, 0, 0, "no such zoom"),
        (["<zoom>out</zoom>"], 0, 0, 0, "no such zoom"),
        ([IN, IN, IN, IN], 3, 0, 0, "no such zoom"),  # of 33 pixels
        ([IN + RIGHT, RIGHT], 1, 0, 1, None),  # two answers
        ([IN, "it is there"], 1, 0, 0, None),
    ],
)
def test_whatever_is_written_has_an_end(texts, zooms, format_, box, ended):
    _, outcome = told(path(SAMPLE), *texts)
    facts = {"zooms": zooms, "format": format_, "box": box}
    assert {name: outcome.facts[name] for name in facts} == facts
    ends = [name for name in outcome.facts if name.startswith("ended/")]
    assert ends == ([f"ended/{ended}"] if ended else [])
    assert (told_box(outcome.turns) is not None) == box


def test_there_are_so_many_zooms_and_no_more():
    """Out and in again have no end of their own."""
    back = ["<zoom>5</zoom>", "<zoom>out</zoom>"]
    _, outcome = told(path(SAMPLE), *back, *back, back[0], RIGHT)
    assert outcome.facts["zooms"] == 5 and outcome.facts["format"] == 1
    _, outcome = told(path(SAMPLE), *back, *back, *back)
    assert outcome.facts["zooms"] == 5 and outcome.facts["ended/no such zoom"] == 1


def test_a_part_without_room_ends_the_path():
    first = said(IN)
    for replies in ([first, OutOfRoom()], [OutOfRoom()]):
        _, outcome = talk(path(SAMPLE), replies)
        assert outcome.facts["ended/part did not fit"] == 1
    _, outcome = talk(zoom_path(SAMPLE), [first, OutOfRoom()])  # of the checks
    assert outcome.turns == [first]
    assert outcome.facts["format"] == outcome.facts["box"] == 0


def test_a_row_without_a_picture_can_be_answered_and_not_zoomed():
    blind = dataclasses.replace(SAMPLE, images=(), question="Where?")
    _, outcome = told(path(blind), IN)
    assert outcome.facts["ended/no such zoom"] == 1


def test_what_a_path_earns():
    """By hand: IoU 0.5, r_t 0.4 on average, and the layout: 0.5 + 0.04 + 1."""
    facts = {"path": 0.4, "format": 1}
    turns = placed((said("there"),), (0.0, 0.0, 0.5, 1.0), WHOLE, {}).turns
    one = episode(turns, facts, gt_box=[0, 0, 1, 1])
    found = geovis_reward()([one])[0]
    assert found["overall"] == pytest.approx(1.54)
    assert (found["box_iou"], found["box_pr50"], found["box_pr70"]) == (0.5, 1, 0)
    assert geovis_reward(reaches(0.5))([one])[0]["overall"] == pytest.approx(2.04)
    assert geovis_reward(reaches(0.7), path=1.0)([one])[0]["overall"] == (
        pytest.approx(1.4)
    )
    nowhere = episode([said("[0, 0, 1, 1]")], facts)
    assert geovis_reward()([nowhere])[0]["overall"] == pytest.approx(1.04)
    with pytest.raises(ValueError, match="one needs the column 'gt_box'"):
        overlap(episode(turns, facts, gt_box=None))
    with pytest.raises(ValueError, match="has no fact 'path'"):
        geovis_reward()([episode(turns)])


def test_the_advantages_of_a_group():
    """R = 2, 1, 1, 0: mean 1, std (n - 1) sqrt(2 / 3), by hand."""
    credit = geovis(group_size=4).credit
    batch, _ = credit(small.scored([2.0, 1.0, 1.0, 0.0]))
    wanted = [1.224745, 0, 0, -1.224745]
    np.testing.assert_allclose(batch.advantages[:, 0], wanted, atol=2e-6)


def test_all_turns_are_trained_and_the_parts_between_are_not(monkeypatch):
    """Played for real; which texts are zooms is told, for none is written yet."""
    zooms = lambda text, name: "5" if sum(map(ord, text)) % 2 else None
    monkeypatch.setattr("vrl_jax.recipes.geovis.first_tag", zooms)
    recipe = geovis(
        group_size=4,
        worth=unjudged,
        find="{question}",
        zoomed="<image>{question}",
        read_box=lambda _: WHOLE,
        limits=Limits(row_tokens=64, pictures=2),
    )
    pictures = front_end(small.spec(), min_pixels=28 * 28, max_pixels=28 * 28)
    seen = []
    actor = small.actor(
        reward=geovis_reward(),
        observe=lambda episodes, _: seen.extend(episodes),
        processor=dataclasses.replace(small.actor().processor, front_end=pictures),
    )
    row = dataclasses.replace(
        SAMPLE, images=(small.png(0, 84, 84),), question="<image>What is it?"
    )
    played = recipe.act(actor, iter([[row]]), jax.random.key(0))
    tokens, mask = np.asarray(played.tokens), np.asarray(played.mask)
    assert len(tokens) == len(seen) == 4
    ends = set()
    for line, kept, one in zip(tokens, mask, seen, strict=True):
        own = [turn for turn in one.turns if turn.chosen]
        assert tuple(line[kept]) == sum((turn.tokens for turn in own), ())
        assert (len(own) == 1) == (zooms(own[0].text, "zoom") is None)
        if len(own) > 1:
            assert not kept[len(own[0].tokens)]
        ends.add((int(one.facts["zooms"]), told_box(one.turns)))
    # Answered at once, and from the middle cell, or the cell of that asked for.
    middle = (1 / 3, 1 / 3, 2 / 3, 2 / 3)
    assert ends == {(0, WHOLE), (1, middle), (1, None)}
    again = actor.likelihood(played).logprobs
    np.testing.assert_allclose(again[mask], played.old_logprobs[mask], atol=1e-5)
    assert played.rewards.tolist() == pytest.approx([*map(overlap, seen)])


def test_a_demonstrated_path_is_recited_and_ends_at_the_target():
    made = scenes.targets(3, split="train", seed=0)
    for row in map(with_way, made):
        zooms_ = row.annotations["demonstration"][:-1]
        _, outcome = told(path(row), *row.annotations["demonstration"])
        assert outcome.facts["zooms"] == len(zooms_) and outcome.facts["format"] == 1
        one = Episode(row, "?", outcome.turns, True, facts=outcome.facts)
        assert geovis_reward()([one])[0]["overall"] == pytest.approx(2, abs=0.02)
    short = {"find": "{question}", "zoomed": "<image>"}
    small_scene = scenes.targets(1, split="train", seed=0, cells=2, things=2)
    row = with_way(dataclasses.replace(small_scene[0], question="<image>"))
    rollout = recited(
        chain_actor(),
        iter([[row]]),
        jax.random.key(0),
        program=functools.partial(path, **short),
        limits=ROOM._replace(row_tokens=120, pictures=2),
    )
    turns = row.annotations["demonstration"]
    assert len(turns) == 2 and decoded(rollout) == ["<|im_end|>".join(turns)]
