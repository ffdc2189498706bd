"""Rows as papers ask for them: the pictures of this package, other questions.

Each function gives a sample of `worlds.shapes` (one of `digits.sums`, `scenes.signs`,
`charts.bars`) the question, the answer and the columns that a recipe's reward reads,
and a demonstration that it pays in full. What is drawn follows from the sample's id.
"""

import dataclasses
import io
import json
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from vrl_jax.types import Sample
from vrl_jax.worlds.shapes import COLOURS, SHAPES, near
from vrl_jax.worlds.writing import add_noise, png_bytes

SEVERITIES = ("slight", "moderate", "obvious", "serious", "catastrophic")
NAMES = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
"""Names that a thing may have."""


def wrong_phrase(sample: Sample) -> Sample:
    """A caption with one thing changed, for `recipes.vicrit`: which is it?"""
    drawn = random.Random(sample.id)
    names = _names(sample)
    place = drawn.randrange(len(names))
    colour, shape = names[place].split()
    others = [f"{c} {shape}" for c in COLOURS] + [f"{colour} {s}" for s in SHAPES]
    other = drawn.choice([name for name in others if name not in names])
    asked = "<image>One thing of this list is not in the picture: {}. Which?"
    return _one_wrong(sample, names, place, other, asked)


def wrong_digit(sample: Sample) -> Sample:
    """The same of two handwritten digits: is the left one wrong, or the right one?"""
    drawn = random.Random(sample.id)
    digits = sample.annotations["digits"]
    sides = ("left", "right")
    names = [f"{side} {digit}" for side, digit in zip(sides, digits, strict=True)]
    place = drawn.randrange(2)
    other = drawn.choice([digit for digit in range(10) if digit != digits[place]])
    asked = "<image>{}: which is wrong?"
    return _one_wrong(sample, names, place, f"{sides[place]} {other}", asked)


def seen_and_located(sample: Sample) -> Sample:
    """Caption, boxes in pixels, then the answer, for `recipes.satori`.

    A demonstration is right where the model sees the picture in its own size.
    """
    caption, boxes = ", ".join(_names(sample)), sample.annotations["boxes"]
    return _asked(
        sample,
        f"{sample.question} Say in <caption> what is there, in <bbox> where, and in "
        "<answer> the answer.",
        sample.answer,
        f"<caption>{caption}</caption><bbox>{json.dumps(boxes)}</bbox>"
        f"<answer>{sample.answer}</answer>",
        image_caption=caption,
        bboxs=boxes,
        possible_answers=[sample.answer],
    )


def all_of_a_kind(sample: Sample) -> Sample:
    """Every thing of one name as boxes in thousandths, for `recipes.visual_rft`.

    Of one row in five nothing is there: "No Objects".
    """
    wanted, names = _sought(sample), _names(sample)
    scale = 1000 / np.tile(_picture(sample).size, 2)
    boxes = zip(names, sample.annotations["boxes"], strict=True)
    found = [
        {"Position": (box * scale).round().astype(int).tolist(), "Confidence": 1.0}
        for name, box in boxes
        if name == wanted
    ]
    answer = json.dumps(found) if found else "No Objects"
    return _asked(
        sample,
        f"<image>Where is every {wanted}? Think, then answer with a list of Position "
        "and Confidence, or No Objects.",
        answer,
        f"<think>{', '.join(names)}</think><answer>{answer}</answer>",
    )


def found_in_a_crowd(sample: Sample) -> Sample:
    """Every thing of one name as boxes in pixels, for `recipes.dip_r1`.

    Best of `shapes.crowd`; of one row in five nothing is there: []. The demonstration
    looks at what meets another thing, and is right where the model sees the picture in
    its own size. It is paid in full beside answers that miss just what it looks at.
    """
    wanted, names = _sought(sample), _names(sample)
    boxes = sample.annotations["boxes"]
    found = [box for name, box in zip(names, boxes, strict=True) if name == wanted]
    unsure = [
        box
        for box in found
        if any(near(box, other, gap=0) for other in boxes if other != box)
    ]
    return _asked(
        sample,
        f"<image>Where is every {wanted}? Think, look at what is unsure, then answer, "
        "both as lists of [x1, y1, x2, y2].",
        json.dumps(found),
        f"<think>{', '.join(names)}</think><look>{json.dumps(unsure)}</look>"
        f"<answer>{json.dumps(found)}</answer>",
    )


def named_boxes(sample: Sample) -> Sample:
    """Every thing with its name and its box in pixels, for `recipes.v_triune`."""
    boxes = zip(_names(sample), sample.annotations["boxes"], strict=True)
    answer = json.dumps([{"bbox_2d": box, "label": name} for name, box in boxes])
    return _asked(
        sample,
        "<image>What is where? Answer with a list of bbox_2d and label.",
        answer,
        f"<answer>{answer}</answer>",
        reward_model={"verifier": "detection"},
    )


def yes_or_no(sample: Sample) -> Sample:
    """Is this the answer? The first stage of `recipes.curr_reft`."""
    drawn = random.Random(sample.id)
    true = drawn.random() < 0.5
    others = [answer for answer in _answers(sample) if answer != sample.answer]
    claim = sample.answer if true else drawn.choice(others)
    answer = "yes" if true else "no"
    return _asked(
        sample,
        f"{sample.question} Is this right: {claim}? Answer yes or no.",
        answer,
        f"<think>{sample.answer}</think><answer>{answer}</answer>",
    )


def one_letter(sample: Sample) -> Sample:
    """Which of these is the answer? The second stage of `recipes.curr_reft`."""
    options = list(_answers(sample))
    random.Random(sample.id).shuffle(options)
    letters = "ABCDE"[: len(options)]
    listed = ", ".join(f"{a}: {b}" for a, b in zip(letters, options, strict=True))
    answer = letters[options.index(sample.answer)]
    return _asked(
        sample,
        f"{sample.question} {listed}. Answer with a letter.",
        answer,
        f"<think>{sample.answer}</think><answer>{answer}</answer>",
    )


def open_answer(sample: Sample) -> Sample:
    """What is the answer? The third stage of `recipes.curr_reft`."""
    return _asked(
        sample,
        f"{sample.question} Think, then answer.",
        sample.answer,
        f"<think>{sample.answer}</think><answer>{sample.answer}</answer>",
        task="classify",
    )


def sign_in_region(sample: Sample, *, shown: int = 84, cells: int = 6) -> Sample:
    """Where the sign of `scenes.signs` stands, then what is on it, for `recipes.ergo`.

    The demonstration is what is said in each turn, by the frozen reader too. The policy
    sees the picture `shown` pixels wide and high; the region is one of cells x cells.
    Raises `ValueError` where none of them holds all of the sign, or `shown` does not
    divide by `cells`.
    """
    if shown % cells:
        raise ValueError(
            f"{sample.id}: `shown` must divide by `cells`, for a region has whole "
            f"pixels; got shown={shown}, cells={cells}."
        )
    column, row = _cell_of_sign(sample, cells)
    side = shown // cells
    region = [column * side, row * side, (column + 1) * side, (row + 1) * side]
    answer = f"<answer>{sample.answer}</answer>"
    pointed = f"<think>row {row + 1}, column {column + 1}</think><zoom>{region}</zoom>"
    demonstration = [pointed, answer, answer]
    annotations = {**sample.annotations, "demonstration": demonstration}
    return dataclasses.replace(sample, annotations=annotations)


def line_at_the_bar(sample: Sample) -> Sample:
    """A chart of `charts.bars` with tools, for `recipes.openthinkimg`.

    The demonstration draws a line at the height of one bar that is asked about, then
    says what it read, and terminates.
    """
    facts = sample.annotations
    name = facts["about"][0]
    left, top, right, _ = facts["boxes"][list(facts["values"]).index(name)]
    width, height = _picture(sample).size
    x, y = 50 * (left + right) / width, 100 * top / height
    place = {"image": "img_1", "coordinate": f'x="{x:.1f}" y="{y:.1f}"'}
    demonstration = [
        _turn(f"how high is {name}?", "DrawHorizontalLineByY", place),
        _turn(", ".join(facts["facts"]), "Terminate", {"ans": sample.answer}),
    ]
    return _with_tools(sample, demonstration)


def number_closely(sample: Sample) -> Sample:
    """A chart of `charts.numbered` with tools, for `recipes.openthinkimg`.

    The demonstration cuts out what is under the bar that is asked for, in pixels of the
    picture as it came, then terminates with the number.
    """
    place = sample.annotations["about"]
    foot = sample.annotations["feet"][place]
    demonstration = [
        _turn(f"bar {place + 1}", "Crop", {"coordinates": foot}),
        _turn("it can be read", "Terminate", {"ans": sample.answer}),
    ]
    return _with_tools(sample, demonstration)


def number_in_part(sample: Sample) -> Sample:
    """The same chart, for `recipes.deepeyes`: its calls, and answers in tags."""
    place = sample.annotations["about"]
    arguments = {"bbox_2d": sample.annotations["feet"][place], "label": "the number"}
    call = json.dumps({"name": "image_zoom_in_tool", "arguments": arguments})
    demonstration = [
        f"<think>bar {place + 1}</think> <tool_call>{call}</tool_call>",
        f"<think>it can be read</think> <answer>{sample.answer}</answer>",
    ]
    asked = f"{sample.question} Call the tool, then answer."
    annotations = {**sample.annotations, "demonstration": demonstration}
    return dataclasses.replace(sample, question=asked, annotations=annotations)


def _with_tools(sample: Sample, demonstration: Sequence[str]) -> Sample:
    asked = f"{sample.question} Answer in JSON, with a thought and an action of a tool."
    annotations = {**sample.annotations, "demonstration": demonstration}
    return dataclasses.replace(sample, question=asked, annotations=annotations)


def _turn(thought: str, name: str, arguments: Mapping[str, Any]) -> str:
    action = {"name": name, "arguments": arguments}
    return json.dumps({"thought": thought, "actions": [action]})


def one_imagined(sample: Sample) -> Sample:
    """A true description, and one of a thing too many, for `recipes.stic` and `dpo`."""
    drawn = random.Random(sample.id)
    names = _names(sample)
    place = drawn.randint(0, len(names))
    absent = drawn.choice([name for name in NAMES if name not in names])
    chosen = ", ".join(names)
    rejected = ", ".join([*names[:place], absent, *names[place:]])
    asked = "<image>What is in the picture?"
    return _asked(sample, asked, chosen, chosen, chosen=chosen, rejected=rejected)


def better_region(sample: Sample, *, cells: int = 6) -> Sample:
    """A pair for `recipes.visrl`: the sign of `scenes.signs`, or another place.

    The better box is the sign's of cells x cells regions, with the right answer, the
    worse one another region with another number. The demonstration is what is said in
    each turn. Raises `ValueError` where no region holds all of the sign, or one is all.
    """
    if cells < 2:
        raise ValueError(f"{sample.id}: a worse region needs cells >= 2, got {cells}.")
    drawn = random.Random(sample.id)
    there = _cell_of_sign(sample, cells)
    every = [(column, row) for column in range(cells) for row in range(cells)]
    away = drawn.choice([cell for cell in every if cell != there])
    numbers = [f"{n:0{len(sample.answer)}}" for n in range(10 ** len(sample.answer))]
    other = drawn.choice([number for number in numbers if number != sample.answer])
    boxes = [
        str([round(edge / cells, 3) for edge in (x, y, x + 1, y + 1)])
        for x, y in (there, away)
    ]
    answers = [f"<answer>{number}</answer>" for number in (sample.answer, other)]
    columns = {
        "chosen_step": boxes[0],
        "rejected_step": boxes[1],
        "chosen": answers[0],
        "rejected": answers[1],
        "demonstration": [boxes[0], answers[0]],
    }
    annotations = {**sample.annotations, **columns}
    return dataclasses.replace(sample, annotations=annotations)


def steps_of_a_sum(sample: Sample) -> Sample:
    r"""Three steps to the sum of two digits, for `recipes.vl_prm` and `gm_prm`.

    Half of the rows have one false step, and what follows keeps to it. `judged_error`
    is its number, 0 without; `labels`, which is also the `demonstration`, are + before
    it and - at it; `record` is what a critic should write.
    """
    drawn = random.Random(sample.id)
    digits = sample.annotations["digits"]
    truths = _sum_in_steps(*digits, sum(digits))
    place = drawn.randrange(3) if drawn.random() < 0.5 else None
    steps = truths
    if place == 2:
        other = drawn.choice([n for n in range(19) if n != sum(digits)])
        steps = _sum_in_steps(*digits, other)
    elif place is not None:
        others = [n for n in range(10) if n != digits[place]]
        claimed = [*digits[:place], drawn.choice(others), *digits[place + 1 :]]
        steps = _sum_in_steps(*claimed, sum(claimed))
    intents = ("read the left digit", "read the right digit", "add them")
    record = [
        {
            "intent": intents[number],
            "purpose": 1,
            "alignment": int(number == 2 or step == truth),
            "logic": int(number < 2 or step == truth),
            "verdict": int(step == truth),
            "correction": truth if number == place else "",
        }
        for number, (step, truth) in enumerate(zip(steps, truths, strict=True))
    ]
    labels = ["+"] * 3 if place is None else [*["+"] * place, "-"]
    columns = {
        "steps": steps,
        "judged_error": 0 if place is None else place + 1,
        "labels": labels,
        "record": record,
        "demonstration": labels,
    }
    annotations = {**sample.annotations, **columns}
    return dataclasses.replace(sample, annotations=annotations)


def _sum_in_steps(left: int, right: int, total: int) -> list[str]:
    return [
        f"The left digit is {left}.",
        f"The right digit is {right}.",
        f"The sum is \\boxed{{{total}}}.",
    ]


def _cell_of_sign(sample: Sample, cells: int) -> tuple[int, int]:
    """Column and row of the one of cells x cells regions that holds the sign."""
    sides = np.tile(_picture(sample).size, 2)
    box = np.array(sample.annotations["boxes"][0]) * cells / sides
    column, row = np.floor(box[:2]).astype(int).tolist()
    if (box[2:] > (column + 1, row + 1)).any():
        raise ValueError(
            f"{sample.id}: none of {cells} x {cells} regions holds the sign at "
            f"{sample.annotations['boxes'][0]}."
        )
    return column, row


def facts_first(sample: Sample) -> Sample:
    """The facts that a response should state, for `recipes.perception_r1`."""
    facts = sample.annotations["facts"]
    return _asked(
        sample,
        f"{sample.question} Think, then answer in a box.",
        sample.answer,
        f"<think>\n{', '.join(facts)}\n</think>\n<answer>\n\\boxed{{{sample.answer}}}"
        "\n</answer>",
        visual_key_info=facts,
    )


def degraded(sample: Sample) -> Sample:
    """A picture made worse, for `recipes.q_insight`: how good is it, or what is wrong?

    There are four distortions in five severities; the rating is 5 less 0.8 for each
    step of severity.
    """
    drawn = random.Random(sample.id)
    kind = drawn.choice([*DISTORTIONS, "null"])
    level = 0 if kind == "null" else drawn.randint(1, len(SEVERITIES))
    severity = SEVERITIES[level - 1] if level else "null"
    picture = _picture(sample)
    if level:
        picture = DISTORTIONS[kind](picture, level, drawn)
    worse = dataclasses.replace(sample, images=(png_bytes(np.asarray(picture)),))
    if drawn.random() < 0.5:
        answer = f"{5 - 0.8 * level:.2f}"
        told = json.dumps({"rating": float(answer)})
        task = {"task": "score"}
        asked = "<image>How good is the picture, from 1 to 5? Answer with a rating."
    else:
        columns = {"distortion_class": kind, "severity": severity}
        task = {"task": "degradation", **columns}
        answer = told = json.dumps(columns)
        asked = "<image>What is wrong with the picture? Answer with distortion_class "
        asked += "and severity."
    demonstration = f"<think>\n{kind}\n</think>\n<answer>\n{told}\n</answer>"
    return _asked(worse, asked, answer, demonstration, **task)


def _noisy(picture: Image.Image, level: int, drawn: random.Random) -> Image.Image:
    rng = np.random.default_rng(drawn.getrandbits(32))
    return Image.fromarray(add_noise(np.asarray(picture), 0.06 * level, rng))


def _blurred(picture: Image.Image, level: int, drawn: random.Random) -> Image.Image:
    return picture.filter(ImageFilter.GaussianBlur(0.6 * level))


def _darkened(picture: Image.Image, level: int, drawn: random.Random) -> Image.Image:
    return ImageEnhance.Brightness(picture).enhance(1 - 0.16 * level)


def _compressed(picture: Image.Image, level: int, drawn: random.Random) -> Image.Image:
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=(50, 30, 18, 10, 4)[level - 1])
    return Image.open(buffer).convert("RGB")


DISTORTIONS: Mapping[str, Callable[[Image.Image, int, random.Random], Image.Image]] = {
    "noise": _noisy,
    "compression": _compressed,
    "blur": _blurred,
    "darken": _darkened,
}


def _one_wrong(
    sample: Sample, names: Sequence[str], place: int, other: str, asked: str
) -> Sample:
    """The names as a caption, one of them another; `asked` shows it."""
    caption = ", ".join([*names[:place], other, *names[place + 1 :]])
    return _asked(
        sample,
        asked.format(caption),
        other,
        f"<think>{', '.join(names)}</think>\\boxed{{{other}}}",
        original_caption=", ".join(names),
        changed_caption=caption,
        solution_original=names[place],
    )


def _sought(sample: Sample) -> str:
    """The name of a thing; of one row in five, one that is not there."""
    drawn = random.Random(sample.id)
    names = _names(sample)
    absent = [name for name in NAMES if name not in names]
    return drawn.choice(absent if drawn.random() < 0.2 else names)


_ANSWERS = {
    "shapes/count": ("0", "1", "2", "3"),
    "shapes/colour": tuple(COLOURS),
    "shapes/position": ("left", "right", "above", "below"),
    "shapes/comparison": ("more", "fewer", "equal"),
    "shapes/crowd": ("3", "4", "5", "6"),
}
"""What the questions of a source may be answered."""


def _answers(sample: Sample) -> Sequence[str]:
    return _ANSWERS[sample.source]


def _names(sample: Sample) -> list[str]:
    """Such as "red circle", in the order of the boxes."""
    return [f"{o['colour']} {o['shape']}" for o in sample.annotations["objects"]]


def _picture(sample: Sample) -> Image.Image:
    return Image.open(io.BytesIO(sample.images[0])).convert("RGB")


def _asked(
    sample: Sample, question: str, answer: str, demonstration: str, **columns: Any
) -> Sample:
    return dataclasses.replace(
        sample,
        question=question,
        answer=answer,
        annotations={
            **sample.annotations,
            **columns,
            "demonstration": demonstration,
        },
    )
