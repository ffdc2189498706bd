"""Rows of shapes as papers ask for them: what they show is what is paid."""

import dataclasses
import io
import json
import random

import numpy as np
import pytest
from PIL import Image

from vrl_jax.recipes.curr_reft import binary, choice, open_ended
from vrl_jax.recipes.dip_r1 import inspected
from vrl_jax.recipes.perception_r1 import perception_reward
from vrl_jax.recipes.q_insight import quality_reward
from vrl_jax.recipes.satori import satori_reward
from vrl_jax.recipes.v_triune import verified
from vrl_jax.recipes.vicrit import critic_reward
from vrl_jax.recipes.visual_rft import checked, detection
from vrl_jax.rewards.boxed import boxed_exact
from vrl_jax.rewards.combine import per_response
from vrl_jax.rewards.parse import last_tag
from vrl_jax.training.data import read_samples
from vrl_jax.types import Episode, ImageSize, Turn
from vrl_jax.worlds import digits, shapes, tasks
from vrl_jax.worlds.writing import write_parquet


class Reader:
    """A judge that finds a fact where the response has its words."""

    def verdicts(self, questions):
        return [float(self.share(question[0]["content"])) for question in questions]

    def share(self, asked):
        facts, _, text = asked.rpartition("Facts:\n")[2].partition("\nResponse:\n")
        lines = [fact.split(">")[1].split("<")[0] for fact in facts.split("\n")]
        return np.mean([line in text for line in lines])


def things(row):
    """What is drawn, as the world notes it."""
    return sorted(f"{o['colour']} {o['shape']}" for o in row.annotations["objects"])


def all_that_is_there(episode):
    """It names every thing that is drawn, and nothing else."""
    named = sorted(episode.text.split(", "))
    return {"overall": float(named == things(episode.sample))}


def beside_doubt(reward):
    """Of a response beside one that misses what it looks at, and looks nowhere."""

    def paid(episodes):
        (own,) = episodes
        look, answer = (json.loads(last_tag(own.text, n)) for n in ("look", "answer"))
        kept = [box for box in answer if box not in look]
        other = f"<think></think><look>[]</look><answer>{kept}</answer>"
        return reward([own, dataclasses.replace(own, turns=(Turn(other, (1,)),))])[:1]

    return paid


REWARDS = {
    tasks.wrong_phrase: (lambda verifier: critic_reward, 1.0),
    tasks.wrong_digit: (lambda verifier: critic_reward, 1.0),
    tasks.seen_and_located: (lambda verifier: satori_reward, 4.0),
    tasks.all_of_a_kind: (lambda verifier: checked(detection), 3.0),
    tasks.found_in_a_crowd: (lambda verifier: beside_doubt(inspected(most=8)), 3.0),
    tasks.named_boxes: (verified, 1.0),
    tasks.yes_or_no: (lambda verifier: binary, 2.0),
    tasks.one_letter: (lambda verifier: choice, 2.0),
    tasks.open_answer: (open_ended, 2.0),
    tasks.facts_first: (lambda verifier: perception_reward(boxed_exact, Reader()), 1.7),
    tasks.degraded: (lambda verifier: quality_reward, 2.0),
    tasks.one_imagined: (lambda verifier: per_response(all_that_is_there), 1.0),
}
"""What pays each task, and how much at most."""

SIZE = ImageSize(84, 84, 84, 84)


WORLDS = {tasks.wrong_digit: digits.sums, tasks.found_in_a_crowd: shapes.crowd}


def rows(task, count=40):
    make = WORLDS.get(task, shapes.colour)
    return [task(sample) for sample in make(count, split="train", seed=0)]


def paid(reward, row, text):
    episode = Episode(row, "?", (Turn(text, (1,)),), True, (SIZE,))
    return reward([episode])[0]["overall"]


@pytest.mark.parametrize("task", REWARDS, ids=lambda task: task.__name__)
def test_demonstrations_are_paid_in_full_and_others_are_not(task, verifier):
    make, most = REWARDS[task]
    reward, made = make(verifier), rows(task)
    texts = [row.annotations["demonstration"] for row in made]
    own = [paid(reward, *pair) for pair in zip(made, texts, strict=True)]
    np.testing.assert_allclose(own, most, atol=1e-4)
    others = [
        paid(reward, *pair) for pair in zip(made, texts[1:] + texts[:1], strict=True)
    ]
    # A layout and half of the verdicts are right by chance: 0.75.
    assert np.mean(others) < 0.8 * most


@pytest.mark.parametrize("task", REWARDS, ids=lambda task: task.__name__)
def test_rows_come_back_from_parquet(task, tmp_path):
    made = rows(task, 20)
    read, report = read_samples(write_parquet(made, tmp_path / "rows.parquet"))
    assert (report.used, dict(report.dropped)) == (20, {})
    for one, other in zip(made, read, strict=True):
        assert (one.question, one.answer) == (other.question, other.answer)
        assert other.annotations == json.loads(json.dumps(dict(one.annotations)))


@pytest.mark.parametrize("task", REWARDS, ids=lambda task: task.__name__)
def test_rows_follow_from_the_sample_alone(task):
    assert rows(task, 4) == rows(task)[:4]


@pytest.mark.parametrize("task", [tasks.wrong_phrase, tasks.wrong_digit])
def test_one_phrase_is_wrong_and_names_nothing_that_is_there(task):
    for row in rows(task):
        told = row.annotations
        before = told["original_caption"].split(", ")
        after = told["changed_caption"].split(", ")
        wrong = [pair for pair in zip(before, after, strict=True) if pair[0] != pair[1]]
        assert wrong == [(told["solution_original"], row.answer)]
        assert row.answer not in before
        one, other = (set(name.split()) for name in wrong[0])
        assert len(one & other) == 1  # one word was changed, not both


def test_what_is_rejected_names_one_thing_that_is_not_there():
    for row in rows(tasks.one_imagined):
        right, wrong = (row.annotations[n].split(", ") for n in ("chosen", "rejected"))
        assert sorted(right) == things(row)
        (imagined,) = [name for name in wrong if name not in things(row)]
        assert [name for name in wrong if name != imagined] == right


@pytest.mark.parametrize(
    "world", ["count", "colour", "position", "comparison", "crowd"]
)
def test_every_question_has_its_three_forms(world):
    made = getattr(shapes, world)(40, split="train", seed=0)
    verdicts = [tasks.yes_or_no(sample) for sample in made]
    assert {row.answer for row in verdicts} == {"yes", "no"}
    for sample, row in zip(made, verdicts, strict=True):
        claim = row.question.split("right: ")[1].split("?")[0]
        assert (row.answer == "yes") == (claim == sample.answer)
        options = tasks.one_letter(sample)
        assert f"{options.answer}: {sample.answer}" in options.question
        assert tasks.open_answer(sample).answer == sample.answer


def test_digits_of_thoughts_are_seen_and_those_after_them_derived():
    tokens = ["<", "think", ">left", " 3", ",", "</", "think", ">", "\\boxed", "{", "5"]
    kinds = digits.thought_token_kinds(tokens)
    assert kinds == [None, None, None, "seen", *[None] * 6, "derived"]


def test_boxes_in_thousandths_lie_on_the_things():
    made = rows(tasks.all_of_a_kind)
    absent = [row for row in made if row.answer == "No Objects"]
    assert 0 < len(absent) < len(made) / 2
    for row in made:
        if row in absent:
            continue
        wanted = row.question.split("every ")[1].split("?")[0]
        objects = row.annotations["objects"]
        boxes = [o["box"] for o in objects if f"{o['colour']} {o['shape']}" == wanted]
        found = [box["Position"] for box in json.loads(row.answer)]
        np.testing.assert_allclose(np.array(found) * 0.084, boxes, atol=0.05)


def test_a_look_goes_where_things_meet():
    """Some rows look, some need not; what is looked at is part of the answer."""
    made = rows(tasks.found_in_a_crowd)
    looks = [json.loads(last_tag(r.annotations["demonstration"], "look")) for r in made]
    assert 5 < sum(map(bool, looks)) < 35
    assert any(row.answer == "[]" for row in made)
    for row, look in zip(made, looks, strict=True):
        wanted = row.question.split("every ")[1].split("?")[0].split()
        objects = row.annotations["objects"]
        found = [o["box"] for o in objects if [o["colour"], o["shape"]] == wanted]
        assert json.loads(row.answer) == found
        for box in found:
            x0, y0, x1, y1 = box
            others = [o["box"] for o in objects if o["box"] != box]
            meets = any(
                max(x0, a) < min(x1, c) and max(y0, b) < min(y1, d)
                for a, b, c, d in others
            )
            assert meets == (box in look)


def pixels(sample):
    return np.asarray(Image.open(io.BytesIO(sample.images[0])), float)


def test_pictures_are_changed_where_rows_say_so():
    clean = shapes.colour(80, split="train", seed=0)
    made = [tasks.degraded(sample) for sample in clean]
    assert {row.annotations["task"] for row in made} == {"score", "degradation"}
    for before, row in zip(clean, made, strict=True):
        change = np.abs(pixels(row) - pixels(before)).mean()
        kind = row.annotations.get("distortion_class")
        untouched = row.answer == "5.00" or kind == "null"
        assert (change == 0) == untouched


@pytest.mark.parametrize("kind", tasks.DISTORTIONS)
def test_distortions_grow_with_severity(kind):
    picture = Image.open(io.BytesIO(rows(tasks.wrong_phrase)[0].images[0]))
    levels = range(1, len(tasks.SEVERITIES) + 1)
    worse = [tasks.DISTORTIONS[kind](picture, n, random.Random(0)) for n in levels]
    before = np.asarray(picture, float)
    changes = [np.abs(np.asarray(one, float) - before).mean() for one in worse]
    assert changes[0] > 0 and (np.diff(changes) > 0).all()
