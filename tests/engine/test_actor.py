"""What an actor adds to a rollout, and what it may sample."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vrl_jax import divergences, perception, views
from vrl_jax.engine import slots
from vrl_jax.engine.actor import blind, look, seeing
from vrl_jax.engine.likelihood import final_states
from vrl_jax.programs.single_turn import single_turn
from vrl_jax.types import Images

from ..fixtures import small
from ..fixtures.compilations import compilations

VIEW = functools.partial(views.blacken_patches, share=0.5)


def unchanged(key, images: Images) -> Images:
    return images


def seen_under(view, *, rollout=None, **changes):
    actor = small.actor(**changes)
    rollout = rollout or small.rollout()
    return actor.add_logprobs(rollout, "view", view, jax.random.key(9)).extra_logprobs[
        "view"
    ]


def test_names_that_scoring_does_not_read_compile_nothing():
    """A step whose rows come from another source has other parts of the reward."""
    actor, key = small.actor(), jax.random.key(0)
    rollout = dataclasses.replace(small.rollout(), states=None)

    def score(rollout):
        actor.likelihood(rollout)
        actor.add_logprobs(rollout, "view", unchanged, key)
        actor.add_divergence(rollout, "view", unchanged, key)

    score(rollout)
    parts = {"ocr": rollout.rewards}
    other = dataclasses.replace(
        rollout, reward_parts=parts, facts={"turns": rollout.rewards}
    )
    with compilations() as built:
        score(other)
    assert not built


def test_add_logprobs_of_the_same_view_are_the_sampler_s():
    rollout = small.rollout()
    seen = seen_under(unchanged)
    np.testing.assert_allclose(seen, rollout.old_logprobs, rtol=0, atol=1e-5)


def test_add_logprobs_of_a_blackened_view():
    """Law 2: a picture matters to its own prompts, and to text alone exactly not."""
    rollout = small.rollout()
    plain, dark = seen_under(unchanged), seen_under(VIEW)
    dependency = np.asarray(perception.sampled_k3(plain, dark, rollout.mask))
    by_prompt = dependency.reshape(4, small.GROUP, -1)
    np.testing.assert_array_equal(by_prompt[2], 0)
    assert (by_prompt[[0, 1, 3]].max(axis=(1, 2)) > 1e-3).all()
    np.testing.assert_array_equal(dark[~rollout.mask], 0)
    # One draw a response: equal responses to one picture are seen in other views.
    rows = jnp.zeros(len(rollout.tokens), int)
    same = dataclasses.replace(
        rollout, tokens=rollout.tokens[rows], mask=rollout.mask[rows]
    )
    first = np.asarray(seen_under(VIEW, rollout=same))[: small.GROUP]
    assert len(np.unique(first[:, 0])) > 1


def test_add_logprobs_keeps_what_was_there_and_draws_by_key():
    rollout = small.rollout()
    actor = small.actor()
    once = actor.add_logprobs(rollout, "one", VIEW, jax.random.key(0))
    twice = actor.add_logprobs(once, "two", VIEW, jax.random.key(1))
    again = actor.add_logprobs(twice, "again", VIEW, jax.random.key(0))
    seen = again.extra_logprobs
    assert set(seen) == {"one", "two", "again"}
    np.testing.assert_array_equal(seen["one"], seen["again"])
    assert (seen["one"] != seen["two"]).any()
    assert rollout.extra_logprobs == {}


def test_add_logprobs_does_not_depend_on_prompts_per_pass():
    """Law 4, with the draws of a random view too."""
    np.testing.assert_allclose(
        seen_under(VIEW, prompts_per_pass=2), seen_under(VIEW), rtol=1e-5, atol=1e-5
    )


def test_allowed_ids_are_the_tokenizer_s_without_the_placeholders():
    actor = small.actor()
    tokenizer, allowed = actor.processor.tokenizer, np.asarray(actor.allowed)
    assert len(allowed) == small.spec().text.vocabulary > len(tokenizer)
    blocked = ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
    wanted = set(range(len(tokenizer))) - set(tokenizer.convert_tokens_to_ids(blocked))
    assert set(np.flatnonzero(allowed).tolist()) == wanted
    assert {tokenizer.eos_token_id, tokenizer.pad_token_id} <= wanted


def diverged(measure=perception.view_kl, view=VIEW, rollout=None, **changes):
    actor = small.actor(**changes)
    rollout = rollout or noted_rollout()
    key = jax.random.key(9)
    return actor.add_divergence(rollout, "view", view, key, measure=measure)


@functools.cache
def noted_rollout():
    """The same responses, with the states that predicted them."""
    actor = small.actor(note=slots.states)
    return single_turn(
        actor, iter([small.samples()]), jax.random.key(3), group_size=small.GROUP
    )


def test_states_that_the_actor_notes_are_those_that_scoring_sees():
    rollout, plain = noted_rollout(), small.rollout()
    np.testing.assert_array_equal(rollout.tokens, plain.tokens)
    assert plain.states is None
    recomputed = final_states(
        small.actor().policy,
        small.params(),
        plain.prompts,
        plain.tokens,
        plain.positions,
    )
    mask = np.asarray(plain.mask)
    assert rollout.states.shape == (*mask.shape, small.spec().text.width)
    np.testing.assert_allclose(
        np.asarray(rollout.states)[mask], np.asarray(recomputed)[mask], atol=1e-5
    )


@pytest.mark.parametrize(
    ("measure", "dense"),
    [
        (perception.view_kl, divergences.full_kl),
        (perception.view_reverse_kl, lambda z, y: divergences.full_kl(y, z)),
        (perception.view_js, divergences.full_jensen_shannon),
    ],
    ids=["kl", "reverse", "js"],
)
def test_add_divergence_is_that_of_the_logits(measure, dense):
    """From dense logits of both views; and exactly 0 for text alone (law 2)."""
    rollout, actor = noted_rollout(), small.actor()

    def grey(key, images):
        return views.solid_grey(images)

    seen = diverged(measure, grey)
    assert seen.states is None
    found = np.asarray(seen.divergences["view"])

    def logits(prompts):
        states = final_states(
            actor.policy, actor.params, prompts, rollout.tokens, rollout.positions
        )
        z = states @ actor.policy.head(actor.params).T / rollout.temperature[0]
        return jnp.where(actor.allowed, z, -jnp.inf)

    dark = dataclasses.replace(
        rollout.prompts, images=views.solid_grey(rollout.prompts.images)
    )
    wanted = np.where(rollout.mask, dense(logits(rollout.prompts), logits(dark)), 0)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=2e-6)
    by_prompt = found.reshape(4, small.GROUP, -1)
    np.testing.assert_array_equal(by_prompt[2], 0)
    assert (by_prompt[[0, 1, 3]].max(axis=(1, 2)) > 1e-3).all()


def test_add_divergence_without_states_reads_the_picture_again():
    plain = dataclasses.replace(noted_rollout(), states=None)
    for other in (
        diverged(rollout=plain, prompts_per_pass=2),
        diverged(prompts_per_pass=2),
    ):
        np.testing.assert_allclose(
            other.divergences["view"],
            diverged().divergences["view"],
            rtol=1e-4,
            atol=2e-6,
        )


def test_a_shared_draw_is_the_same_for_a_group_and_for_any_pass():
    rollout, key = small.rollout(), jax.random.key(7)
    found = [
        small.actor(prompts_per_pass=size)
        .add_shared_logprobs(rollout, "black", views.blacken_patches, key)
        .extra_logprobs["black"]
        for size in (64, 1)
    ]
    np.testing.assert_allclose(*found, atol=1e-5)
    images = look(views.blacken_patches, key, rollout.prompts)
    again = small.actor().likelihood(seeing(rollout, images)).logprobs
    np.testing.assert_allclose(found[0], again, atol=1e-6)
    assert np.abs(found[0] - rollout.old_logprobs).max() > 0.01


def test_a_blind_pass_says_what_it_cannot_hide():
    shown = dataclasses.replace(small.rollout(), shown=())
    with pytest.raises(ValueError, match="saw more between their turns"):
        blind(shown)
