"""The engine with every family: it scores what it sampled, and pictures count."""

import dataclasses
import functools
import itertools

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from vrl_jax import views
from vrl_jax.engine.actor import seeing
from vrl_jax.engine.processing import encode
from vrl_jax.models.qwen_vl.families import QWEN2_VL, QWEN3_VL
from vrl_jax.models.trained import only, projector
from vrl_jax.programs.single_turn import single_turn
from vrl_jax.recipes.grpo import grpo
from vrl_jax.training.iteration import iteration
from vrl_jax.training.learner import adamw, make_learner
from vrl_jax.worlds import tiny

from ..fixtures import small
from ..fixtures.actors import OTHERS, of_family


@pytest.fixture(scope="module", params=OTHERS)
def actor(request):
    return of_family(request.param)


def test_scoring_equals_sampling_and_pictures_count(actor):
    samples = list(small.samples())
    rollout = single_turn(actor, iter([samples]), jax.random.key(0), group_size=2)
    same = actor.add_logprobs(
        rollout, "same", lambda key, images: images, jax.random.key(1)
    ).extra_logprobs["same"]
    np.testing.assert_allclose(same, rollout.old_logprobs, atol=1e-5)
    view = actor.painting(functools.partial(views.blacken_patches, share=1.0))
    black = actor.add_logprobs(rollout, "black", view, jax.random.key(1))
    shift = np.abs(black.extra_logprobs["black"] - rollout.old_logprobs).max(axis=1)
    shift = shift.reshape(4, 2).max(axis=1)
    assert (shift[[0, 1, 3]] > 1e-3).all() and shift[2] < 1e-5  # the third: text alone


def test_a_blind_pass_sees_no_pixel_and_moves_no_position(actor):
    samples = list(small.samples())
    rollout = single_turn(actor, iter([samples]), jax.random.key(0), group_size=2)
    seen = actor.add_blind_logprobs(rollout, "blind").extra_logprobs["blind"]
    noise = jax.random.normal(jax.random.key(1), rollout.prompts.images.patches.shape)
    images = dataclasses.replace(rollout.prompts.images, patches=noise)
    other = actor.add_blind_logprobs(seeing(rollout, images), "blind")
    np.testing.assert_array_equal(seen, other.extra_logprobs["blind"])
    shift = np.abs(seen - rollout.old_logprobs).reshape(4, -1).max(axis=1)
    assert (shift[[0, 1, 3]] > 1e-3).all() and shift[2] < 1e-5  # the third: text alone
    black = actor.painting(functools.partial(views.blacken_patches, share=1.0))
    painted = actor.add_logprobs(rollout, "black", black, jax.random.key(1))
    assert np.abs(painted.extra_logprobs["black"] - seen).max() > 1e-3


def test_black_is_the_familys_black(actor):
    front_end = actor.processor.front_end
    images = encode(actor.processor, small.samples()[:1]).prompts.images
    view = actor.painting(functools.partial(views.blacken_patches, share=1.0))
    black = view(jax.random.key(0), images)
    channel = images.patches.shape[-1] // 3
    real = np.asarray(images.frames)[0] > 0
    expected = -np.array(front_end.pixel_mean) / np.array(front_end.pixel_std)
    shown = np.asarray(black.patches)[0][real][:, ::channel]
    np.testing.assert_allclose(shown, np.tile(expected, (real.sum(), 1)), rtol=1e-6)


def test_painting_gives_the_same_function_each_time(actor):
    assert actor.painting(views.solid_grey) is actor.painting(views.solid_grey)


def test_only_the_first_two_generations_insert_a_system_turn():
    texts = {
        family.model_type: tiny.tokenizer(["hello"], family).apply_chat_template(
            [{"role": "user", "content": "hello"}],
            tokenize=False,
            add_generation_prompt=True,
        )
        for family in (QWEN2_VL, QWEN3_VL)
    }
    turn = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    assert texts == {"qwen2_vl": system + turn, "qwen3_vl": turn}


def test_what_stands_for_a_picture_is_not_sampled(actor):
    front_end = actor.processor.front_end
    assert front_end.image_token in front_end.unsampled
    assert not actor.allowed[np.array(front_end.unsampled)].any()
    assert actor.allowed.sum() == len(actor.processor.tokenizer) - len(
        front_end.unsampled
    )


def test_an_iteration_trains_gemmas_projector_alone():
    whole = of_family("gemma3")
    before = make_learner(
        whole.policy, whole.params, adamw(1e-2), whole.allowed, trains=only(projector)
    )
    batches = itertools.repeat(small.samples())
    recipe = grpo(group_size=small.GROUP)
    after, metrics = iteration(recipe, whole, before, batches, jax.random.key(3))
    assert float(metrics["training/logprob_gap"].total) < 1e-3
    old, new = (flatten_dict(tree, sep="/") for tree in (whole.params, after.params))
    changed = {path for path in old if not np.array_equal(old[path], new[path])}
    assert changed == {"vision/merger/kernel", "vision/merger/norm/scale"}
