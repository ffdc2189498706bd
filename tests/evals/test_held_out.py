"""Accuracy counts every sample once; the controls are by hand."""

import contextlib
import dataclasses
import functools
import math

import jax
import pytest

from vrl_jax.engine.conversation import Ask, user
from vrl_jax.engine.desk import OutOfRoom
from vrl_jax.engine.episode import Outcome
from vrl_jax.engine.processing import question
from vrl_jax.evals import held_out
from vrl_jax.programs import acting
from vrl_jax.programs.single_turn import single_turn

from ..fixtures import small

SAMPLES = [
    dataclasses.replace(small.samples()[number % 4], id=f"held-{number}", answer=answer)
    for number, answer in enumerate("11232")
]


def actor(reward, size=2):
    return dataclasses.replace(
        small.chain_actor(), reward=reward, prompts_per_pass=size
    )


@pytest.mark.parametrize("size", [2, 5, 64])
def test_accuracy_counts_each_sample_once(size):
    """5 samples in passes of 2: the last pass is filled up, and the filler is not."""
    played = []

    def reward(episodes):
        played.append(episodes[0].sample.id)
        assert len(episodes) == 1
        return [float(episodes[0].sample.id[-1])]

    found = held_out.accuracy(actor(reward, size), SAMPLES, jax.random.key(0))
    assert found == 2.0  # (0 + 1 + 2 + 3 + 4) / 5
    assert set(played) == {sample.id for sample in SAMPLES}
    assert len(played) == (6 if size == 2 else 5)


def test_accuracy_is_greedy_unless_told():
    def written(episodes):
        return [float(sum(episodes[0].turns[0].tokens))]

    def found(seed, **how):
        key = jax.random.key(seed)
        return held_out.accuracy(actor(written), SAMPLES, key, **how)

    assert found(0) == found(1)
    sampled = {"greedy": False}
    assert found(0, **sampled) == found(0, **sampled) != found(1, **sampled)


def test_questions_may_be_answered_in_several_turns():
    """By any program, as in training: every sample once, the filler uncounted."""

    def twice(sample):
        first = yield Ask(question(sample))
        second = yield Ask((user("What?"), first, user("it")))
        return first, second

    def turns(episodes):
        return [float(len(episodes[0].turns))]

    two = functools.partial(acting.act, program=twice, rows=2)
    for act, count in ((two, 2), (single_turn, 1)):
        found = held_out.answers(actor(turns), SAMPLES, jax.random.key(0), act=act)
        assert [one.scores["overall"] for (one,) in found] == [count] * 5
    measured = held_out.look_and_shuffle(
        actor(turns), SAMPLES, jax.random.key(0), act=two
    )
    assert measured["val/accuracy"] == measured["val/accuracy_shuffled_images"] == 2


def test_what_programs_ended_early_is_measured_by_why():
    """Two of five are tired, and one has no room; of no other end is anything said.

    One goes on without the judge, who had none.
    """

    def program(sample):
        said = yield Ask(question(sample))
        if sample.id == "held-2":
            yield Ask((*question(sample), said, user("What? " * 99)))
        if sample.id == "held-3":
            with contextlib.suppress(OutOfRoom):
                yield Ask((user("What? " * 99),), model="judge")
        return Outcome((said,), {"ended/tired": float(sample.id in "held-0, held-4")})

    models = {"judge": small.chain_actor()}
    act = functools.partial(acting.measured, program=program, models=models)
    answered = held_out.answers(
        actor(lambda episodes: [1.0]), SAMPLES, jax.random.key(0), act=act
    )
    found = held_out.measurements(answered)
    ends = {name: share for name, share in found.items() if "/ended/" in name}
    assert ends == {"val/ended/OutOfRoom": 0.2, "val/ended/tired": 0.4}
    assert found["val/no_room/judge"] == 0.2
    assert found["val/response_length/clip_ratio"] >= 0.6


def test_measuring_plays_one_batch():
    def dynamic(actor, batches, key, *, group_size):
        return [next(batches), next(batches)]

    found = held_out.in_passes(
        actor(lambda episodes: [0.0]), SAMPLES, jax.random.key(0), act=dynamic
    )
    with pytest.raises(ValueError, match="second batch: what is measured is played"):
        next(found)


def test_shuffle_images_gives_questions_as_many_of_another_s_pictures():
    """SAMPLES have 1, 2, 0, 1 and 1 pictures; the fifth shows what the first shows."""
    assert [len(sample.images) for sample in SAMPLES] == [1, 2, 0, 1, 1]
    assert SAMPLES[0].images == SAMPLES[4].images != SAMPLES[3].images
    shuffled = held_out.shuffle_images(SAMPLES)
    assert shuffled == [
        dataclasses.replace(SAMPLES[place], images=SAMPLES[other].images)
        for place, other in [(0, 3), (3, 4), (4, 3)]
    ]
    assert held_out.shuffle_images(SAMPLES[:3]) == []


def test_without_other_pictures_nothing_is_said_of_them():
    found = held_out.look_and_shuffle(
        actor(lambda episodes: [1.0]), SAMPLES[1:3], jax.random.key(0)
    )
    assert found["val/accuracy"] == 1
    assert math.isnan(found["val/accuracy_shuffled_images"])


def test_chance_by_hand():
    # Answers 1 1 2 3 2: (2/5)^2 + (2/5)^2 + (1/5)^2.
    assert held_out.chance(SAMPLES) == pytest.approx(9 / 25)
    assert held_out.chance(SAMPLES[:1]) == 1


def test_look_and_shuffle_measures_both():
    """A reward that knows which picture belongs to which question."""
    alike = [
        dataclasses.replace(
            small.samples()[0], id=str(i), images=(small.png(i, 28, 56),)
        )
        for i in range(4)
    ]
    right = {sample.id: sample.images for sample in alike}

    def reward(episodes):
        sample = episodes[0].sample
        return [float(sample.images == right[sample.id])]

    measured = held_out.look_and_shuffle(actor(reward), alike, jax.random.key(0))
    assert measured["val/accuracy"] == measured["val/reward_score"] == 1
    assert measured["val/accuracy_shuffled_images"] == 0
    assert measured["val/count"] == 4


def test_measurements_by_hand():
    """Means of parts, the unscored left out, by source; under EasyR1's names."""
    scores = {
        "held-0": {"overall": 0.9, "accuracy": 1.0, "format": 0.0},
        "held-1": {"overall": 0.1, "accuracy": 0.0, "format": 1.0},
        "held-2": {"overall": float("nan")},
        "held-3": {"overall": 1.0, "accuracy": 1.0, "format": 1.0},
    }
    rows = [
        dataclasses.replace(sample, source="ab"[number % 2])
        for number, sample in enumerate(SAMPLES[:4])
    ]
    playing = dataclasses.replace(
        actor(lambda episodes: [scores[e.sample.id] for e in episodes]),
        stop_ids=jax.numpy.array([small.spec().image_token]),  # which none is
    )
    answered = held_out.answers(playing, rows, jax.random.key(0), each=1)
    found = held_out.measurements(answered)
    assert found == {
        "val/reward_score": pytest.approx(2 / 3),
        "val/accuracy": pytest.approx(2 / 3),
        "val/format_reward": pytest.approx(2 / 3),
        "val/accuracy/a": 1,  # held-0; held-2 is unscored
        "val/accuracy/b": 0.5,
        "val/unscored": 0.25,
        "val/response_length/mean": small.BUDGET,
        "val/response_length/clip_ratio": 1,
        "val/count": 4,
    }


def test_answers_are_of_each_sample_in_order():
    def reward(episodes):
        return [float(number) for number, _ in enumerate(episodes)]

    answered = held_out.answers(
        actor(reward), SAMPLES, jax.random.key(0), greedy=False, each=3
    )
    assert [[one.episode.sample.id for one in group] for group in answered] == [
        [sample.id] * 3 for sample in SAMPLES
    ]
    assert [[one.scores["overall"] for one in group] for group in answered] == [
        [0, 1, 2]
    ] * 5
