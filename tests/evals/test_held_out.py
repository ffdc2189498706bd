"""Accuracy counts every sample once; the controls are by hand."""

import dataclasses

import jax
import pytest

from vrl_jax.evals import held_out

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


def test_shuffle_images_gives_every_question_another_s_pictures():
    shuffled = held_out.shuffle_images(SAMPLES)
    for place, sample in enumerate(shuffled):
        other = SAMPLES[(place + 1) % 5]
        assert sample == dataclasses.replace(SAMPLES[place], images=other.images)


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
    assert measured == {
        "val/accuracy": 1,
        "val/accuracy_shuffled_images": 0,
        "val/count": 4,
    }
