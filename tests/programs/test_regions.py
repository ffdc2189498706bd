"""Where to look, and the answer from there."""

import dataclasses
import functools
import io

import jax
import pytest
from PIL import Image

from vrl_jax.programs.recital import recited
from vrl_jax.programs.regions import cut, look_then_answer, spelled_box, unit_box

from ..fixtures.signs import (
    PICTURE,
    ROOM,
    SAMPLE,
    SHORT,
    chain_actor,
    decoded,
    pixels,
    rows,
    size,
)
from ..fixtures.talk import told


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("[0.1, 0.2, 0.5, 1]", (0.1, 0.2, 0.5, 1.0)),
        ("It is [0.1, 0.2, 0.5, 0.6].", (0.1, 0.2, 0.5, 0.6)),
        ('{"bbox_2d": [0, 0, 1, 1]}', (0.0, 0.0, 1.0, 1.0)),
        ("[[0, 0, 1, 1], [0.5, 0, 1, 1]]", (0.0, 0.0, 1.0, 1.0)),
        ("Of [0.1, 0.2, 0.3, 0.4] and [0.5,0.5,0.6,0.6]", (0.1, 0.2, 0.3, 0.4)),
        ("I [1] see [a, b] [0, 1]: [ 0.1 ,0.2,\n0.3, 0.4 ]", (0.1, 0.2, 0.3, 0.4)),
        ("[0, 0, 1, 1] <answer>At [0, 0, 0.5, 1].</answer>", (0.0, 0.0, 0.5, 1.0)),
        ("[0, 0, 1, 1] <answer>there</answer>", None),
        ("[0.3333333333333333, 0, 1, 1]", (0.3333333333333333, 0.0, 1.0, 1.0)),
        ("[0.5, 0, 0.1, 1] or [0, 0, 1, 1]", None),  # the first is none
        ("[0, 0, 1, 1, 1]", None),
        ("[0.1, 0.2, 0.1, 0.6]", None),  # no area
        ("[0.5, 0.2, 0.1, 0.6]", None),
        ("[0.1, 0.2, 0.5, 1.1]", None),
        ("[-0.1, 0.2, 0.5, 0.6]", None),
        ("[10, 20, 50, 60]", None),  # pixels
        ("[0.1, 0.2, 0.5]", None),
        ("[NaN, 0, 1, 1]", None),
        ("there", None),
        ("[" * 5000, None),
        ("", None),
    ],
)
def test_boxes_lie_in_the_unit_square(text, box):
    assert unit_box(text) == box


def test_boxes_are_spelled_as_they_are_read():
    box = (1 / 3, 0.25, 2 / 3, 1.0)
    assert spelled_box(box) == "[0.333, 0.25, 0.667, 1.0]"
    assert unit_box(spelled_box(box)) == (0.333, 0.25, 0.667, 1.0)


def test_crops_are_parts_of_the_first_picture():
    wanted = Image.open(io.BytesIO(PICTURE)).crop((100, 50, 200, 100))
    assert pixels(cut(SAMPLE, (0.5, 0.5, 1.0, 1.0))) == wanted.tobytes()
    assert size(cut(SAMPLE, (0.0, 0.0, 0.1, 0.1))) == (56, 28)  # 20 x 10 has grown
    assert cut(SAMPLE, None) is None
    assert cut(SAMPLE, (0.5, 0.5, 0.5, 0.5)) is None
    assert cut(dataclasses.replace(SAMPLE, images=()), (0, 0, 1, 1)) is None


def test_the_demonstration_is_recited_in_both_turns():
    made = rows(2)
    program = functools.partial(look_then_answer, **SHORT)
    rollout = recited(
        chain_actor(),
        iter([made]),
        jax.random.key(0),
        program=program,
        rows=2,
        limits=ROOM,
    )
    assert decoded(rollout) == [
        text for row in made for text in row.annotations["demonstration"]
    ]
    asks, outcome = told(
        look_then_answer(made[0]), *made[0].annotations["demonstration"]
    )
    assert size(asks[1].context[0].images[1]) == (84, 84)
    assert outcome.facts == {"box": 1}
    asks, outcome = told(look_then_answer(made[0]), "there", "<answer>1</answer>")
    (asked,) = asks[1].context
    assert asked.images == made[0].images and asked.text.count("<image>") == 1
    assert made[0].question.removeprefix("<image>") in asked.text
    assert "region" not in asked.text and "closer" not in asked.text
    assert outcome.facts == {"box": 0}
