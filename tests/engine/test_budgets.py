"""Few sizes: the best ladder, and what 200 prompts with 0 to 6 pictures compile."""

import collections
import dataclasses
import functools
import itertools

import jax
import numpy as np
import pytest

from vrl_jax.engine.actor import allowed_ids
from vrl_jax.engine.budgets import budgets, ladder, row_limits
from vrl_jax.engine.desk import Limits
from vrl_jax.engine.packing import Room
from vrl_jax.engine.processing import Fitting, Processor, fitting
from vrl_jax.models.parameters import init_params
from vrl_jax.models.qwen_vl.front_end import front_end
from vrl_jax.models.qwen_vl.parameters import parameter_table
from vrl_jax.models.qwen_vl.policy import policy
from vrl_jax.models.qwen_vl.spec import TextSpec, VisionSpec
from vrl_jax.programs.dynamic_sampling import every_group
from vrl_jax.recipes.vppo import vppo
from vrl_jax.training.iteration import iteration
from vrl_jax.training.learner import make_learner
from vrl_jax.types import Sample

from ..fixtures import small
from ..fixtures.compilations import compilations


def padding(sizes, needs):
    return sum(min(size for size in sizes if size >= need) - need for need in needs)


@pytest.mark.parametrize("seed", range(20))
def test_ladder_has_the_least_padding(seed):
    """Every choice of sizes, tried."""
    random = np.random.RandomState(seed)
    needs = random.randint(0, 20, random.randint(1, 30)).tolist()
    largest, most = max(needs) + int(random.randint(0, 5)), int(random.randint(1, 5))
    found = ladder(needs, largest, most=most)
    assert found[-1] == largest and len(found) <= most
    assert list(found) == sorted({*found})
    best = min(
        padding({*chosen, largest}, needs)
        for chosen in itertools.product({*needs}, repeat=most - 1)
    )
    assert padding(found, needs) == best


def test_budgets_hold_any_samples_that_may_come_together():
    """By hand: pictures of 8, so one to a block; twice the largest needs 6 blocks."""
    fit = Fitting(
        samples=[],
        tokens=[10, 10, 30, 20],
        pictures=[[8], [], [8, 8, 8], [8, 8]],
        dropped=[],
    )
    found = budgets(fit, prompts_per_step=2, prompts_per_pack=2, most=2)
    assert found.room.prompt_tokens[-1] == 30 and found.room.blocks[-1] == 6
    assert found.room.block == 8 and found.room.prompts_per_pack == 2
    assert len(found.room.prompt_tokens) == len(found.room.blocks) == 2
    # All samples in one batch and one size: 70 of 120 tokens, 6 of 12 blocks.
    whole = budgets(fit, prompts_per_step=4, prompts_per_pack=4, most=1)
    assert whole.room == Room((30,), 8, (12,), 4)
    assert whole.prompt_padding == pytest.approx(50 / 120)
    assert whole.pack_padding == pytest.approx(6 / 12)
    text = budgets(fit._replace(pictures=[[]] * 4), prompts_per_step=4, most=1)
    assert text.room.blocks == (0,) and text.pack_padding == 0
    assert "prompts of 30 tokens (42% padding)" in whole.summary()
    assert "at most 1 shapes" in whole.summary()


def test_row_limits_are_those_that_the_rows_need():
    """By hand: blocks of 8, and prompts of two rows to a pack of 4."""
    fit = Fitting(
        samples=[],
        tokens=[10, 10, 10],
        pictures=[[8], [], [8, 8]],
        dropped=[],
        row_tokens=[7, 30, 9],
        shown=[[4, 8, 4], [], [2, 2, 2]],
    )
    # 4 and 4 share a block; those of 2 have one, behind two full ones.
    assert row_limits(fit, Room((10,), 8, (4,), 2)) == Limits(30, pictures=2)
    assert row_limits(fit, Room((10,), 9, (2,))) == Limits(30, pictures=2)
    nothing = fit._replace(shown=[[], [], []])
    assert row_limits(nothing, Room((10,), 8, (4,), 2)) == Limits(30)


def test_row_limits_hold_a_row_that_first_fit_packs_worse_behind_its_prompt():
    """By hand, blocks of 30: 4 alone, {13 5 6 6} {17 13} {19 11} {15 14}.

    Behind 20 and 5 it is {20 5 5} {13 17} {19 6} {15 6} {13 14} {11}.
    """
    shown = [13, 5, 17, 19, 6, 15, 6, 13, 14, 11]
    fit = Fitting([], [9], [[20, 5]], [], [9], [shown])
    assert row_limits(fit, Room((9,), 30, (1,))) == Limits(9, pictures=5)


SIDE = 8  # pixels of a merged token: the smallest model that has every part


@functools.cache
def prompts(count: int, seed: int) -> list[Sample]:
    """0 to 6 pictures of random sizes, and questions of random length."""
    random = np.random.RandomState(seed)
    rows = []
    for number in range(count):
        sizes = random.randint(1, 5, (random.randint(0, 7), 2)) * SIDE
        words = "what is it " * random.randint(1, 6)
        rows.append(
            Sample(
                id=f"row-{seed}-{number}",
                source="random",
                question="<image>" * len(sizes) + words,
                images=tuple(
                    small.png(1000 * seed + 10 * number + i, *map(int, size))
                    for i, size in enumerate(sizes)
                ),
                answer="",
            )
        )
    return rows


@pytest.mark.proof
def test_200_prompts_compile_a_program_once_a_shape():
    """Law 6: sampling, scoring under a view, credit and update, with repacking.

    One size of prompts here, as every shape costs the test a set of programs.
    """
    spec = dataclasses.replace(
        small.spec(),
        vision=VisionSpec(2, 16, 2, 16, (1,), patch=4, window=16),
        text=TextSpec(
            1, 16, 16, 2, 1, small.spec().text.vocabulary, rope_sections=(1, 1, 2)
        ),
    )
    pictures = front_end(spec, min_pixels=SIDE**2, max_pixels=20 * SIDE**2)
    # Roomy: what the histogram is read with.
    processor = Processor(small.tokenizer(), pictures, Room((500,), 64, (10,)))
    fit = fitting(processor, prompts(200, 1))
    assert len(fit.samples) == 200
    assert {len(sizes) for sizes in fit.pictures} == {*range(7)}
    found = budgets(fit, prompts_per_step=8, prompts_per_pack=4, most=3)
    room = found.room._replace(prompt_tokens=found.room.prompt_tokens[-1:])
    processor = dataclasses.replace(processor, room=room)
    actor = small.actor(
        policy=policy(spec),
        params=init_params(jax.random.key(0), parameter_table(spec)),
        processor=processor,
        allowed=allowed_ids(processor, spec.text.vocabulary),
        max_new_tokens=3,
        prompts_per_pass=4,
    )
    learner = make_learner(
        actor.policy, actor.params, small.optimizer(), actor.allowed, micro_batches=2
    )
    shapes = set()

    def keep(rollout):
        shapes.add((rollout.prompts.tokens.shape, rollout.prompts.images.frames.shape))
        return every_group(rollout)

    recipe = vppo(group_size=2, keep=keep)

    def run(learner, samples):
        for start in range(0, len(samples), 8):
            batch = iter([samples[start : start + 8]])
            learner, metrics = iteration(
                recipe, actor, learner, batch, jax.random.key(start)
            )
            assert not metrics["training/skipped"].total
        return learner

    with compilations() as seen:
        learner = run(learner, prompts(200, 1))
    assert 1 < len(shapes) <= len(room.blocks) == 3
    counts = collections.Counter(seen)
    for name in ("_score_view", "credit", "update_moving"):
        assert counts[f"jit({name})"] == len(shapes), counts
    for name in ("read", "run"):  # sampling fills slots as it goes, from any shape
        assert 1 <= counts[f"jit({name})"] <= len(shapes), counts
    with compilations() as seen:
        run(learner, prompts(200, 1)[:40])
    assert seen == []
