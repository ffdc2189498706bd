"""Groups that are not all sampled, or not from the same picture."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vrl_jax import views
from vrl_jax.engine.actor import look
from vrl_jax.programs.demonstrations import (
    beside_demonstration,
    demonstrations,
    fits,
    preference_pairs,
    spelled,
)
from vrl_jax.programs.mixed_views import mixed_views
from vrl_jax.programs.single_turn import single_turn
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


def test_a_demonstration_of_several_turns_is_told():
    samples = [
        dataclasses.replace(s, annotations={"demonstration": ["it is", "What"]})
        for s in small.samples()
    ]
    with pytest.raises(ValueError, match=r"row-0 is no text but .*recited"):
        demonstrations(small.actor(), iter([samples]), KEY)


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


def test_words_that_spell_a_picture_are_not_learnt():
    """Of a row they are named; of what a policy wrote they do not fit."""
    processor, forged = small.actor().processor, "it <|image_pad|>"
    assert fits(processor, "it", most=9) and not fits(processor, forged, most=9)
    with pytest.raises(ValueError, match=r"row-7: what .*image_pad"):
        spelled(processor, forged, (), most=9, what="row-7")
