"""STIC: how pairs of descriptions come about, and what they cost."""

import dataclasses
import io
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vrl_jax.engine.episode import Played
from vrl_jax.programs.demonstrations import demonstrations, preference_pairs
from vrl_jax.recipes.stic import (
    DETAILED,
    MISLEADING,
    PLAIN,
    Contrast,
    contrast,
    described,
    preferences,
    recoloured,
    shrunk,
    stic,
    two_descriptions,
)
from vrl_jax.training.data import read_samples
from vrl_jax.training.metrics import as_floats
from vrl_jax.types import Episode, Likelihood, Sample
from vrl_jax.worlds.writing import write_parquet

from ..fixtures import small
from ..fixtures.talk import said, talk

KEY = jax.random.key(0)
SEEN = [sample for sample in small.samples() if sample.images]
SHORT = {"plain": ("What is it?", "Is it?"), "misleading": ("it or them",)}
"""Prompts for which the small policy has room."""

END = "<|im_end|>"
WORDS = ("it", "What", "Ġone", END)
"""Tokens as the vocabulary has them."""


def only(*texts):
    """An actor that says these tokens at random; the last one ends what it says."""
    actor = small.chain_actor()
    ids = jnp.array(actor.processor.tokenizer.convert_tokens_to_ids(list(texts)))
    return dataclasses.replace(
        actor,
        params={"table": jnp.zeros_like(actor.params["table"])},
        allowed=jnp.zeros_like(actor.allowed).at[ids].set(True),
        stop_ids=ids[-1:] if texts[-1] == END else jnp.array([0]),
    )


def value_and_slope(new, reference):
    """The divided loss of one pair of responses of two tokens, and its gradient."""
    recipe = stic()
    scored = dataclasses.replace(
        small.scored([1.0, 0.0]),
        mask=jnp.ones((2, 2), bool),
        extra_logprobs={"reference": jnp.array(reference)},
    )
    batch, _ = recipe.credit(scored)

    def loss(logprobs):
        new = Likelihood(logprobs, jnp.zeros((2, 2)))
        mean, metrics = recipe.loss(lambda _: new, batch)
        return mean.total / mean.weight, metrics

    return jax.value_and_grad(loss, has_aux=True)(jnp.array(new))


def test_the_worked_pair():
    """The sheet's: log pi -120 and -140, of the reference -125 and -138."""
    new = [[-70.0, -50.0], [-100.0, -40.0]]
    (value, metrics), slope = value_and_slope(new, [[-73.0, -52.0], [-99.0, -39.0]])
    np.testing.assert_allclose(value, 0.403186 + 0.117188, atol=2e-6)
    wanted = [[-0.033181 - 0.000977] * 2, [0.033181] * 2]
    np.testing.assert_allclose(slope, wanted, atol=1e-6)
    logged = as_floats(metrics)
    np.testing.assert_allclose(0.1 * logged["rewards/margins"], 0.7, rtol=1e-6)
    assert logged["rewards/accuracies"] == 1
    assert (logged["logps/chosen"], logged["logps/rejected"]) == (-120, -140)


def test_the_worked_pair_at_the_start():
    """Where the policy is its own reference: log 2 + 120 / 1024."""
    new = [[-70.0, -50.0], [-100.0, -40.0]]
    (value, _), slope = value_and_slope(new, new)
    np.testing.assert_allclose(value, 0.810335, atol=2e-6)
    wanted = [[-0.05 - 1 / 1024] * 2, [0.05] * 2]
    np.testing.assert_allclose(slope, wanted, atol=1e-6)


def named(number):
    return dataclasses.replace(SEEN[0], id=str(number))


def test_half_are_misled_and_half_see_a_worse_picture():
    drawn = [contrast(named(n), seed=[1, 2]) for n in range(2000)]
    corrupted = [one for one in drawn if one.corrupt]
    assert all(bool(one.misleading) != bool(one.corrupt) for one in drawn)
    small_ones = sum(one.corrupt is shrunk for one in corrupted)
    # Three deviations of 2000 and 1000 coins.
    assert abs(len(corrupted) - 1000) < 68 and abs(small_ones - 500) < 70
    for prompts, wanted in (
        (Counter(one.plain for one in drawn), PLAIN),
        (Counter(one.misleading for one in drawn if one.misleading), MISLEADING),
    ):
        assert prompts.keys() == {*wanted} and len(wanted) == 8
        assert max(prompts.values()) < 1.5 * min(prompts.values())
    told = [one.corrupt.keywords for one in corrupted if one.corrupt is not shrunk]
    for name, low, high in (("brightness", 0.5, 1.5), ("hue", -0.3, 0.3)):
        values = [one[name] for one in told]
        assert low <= min(values) < low + 0.02 and high - 0.02 < max(values) <= high


def test_what_is_drawn_follows_from_key_and_row():
    drawn = [contrast(named(n), seed=[1, 2])[:2] for n in range(40)]
    assert drawn == [contrast(named(n), seed=[1, 2])[:2] for n in range(40)]
    assert drawn != [contrast(named(n), seed=[1, 3])[:2] for n in range(40)]
    assert len({*drawn}) > 20


def test_a_picture_is_shrunk_to_twenty_pixels():
    assert shrunk(Image.new("RGB", (640, 480))).size == (27, 20)  # 26.7
    assert shrunk(Image.new("RGB", (84, 840))).size == (20, 200)
    picture = Image.open(io.BytesIO(SEEN[0].images[0]))
    assert np.asarray(shrunk(picture)).std() > 0


@pytest.mark.parametrize(
    ("brightness", "hue", "colour"),
    [
        (1.0, 0.0, (200, 0, 0)),
        (0.5, 0.0, (100, 0, 0)),
        (1.5, 0.0, (255, 0, 0)),  # 300 is as bright as it gets
        (1.0, 1 / 3, (0, 200, 0)),
        (0.5, -1 / 3, (0, 0, 100)),
        (1.0, 1 / 6, (200, 200, 0)),
    ],
)
def test_colours_by_hand(brightness, hue, colour):
    """Red of 200; a third of the circle is green, a sixth yellow."""
    red = Image.new("RGB", (2, 2), (200, 0, 0))
    pixel = recoloured(red, brightness=brightness, hue=hue).getpixel((1, 1))
    # 256 hues: one is 200 * 6 / 256 = 4.7 levels.
    np.testing.assert_allclose(pixel, colour, atol=5)


def pixels(png):
    return min(Image.open(io.BytesIO(png)).size)


@pytest.mark.parametrize(
    ("how", "prompt", "worse"),
    [
        (Contrast("Plain?", "Mislead!", None), "Mislead!", False),
        (Contrast("Plain?", "", shrunk), "Plain?", True),
    ],
)
def test_two_descriptions_are_asked_for(how, prompt, worse):
    """The question of the row is not; pictures and system message are."""
    row = Sample("row", "", "<image>or<image>?", SEEN[1].images, "", {"system": "Be."})
    replies = [said("one"), said("other")]
    (both,), turns = talk(two_descriptions(row, drawn=lambda _: how), [replies])
    assert turns == replies
    for ask, text in zip(both, (DETAILED, prompt), strict=True):
        system, asked = ask.context
        assert (system.role, system.text) == ("system", "Be.")
        assert asked.text == f"<image><image>{text}"
        assert (ask.trained, ask.temperature) == (False, 0.2)
    assert both[0].context[1].images == row.images
    shown = both[1].context[1].images
    assert (shown != row.images) == worse
    assert [pixels(png) for png in shown] == ([20, 20] if worse else [28, 28])


def many(count=48):
    return [
        dataclasses.replace(SEEN[number % 3], id=f"row-{number}")
        for number in range(count)
    ]


def pairs(key=KEY, actor=None, **changes):
    how = {"detailed": "Which one is it?", **SHORT, **changes}
    return preferences(actor or only(*WORDS), many(), key, **how)


def test_pairs_are_rows_that_the_recipe_trains(tmp_path):
    made = pairs()
    told = [id for ids in made.faults.values() for id in ids]
    own = [row.id for row in made.samples]
    assert sorted(told + own) == sorted(row.id for row in many())
    assert made.faults.keys() == {"cut off", "empty"} and len(own) > 4
    before = {row.id: row for row in many()}
    for row in made.samples:
        columns, clean = row.annotations, before[row.id]
        assert row.images == clean.images
        assert row.question.count("<image>") == len(row.images)
        assert row.question.replace("<image>", "") in SHORT["plain"]
        assert columns["hallu_prompt"] in ("", *SHORT["misleading"])
        assert columns["image_corruption"] == (not columns["hallu_prompt"])
        assert row.answer == columns["chosen"]
        assert columns["demonstration"] == clean.annotations["demonstration"]
    ways = {row.annotations["image_corruption"] for row in made.samples}
    assert ways == {True, False}
    read, report = read_samples(write_parquet(made.samples, tmp_path / "rows.parquet"))
    assert (report.used, dict(report.dropped)) == (len(own), {})
    for row, other in zip(made.samples, read, strict=True):
        assert (row.question, row.annotations) == (other.question, other.annotations)
    actor = only(*WORDS)
    acted = preference_pairs(actor, iter([read]), KEY)
    decode = actor.processor.tokenizer.decode
    responses = zip(*map(np.asarray, (acted.tokens, acted.mask)), strict=True)
    texts = [decode(tokens[kept][:-1]) for tokens, kept in responses]
    wanted = [row.annotations[name] for row in read for name in ("chosen", "rejected")]
    assert texts == wanted


def test_pairs_are_the_same_whatever_is_played_together():
    assert pairs() == pairs(size=5)
    assert pairs() != pairs(jax.random.key(1))


def echo(actor, program, samples, key, *, limits=None):
    """Every answer is what was asked, and how small the pictures were."""
    for sample in samples:
        (asks,), _ = talk(program(sample), [[said("?"), said("?")]])
        told = [ask.context[0] for ask in asks]
        texts = [f"{one.text} {min(map(pixels, one.images))}" for one in told]
        turns = tuple(map(said, texts))
        yield [Played(Episode(sample, "?", turns, True), ())]


def test_chosen_is_the_detailed_one_and_rejected_what_the_row_says(monkeypatch):
    monkeypatch.setattr("vrl_jax.programs.acting.play", echo)
    actor = small.actor(max_new_tokens=1000)
    made = preferences(actor, many(), KEY)
    assert made.faults == {} and len(made.samples) == 48
    sizes = set()
    for row in made.samples:
        shown, told = "<image>" * len(row.images), row.annotations
        clean = min(map(pixels, row.images))
        assert told["chosen"] == f"{shown}{DETAILED} {clean}"
        if told["image_corruption"]:
            asked, _, size = told["rejected"].rpartition(" ")
            assert asked == row.question
            sizes.add("20" if size == "20" else int(size) == clean)
        else:
            assert told["rejected"] == f"{shown}{told['hallu_prompt']} {clean}"
    assert sizes == {"20", True}  # shrunk, or in other colours


def test_faulty_descriptions_are_told():
    ids = [row.id for row in many()]
    silent, endless, broken = only(END), only("it"), only("Ģ", END)
    assert pairs(actor=silent) == ([], {"empty": ids})
    assert pairs(actor=endless) == ([], {"cut off": ids})
    assert pairs(detailed="What is it? " * 60) == ([], {"OutOfRoom": ids})
    # Byte 128 is half a character: shown as another one of three bytes.
    assert "too long" in pairs(actor=broken).faults


@pytest.mark.parametrize("make", [preferences, described])
def test_a_row_without_a_picture_is_named(make):
    with pytest.raises(ValueError, match=r"row-2 has no picture .* leave it out"):
        make(small.chain_actor(), small.samples(), KEY)


@pytest.mark.parametrize(
    ("question", "wanted"),
    [
        ("<image>What is it?", "<image>{}\n\nWhat is it?"),
        ("<image>\nWhat is it?", "<image>\n{}\n\nWhat is it?"),
        ("What is it?<image>", "{}\n\nWhat is it?<image>"),
        (r"\<image><image>?", r"{}" + "\n\n" + r"\<image><image>?"),
    ],
)
def test_descriptions_stand_before_questions(question, wanted):
    row = dataclasses.replace(SEEN[0], question=question, annotations={})
    made = described(only("it"), [row], KEY, plain=SHORT["plain"])
    (found,) = made.samples
    text = found.annotations["description"]
    assert text and {*text.split("it")} == {""}
    assert found.question == wanted.format(text)
    assert (found.images, found.answer) == (row.images, row.answer)
    assert found.annotations["demonstration"] == row.answer
    assert made.faults == {"cut off": [row.id]}  # it is read all the same


def test_several_pictures_come_first_and_placeholders_are_mere_text(monkeypatch):
    rows = [
        dataclasses.replace(SEEN[1], question="<image><image>Which?"),
        dataclasses.replace(SEEN[1], question="<image>or<image>?"),
    ]
    monkeypatch.setattr("vrl_jax.engine.desk.Desk.text", lambda *_: " a <image> ")
    first, second = described(small.chain_actor(), rows, KEY, **plainly()).samples
    assert first.question == "<image><image>a \\<image>\n\nWhich?"
    assert second.question == "<image>a \\<image>\n\nor<image>?"


def plainly():
    return {"plain": SHORT["plain"]}


def test_without_a_description_the_question_stays():
    made = described(only(END), SEEN, KEY, **plainly())
    assert made.faults == {"empty": [row.id for row in SEEN]}
    for row, before in zip(made.samples, SEEN, strict=True):
        assert row.question == before.question
        assert row.annotations == {**before.annotations, "description": ""}


def test_a_description_for_which_there_is_no_room_is_left_out(monkeypatch):
    """56 tokens; the longest question has room for some words, and not for 30."""
    for words, fault in ((" it" * 2, False), (" it" * 30, True)):
        monkeypatch.setattr("vrl_jax.engine.desk.Desk.text", lambda *_, w=words: w)
        made = described(small.chain_actor(), SEEN, KEY, **plainly())
        told = made.faults.get("too long", [])
        assert told == ([row.id for row in SEEN] if fault else [])
        assert [row.id for row in made.samples] == [row.id for row in SEEN]
        for row, before in zip(made.samples, SEEN, strict=True):
            assert (row.question == before.question) == fault
            assert row.annotations["description"] == ("" if fault else words.strip())
        acted = demonstrations(small.chain_actor(), iter([made.samples]), KEY)
        assert len(acted.tokens) == len(SEEN)  # nothing raises


def test_described_rows_are_learnt_and_follow_from_the_key():
    actor = small.chain_actor()
    made = described(actor, SEEN, KEY, **plainly())
    assert made == described(actor, SEEN, KEY, **plainly(), size=1)
    acted = demonstrations(actor, iter([made.samples]), KEY)
    for row, prompt in zip(made.samples, acted.prompts.tokens, strict=True):
        assert row.annotations["description"] in actor.processor.tokenizer.decode(
            prompt
        )
    lengths = np.asarray(acted.prompts.mask.sum(axis=1))
    alone = demonstrations(actor, iter([SEEN]), KEY).prompts.mask.sum(axis=1)
    assert (lengths > np.asarray(alone)).all()
