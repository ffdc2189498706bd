"""The engine with every family: it scores what it sampled, and pictures count."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from vrl_jax import views
from vrl_jax.engine.processing import encode
from vrl_jax.models.qwen_vl.families import QWEN2_VL, QWEN3_VL
from vrl_jax.models.qwen_vl.front_end import front_end
from vrl_jax.models.qwen_vl.policy import policy
from vrl_jax.models.qwen_vl.spec import QwenSpec, VisionSpec
from vrl_jax.programs.single_turn import single_turn
from vrl_jax.worlds import tiny

from ..fixtures import small
from ..models.cases import random_params

PARTS = {
    "qwen2_vl": (QWEN2_VL, VisionSpec(2, 32, 2, 64, patch=14), {}),
    "qwen3_vl": (
        QWEN3_VL,
        VisionSpec(2, 32, 2, 48, patch=16, table_side=4, deepstack=(0, 1)),
        {"head_width": 16, "rope_sections": (4, 2, 2)},
    ),
}


@pytest.fixture(scope="module", params=PARTS)
def actor(request):
    family, vision, text = PARTS[request.param]
    base = small.spec()
    spec = QwenSpec(
        vision,
        dataclasses.replace(base.text, **text),
        tied=True,
        family=family,
        **{
            name: getattr(base, name)
            for name in (
                "image_token",
                "video_token",
                "vision_start_token",
                "vision_end_token",
            )
        },
    )
    changed = dataclasses.replace(
        small.actor().processor,
        front_end=front_end(spec, min_pixels=28 * 28),
        patches=36,
        prompt_tokens=64,
    )
    return small.actor(
        policy=policy(spec), params=random_params(spec, 0), processor=changed
    )


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


def test_black_is_the_familys_black(actor):
    family = actor.processor.front_end.spec.family
    images = encode(actor.processor, small.samples()[:1]).prompts.images
    view = actor.painting(functools.partial(views.blacken_patches, share=1.0))
    black = view(jax.random.key(0), images)
    channel = images.patches.shape[-1] // 3
    real = np.asarray(images.frames)[0] > 0
    expected = -np.array(family.pixel_mean) / np.array(family.pixel_std)
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
