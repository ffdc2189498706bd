"""What is prepared ahead changes nothing; sampling a step behind is corrected for."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vrl_jax.engine import processing
from vrl_jax.engine.processing import encode
from vrl_jax.recipes.grpo import grpo
from vrl_jax.training.ahead import Ahead, Upcoming, one_step_behind
from vrl_jax.training.data import sample_stream
from vrl_jax.training.files import read_lines
from vrl_jax.training.loop import Stage, train

from ..fixtures import small, toy


def ahead(count=3):
    stream = sample_stream(small.samples(), seed=1)
    return Ahead(stream, small.actor().processor, count)


def ids(stream, count):
    return [sample.id for sample in itertools.islice(stream, count)]


def test_ahead_hands_out_the_stream_and_continues_where_it_was():
    plain = ids(sample_stream(small.samples(), seed=1), 12)
    one, other = ahead(), ahead()
    assert ids(one, 5) == plain[:5]
    other.set_state(one.get_state())
    assert ids(other, 7) == plain[5:] == ids(one, 7)
    one.set_state(sample_stream(small.samples(), seed=1).get_state())
    assert ids(one, 3) == plain[:3]


def test_prepared_pictures_are_used_once_and_are_the_same(monkeypatch):
    prepared = []
    prepare = processing.prepare

    def counting(processor, image):
        prepared.append(image)
        return prepare(processor, image)

    monkeypatch.setattr("vrl_jax.training.ahead.prepare", counting)
    monkeypatch.setattr(processing, "prepare", counting)
    stream = ahead(count=4)
    first = next(stream)
    samples = [first, *itertools.islice(stream, 3)]
    stream.close()
    encoded = encode(stream.processor, samples)
    pictures = sum(len(sample.images) for sample in samples)
    assert len(prepared) >= pictures and len(set(prepared)) == pictures
    jax.tree.map(
        np.testing.assert_array_equal,
        encoded.prompts,
        encode(small.actor().processor, samples).prompts,
    )


def test_pictures_that_nobody_reads_are_let_go():
    """ERGO shows shrunk copies; the sample's own must not pile up."""
    rows = [
        dataclasses.replace(
            small.samples()[0], id=str(i), images=(small.png(i, 28, 28),)
        )
        for i in range(20)
    ]
    stream = Ahead(sample_stream(rows, seed=1), small.actor().processor, 3)
    handed = list(itertools.islice(stream, 12))
    prepared = stream.processor.prepared
    assert len(prepared) == 3 + 3
    assert all(sample.images[0] in prepared for sample in handed[-3:])
    stream.close()


def test_a_picture_that_comes_again_is_not_let_go():
    one = small.samples()[0]
    stream = Ahead(sample_stream([one], seed=1), small.actor().processor, 2)
    list(itertools.islice(stream, 9))
    assert list(stream.processor.prepared) == list(one.images)
    stream.close()


def test_a_picture_that_does_not_decode_is_named_when_it_is_needed():
    broken = dataclasses.replace(small.samples()[0], images=(b"no picture",))
    stream = Ahead(sample_stream([broken], seed=0), small.actor().processor, 1)
    with pytest.raises(ValueError, match=r"Sample row-0: A picture .10 bytes. cannot"):
        encode(stream.processor, [next(stream)])


def test_one_step_behind_samples_with_the_params_before_and_weighs():
    recipe = one_step_behind(small.recipe("grpo"))
    actor = small.chain_actor()
    moved = {**actor.params, "table": actor.params["table"] + 0.3 * jnp.eye(384)}
    newer = dataclasses.replace(actor, params=moved, step=1)
    batches = Upcoming(sample_stream(small.samples(), seed=1), 4)
    key = jax.random.key(0)
    first = recipe.act(actor, batches, key)
    second = recipe.act(newer, batches, key)
    # Each of the two was written by the policy as it was at the first step.
    for rollout in (first, second):
        scored = actor.likelihood(rollout).logprobs
        np.testing.assert_allclose(rollout.old_logprobs, scored, atol=1e-5)
    assert (first.tokens != second.tokens).any()
    second = recipe.score(newer, second, key)
    np.testing.assert_allclose(
        second.old_logprobs, newer.likelihood(second).logprobs, atol=1e-6
    )
    batch, metrics = recipe.credit(second)
    plain, _ = small.recipe("grpo").credit(second)
    sampler = second.extra_logprobs["sampler"]
    ratio = np.exp(np.asarray(second.old_logprobs - sampler))
    weights = np.where(second.mask, np.clip(ratio, 0, 2), 0)
    np.testing.assert_allclose(
        batch.advantages, plain.advantages * weights, rtol=1e-5, atol=1e-6
    )
    assert len(np.unique(weights.round(4))) > 3
    mean = metrics["mismatch/weight"]
    np.testing.assert_allclose(mean.total, weights.sum() / second.mask.sum(), rtol=1e-5)


def test_a_list_that_is_only_looked_at_is_not_taken():
    stream = sample_stream(small.samples(), seed=1)
    plain = ids(sample_stream(small.samples(), seed=1), 12)
    batches = Upcoming(stream, 2)
    next(batches)
    place = batches.get_state()
    looked = list(itertools.islice(batches.ahead(), 2))
    assert [one.id for batch in looked for one in batch] == plain[2:6]
    assert batches.get_state() == place
    assert [sample.id for sample in batches.drawn] == plain[:2]
    assert [next(batches), next(batches)] == looked
    assert [sample.id for sample in batches.drawn] == plain[:6]
    assert batches.get_state() == stream.get_state() != place


def test_a_resumed_run_one_step_behind_passes_over_no_row(tmp_path):
    """Nor does what the thread plays count for the step that it runs beside."""
    samples = [
        dataclasses.replace(small.samples()[0], id=f"row-{number}")
        for number in range(16)
    ]
    seen = []

    def observe(episodes, scores):
        seen.append(episodes[0].sample.id)

    class Killed(Exception):
        pass

    def run(steps):
        recipe = one_step_behind(grpo(group_size=2))
        stage = Stage("only", recipe, samples, 4, 4, optax.sgd(0.1))

        def log(step, row):
            if step == steps:
                raise Killed

        train(
            [stage],
            toy.actor(observe=observe),
            folder=tmp_path,
            seed=0,
            evaluate=lambda actor: {},
            checkpoint_every=1,
            log=log,
        )

    with pytest.raises(Killed):
        run(3)  # the checkpoint is of step 2
    after_two = seen[:8]
    seen.clear()
    run(None)
    assert sorted(after_two + seen) == sorted(sample.id for sample in samples)
    rows = read_lines(tmp_path / "metrics.jsonl")
    assert [row["data/prompts_played"] for row in rows] == [4] * 4
    # Groups of two, of at least one token each.
    assert all(row["data/tokens_played"] >= 8 for row in rows)


def test_one_step_behind_starts_nothing_after_the_last_step():
    recipe = one_step_behind(small.recipe("grpo"))
    played = []
    last = small.chain_actor()
    last = dataclasses.replace(
        last, step=4, total_steps=5, observe=lambda *seen: played.append(seen)
    )
    recipe.act(last, iter([small.samples()]), jax.random.key(0))
    assert len(played) == len(small.samples())
