"""The model against torch's recorded numbers, and against itself."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vrl_jax.models.families import Spec, family_of
from vrl_jax.models.qwen_vl.released import QWEN3_VL_2B
from vrl_jax.models.qwen_vl.vision import interpolation
from vrl_jax.types import Images, Prompts

from .cases import (
    EVERY,
    SPECS,
    Packed,
    golden_name,
    levels,
    outputs,
    pack,
    pack_images,
    picture,
    random_params,
    responses,
    row,
    small_spec,
    token_by_token,
    two_rows,
)


def policy(spec: Spec):
    return family_of(spec).policy(spec)


GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("name", EVERY)
def test_outputs_equal_recorded_torch(name):
    """Written by `python -m tests.parity.write_golden`, transformers 5.23, float32."""
    spec, seed = EVERY[name], list(EVERY).index(name)
    golden = np.load(GOLDEN / f"{golden_name(name)}.npz")
    got = outputs(
        spec,
        random_params(spec, seed),
        pack(spec, two_rows(spec, seed)),
        responses(seed, (2, 2, 3)),
    )
    features = np.concatenate(got.features, axis=1)
    recorded = golden["features"].reshape(features.shape)
    np.testing.assert_allclose(features, recorded, atol=1e-5)
    logits = np.concatenate(got.prompt_logits)
    np.testing.assert_allclose(logits, golden["prompt_logits"], atol=1e-4)
    np.testing.assert_allclose(
        got.response_logits, golden["response_logits"], atol=1e-4
    )


@pytest.fixture(scope="module", params=["tied", "qwen3", "gemma3", "qwen3_moe"])
def setting(request):
    """Windows; deepstack and a layout without windows; windows of text; experts."""
    spec = EVERY[request.param]
    return spec, random_params(spec, 0), responses(0, (2, 2, 3))


def _assert_same(got, expected, atol=1e-5):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=atol), got, expected
    )


def _poisoned(packed: Packed) -> Packed:
    """Anything that padding may hold, in padding."""
    given, images = packed.prompts, packed.prompts.images
    empty = images.frames == 0
    return packed._replace(
        prompts=Prompts(
            tokens=np.where(given.mask, given.tokens, 10**6),
            mask=given.mask,
            positions=np.where(given.mask[..., None], given.positions, 10**6),
            slots=np.where(given.mask, given.slots, 3),
            images=Images(
                np.where(empty[..., None], np.nan, images.patches),
                np.where(empty[..., None], 10**6, images.coordinates),
                images.frames,
            ),
        )
    )


def test_padding_may_hold_anything(setting):
    spec, params, tokens = setting
    packed = pack(spec, two_rows(spec, 0))
    _assert_same(
        outputs(spec, params, _poisoned(packed), tokens),
        outputs(spec, params, packed, tokens),
    )


def test_budgets_change_nothing(setting):
    spec, params, tokens = setting
    rows = two_rows(spec, 0)
    _assert_same(
        outputs(spec, params, pack(spec, rows, length=60, budget=6 * 64), tokens),
        outputs(spec, params, pack(spec, rows), tokens),
    )


def test_packed_equals_one_by_one(setting):
    spec, params, tokens = setting
    rows = [row(spec, 5, [(3, 5), (4, 2)]), row(spec, 6, [(2, 6)])]
    whole = outputs(spec, params, pack(spec, rows), tokens)
    one = functools.partial(pack, spec, length=60, budget=4 * 64)
    for i, given in enumerate(rows):
        single = outputs(spec, params, one([given]), tokens[i : i + 1])
        _assert_same(single.prompt_logits[0], whole.prompt_logits[i])
        _assert_same(single.response_logits[0], whole.response_logits[i])
    pictures = [p for given in rows for p in given.pictures]
    for shown, features in zip(pictures, whole.features, strict=True):
        alone = row(spec, 7, [(2, 2)])._replace(
            tokens=[spec.image_token] * features.shape[1], pictures=[shown]
        )
        single = outputs(spec, params, one([alone]), tokens[:1])
        _assert_same(single.features[0], features)


def test_reading_a_response_equals_reading_it_as_prompt(setting):
    spec, params, tokens = setting
    rows = two_rows(spec, 0)
    extended = outputs(spec, params, pack(spec, rows), tokens).response_logits
    for member in range(2):
        whole = [
            given._replace(tokens=given.tokens + tokens[i, member].tolist())
            for i, given in enumerate(rows)
        ]
        read = outputs(spec, params, pack(spec, whole), tokens).prompt_logits
        for i in range(2):
            _assert_same(extended[i, member], read[i][-3:], atol=2e-5)


def test_token_by_token_equals_at_once(setting):
    spec, params, tokens = setting
    packed = pack(spec, two_rows(spec, 0))
    at_once = outputs(spec, params, packed, tokens).response_logits
    got = token_by_token(spec)(params, packed.prompts, packed.next_position, tokens)
    _assert_same(got, at_once)


def test_the_picture_changes_the_logits(setting):
    spec, params, tokens = setting
    rows = two_rows(spec, 0)
    first = outputs(spec, params, pack(spec, rows), tokens)
    swapped = rows[0]._replace(pictures=row(spec, 50, [(3, 5), (4, 2)]).pictures)
    second = outputs(spec, params, pack(spec, [swapped, rows[1]]), tokens)
    shift = np.abs(first.response_logits - second.response_logits).max((1, 2, 3))
    assert shift[0] > 0.1 and shift[1] == 0  # the row of text alone does not move


def test_deepstack_levels_reach_the_logits():
    """Each level changes them, at pictures alone."""
    spec = SPECS["qwen3"]
    params, whole = random_params(spec, 0), policy(spec)
    prompts = pack(spec, two_rows(spec, 0)).prompts
    features = whole.encode_images(params, prompts.images)
    hidden, _ = whole.prefill(params, prompts, features)
    for level in range(2):
        levels = features.levels.at[:, level].set(0)
        changed = features._replace(levels=levels)
        other, _ = whole.prefill(params, prompts, changed)
        shift = np.abs(np.where(prompts.mask[..., None], hidden - other, 0)).max((1, 2))
        assert shift[0] > 0.1 and shift[1] == 0


def test_interpolation_golden():
    """Grid [1, 4, 6] in merge order: transformers 4.57.6 and 5.23.0, table 48 x 48."""
    packed = pack_images([picture(0, 64, 96)], QWEN3_VL_2B, budget=28)
    # Padding may hold anything.
    coordinates = np.where(packed.frames[:, None] > 0, packed.coordinates, 10**6)
    rows, weights = interpolation(coordinates[None], packed.frames[None], 48, 4)
    expected_rows = [
        (0, 1, 48, 49),
        (9, 10, 57, 58),
        (720, 721, 768, 769),
        (729, 730, 777, 778),
        (18, 19, 66, 67),
        (28, 29, 76, 77),
    ]
    expected_weights = [
        (1, 0, 0, 0),
        (0.6, 0.4, 0, 0),
        (1 / 3, 0, 2 / 3, 0),
        (0.2, 0.4 / 3, 0.4, 0.8 / 3),
        (0.2, 0.8, 0, 0),
        (0.8, 0.2, 0, 0),
    ]
    np.testing.assert_array_equal(rows[0, :6], expected_rows)
    np.testing.assert_allclose(weights[0, :6], expected_weights, atol=1e-6)


def test_interpolation_knows_each_pictures_size():
    """By hand: corners of a picture are corners of the table; a single row is row 0."""
    sizes = [(4, 2), (2, 8), (2, 2)]
    shown = [picture(i, 16 * h, 16 * w) for i, (h, w) in enumerate(sizes)]
    packed = pack_images(shown, QWEN3_VL_2B, budget=32)
    rows, weights = interpolation(packed.coordinates[None], packed.frames[None], 48, 4)
    nearest = np.take_along_axis(rows, weights.argmax(-1)[..., None], -1)[0, :, 0]
    for number, (height, width) in enumerate(sizes, start=1):
        mine = packed.frames == number
        corner = (packed.coordinates == (height - 1, width - 1)).all(-1)
        assert nearest[mine & corner].tolist() == [48 * 48 - 1]
    one = np.zeros((1, 4), int)
    rows, weights = interpolation(np.zeros((1, 4, 2), int), one + 1, 48, 4)
    assert (rows[..., 0] == 0).all() and (weights[..., 0] == 1).all()


def test_gradients_are_finite_and_ignore_padding(setting):
    spec, params, tokens = setting
    packed, whole = pack(spec, two_rows(spec, 0)), policy(spec)

    @jax.jit
    def gradients(params, prompts):
        def loss(params):
            features = whole.encode_images(params, prompts.images)
            _, prompt_cache = whole.prefill(params, prompts, features)
            hidden = whole.extend(
                params,
                prompt_cache,
                prompts.mask,
                tokens,
                jnp.zeros((2, 2, 3, 3), int),
            )
            return jax.nn.logsumexp(hidden @ whole.head(params).T, axis=-1).sum()

        return jax.grad(loss)(params)

    expected = gradients(params, packed.prompts)
    _assert_same(gradients(params, _poisoned(packed).prompts), expected)
    moved = jax.tree.map(
        lambda g: bool(np.isfinite(g).all() & (np.asarray(g) != 0).any()), expected
    )
    assert all(jax.tree.leaves(moved)), moved


def test_half_precision_stays_near(setting):
    spec, params, tokens = setting
    half = jax.jit(functools.partial(jax.tree.map, jnp.bfloat16))(params)
    packed = pack(spec, two_rows(spec, 0))
    whole = policy(spec)
    features = jax.jit(whole.encode_images)(half, packed.prompts.images)
    hidden, cache = jax.jit(whole.prefill)(half, packed.prompts, features)
    assert {levels(features).dtype, hidden.dtype, cache.keys.dtype} == {
        jnp.dtype("bfloat16")
    }
    expected = outputs(spec, params, packed, tokens).prompt_logits[1]
    got = (hidden @ whole.head(half).T)[1, : len(expected)]
    # Two layers of 8-bit mantissas on logits of size 1.
    np.testing.assert_allclose(got.astype(np.float32), expected, atol=0.15)


def test_policy_is_one_object_for_a_spec():
    assert policy(small_spec()) is policy(small_spec())


@pytest.mark.parametrize(("name", "kinds"), [("qwen3", 1), ("gemma3", 2)])
def test_cosines_are_taken_once_a_step_for_all_layers(name, kinds):
    """Of each kind of layer's angles, as XLA on CPU leaves it in what it compiles."""
    spec = EVERY[name]
    whole, params = policy(spec), random_params(spec, 0)
    packed = pack(spec, two_rows(spec, 0))

    @jax.jit
    def prefilled(params, prompts):
        features = whole.encode_images(params, prompts.images)
        _, cache = whole.prefill(params, prompts, features)
        return whole.unstack(params), whole.as_slots(cache)

    weights, cache = prefilled(params, packed.prompts)
    rows, columns = packed.prompts.tokens.shape
    numbers = jnp.zeros(rows, jnp.int32)
    places = jnp.zeros((rows, 3), jnp.int32)
    index = jnp.zeros((rows, columns), jnp.int32)
    step = jax.jit(whole.decode).lower(weights, cache, 0, index, numbers, places)
    assert step.compile().as_text().count(" cosine(") == kinds
