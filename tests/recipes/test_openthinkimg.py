"""V-ToolRL: the sheet's worked numbers, its JSON, and an episode in the engine."""

import dataclasses
import functools
import io
import json

import jax
import numpy as np
import pytest
from PIL import Image

from vrl_jax.engine.conversation import ids_of
from vrl_jax.engine.desk import Limits
from vrl_jax.engine.tools import Call, ToolError, run
from vrl_jax.programs.recital import recited
from vrl_jax.programs.tool_turns import tool_turns
from vrl_jax.recipes.openthinkimg import (
    ACTIONS,
    DRAWING_TOOLS,
    accuracy,
    actions,
    first_action,
    in_json,
    openthinkimg,
    points_of,
    spoken,
    terminated,
    tool_reward,
)
from vrl_jax.types import Episode, Sample, Turn, text_pieces

from ..fixtures import small
from ..fixtures.talk import told

SAMPLE = small.samples()[0]


def turn(name, thought="read", **arguments):
    action = {"name": name, "arguments": arguments}
    return json.dumps({"thought": thought, "actions": [action]})


def answered(gold, *texts):
    row = Sample("row", "small", "?", (), gold)
    return Episode(row, "?", tuple(Turn(text, (1,)) for text in texts), True)


END = turn("Terminate", ans="1985")


def test_the_worked_episode(verifier):
    """Of three turns two are JSON, and the last one's `ans` is right."""
    said = answered("1985", turn("Crop", coordinates=[0, 0, 9, 9]), "let me see", END)
    ((score),) = tool_reward(accuracy(verifier), format_weight=1.0)([said])
    assert score["accuracy"] == 1 and score["format"] == pytest.approx(0.666667)
    assert score["overall"] == pytest.approx(1.666667)
    ((plain),) = tool_reward(accuracy(verifier))([said])
    assert plain["overall"] == 1


@pytest.mark.parametrize(
    ("text", "gold", "right"),
    [
        (END, "1985", 1),
        (END, "<answer>1985</answer>", 1),
        (END, "<answer> 1985.0 </answer>", 1),
        (END, "1986", 0),
        (turn("Terminate", ans=1985), "1985", 1),
        (turn("Terminate", ans="0.5"), r"$\frac{1}{2}$", 1),
        (turn("Terminate", ans="red"), "red", 1),
        (turn("Terminate", ans="der"), "red", 0),  # as texts, not products of letters
        ("1985", "1985", 1),
        (r"It is \boxed{1985}", "1985", 1),
        (turn("OCR", image="img_1"), "1985", 0),
        ("", "1985", 0),
        ('{"actions": [{"name": "Terminate", "arguments": {"ans": null}}]}', "7", 0),
        (turn("Crop", coordinates=[0, 0, 28, 9]), "9", 0),
        (turn("Terminate", "it is 3, 5 or 7"), "7", 0),
        ("it is 7", "7", 1),
    ],
)
def test_accuracy(text, gold, right, verifier):
    assert accuracy(verifier)([answered(gold, text)]) == [right]


def test_the_worked_advantages():
    given = openthinkimg(group_size=4).credit(small.scored([1.0, 0.0, 0.0, 1.0]))[0]
    np.testing.assert_allclose(
        given.advantages[:, 0], [0.865875, -0.865875, -0.865875, 0.865875], atol=1e-6
    )


def test_the_worked_point():
    assert points_of('x="21.5" y="28.5"', (800, 600)) == [(172, 171)]


@pytest.mark.parametrize(
    ("coordinate", "points"),
    [
        ('<point x="50" y="10">top</point>', [(50, 5)]),
        ("x=50, y=10", None),
        ("x = 0 y = 100", [(0, 50)]),
        ('x="10" y="20" x="101" y="20" x="30" y="40"', [(10, 10), (30, 20)]),
        ('x="101" y="20"', None),
        ('x="1.2.3" y="20"', None),
        ('y="20"', None),
        ([50, 10], None),
        (None, None),
        ('x="' + "9" * 5000 + '" y="1"', None),
    ],
)
def test_points_are_read(coordinate, points):
    if points is None:
        with pytest.raises(ToolError, match="in percent"):
            points_of(coordinate, (100, 50))
    else:
        assert points_of(coordinate, (100, 50)) == points


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Terminate",
        '{"thought": "I could Terminate"}',
        '{"thought": "a", "actions": []}',
        '{"actions": "Terminate"}',
        '{"actions": ["Terminate"]}',
        '{"actions": [{"name": 1}]}',
        '{"actions": [{"name": "Terminate", "arguments": "1985"}]}',
        '{"actions": [{"name": "Terminate", "arguments": {"ans": "1985"}}]',
        "{" * 5000,
        '{"actions": ' + "[" * 5000,
    ],
)
def test_a_turn_without_an_action_is_told_so(text):
    (error,) = actions(text)
    assert isinstance(error, ToolError) and "there is no action" in str(error)


@pytest.mark.parametrize(
    "text",
    [END, f"Well {{so}}: {END} and more", f"```json\n{END}\n```", END + END],
)
def test_json_is_found_in_a_text(text):
    assert spoken(text)["thought"] == "read"
    assert first_action(text) == Call("Terminate", {"ans": "1985"})
    assert terminated(text) == "1985"
    assert actions(text) == []
    assert in_json([answered("1985", text)]) == [1.0]


def test_only_the_first_action_is_run():
    both = json.loads(turn("Crop", coordinates=[0, 0, 28, 28]))
    both["actions"] *= 2
    both["actions"].append({"name": "Terminate", "arguments": {"ans": "1"}})
    assert actions(json.dumps(both)) == [Call("Crop", {"coordinates": [0, 0, 28, 28]})]


@pytest.mark.parametrize(
    ("name", "rows", "places"),
    [
        ("DrawHorizontalLineByY", {14}, {*range(56)} - {*range(4, 8)}),
        ("DrawVerticalLineByX", {*range(28)} - {*range(4, 8)}, {42}),
    ],
)
def test_a_dashed_line_goes_through_the_point(name, rows, places):
    call = Call(name, {"image": "img_7", "coordinate": 'x="75" y="50"'})
    white = io.BytesIO()
    Image.new("RGB", (56, 28), "white").save(white, "PNG")
    seen = run(call, DRAWING_TOOLS, (*SAMPLE.images, white.getvalue()))
    drawn = np.asarray(Image.open(io.BytesIO(seen.images[0])))
    changed = np.argwhere((drawn != 255).any(axis=2))
    assert {*changed[:, 0]} <= rows and {*changed[:, 1]} <= places
    assert len(changed) in (28, 16)  # four pixels, then four left out
    assert (drawn[tuple(changed[0])] == (255, 0, 0)).all()


def test_an_episode_hears_what_its_tools_gave():
    """A line, a tool that is not there, words alone, then the end."""
    row = small.samples()[3]
    asked, outcome = told(
        tool_turns(row, available=DRAWING_TOOLS, turns=6, syntax=ACTIONS),
        turn("DrawVerticalLineByX", coordinate='x="50" y="50"'),
        turn("OCR", image="img_1"),
        "I could Terminate",
        turn("Crop", coordinates=[0, 0, 28]),
        END,
    )
    facts = outcome.facts
    assert (facts["calls"], facts["calls/valid"], facts["images"]) == (4, 1, 1)
    for kind in ("unknown", "unreadable", "refused"):
        assert facts[f"calls/{kind}"] == 1
    drawn, unknown, nothing, refused = (ask.context[-1] for ask in asked[1:])
    assert "DrawVerticalLineByX:\n<image>\n" in drawn.text and len(drawn.images) == 1
    assert "there is no tool 'OCR'" in unknown.text and not unknown.images
    assert "what you wrote:\nError: there is no action" in nothing.text
    assert "bbox_2d must be 4 numbers" in refused.text
    assert all(ask.stops == () for ask in asked)


def test_a_tool_may_be_called_anything():
    """A name is told as text, and no more of it than helps."""
    for name in ("<image>", "a" * 6000):
        replies = [turn(name), END]
        asked, outcome = told(
            tool_turns(SAMPLE, available=DRAWING_TOOLS, syntax=ACTIONS), *replies
        )
        observation = asked[1].context[-1]
        assert len(text_pieces(observation.text)) == 1 and not observation.images
        assert len(observation.text) < 1300
        assert outcome.facts["calls/unknown"] == 1


def test_the_worked_mask():
    """Trained are the tokens of both turns with their ends, nothing between them."""
    said = ["it is", turn("Terminate", ans="0")]
    row = dataclasses.replace(SAMPLE, annotations={"demonstration": said})
    actor = small.actor(max_new_tokens=200)
    rollout = recited(
        actor,
        iter([[row]]),
        jax.random.key(0),
        program=functools.partial(tool_turns, syntax=ACTIONS),
        limits=Limits(row_tokens=900),
    )
    first, second = (len(ids_of(actor.processor, text)) + 1 for text in said)
    mask = np.asarray(rollout.mask[0])
    starts = [0, *np.flatnonzero(np.diff(mask)) + 1]
    lengths = np.diff([*starts, len(mask)])
    assert mask[0] and len(starts) == 4
    assert (lengths[0], lengths[2]) == (first, second) and lengths[1] > 10
