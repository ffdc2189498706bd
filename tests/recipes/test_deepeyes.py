"""DeepEyes: the sheet's worked rewards and crops, its calls, its episodes."""

import dataclasses
import io
import json

import jax
import numpy as np
import pytest
from PIL import Image

from vrl_jax.engine.desk import Limits
from vrl_jax.engine.tools import Call, ToolError, run
from vrl_jax.models.qwen_vl.front_end import front_end
from vrl_jax.programs.recital import recited
from vrl_jax.recipes.deepeyes import (
    CALLS,
    INSTRUCTION,
    NEXT,
    ROTATE,
    ZOOM,
    ZOOM_TOOLS,
    deepeyes,
    deepeyes_reward,
    in_one_box,
    in_tags,
    last_call,
    look_closer,
    tools_message,
    zoom_in,
    zoom_tools,
)
from vrl_jax.rewards.combine import per_response
from vrl_jax.rewards.grounding import original, resized, thousandths
from vrl_jax.rewards.parse import answer_tag, last_boxed
from vrl_jax.types import Episode, Sample, Turn

from ..fixtures import small
from ..fixtures.talk import told

SAMPLE = small.samples()[0]
PLAIN = {"env_name": ""}
RIGHT = "<think>There it is.</think> <answer>red</answer>"


def call(name=ZOOM, **arguments):
    text = json.dumps({"name": name, "arguments": arguments})
    return f"<think>Closer.</think> <tool_call>{text}</tool_call>"


CLOSER = call(bbox_2d=[0, 0, 40, 40])


def picture(width, height):
    """Red and green grow to the right and downwards."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    pixels = np.stack([x % 256, y % 256, 0 * x], -1).astype(np.uint8)
    return Image.fromarray(pixels)


def png(width, height):
    file = io.BytesIO()
    picture(width, height).save(file, "PNG")
    return file.getvalue()


def episode(*texts, shown=0, gold="red", annotations=None):
    row = Sample("row", "small", "?", (), gold, annotations or {})
    turns = tuple(Turn(text, (1,)) for text in texts)
    return Episode(row, "?", turns, True, facts={"images": shown})


def tagged(episode):
    return float(answer_tag(episode.text) == episode.sample.answer)


def boxed(episode):
    return float(last_boxed(episode.text) == episode.sample.answer)


@pytest.mark.parametrize(
    ("said", "total"),
    [
        (episode(CLOSER, RIGHT, shown=1), 2.0),
        (episode(RIGHT), 0.8),
        (episode(CLOSER, f"<think>{RIGHT}", shown=1), 1.8),
        (episode("<think>It is <answer>blue</answer>"), -0.2),
        (episode(CLOSER, RIGHT.replace("red", "blue"), shown=1), 0.0),
        (episode(CLOSER, RIGHT, shown=0), 0.8),  # the call gave nothing
        (episode(RIGHT, shown=3), 2.0),  # paid once
    ],
)
def test_the_worked_rewards(said, total):
    ((score),) = deepeyes_reward(per_response(tagged))([said])
    assert score["overall"] == pytest.approx(total)
    assert str(score["format"]) in ("0.0", "-1.0")  # as logs and reports show it


@pytest.mark.parametrize(
    ("text", "total"),
    [
        (r"<think>so</think> \boxed{red}", 1.2),
        (r"\boxed{blue}, no: \boxed{red}", 0.8),
        (r"<think>\boxed{blue}</think> \boxed{red}", 1.2),
        (r"<think>so \boxed{red}", 0.8),
        (r"\boxed{blue}", 0.0),
        (r"<think>\boxed{red}</think> red", -0.4),  # right of a thought does not count
        ("red", -0.4),
    ],
)
def test_rows_without_tools_are_paid_as_mathematics(text, total):
    said = episode(text, annotations=PLAIN, shown=2)
    ((score),) = deepeyes_reward(per_response(boxed))([said])
    assert score["overall"] == pytest.approx(total)
    assert score["tool"] == 0


def test_an_essay_is_not_right():
    long = "red " * 249
    assert len(long.strip()) == 995
    always = deepeyes_reward(lambda episodes: [1.0 for _ in episodes])
    ((short),) = always([episode(f"<answer>{long}</answer>", shown=1)])
    ((essay),) = always([episode(f"<answer>{long} truly</answer>", shown=1)])
    assert short["overall"] == pytest.approx(2.0)
    assert essay["overall"] == pytest.approx(-0.2)
    ((bare),) = always([episode("r" * 1000)])
    assert bare["overall"] == pytest.approx(-0.2)


def test_what_nobody_scored_stays_unscored():
    ((score),) = deepeyes_reward(lambda episodes: [None])([episode(RIGHT, shown=1)])
    assert np.isnan(score["overall"]) and score["tool"] == 0


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (RIGHT, True),
        (CLOSER + RIGHT, True),
        ("red", True),
        ("</think> <answer>red</answer>", False),
        ("<think>a</think> <answer>red", False),
        ("<think><answer></think> <answer>red</answer>", True),  # tags in a thought
    ],
)
def test_tags_are_closed(text, kept):
    assert in_tags(text) is kept


def test_one_box_follows_the_thought():
    assert in_one_box(r"<think>a</think> \boxed{\frac{1}{2}}")
    assert not in_one_box("a")


def test_the_worked_advantages():
    """(R - 0.7) / sqrt(2.68 / 3), by hand."""
    given = deepeyes(group_size=4).credit(small.scored([2.0, 0.8, 0.0, 0.0]))[0]
    np.testing.assert_allclose(
        given.advantages[:, 0], [1.375424, 0.105802, -0.740613, -0.740613], atol=1e-5
    )


def test_the_worked_crops():
    part = zoom_in([picture(800, 600)], bbox_2d=[100, 100, 200, 180])
    assert part.size == (100, 80) and part.getpixel((0, 0)) == (100, 100, 0)
    with pytest.raises(ToolError, match="more than 30 pixels"):
        zoom_in([picture(800, 600)], bbox_2d=[10, 10, 30, 24])


@pytest.mark.parametrize(
    ("box", "size"),
    [
        ([-50, -50, 31, 31], (31, 31)),
        ([0, 0, 30, 200], None),
        ([0, 0, 31, 200], (31, 200)),
        ([700, 500, 9000, 9000], (100, 100)),
        ([200, 180, 100, 100], None),
        ([900, 100, 1000, 200], None),
        ([0.4, 0.6, 100.4, 100.6], (100, 100)),
        ([0, 0, 1e300, 1e300], (800, 600)),
        ([0, 0, 100], None),
        ("0, 0, 100, 100", None),
        ([0, 0, None, 100], None),
    ],
)
def test_boxes_are_cut_off_at_the_edges(box, size):
    if size is None:
        with pytest.raises(ToolError):
            zoom_in([picture(800, 600)], bbox_2d=box)
    else:
        assert zoom_in([picture(800, 600)], bbox_2d=box).size == size


def test_a_part_is_at_most_a_hundred_times_as_long_as_wide():
    wide = [Image.new("RGB", (8000, 100))]
    assert zoom_in(wide, bbox_2d=[0, 0, 3100, 31]).size == (3100, 31)
    with pytest.raises(ToolError, match="100 times"):
        zoom_in(wide, bbox_2d=[0, 0, 3101, 31])


def test_boxes_may_have_other_units():
    """Thousandths: a quarter to a half of 800 x 600."""
    part = zoom_in(
        [picture(800, 600)],
        bbox_2d=[250, 250, 500, 500],
        seen=lambda picture: (1000, 1000),
    )
    assert part.size == (200, 150) and part.getpixel((0, 0)) == (200, 150, 0)


@pytest.mark.parametrize(
    ("frame", "box"),
    [
        (resized, [0, 0, 28, 28]),  # of 112 x 56 pixels that are shown of 224 x 112
        (thousandths, [0, 0, 250, 500]),
        (original, [0, 0, 56, 56]),
    ],
)
def test_tools_for_the_units_of_a_model(frame, box):
    tool = zoom_tools(front_end(small.spec(), max_pixels=8 * 28**2), frame)[ZOOM]
    assert tool([picture(224, 112)], bbox_2d=box).size == (56, 56)


def test_it_is_the_first_picture_that_is_cut_and_turned():
    pictures = [picture(80, 60), Image.new("RGB", (900, 900))]
    assert zoom_in(pictures, bbox_2d=[0, 0, 900, 900], label="all").size == (80, 60)
    seen = run(Call(ROTATE, {"angle": 180}), ZOOM_TOOLS, (png(80, 60), png(9, 9)))
    turned = Image.open(io.BytesIO(seen.images[0]))
    assert turned.size == (80, 60) and turned.getpixel((79, 59)) == (0, 0, 0)
    assert turned.getpixel((0, 0)) == (79, 59, 0)


def test_of_a_turn_the_last_call_counts_and_an_answer_more():
    first, last = call(bbox_2d=[0, 0, 1, 1]), call(bbox_2d=[0, 0, 2, 2])
    assert last_call(first + last) == [Call(ZOOM, {"bbox_2d": [0, 0, 2, 2]})]
    assert last_call(first + RIGHT) == [] == last_call("red")
    assert last_call(f"{first}<answer></answer>") != []
    (torn,) = last_call("<tool_call>{")
    assert isinstance(torn, ToolError)


def test_what_the_model_is_told_can_be_done():
    """The example of the message, with numbers in it, is a call of the tool."""
    message = tools_message("thousandths")
    (described,) = message.split("<tools>\n")[1:]
    told_of = json.loads(described.partition("\n</tools>")[0])["function"]
    assert told_of["name"] == ZOOM and "thousandths" in json.dumps(told_of)
    *_, example = message.split("</tool_call>:")
    numbers = example.replace("x1, y1, x2, y2", "0, 0, 50, 50")
    ((asked),) = CALLS.calls(numbers)
    assert asked.arguments.keys() == told_of["parameters"]["properties"].keys()
    assert run(asked, ZOOM_TOOLS, [png(80, 60)]).images
    assert ZOOM in INSTRUCTION


def test_an_episode_sees_what_it_asks_for():
    row = dataclasses.replace(small.samples()[3], images=(png(80, 60),))
    asked, outcome = told(
        look_closer(row),
        CLOSER,
        call("segment", bbox_2d=[0, 0, 40, 40]),
        call(bbox_2d=[0, 0, 4, 4]),
        RIGHT,
    )
    facts = outcome.facts
    assert (facts["turns"], facts["calls"], facts["calls/valid"]) == (4, 3, 1)
    assert facts["images"] == facts["calls/unknown"] == facts["calls/refused"] == 1
    part, unknown, narrow = (ask.context[-1] for ask in asked[1:])
    assert part.text == f"<tool_response>\n<image>\n</tool_response>\n{NEXT}"
    assert Image.open(io.BytesIO(part.images[0])).size == (40, 40)
    assert "there is no tool 'segment'" in unknown.text
    assert "more than 30 pixels" in narrow.text and not narrow.images


def test_an_episode_ends_after_its_turns():
    row = dataclasses.replace(small.samples()[3], images=(png(80, 60),))
    asked, outcome = told(look_closer(row, turns=3), CLOSER, CLOSER, CLOSER)
    assert len(asked) == 3 and outcome.facts["images"] == 2


def test_a_row_without_tools_is_asked_once():
    row = dataclasses.replace(SAMPLE, annotations=PLAIN)
    asked, outcome = told(look_closer(row), CLOSER)
    assert len(asked) == 1 and outcome.facts["calls"] == 0


def test_only_what_the_policy_wrote_is_trained():
    """Both turns with their ends, and not the part that is shown between them."""
    said = [CLOSER, RIGHT]
    row = dataclasses.replace(
        small.samples()[3],
        images=(png(56, 56),),
        annotations={"demonstration": said},
    )
    actor = small.actor(max_new_tokens=400)
    rollout = recited(
        actor,
        iter([[row]]),
        jax.random.key(0),
        program=look_closer,
        limits=Limits(row_tokens=1600, pictures=1),
    )
    mask = np.asarray(rollout.mask[0])
    pictured = np.asarray(rollout.shown.slots[0]) > 0
    assert pictured.any() and not mask[pictured].any()
    starts = np.flatnonzero(np.diff(mask.astype(int), prepend=0) == 1)
    assert len(starts) == 2 and starts[0] == 0
    assert (np.flatnonzero(pictured) < starts[1]).all()
    texts = small.actor().processor.tokenizer
    ids = np.asarray(rollout.tokens[0])
    assert texts.decode(ids[starts[1] :][mask[starts[1] :]]).startswith("<think>There")
