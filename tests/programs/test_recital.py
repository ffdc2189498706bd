"""Demonstrations of several turns are what the program would have been answered."""

import collections
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vrl_jax.engine import desk
from vrl_jax.engine.budgets import row_limits
from vrl_jax.engine.conversation import Ask, user
from vrl_jax.engine.desk import Limits
from vrl_jax.engine.packing import Room
from vrl_jax.engine.play import play
from vrl_jax.engine.processing import fitting, question
from vrl_jax.engine.rows import as_rollout
from vrl_jax.programs.demonstrations import demonstrations
from vrl_jax.programs.dialogue import dialogue
from vrl_jax.programs.recital import recital_size, recited
from vrl_jax.programs.single_turn import answer
from vrl_jax.types import Sample

from ..fixtures import small

KEY = jax.random.key(5)
LIMITS = Limits(row_tokens=60, pictures=7)
WORDS = (" is", " it", " a", "I")
"""Tokens that their own text spells again; the first and last end an answer."""


def looked_at_twice(sample):
    """Another picture after the first answer; a judge hears of it, untrained."""
    opening = question(sample)
    seen = yield Ask(opening, allowed=WORDS, stops=WORDS[:1])
    yield Ask((user(seen.text),), model="judge", max_new_tokens=8)
    closer = user("<image>What is it?", [small.png(3, 28, 56)])
    said = yield Ask((*opening, seen, closer), allowed=WORDS, stops=WORDS[:1])
    return seen, said


HOW = {"program": looked_at_twice, "models": ["judge"], "limits": LIMITS}


def saying(said):
    return [
        dataclasses.replace(s, annotations={"demonstration": said})
        for s in small.samples()
    ]


def test_one_turn_recited_is_a_demonstration():
    actor, samples = small.actor(), small.samples()
    alone = demonstrations(actor, iter([samples]), KEY)
    rollout = recited(actor, iter([samples]), KEY, program=answer)
    np.testing.assert_array_equal(rollout.mask, alone.mask)
    np.testing.assert_array_equal(
        jnp.where(rollout.mask, rollout.tokens, 0),
        jnp.where(alone.mask, alone.tokens, 0),
    )
    np.testing.assert_allclose(
        actor.likelihood(rollout).logprobs, actor.likelihood(alone).logprobs, atol=1e-5
    )
    assert np.isnan(rollout.rewards).all() and not rollout.old_logprobs.any()


def test_a_conversation_is_recited_and_only_the_policy_s_turns_are_learnt():
    actor = small.actor()
    samples = saying([" it a", "What", " a"])
    rollout = recited(actor, iter([samples]), KEY, **HOW)
    tokens, mask = np.asarray(rollout.tokens), np.asarray(rollout.mask)
    for row, kept in zip(tokens, mask, strict=True):
        decode = actor.processor.tokenizer.decode
        parts = np.split(row, np.flatnonzero(np.diff(kept.astype(int))) + 1)
        said = [decode(part[:-1]) for part in parts[::2]]
        assert said[0] == " it a" and said[1] == " a"
        assert decode(row).count("What") == 1  # the question's, not the judge's
    assert np.isnan(rollout.rewards).all() and (rollout.temperature == 1).all()


def test_what_was_played_is_recited_to_the_same_rows():
    """Prompt, ids, mask, positions and pictures: what the sampler made of the words."""
    actor = small.actor()
    models, found = {"judge": actor}, 0
    for seed in range(2):
        groups = play(
            actor,
            looked_at_twice,
            small.samples(),
            jax.random.key(seed),
            models=models,
            limits=LIMITS,
        )
        for (one,) in groups:
            turns = [said.turn for row in one.rows for said in row.said]
            if not all(turn.finished for turn in turns):
                continue  # nobody says that an answer was cut off
            found += 1
            played = as_rollout(actor, [[one]], [{"overall": 0.0}], limits=LIMITS)
            first, second = (turn.text.removesuffix("I") for turn in turns)
            told = [first, "What", second]
            sample = dataclasses.replace(
                one.episode.sample, annotations={"demonstration": told}
            )
            again = recited(actor, iter([[sample]]), KEY, **HOW)
            for name in ("prompts", "tokens", "mask", "positions", "shown"):
                jax.tree.map(
                    np.testing.assert_array_equal,
                    getattr(again, name),
                    getattr(played, name),
                )
    assert found > 3


def test_what_cannot_be_recited_is_left_out_and_told():
    """Too few answers, and too long a one."""
    actor = small.actor()
    good, few, long, other = saying([" it a", "What", " a"])
    few = dataclasses.replace(few, annotations={"demonstration": [" it a"]})
    long = dataclasses.replace(long, annotations={"demonstration": [" it" * 40] * 3})
    measure = recital_size(actor, **HOW)
    rows = [good, few, long, other]
    fit = fitting(actor.processor, rows, measure=measure)
    kept, left_out = fit.samples, fit.dropped
    assert kept == [good, other]
    assert [row.split("sample ")[1].split()[0] for row in left_out] == [few.id, long.id]
    assert "is asked for, and there are 1" in left_out[0]
    assert "may be written" in left_out[1]
    recited(actor, iter([kept]), KEY, **HOW)
    with pytest.raises(ValueError, match=r"No sample can be used\. turn 2"):
        fitting(actor.processor, [few], measure=measure)


def test_the_size_of_a_recital_is_its_prompt_s_and_what_follows():
    """By hand: what is read before the first answer, and all that comes after.

    A picture of 28 x 28 is one token, of 28 x 56 two, each in a window of 16 patches;
    each is decoded once.
    """
    loads = collections.Counter()
    stop = small.tokenizer().convert_tokens_to_ids("<|im_end|>")
    actor = dataclasses.replace(small.actor(), stop_ids=jnp.array([stop]))
    front_end = actor.processor.front_end
    load = front_end.load

    def counted(image):
        loads[image] += 1
        return load(image)

    front_end = front_end._replace(load=counted)
    reading = dataclasses.replace(actor.processor, front_end=front_end)
    images = (small.png(0, 28, 28), small.png(1, 28, 56), small.png(2, 28, 28))
    asks = ["<image>What is it?", "<image>or<image>Which one?"]
    talk = Sample(
        "talk",
        "small",
        "\n\n".join(asks),
        images,
        "a",
        {"asks": asks, "system": "it is", "demonstration": [" it", " a"]},
    )
    measure = recital_size(actor, program=dialogue, limits=LIMITS)
    fit = fitting(reading, [talk], measure=measure)
    picture = "<|vision_start|><|image_pad|>{}<|vision_end|>"
    one, two = picture.format(""), picture.format("<|image_pad|>")
    prompt = f"""\
<|im_start|>system
it is<|im_end|>
<|im_start|>user
{one}What is it?<|im_end|>
<|im_start|>assistant
"""
    behind = f"""\
 it<|im_end|>
<|im_start|>user
{two}or{one}Which one?<|im_end|>
<|im_start|>assistant
 a<|im_end|>"""
    tokens = actor.processor.tokenizer
    assert fit.tokens == [len(tokens(prompt)["input_ids"])]
    assert fit.row_tokens == [len(tokens(behind)["input_ids"])]
    assert (fit.pictures, fit.shown) == ([[16]], [[16, 16]])
    assert loads == dict.fromkeys(images, 1)
    # What training reads has that size, and no more fits than was measured.
    limits = row_limits(fit, Room((fit.tokens[0],), 16))
    assert limits == Limits(fit.row_tokens[0], pictures=2)
    room = Room((fit.tokens[0],), 16)
    tight = dataclasses.replace(
        actor, processor=dataclasses.replace(reading, room=room)
    )
    rollout = recited(tight, iter([[talk]]), KEY, program=dialogue, limits=limits)
    assert rollout.prompts.tokens.shape == (1, fit.tokens[0])
    assert rollout.tokens.shape == (1, fit.row_tokens[0])
    assert rollout.prompts.images.patches.shape[1] == 16
    for less in (
        limits._replace(row_tokens=limits.row_tokens - 1),
        limits._replace(pictures=1),
    ):
        with pytest.raises(ValueError, match="talk"):
            recited(tight, iter([[talk]]), KEY, program=dialogue, limits=less)


def test_what_is_measured_fits_the_room_of_prompts():
    actor = small.actor()
    short = Room((9,), actor.processor.room.block)
    tight = dataclasses.replace(actor.processor, room=short)
    measure = recital_size(actor, program=answer)
    with pytest.raises(ValueError, match=r"Sample row-0: The prompt has"):
        fitting(tight, saying(" it"), measure=measure)


def test_a_picture_that_is_broken_is_told_by_its_row():
    actor = small.actor()
    good, bad = saying(" it")[:2]
    bad = dataclasses.replace(bad, images=(b"no picture",) * len(bad.images))
    measure = recital_size(actor, program=answer)
    fit = fitting(actor.processor, [good, bad], measure=measure)
    assert fit.samples == [good]
    (why,) = fit.dropped
    assert f"sample {bad.id} ends early" in why and "cannot be decoded" in why


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ([" it is"], "turn 2 .* row-0 is asked for, and there are 1"),
        (" it is", "turn 2 .* row-0 is asked for, and there are 1"),
        ([" it" * 40, "What", " it"], "turn 1 of the demonstration of sample row-0"),
        ([" it is", "What", " it", " a"], "row-0 has 4 turns, and the program asked 3"),
        (None, "row-0 needs the annotation `demonstration`, a text or a list"),
        ([1, 2, 3], "row-0 needs the annotation `demonstration`, a text or a list"),
    ],
)
def test_a_conversation_that_cannot_be_recited_is_told(said, message):
    with pytest.raises(ValueError, match=message):
        recited(small.actor(), iter([saying(said)]), KEY, **HOW)


def test_an_episode_that_ends_early_is_told():
    def breaks(sample):
        yield Ask(question(sample))
        raise KeyError("nothing more")

    with pytest.raises(ValueError, match="row-0 ends early, by KeyError"):
        recited(small.actor(), iter([saying("it is")]), KEY, program=breaks)
    no_room = {**HOW, "limits": Limits(row_tokens=9)}
    with pytest.raises(ValueError, match="OutOfRoom: where it has no room, raise"):
        recited(small.actor(), iter([saying([" it", "What", " it"])]), KEY, **no_room)


def test_what_is_said_to_one_question_in_a_group_reads_one_prompt():
    """The rows are those of each alone, by sample, place and episode."""
    actor = small.chain_actor()

    def twice(sample):
        yield Ask(question(sample))
        yield Ask((user(f"So? {sample.question}", sample.images),))

    good, bad = saying([" it", " is"]), saying([" a", "What"])
    both = [one for pair in zip(good, bad, strict=True) for one in pair]
    rollout = recited(actor, iter([both]), KEY, program=twice, group_size=2, rows=2)
    tokens, mask = np.asarray(rollout.tokens), np.asarray(rollout.mask)
    said = [
        actor.processor.tokenizer.decode(row[kept][:-1])
        for row, kept in zip(tokens, mask, strict=True)
    ]
    assert said == [" it", " a", " is", "What"] * len(good)
    assert rollout.group.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert rollout.episode.tolist()[:6] == [0, 1, 0, 1, 2, 3]
    alone = recited(actor, iter([both]), KEY, program=twice, rows=2)
    assert len(rollout.prompts.tokens) == 8 and len(alone.prompts.tokens) == 16
    order = [0, 2, 1, 3]  # alone, an episode's rows lie together
    np.testing.assert_allclose(
        actor.likelihood(rollout).logprobs[:4],
        actor.likelihood(alone).logprobs[jnp.array(order)],
        atol=1e-5,
    )
    with pytest.raises(ValueError, match="7 samples are not whole groups of group_siz"):
        recited(actor, iter([both[1:]]), KEY, program=twice, group_size=2, rows=2)


def test_answers_end_as_the_ask_lets_them():
    """No stop token behind a stop string, nor where it may not be drawn."""
    actor = small.actor()

    def ids(text, **ask):
        def program(sample):
            yield Ask(question(sample), **ask)

        rollout = recited(actor, iter([saying(text)]), KEY, program=program)
        return np.asarray(rollout.tokens)[0][np.asarray(rollout.mask)[0]].tolist()

    spelled = actor.processor.tokenizer("it is", add_special_tokens=False)["input_ids"]
    stop = int(actor.stop_ids[0])
    assert ids("it is") == [*spelled, stop]
    assert ids("it is", stops=(" is",)) == spelled
    assert ids("it", allowed=("it", "What"), max_new_tokens=1) == spelled[:1]
    with pytest.raises(ValueError, match="'What', which the ask does not allow"):
        ids("What", allowed=("it",), max_new_tokens=1)


def test_what_is_recited_is_read_by_nobody(monkeypatch):
    """So pictures of contexts are not packed for a device; those of rows are."""
    samples, packs = saying([" it a", "What", " a"]), []
    pack = desk.packed
    monkeypatch.setattr(desk, "packed", lambda *rest: packs.append(1) or pack(*rest))
    actor = small.actor()
    recited(actor, iter([samples]), KEY, **HOW)
    assert not packs
    play(actor, HOW["program"], samples, KEY, models={"judge": actor}, limits=LIMITS)
    assert packs
