"""Groups that are not all sampled, or not from the same picture."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vrl_jax import views
from vrl_jax.engine.actor import look
from vrl_jax.engine.conversation import Ask, user
from vrl_jax.engine.desk import Limits
from vrl_jax.engine.processing import question
from vrl_jax.programs.demonstrations import (
    beside_demonstration,
    demonstrations,
    preference_pairs,
    recited,
)
from vrl_jax.programs.mixed_views import mixed_views
from vrl_jax.programs.single_turn import answer, single_turn
from vrl_jax.recipes.noisy_rollout import noisy_rollout

from ..fixtures import small
from ..fixtures.compilations import compilations

KEY = jax.random.key(5)


def words(actor, tokens, mask):
    written = [row[kept].tolist() for row, kept in zip(tokens, mask, strict=True)]
    return actor.processor.tokenizer.batch_decode([row[:-1] for row in written])


def test_a_demonstration_ends_each_group():
    actor, samples = small.actor(), small.samples()
    rollout = beside_demonstration(actor, iter([samples]), KEY, group_size=3)
    tokens, mask = np.asarray(rollout.tokens)[2::3], np.asarray(rollout.mask)[2::3]
    expected = [sample.annotations["demonstration"] for sample in samples]
    assert words(actor, tokens, mask) == expected
    assert not rollout.old_logprobs[2::3].any()
    # The others are what would have been sampled without it.
    alone = single_turn(actor, iter([samples]), KEY, group_size=2)
    own = np.arange(12) % 3 != 2
    np.testing.assert_array_equal(rollout.tokens[own], alone.tokens)
    np.testing.assert_array_equal(rollout.positions[own], alone.positions)
    even = [tokens[row][mask[row]].sum() % 2 == 0 for row in range(4)]
    np.testing.assert_array_equal(rollout.rewards[2::3], even)  # by the same rule


def test_preference_pairs_are_chosen_then_rejected():
    actor = small.actor()
    samples = [
        dataclasses.replace(s, annotations={"chosen": "it is", "rejected": "What"})
        for s in small.samples()
    ]
    rollout = preference_pairs(actor, iter([samples]), KEY)
    tokens, mask = np.asarray(rollout.tokens), np.asarray(rollout.mask)
    assert words(actor, tokens, mask) == ["it is", "What"] * 4
    np.testing.assert_array_equal(rollout.rewards, [1, 0] * 4)
    np.testing.assert_array_equal(rollout.group, np.repeat(np.arange(4), 2))
    with pytest.raises(ValueError, match="row-0 has no `chosen`"):
        bare = [dataclasses.replace(s, annotations={}) for s in samples]
        preference_pairs(actor, iter([bare]), KEY)


def looked_at_twice(sample):
    """Another picture after the first answer; a judge hears of it, untrained."""
    opening = question(sample)
    seen = yield Ask(opening)
    yield Ask((user(seen.text),), model="judge")
    said = yield Ask(
        (*opening, seen, user("<image>What is it?", [small.png(3, 28, 56)]))
    )
    return seen, said


def replies(said):
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
    samples = replies(["it is", "yes", "What is it"])
    limits = Limits(row_tokens=60, blocks=8)
    how = {"program": looked_at_twice, "models": ["judge"], "limits": limits}
    rollout = recited(actor, iter([samples]), KEY, **how)
    tokens, mask = np.asarray(rollout.tokens), np.asarray(rollout.mask)
    for row, kept in zip(tokens, mask, strict=True):
        decode = actor.processor.tokenizer.decode
        parts = np.split(row, np.flatnonzero(np.diff(kept.astype(int))) + 1)
        said = [decode(part[:-1]) for part in parts[::2]]
        assert said[0] == "it is" and said[1] == "What is it"
        assert "yes" not in decode(row)
    assert rollout.shown is not None
    # What is learnt is what would be sampled: the same law scores it.
    scored = np.asarray(actor.likelihood(rollout).logprobs)
    assert (scored[mask] < 0).all() and not scored[~mask].any()


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (["it is"], "row-0 needs the annotation `demonstration`.*number 2"),
        ("it is", "number 2 is asked for, got .'it is',."),
        (["it is " * 40, "yes", "yes"], "turn 1 of the demonstration of sample row-0"),
    ],
)
def test_a_conversation_that_cannot_be_recited_is_told(said, message):
    how = {"program": looked_at_twice, "models": ["judge"]}
    limits = Limits(row_tokens=60, blocks=8)
    with pytest.raises(ValueError, match=message):
        recited(small.actor(), iter([replies(said)]), KEY, limits=limits, **how)


def test_a_recital_that_ends_early_is_told():
    def breaks(sample):
        yield Ask(question(sample))
        raise KeyError("nothing more")

    with pytest.raises(ValueError, match="row-0 ends early, by KeyError"):
        recited(small.actor(), iter([replies("it is")]), KEY, program=breaks)


def black(actor, key, prompts):
    return look(functools.partial(views.blacken_patches, share=1.0), key, prompts)


def test_mixed_views_sample_under_one_picture_and_score_under_the_other():
    actor, samples = small.actor(), small.samples()
    rollout = mixed_views(
        actor, iter([samples]), KEY, group_size=4, pictures=black, perturbed=2
    )
    plain = single_turn(actor, iter([samples]), jax.random.split(KEY)[0], group_size=4)
    clean = np.arange(16) % 4 < 2
    np.testing.assert_array_equal(rollout.tokens[clean], plain.tokens[clean])
    assert (rollout.tokens[~clean] != plain.tokens[~clean]).any()
    text_only = slice(10, 12)  # without a picture both views are the same
    np.testing.assert_array_equal(rollout.tokens[text_only], plain.tokens[text_only])
    np.testing.assert_allclose(
        rollout.old_logprobs[clean], plain.old_logprobs[clean], rtol=1e-5, atol=1e-5
    )
    scored = actor.likelihood(rollout).logprobs
    np.testing.assert_allclose(rollout.old_logprobs, scored, atol=1e-6)
    assert jnp.array_equal(rollout.prompts.images.patches, plain.prompts.images.patches)


def test_noisy_rollout_noises_by_the_actor_s_step():
    """The heavier noise of the first step, then none: only that changes the draws."""
    actor, samples = small.chain_actor(), small.samples()

    def play(step):
        now = dataclasses.replace(actor, step=step, total_steps=60)
        recipe = noisy_rollout(group_size=4)
        return recipe.act(now, iter([samples]), KEY)

    with compilations() as seen:
        first, late, last = play(0), play(50), play(59)
    plain = single_turn(actor, iter([samples]), jax.random.split(KEY)[0], group_size=4)
    clean = np.arange(16) % 4 < 2
    for rollout in (first, late, last):
        np.testing.assert_array_equal(rollout.tokens[clean], plain.tokens[clean])
    assert (first.tokens != plain.tokens).any()
    moved = [np.abs(r.old_logprobs - plain.old_logprobs).max() for r in (late, last)]
    assert moved[1] <= moved[0]
    assert sum("noised" in name for name in seen) <= 1
