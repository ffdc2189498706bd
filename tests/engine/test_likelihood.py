"""Log-probabilities of given responses: what sampling said, and nothing else."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vrl_jax import perception
from vrl_jax.engine.likelihood import (
    _token_by_token,
    first_positions,
    in_pieces,
    likelihood,
)
from vrl_jax.engine.processing import encode
from vrl_jax.models.sharding import make_mesh
from vrl_jax.types import Likelihood

from ..fixtures import small
from ..fixtures.chain import chain, chain_prompts

TEXT_ONLY = slice(2 * small.GROUP, 3 * small.GROUP)  # the rows of sample 2


@jax.jit
def scored(params, rollout) -> Likelihood:
    actor = small.actor()
    return likelihood(
        actor.policy,
        params,
        rollout.prompts,
        rollout.tokens,
        rollout.positions,
        rollout.mask,
        rollout.temperature,
        actor.allowed,
    )


@jax.jit
def gradient(params, rollout):
    def objective(params):
        found = scored(params, rollout)
        paid = found.logprobs * rollout.rewards[:, None]
        return paid.sum() + found.entropy.sum()

    return jax.grad(objective)(params)


def with_images(rollout, **changes):
    images = dataclasses.replace(rollout.prompts.images, **changes)
    prompts = dataclasses.replace(rollout.prompts, images=images)
    return dataclasses.replace(rollout, prompts=prompts)


def close(one, other, tolerance=1e-5):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=tolerance),
        one,
        other,
    )


def test_likelihood_is_what_the_sampler_reported():
    """Law 1, in float32, with a temperature, groups, padding, pictures and none."""
    rollout = small.rollout()
    logprobs = scored(small.params(), rollout).logprobs
    lengths = np.asarray(rollout.mask.sum(axis=1))
    assert small.TEMPERATURE != 1
    assert len(set(lengths.tolist())) > 2  # some end early, some with the budget
    assert not rollout.prompts.mask.all()
    np.testing.assert_allclose(logprobs, rollout.old_logprobs, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(logprobs[~rollout.mask], 0)
    assert (logprobs[rollout.mask] < -1e-3).all()


def test_likelihood_divides_by_each_row_s_temperature():
    rollout = small.rollout()
    rows = len(rollout.tokens)
    warm = dataclasses.replace(rollout, temperature=0.5 + jnp.arange(rows) / rows)
    one = dataclasses.replace(rollout, temperature=jnp.ones(rows))
    changed = (
        scored(small.params(), warm).logprobs - scored(small.params(), one).logprobs
    )
    per_row = np.abs(changed).max(axis=1)
    assert (per_row[rows // 2] < 1e-5) & (np.delete(per_row, rows // 2) > 1e-3).all()


def test_likelihood_of_a_chain_is_its_table():
    """Values and entropy by hand, in float64."""
    vocabulary = 5
    table = np.random.RandomState(0).randn(vocabulary, vocabulary)
    tokens = np.array([[1, 4, 0], [3, 3, 2], [2, 0, 1], [4, 4, 4]])
    mask = np.array([[1, 1, 1], [1, 1, 0], [1, 0, 0], [0, 0, 0]], bool)
    allowed = np.array([1, 1, 1, 1, 0], bool)
    temperature = np.array([1.0, 2.0, 0.5, 1.0])
    tokens[tokens == 4] = 0
    found = likelihood(
        chain(vocabulary),
        {"table": jnp.asarray(table, jnp.float32)},
        chain_prompts([2, 3]),
        jnp.asarray(tokens),
        jnp.zeros((4, 3, 3), int),
        jnp.asarray(mask),
        jnp.asarray(temperature, jnp.float32),
        jnp.asarray(allowed),
    )
    before = np.concatenate([[[2], [2], [3], [3]], tokens[:, :-1]], axis=1)
    logits = table[before] / temperature[:, None, None]
    odds = np.exp(logits) * allowed
    p = odds / odds.sum(axis=-1, keepdims=True)
    chosen = np.take_along_axis(np.log(p + 1e-300), tokens[..., None], axis=-1)[..., 0]
    entropy = -np.where(allowed, p * np.log(p + 1e-300), 0).sum(axis=-1)
    np.testing.assert_allclose(found.logprobs, np.where(mask, chosen, 0), atol=1e-6)
    np.testing.assert_allclose(found.entropy, np.where(mask, entropy, 0), atol=1e-6)


def test_another_picture_changes_logprobs_and_gradients():
    """Law 2: of the prompts that show it, and of no other."""
    rollout = small.rollout()
    patches = rollout.prompts.images.patches
    other = with_images(rollout, patches=patches.at[0].multiply(-1.0))
    before, after = (scored(small.params(), r) for r in (rollout, other))
    change = np.abs(before.logprobs - after.logprobs).max(axis=1)
    assert (change[: small.GROUP] > 1e-3).all()
    np.testing.assert_array_equal(change[small.GROUP :], 0)
    one, two = (gradient(small.params(), r) for r in (rollout, other))
    for part in ("vision", "text"):
        for x, y in zip(
            jax.tree.leaves(one[part]), jax.tree.leaves(two[part]), strict=True
        ):
            assert np.abs(x).max() > 0
            assert np.abs(x - y).max() > 1e-5 * np.abs(x).max()


def test_text_only_rows_send_no_gradient_to_the_tower():
    rollout = small.rollout()
    mask = jnp.zeros_like(rollout.mask).at[TEXT_ONLY].set(rollout.mask[TEXT_ONLY])
    grads = gradient(small.params(), dataclasses.replace(rollout, mask=mask))
    assert max(np.abs(x).max() for x in jax.tree.leaves(grads["text"])) > 0
    for leaf in jax.tree.leaves(grads["vision"]):
        np.testing.assert_array_equal(leaf, 0)


def test_padding_may_hold_anything():
    """Law 4: NaN patches, junk prompt ids, positions and slots, junk responses."""
    rollout = small.rollout()
    prompts, images = rollout.prompts, rollout.prompts.images
    absent = images.frames == 0
    assert absent.any(axis=1).sum() > 1
    poisoned = dataclasses.replace(
        rollout,
        prompts=dataclasses.replace(
            prompts,
            tokens=jnp.where(prompts.mask, prompts.tokens, 999),
            positions=jnp.where(prompts.mask[..., None], prompts.positions, 10**6),
            slots=jnp.where(prompts.mask, prompts.slots, 77),
            images=dataclasses.replace(
                images,
                patches=jnp.where(absent[..., None], jnp.nan, images.patches),
                coordinates=jnp.where(absent[..., None], 10**6, images.coordinates),
            ),
        ),
        tokens=jnp.where(rollout.mask, rollout.tokens, 11),
    )
    close(scored(small.params(), poisoned), scored(small.params(), rollout))
    clean, dirty = (gradient(small.params(), r) for r in (rollout, poisoned))
    close(dirty, clean, 2e-5)


def test_budgets_change_nothing():
    """Law 4: more room for the prompt and for its pictures."""
    rollout, actor = small.rollout(), small.actor()
    roomy = small.with_room(actor.processor, prompt_tokens=(64,), block=48)
    prompts = encode(roomy, small.samples()).prompts
    assert prompts.tokens.shape != rollout.prompts.tokens.shape
    assert prompts.images.patches.shape != rollout.prompts.images.patches.shape
    close(
        scored(small.params(), dataclasses.replace(rollout, prompts=prompts)),
        scored(small.params(), rollout),
    )


def test_first_positions_follow_the_largest_of_the_prompt():
    prompts = chain_prompts([1, 2])
    positions = prompts.positions.at[0, 0, 2].set(40).at[1, 2].set(99)  # padding
    prompts = dataclasses.replace(prompts, positions=positions)
    np.testing.assert_array_equal(first_positions(prompts), [41, 2])


@pytest.mark.parametrize(
    ("count", "size", "piece"), [(6, 6, 6), (6, 9, 6), (6, 3, 3), (6, 4, 3), (7, 4, 1)]
)
def test_in_pieces_bounds_a_pass_and_keeps_the_order(count, size, piece):
    seen = []

    def score(prompts, rows):
        seen.append(prompts.tokens.shape[0])
        return rows + 10 * jnp.repeat(prompts.tokens[:, 1], 2)

    last = list(range(count))
    found = in_pieces(score, size, chain_prompts(last), jnp.arange(2 * count))
    wanted = np.arange(2 * count) + 10 * np.repeat(last, 2)
    np.testing.assert_array_equal(found, wanted)
    assert set(seen) == {piece}


def test_measures_of_two_views_on_a_mesh_are_those_of_one_device():
    random = np.random.RandomState(0)
    states, other = random.randn(2, 32, 16).astype(np.float32)
    head = random.randn(24, 16).astype(np.float32)
    temperature, allowed = np.full(32, 0.7, np.float32), np.arange(24) < 20
    arrays = states, other, head, temperature, allowed
    for measure in (perception.view_kl, perception.view_js):
        whole = functools.partial(_token_by_token, measure)
        alone = whole(32)(*arrays)
        with jax.set_mesh(make_mesh(data=2, fsdp=2, tensor=2)):
            spread = jax.jit(whole(32))(*arrays)
            odd = jax.jit(whole(31))(*(x[:31] if len(x) == 32 else x for x in arrays))
        np.testing.assert_allclose(spread, alone, atol=1e-5)
        np.testing.assert_allclose(odd, alone[:31], atol=1e-5)
        assert spread.sharding.shard_shape(spread.shape) == (4,)
