"""A user's model in Linen and in NNX: sampled, scored, and trained for a step."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from vrl_jax.engine.likelihood import likelihood
from vrl_jax.engine.processing import encode
from vrl_jax.models.adapters import linen_policy, nnx_policy
from vrl_jax.models.trained import everything, only
from vrl_jax.programs.single_turn import single_turn
from vrl_jax.recipes.grpo import grpo
from vrl_jax.training.iteration import iteration
from vrl_jax.training.learner import adamw, make_learner

from ..fixtures import small

WIDTH = 16
VOCABULARY = small.spec().text.vocabulary
GROUP = small.spec().vision.group
PATCH = small.spec().vision.patch_values


def attend(queries, keys, values):
    """Causal, by place in the sequence: wrong if padding stood before a response."""
    scores = jnp.einsum("bsd,btd->bst", queries, keys) / WIDTH**0.5
    seen = jnp.tri(queries.shape[1], dtype=bool)
    weights = jax.nn.softmax(jnp.where(seen, scores, -1e30))
    return jnp.einsum("bst,btd->bsd", weights, values)


def sinusoids(places):
    angles = places[..., None] / 50 ** (jnp.arange(WIDTH // 2) / WIDTH)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def splice(embedded, slots, merged):
    table = jnp.pad(merged, ((0, 0), (1, 0), (0, 0)))
    spliced = jnp.take_along_axis(table, slots[..., None], axis=1)
    return jnp.where((slots > 0)[..., None], spliced, embedded)


def merge(patches):
    return patches.reshape(patches.shape[0], -1, GROUP, WIDTH).mean(axis=2)


class LinenModel(linen.Module):
    """Encodes pictures in its forward pass, counts tokens, gives logits."""

    @linen.compact
    def __call__(self, tokens, positions, mask, slots, images):
        embedded = linen.Embed(VOCABULARY, WIDTH, name="embed")(tokens)
        merged = merge(linen.Dense(WIDTH, name="patches")(images.patches))
        x = splice(embedded, slots, merged) + sinusoids(jnp.arange(tokens.shape[1]))
        x += attend(*jnp.split(linen.Dense(3 * WIDTH, name="qkv")(x), 3, axis=-1))
        return linen.Dense(VOCABULARY, name="logits")(3 * jnp.tanh(x))


class NNXModel(nnx.Module):
    """Has an image encoder of its own, our positions, dropout, and a tied head."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
        self.patches = nnx.Linear(PATCH, WIDTH, rngs=rngs)
        self.blocks = nnx.List([nnx.Linear(WIDTH, 3 * WIDTH, rngs=rngs)])
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def encode(self, images):
        return merge(self.patches(images.patches))

    def __call__(self, tokens, positions, mask, slots, features):
        x = splice(self.embed(tokens), slots, features)
        x += sinusoids(positions).mean(axis=-2)
        for block in self.blocks:
            x += self.dropout(attend(*jnp.split(block(x), 3, axis=-1)))
        return 4 * jnp.tanh(x)


def inputs():
    prompts = encode(small.actor().processor, small.samples()).prompts
    return prompts.tokens, prompts.positions, prompts.mask, prompts.slots


@functools.cache
def models():
    """name: (policy, params, a rule of what is trained)."""
    images = encode(small.actor().processor, small.samples()).prompts.images
    module = LinenModel()
    variables = jax.jit(module.init)(jax.random.key(0), *inputs(), images)
    linen_made = linen_policy(module, lambda params: jnp.eye(VOCABULARY))
    model = NNXModel(nnx.Rngs(0))
    model.eval()
    nnx_made, params = nnx_policy(
        model,
        lambda model: model.embed.embedding[...],
        encode_images=lambda model, images: model.encode(images),
    )
    return {
        "linen": (linen_made, variables["params"], everything),
        "nnx": (nnx_made, params, only(lambda path: path.startswith("blocks/0"))),
    }


@pytest.fixture(params=["linen", "nnx"])
def made(request):
    policy, params, trains = models()[request.param]
    return small.actor(policy=policy, params=params), trains


def score(actor, rollout, prompts=None, **changes):
    given = {
        name: getattr(rollout, name)
        for name in ("tokens", "positions", "mask", "temperature")
    }
    return jax.jit(likelihood, static_argnums=0)(
        actor.policy,
        actor.params,
        prompts or rollout.prompts,
        **{**given, **changes},
        allowed=actor.allowed,
    )


def played(actor):
    batches = iter([small.samples()])
    return single_turn(actor, batches, jax.random.key(1), group_size=small.GROUP)


def test_sampled_log_probs_are_the_scored_ones(made):
    actor, _ = made
    rollout = played(actor)
    assert rollout.mask.sum(axis=1).min() < rollout.mask.sum(axis=1).max()
    got = score(actor, rollout)
    np.testing.assert_allclose(got.logprobs, rollout.old_logprobs, atol=1e-5)


def test_the_model_sees_the_response_right_after_its_prompt(made):
    """One row, unpadded, through the user's own forward pass."""
    actor, _ = made
    rollout = played(actor)
    row = int(rollout.mask.sum(axis=1).argmax())
    prompts, at = rollout.prompts, row // small.GROUP
    length = int(prompts.mask[at].sum())
    assert rollout.mask[row].sum() > 2 and length < prompts.mask.shape[1]
    one = jax.tree.map(lambda x: x[at : at + 1], prompts)
    tokens = jnp.concatenate([one.tokens[0, :length], rollout.tokens[row]])[None]
    positions = [one.positions[0, :length], rollout.positions[row]]
    slots = jnp.pad(one.slots[:, :length], ((0, 0), (0, small.BUDGET)))
    whole = dataclasses.replace(
        one,
        tokens=tokens,
        slots=slots,
        mask=jnp.ones_like(tokens, bool),
        positions=jnp.concatenate(positions)[None],
    )
    features = actor.policy.encode_images(actor.params, one.images)
    states, _ = actor.policy.prefill(actor.params, whole, features)
    logits = states[0, length - 1 : -1] @ actor.policy.head(actor.params).T
    logits = jnp.where(actor.allowed, logits / small.TEMPERATURE, -jnp.inf)
    wanted = jax.nn.log_softmax(logits)[jnp.arange(small.BUDGET), rollout.tokens[row]]
    wanted = jnp.where(rollout.mask[row], wanted, 0)
    np.testing.assert_allclose(rollout.old_logprobs[row], wanted, atol=1e-5)


def test_padding_may_hold_anything(made):
    actor, _ = made
    rollout = played(actor)
    prompts = rollout.prompts
    poisoned = dataclasses.replace(
        prompts,
        tokens=jnp.where(prompts.mask, prompts.tokens, 7),
        slots=jnp.where(prompts.mask, prompts.slots, 1),
        positions=jnp.where(prompts.mask[..., None], prompts.positions, 9),
    )
    got, wanted = (score(actor, rollout, p).logprobs for p in (poisoned, prompts))
    np.testing.assert_array_equal(got, wanted)


def test_nothing_of_the_padding_reaches_the_gradient(made):
    actor, _ = made
    rollout = played(actor)
    images = rollout.prompts.images
    real = (images.frames > 0)[..., None]
    poisoned = dataclasses.replace(
        images, patches=jnp.where(real, images.patches, jnp.nan)
    )
    prompts = dataclasses.replace(rollout.prompts, images=poisoned)

    def total(params):
        changed = dataclasses.replace(actor, params=params)
        return score(changed, rollout, prompts).logprobs.sum()

    for leaf in jax.tree.leaves(jax.grad(total)(actor.params)):
        assert jnp.isfinite(leaf).all()


def test_pictures_matter(made):
    actor, _ = made
    rollout = played(actor)
    prompts = rollout.prompts
    plain = score(actor, rollout).logprobs
    real = (prompts.images.frames > 0)[..., None]
    darker = dataclasses.replace(
        prompts,
        images=dataclasses.replace(
            prompts.images, patches=prompts.images.patches - 2 * real
        ),
    )
    gap = np.abs(score(actor, rollout, darker).logprobs - plain)
    gap = gap.reshape(4, -1).max(axis=1)
    assert gap[2] == 0 and (gap[[0, 1, 3]] > 1e-3).all()  # row 2 has no picture


def test_an_iteration_of_grpo(made):
    actor, trains = made
    learner = make_learner(
        actor.policy, actor.params, adamw(1e-2), actor.allowed, trains=trains
    )
    batches = itertools.repeat(small.samples())
    recipe = grpo(group_size=small.GROUP)
    after, metrics = iteration(recipe, actor, learner, batches, jax.random.key(0))
    gap = metrics["training/logprob_gap"]
    assert float(gap.total) / float(gap.weight) < 1e-5
    norm = metrics["actor/grad_norm"]
    assert float(norm.total) > 1e-3 and int(after.step) == 1
    changed = jax.tree.map(
        lambda new, old: bool((new != old).any()), after.params, actor.params
    )
    chosen = jax.tree.map(lambda leaf: True, trains(actor.params).trained)
    assert jax.tree.leaves(changed).count(True) == len(jax.tree.leaves(chosen))
