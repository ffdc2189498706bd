"""A search asks what regions are worth and where to zoom, then for the box."""

import dataclasses
import functools
import io

import jax
import numpy as np
import pytest
from PIL import Image

from vrl_jax.models.qwen_vl.front_end import front_end
from vrl_jax.programs.acting import act
from vrl_jax.programs.region_search import (
    Words,
    placed,
    region_reward,
    region_score,
    search,
    search_then_ground,
    sought,
    told_box,
)
from vrl_jax.programs.region_tree import WHOLE, best, moved
from vrl_jax.programs.regions import cut
from vrl_jax.types import Sample, Turn
from vrl_jax.worlds.writing import png_bytes

from ..fixtures import small
from ..fixtures.talk import said, told

CONTEXT = {"object": "barn", "position": "top left", "relation": "by a road"}
PICTURE = png_bytes(np.full((900, 900, 3), 90, np.uint8))
SHORT = Words(
    "<image><image>{wanted}", "<image>{wanted}", "<image>", "{question}<image>"
)
SAMPLE = Sample("one", "small", "<image>Where?", (PICTURE,), "", {"context": CONTEXT})


def test_the_worked_reward():
    """From the sheet, over 100: 1800 / 2700, one of three checks; the rest by hand."""
    found = (0.30, 0.30, 0.80, 0.70)
    assert region_score(0, 3, found, alpha=0) == pytest.approx(0.666667, abs=1e-6)
    assert region_score(1, 3, found) == pytest.approx(0.633333, abs=1e-6)
    assert region_score(1, 3, None) == pytest.approx(0.1 / 3)
    assert region_score(2, 2, (0.25, 0.25, 0.75, 0.75)) == pytest.approx(1)


def test_a_region_is_cut_as_it_is():
    """No pixel more: of 151, 50 / 151 * 151 is a little over 50 as a float."""
    sample = dataclasses.replace(SAMPLE, images=(small.png(0, 155, 151),))
    picture = Image.open(io.BytesIO(sample.images[0]))
    wanted = {"1": (0, 0, 50, 52), "5": (50, 52, 101, 103), "9": (101, 103, 151, 155)}
    for move, pixels in wanted.items():
        shown = Image.open(io.BytesIO(cut(sample, moved(WHOLE, move, (151, 155)))))
        assert shown.size == (pixels[2] - pixels[0], pixels[3] - pixels[1])
        assert shown.tobytes() == picture.crop(pixels).tobytes()


def test_a_region_is_judged_by_the_model_itself():
    program = region_reward(SAMPLE, (0.0, 0.0, 0.5, 0.5))
    asks = next(program)
    assert all(not ask.trained and ask.top_k == 1 for ask in asks)
    texts = [ask.context[0].text for ask in asks]
    claims = ["barn", "barn, top left", "barn, by a road", "barn"]
    for claim, text in zip(claims, texts, strict=True):
        assert f"this: {claim}?" in text
    shown = [ask.context[0].images for ask in asks]
    assert [len(images) for images in shown] == [2, 2, 2, 1]
    assert shown[0][0] == PICTURE and len({images[-1] for images in shown}) == 1
    with pytest.raises(StopIteration) as end:
        program.send([said(text) for text in ("Yes.", "no", "?", "[.3, .3, .8, .7]")])
    # The sheet's reward once more; .3 is no number of JSON, but read.
    assert end.value.value == pytest.approx(0.633333, abs=1e-6)


def test_what_the_query_does_not_say_is_not_asked():
    context = {"object": "a <image> barn", "position": None, "relation": ""}
    sample = dataclasses.replace(SAMPLE, annotations={"context": context})
    program = region_reward(sample, (0.0, 0.0, 0.5, 0.5))
    check, _ = next(program)
    assert "a \\<image> barn?" in check.context[0].text
    with pytest.raises(StopIteration) as end:
        program.send([said("yes"), said("nowhere")])
    assert end.value.value == pytest.approx(0.1)


def test_nothing_is_worth_nothing():
    blind = dataclasses.replace(SAMPLE, images=())
    with pytest.raises(StopIteration) as end:
        next(region_reward(blind, (0.0, 0.0, 0.5, 0.5)))
    assert end.value.value == 0


@pytest.mark.parametrize(
    "context", [None, "barn", {}, {"object": ""}, {"object": 3}, {"position": "left"}]
)
def test_a_row_without_an_object_is_named(context):
    row = dataclasses.replace(SAMPLE, annotations={"context": context})
    with pytest.raises(ValueError, match="one needs the column 'context'"):
        sought(row)


def walked(program, cells, worth):
    """The tree, told the cell of each region, and the regions that were scored."""
    scored, asked = [], []

    def score(sample, region):
        scored.append(region)
        return worth(region)
        yield

    running = program(worth=score)
    reply = None
    while True:
        try:
            ask = running.send(reply)
        except StopIteration as end:
            return end.value, scored, asked
        asked.append(ask)
        reply = said(cells(len(asked)))


def near_the_middle(region):
    left, top, right, bottom = region
    return 1 - abs((left + right) / 2 - 0.5) - abs((top + bottom) / 2 - 0.5)


def test_a_search_scores_a_new_region_each_time_and_asks_for_a_cell_once():
    program = functools.partial(search, SAMPLE, simulations=10)
    tree, scored, asked = walked(program, lambda _: "<zoom>5</zoom>", near_the_middle)
    assert tree[0].visits == 10 and all(not ask.trained for ask in asked)
    assert scored[0] == pytest.approx((1 / 3, 1 / 3, 2 / 3, 2 / 3))
    assert len(scored) <= 10 and max(node.depth for node in tree) <= 5
    visited = [node for node in tree[1:] if node.visits]
    assert {node.region for node in visited} == {*scored}
    assert all(node.worth is not None for node in visited)
    assert len(asked) == sum(
        bool(node.children) and moved(node.region, "1", (900, 900)) is not None
        for node in tree
    )
    for place, node in enumerate(tree):
        own = [tree[child] for child in node.children or ()]
        assert node.visits >= sum(child.visits for child in own)
        assert all(child.parent == place for child in own)
        assert len(own) <= (1 if node.region == WHOLE else 2)


def test_the_order_of_a_small_search():
    """By hand. 1: in to a, r 0.2. 2: a grows b and its way out o, b is scored, 0.9.

    3: N(a) = 2, so o, never tried, is next, 0. 4: b has 0.9 + sqrt(ln 3) = 1.948, o
    1.048; b grows c and p, c is scored, 0.6.
    """
    worths = iter([0.2, 0.9, 0.0, 0.6])
    program = functools.partial(search, SAMPLE, simulations=4)
    tree, scored, asked = walked(
        program, lambda _: "<zoom>1</zoom>", lambda _: next(worths)
    )
    a, b, o, c, _ = tree[1:]
    third, ninth = 1 / 3, 1 / 9
    assert scored == [node.region for node in (a, b, o, c)]
    assert a.region == pytest.approx((0, 0, third, third))
    assert b.region == pytest.approx((0, 0, ninth, ninth))
    assert o.region == pytest.approx((0, 0, 375 / 900, 375 / 900))
    assert [n.visits for n in tree] == [4, 4, 2, 1, 1, 0]
    assert a.value == pytest.approx(1.7 / 4) and b.value == pytest.approx(0.75)
    assert best(tree) == 2 and len(asked) == 3


def test_the_depth_and_the_smallest_cell_end_a_way():
    """84 pixels have one cell's depth; then only the way out is left, to the end."""
    tiny = dataclasses.replace(SAMPLE, images=(small.png(0, 84, 84),))
    program = functools.partial(search, tiny, simulations=10, depth=2)
    tree, scored, asked = walked(program, lambda _: "<zoom>5</zoom>", near_the_middle)
    assert len(asked) == 1 and len(tree) == len(scored) + 1 == 3
    assert tree[0].visits == 10 and [node.depth for node in tree] == [0, 1, 2]
    assert tree[2].children == ()


@pytest.mark.parametrize("reply", ["", "5", "<zoom>10</zoom>", "<zoom>out</zoom>"])
def test_a_cell_that_cannot_be_read_leads_nowhere(reply):
    program = functools.partial(search, SAMPLE)
    tree, scored, asked = walked(program, lambda _: reply, near_the_middle)
    assert (len(tree), scored, len(asked)) == (1, [], 1)
    blind = functools.partial(search, dataclasses.replace(SAMPLE, images=()))
    assert walked(blind, lambda _: reply, near_the_middle)[1:] == ([], [])


def worth_by_cell(sample, region):
    """An own worth that asks nobody: the place of the sheet's zoom is best."""
    yield from ()
    return float(region == pytest.approx((1 / 3, 2 / 3, 2 / 3, 1)))


ONE_STEP = functools.partial(search, worth=worth_by_cell, simulations=1)


def test_the_box_is_asked_with_picture_and_region_and_told_in_the_whole():
    program = search_then_ground(SAMPLE, search=ONE_STEP)
    asks, outcome = told(program, "<zoom>8</zoom>", "[0.5, 0.5, 0.75, 0.75]")
    assert [ask.trained for ask in asks] == [False, True]
    question, crop = asks[1].context[0], asks[1].context[0].images[1]
    assert question.images[0] == PICTURE and question.text.startswith("<image>Where?")
    assert Image.open(io.BytesIO(crop)).size == (300, 300)
    wanted = (450 / 900, 750 / 900, 525 / 900, 825 / 900)  # the sheet's box
    assert told_box(outcome.turns) == pytest.approx(wanted)
    facts = {"regions": 1, "depth": 1, "value": 1, "box": 1}
    assert {name: outcome.facts[name] for name in facts} == facts
    assert outcome.facts["share"] == pytest.approx(1 / 9)


@pytest.mark.parametrize(
    "reply", ["", "there", "[0.5, 0.5, 0.4, 0.75]", "[1, 2, 3, 4]"]
)
def test_no_box_is_told_where_none_can_be_read(reply):
    program = search_then_ground(SAMPLE, search=ONE_STEP)
    _, outcome = told(program, "<zoom>8</zoom>", reply)
    assert told_box(outcome.turns) is None and outcome.facts["box"] == 0


def test_a_box_on_the_edge_of_the_picture_is_told():
    """No rounding carries it past the edge."""
    for side in [n / 97 for n in range(97)]:
        outcome = placed((said("all"),), WHOLE, (side, 0.0, 1.0, 1.0), {})
        assert told_box(outcome.turns) == (side, 0.0, 1.0, 1.0)


def test_the_smallest_box_is_told():
    """JSON writes it with exponents."""
    small_box = (1e-05, 0.0, 9e-05, 2e-05)
    outcome = placed((said("there"),), small_box, WHOLE, {})
    assert "1e-05" in outcome.turns[-1].text
    assert told_box(outcome.turns) == small_box


@pytest.mark.parametrize("text", ["[0, 0, 1, 1]", "yes", ""])
def test_what_another_model_said_last_is_no_box(text):
    assert told_box((Turn(text, (5,), chosen=False),)) is None
    assert told_box((Turn("there", (), chosen=False),)) is None


def test_a_search_in_the_engine_trains_the_last_answer_alone(monkeypatch):
    """Played for real, but for the cell, which the little policy cannot name yet."""
    monkeypatch.setattr("vrl_jax.programs.region_search.first_tag", lambda *_: "5")
    actor, seen = small.chain_actor(), []
    pictures = front_end(small.spec(), min_pixels=28 * 28, max_pixels=28 * 28)
    actor = dataclasses.replace(
        actor,
        processor=dataclasses.replace(actor.processor, front_end=pictures),
        observe=lambda episodes, _: seen.extend(episodes),
    )
    program = functools.partial(
        search_then_ground,
        search=functools.partial(
            search,
            worth=functools.partial(region_reward, words=SHORT),
            simulations=3,
            words=SHORT,
        ),
        words=SHORT,
        read_box=lambda _: WHOLE,
    )
    samples = [
        dataclasses.replace(SAMPLE, images=(small.png(n, 84, 84),), id=f"{n}")
        for n in range(2)
    ]
    played = act(
        actor, iter([samples]), jax.random.key(0), program=program, group_size=2
    )
    assert len(played.tokens) == len(seen) == 4
    for row, kept, episode in zip(played.tokens, played.mask, seen, strict=True):
        written, _ = episode.turns
        assert tuple(np.asarray(row)[np.asarray(kept)]) == written.tokens
        # The cell, the way out and on, each judged by three checks and a box.
        assert episode.facts["asks"] == 1 + 3 * 4 + 1 and episode.facts["value"] == 0
        smallest = (1 / 3, 1 / 3, 2 / 3, 2 / 3)
        assert told_box(episode.turns) == pytest.approx(smallest)
