"""Law 4: which pack a picture is in, and how much room there is, changes nothing."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vrl_jax import views
from vrl_jax.engine.actor import look
from vrl_jax.engine.likelihood import likelihood
from vrl_jax.engine.packing import (
    blocks_of,
    first_fit,
    pack_starts,
    packed,
    unpacked,
)
from vrl_jax.engine.processing import encode, encode_one
from vrl_jax.engine.sampling import response_positions
from vrl_jax.models import attention
from vrl_jax.programs.dynamic_sampling import dynamic_sampling
from vrl_jax.programs.single_turn import single_turn

from ..fixtures import small
from .test_families import actor as family_actor  # noqa: F401

# Pictures of 16 and 2 x 16 patches, none, and 16: one pack of four blocks for all, and
# packs of their own.
TOGETHER = {"block": 16, "blocks": (1, 4, 5), "prompts_per_pack": 4}


def roomy(actor, **sizes):
    return dataclasses.replace(
        actor, processor=small.with_room(actor.processor, **sizes)
    )


def poisoned(prompts):
    absent = prompts.images.frames == 0
    assert absent.any()
    patches = jnp.where(absent[..., None], jnp.nan, prompts.images.patches)
    images = dataclasses.replace(prompts.images, patches=patches)
    return dataclasses.replace(prompts, images=images)


@functools.partial(jax.jit, static_argnums=0)
def scored(policy, params, prompts, tokens, allowed):
    """Log-probs of two responses a prompt, and a gradient through them."""
    mask = jnp.ones(tokens.shape, bool)
    largest = jnp.where(prompts.mask[..., None], prompts.positions, -1).max((1, 2))
    start = jnp.repeat(largest + 1, 2)

    def total(params):
        found = likelihood(
            policy,
            params,
            prompts,
            tokens,
            response_positions(start, tokens.shape[1]),
            mask,
            jnp.ones(len(tokens)),
            allowed,
        )
        weights = jnp.cos(jnp.arange(tokens.size).reshape(tokens.shape))
        return (weights * found.logprobs + found.entropy).sum(), found.logprobs

    return jax.grad(total, has_aux=True)(params)


def test_packs_change_neither_likelihood_nor_gradient(family_actor):  # noqa: F811
    """All families; NaN in the padding, other budgets, other order."""
    actor, unit = family_actor, family_actor.processor.front_end.granularity
    tokens = np.random.RandomState(0).randint(100, size=(4, 2, 3))

    def run(order, **sizes):
        samples = [small.samples()[i] for i in order]
        processor = small.with_room(actor.processor, **sizes)
        prompts = poisoned(encode(processor, samples).prompts)
        rows = jnp.asarray(tokens[order].reshape(8, 3))
        gradient, logprobs = scored(
            actor.policy, actor.params, prompts, rows, actor.allowed
        )
        back = np.argsort(order)
        return gradient, logprobs.reshape(4, 2, 3)[back], prompts

    alone_gradient, alone, one = run([0, 1, 2, 3])
    assert one.images.frames.shape[0] == 4
    block = 16 if unit == 16 else 20
    gradient, together, four = run(
        [0, 1, 2, 3],
        prompt_tokens=(8, 66),
        block=block,
        blocks=(1, 5),
        prompts_per_pack=4,
    )
    assert four.images.frames.shape == (1, 5 * block)
    assert four.tokens.shape == (4, 66)
    np.testing.assert_allclose(together, alone, rtol=0, atol=2e-5)
    scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(alone_gradient))
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5 * scale),
        gradient,
        alone_gradient,
    )
    _, turned, _ = run(
        [3, 1, 0, 2],
        prompt_tokens=(8, 66),
        block=block,
        blocks=(1, 5),
        prompts_per_pack=4,
    )
    np.testing.assert_allclose(turned, alone, rtol=0, atol=2e-5)


def test_packs_change_neither_samples_nor_views():
    """The same tokens are drawn, and each response sees what it saw."""
    rollout, actor = small.rollout(), roomy(small.actor(), **TOGETHER)
    together = single_turn(
        actor, iter([small.samples()]), jax.random.key(3), group_size=small.GROUP
    )
    assert together.prompts.images.frames.shape == (1, 64)
    np.testing.assert_array_equal(together.tokens, rollout.tokens)
    np.testing.assert_allclose(together.old_logprobs, rollout.old_logprobs, atol=1e-5)
    view = functools.partial(views.blacken_patches, share=0.5)
    seen = [
        who.add_logprobs(what, "view", view, jax.random.key(9)).extra_logprobs["view"]
        for who, what in ((small.actor(), rollout), (actor, together))
    ]
    np.testing.assert_allclose(seen[1], seen[0], rtol=0, atol=1e-5)
    assert np.abs(seen[0] - rollout.old_logprobs).max() > 1e-2


@pytest.mark.parametrize(
    "view",
    [
        views.gaussian_noise,
        views.shuffle_patches,
        functools.partial(views.blacken_cells, cell=10),
    ],
)
def test_a_view_draws_the_same_in_any_pack(view):
    front_end = small.actor().processor.front_end
    shown = []
    for sizes in ({}, TOGETHER):
        processor = small.with_room(small.actor().processor, **sizes)
        prompts = encode(processor, small.samples()).prompts
        images = look(view, jax.random.key(1), poisoned(prompts))
        prompts = dataclasses.replace(prompts, images=images)
        alone = unpacked(front_end, jax.tree.map(np.asarray, prompts))
        shown.append([p.patches[p.real] for row in alone for p in row.pictures])
    assert [len(x) for x in shown[0]] == [8, 4, 8, 16]
    for one, other in zip(*shown, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_unpacked_is_what_was_packed():
    processor = small.with_room(small.actor().processor, **TOGETHER)
    rows = [encode_one(processor, sample).unpadded for sample in small.samples()]
    tables = packed(processor.room, processor.front_end, rows)
    found = unpacked(processor.front_end, tables)
    jax.tree.map(np.testing.assert_array_equal, found, rows)
    assert [len(row.pictures) for row in found] == [1, 2, 0, 1]


def test_dynamic_sampling_packs_anew_what_it_keeps():
    """Two of each round of four, and the packs of what is kept are smaller."""
    sizes = {"block": 16, "blocks": (1, 2, 4), "prompts_per_pack": 2}
    actor = roomy(small.actor(), **sizes)
    rounds = [[0, 1, 2, 3], [3, 1, 0, 2]]

    def act(actor, batches, key):
        samples = [small.samples()[i] for i in next(batches)]
        prompts = encode(actor.processor, samples).prompts
        assert prompts.images.frames.shape == (2, 64)
        return dataclasses.replace(small.rollout(), prompts=prompts)

    keeps = iter([[True, False, True, False], [True, False, False, True]])
    kept = dynamic_sampling(
        actor,
        iter(rounds),
        jax.random.key(0),
        act=act,
        keep=lambda rollout: np.array(next(keeps)),
    )
    samples = [small.samples()[i] for i in (0, 2, 3, 2)]
    wanted = encode(actor.processor, samples).prompts
    assert wanted.images.frames.shape == (2, 16)
    jax.tree.map(np.testing.assert_array_equal, kept.prompts, wanted)
    rows = np.concatenate([np.arange(4) + 4 * group for group in (0, 2, 0, 3)])
    np.testing.assert_array_equal(kept.tokens, small.rollout().tokens[rows])


def test_first_fit_by_hand():
    assert first_fit([5, 6, 3, 4, 2], 10) == [0, 10, 5, 16, 8]
    assert first_fit([], 10) == [] and blocks_of([], 10) == 0
    assert blocks_of([0, 10, 25], 10) == 3


def test_pack_starts_keeps_pictures_whole_and_never_needs_more_than_alone():
    random = np.random.RandomState(0)
    for _ in range(300):
        block = int(random.randint(4, 30))
        prompts = [
            random.randint(1, block + 1, random.randint(0, 7)).tolist()
            for _ in range(random.randint(1, 6))
        ]
        starts = pack_starts(prompts, block)
        used = np.zeros(block * 50, int)
        for sizes, where in zip(prompts, starts, strict=True):
            for size, start in zip(sizes, where, strict=True):
                used[start : start + size] += 1
                assert start // block == (start + size - 1) // block
        assert used.max(initial=0) <= 1
        assert used.sum() == sum(map(sum, prompts))
        alone = sum(blocks_of(first_fit(sizes, block), block) for sizes in prompts)
        assert blocks_of([s for where in starts for s in where], block) <= alone


def test_packed_says_what_does_not_fit():
    processor = small.with_room(
        small.actor().processor, block=16, blocks=(2,), prompts_per_pack=2
    )
    # Each prompt fits alone; the first two have three pictures.
    with pytest.raises(ValueError, match=r"row-0, row-1, row-2, .* is 2 blocks .*3"):
        encode(processor, small.samples())


def test_batches_of_any_size_are_packed():
    """A pack has as many prompts as divide both the batch and prompts_per_pack."""
    processor = small.with_room(small.actor().processor, **TOGETHER)
    packs = [
        encode(processor, small.samples()[:size]).prompts.images.frames.shape[0]
        for size in (1, 2, 3, 4)
    ]
    assert packs == [1, 1, 3, 1]


def test_text_alone_needs_no_tower():
    """A ladder that begins at 0 blocks: no patches, and the same reading."""
    actor = small.actor()

    @jax.jit
    def read(prompts):
        features = actor.policy.encode_images(actor.params, prompts.images)
        hidden, _ = actor.policy.prefill(actor.params, prompts, features)
        return jnp.where(prompts.mask[..., None], hidden, 0)

    read_as = []
    for blocks in ((1,), (0, 1)):
        processor = small.with_room(actor.processor, blocks=blocks)
        prompts = encode(processor, small.samples()[2:3]).prompts
        assert prompts.images.patches.shape[1] == 32 * blocks[0]
        read_as.append(read(prompts))
    np.testing.assert_allclose(*read_as, atol=1e-6)


def test_attention_in_pieces_is_attention(monkeypatch):
    """Some tiles at a time, and some queries of one tile."""
    random = np.random.RandomState(0)
    q, k, v = jnp.asarray(random.randn(3, 5, 12, 2, 4), jnp.float32)
    frames = jnp.asarray(np.repeat(random.randint(0, 3, (5, 4)), 3, axis=1))

    def run(logits):
        monkeypatch.setattr(attention, "LOGITS", logits)

        def total(q, k, v):
            seen = attention.attend_within(q, k, v, frames)
            return (jnp.sin(seen) * (frames > 0)[..., None, None]).sum(), seen

        return jax.grad(total, (0, 1, 2), has_aux=True)(q, k, v)

    whole = run(2**28)
    for logits in (2 * 2 * 12 * 12, 2 * 12 * 3):
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), run(logits), whole
        )
