"""What holds for every rule, whatever the numbers: hypothesis draws them."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from vrl_jax import (
    advantages,
    divergences,
    filters,
    masked,
    mismatch,
    objectives,
    perception,
    preference,
    reductions,
    token_weights,
)

SHAPE = (6, 5)  # two groups of three
GROUP = 3
few = hypothesis.settings(max_examples=6, deadline=None, derandomize=True)


@st.composite
def batches(draw, shape=SHAPE):
    """log-probs, old log-probs, advantages and a mask that may leave rows empty."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scale = draw(st.sampled_from([0.0, 0.3, 5.0]))
    old = -rng.exponential(size=shape)
    lengths = rng.integers(0, shape[1] + 1, shape[0])
    lengths[rng.integers(shape[0])] = shape[1]
    sign = draw(st.sampled_from([0.0, 1.0]))
    return (
        jnp.asarray(old + scale * rng.normal(size=shape), jnp.float32),
        jnp.asarray(old, jnp.float32),
        jnp.asarray(sign * rng.normal(size=shape), jnp.float32),
        jnp.asarray(np.arange(shape[1]) < lengths[:, None]),
    )


def by_ratio(ratio):
    return lambda new, old, a, mask: objectives.clipped(ratio(new, old, mask), a)


def unmasked(function):
    return lambda new, old, a, mask: function(new, old, a)


KEY = jax.random.key(0)
OBJECTIVES = {
    "clipped": unmasked(objectives.clipped_surrogate),
    "dual": unmasked(objectives.dual_clipped_surrogate),
    "two_sided": unmasked(objectives.two_sided_surrogate),
    "cispo": unmasked(objectives.cispo),
    "cispo_near_one": unmasked(objectives.cispo_near_one),
    "sapo": unmasked(objectives.sapo),
    "plain": lambda new, old, a, mask: objectives.policy_gradient(new, a),
    "luffy": lambda new, old, a, mask: objectives.shaped_likelihood(new, a),
    "gspo": by_ratio(objectives.sequence_ratio),
    "gspo_token": by_ratio(objectives.sequence_token_ratio),
    "rloo": by_ratio(objectives.response_ratio),
    "gmpo": lambda new, old, a, mask: objectives.weighted(
        objectives.geometric_ratio(new, old, a, mask), a
    ),
    "vespo": objectives.vespo,
    "kl_cov": functools.partial(objectives.kl_cov, share=0.2),
    "clip_cov": functools.partial(objectives.clip_cov, KEY, share=0.2, low=0.1),
    "values": lambda new, old, a, mask: objectives.clipped_value_loss(new, old, a),
    "k1": lambda new, old, a, mask: divergences.k1(new, old),
    "k2": lambda new, old, a, mask: divergences.k2(new, old),
    "k3": lambda new, old, a, mask: divergences.k3(new, 0.1 * old + 0.9 * new),
    "low_var_kl": lambda new, old, a, mask: divergences.low_var_kl(new, old),
    "truncated": lambda new, old, a, mask: (
        objectives.policy_gradient(new, a)
        * mismatch.truncated(objectives.importance_ratio(new, old), mask)
    ),
    "rejected": lambda new, old, a, mask: (
        objectives.policy_gradient(new, a)
        * mismatch.rejected(objectives.response_ratio(new, old, mask), mask)
    ),
}
OF_THE_BATCH = {"kl_cov", "clip_cov"}  # they choose tokens of the whole batch


@functools.cache
def value_and_slope(name, reduce):
    def loss(new, old, advantage, mask):
        mean = reduce(OBJECTIVES[name](new, old, advantage, mask), mask)
        return mean.total, mean.weight

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def equal(got, expected, tolerance=1e-5):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance),
        got,
        expected,
    )


@pytest.mark.parametrize("name", OBJECTIVES)
@few
@hypothesis.given(batch=batches())
def test_objectives_ignore_padding_and_row_order(name, batch):
    *arrays, mask = batch
    for reduce in (reductions.token_mean, reductions.sequence_mean):
        both = value_and_slope(name, reduce)
        (total, weight), slope = both(*arrays, mask)
        assert np.isfinite(total) and np.isfinite(slope).all()
        assert not slope[~mask].any()
        poisoned = [jnp.where(mask, x, jnp.nan) for x in arrays]
        equal(both(*poisoned, mask), ((total, weight), slope))
        if name in OF_THE_BATCH:
            continue  # they draw, or break ties, by place
        turned = both(*(x[::-1] for x in arrays), mask[::-1])
        equal(turned, ((total, weight), slope[::-1]), 1e-4)


@pytest.mark.parametrize("name", sorted(set(OBJECTIVES) - OF_THE_BATCH))
@few
@hypothesis.given(batch=batches())
def test_objectives_of_micro_batches_add_up(name, batch):
    both = value_and_slope(name, reductions.sequence_mean)
    (total, weight), slope = both(*batch)
    parts = [both(*(x[i : i + 3] for x in batch)) for i in (0, 3)]
    equal(sum(p[0][0] for p in parts), total, 1e-4)
    equal(sum(p[0][1] for p in parts), weight)
    equal(jnp.concatenate([p[1] for p in parts]), slope, 1e-4)


@pytest.mark.parametrize(
    "name", ["sapo", "luffy", "gmpo", "rloo", "plain", "k2", "low_var_kl"]
)
def test_gradients_are_those_of_finite_differences(name):
    with jax.enable_x64(True):
        rng = np.random.default_rng(1)
        old = -rng.exponential(size=SHAPE)
        new, way = old + 0.05 * rng.normal(size=SHAPE), rng.normal(size=SHAPE)
        rest = [jnp.asarray(x) for x in (old, rng.normal(size=SHAPE))]
        rest.append(
            jnp.asarray(np.arange(5) < np.array([[5], [3], [1], [4], [2], [5]]))
        )

        def loss(h):
            shifted = jnp.asarray(new) + h * jnp.asarray(way)
            return reductions.token_mean(OBJECTIVES[name](shifted, *rest), rest[-1])

        slope = (loss(1e-5).total - loss(-1e-5).total) / 2e-5
        found = jax.grad(lambda h: loss(h).total)(0.0)
        np.testing.assert_allclose(found, slope, rtol=1e-6)


OF_GROUPS = {
    "zscore": advantages.group_zscore,
    "population": advantages.group_zscore_population,
    "centered": advantages.group_centered,
    "batch": advantages.batch_zscore,
    "leave_one_out": advantages.leave_one_out,
    "pass_at_k": advantages.pass_at_k,
    "gpg": advantages.gpg,
    "gpg_released": advantages.gpg_released,
    "opo": lambda r, group_size: advantages.length_weighted(
        r, jnp.arange(r.size) % 2 + 1, group_size=group_size
    ),
}


@pytest.mark.parametrize("name", OF_GROUPS)
@few
@hypothesis.given(
    rewards=st.lists(st.sampled_from([0.0, 0.1, 0.5, 1.0]), min_size=12, max_size=12)
)
def test_advantages_follow_their_groups(name, rewards):
    function = functools.partial(OF_GROUPS[name], group_size=4)
    rewards = jnp.array(rewards, jnp.float32)
    got = np.asarray(function(rewards))
    assert np.isfinite(got).all()
    equal(jax.jit(function)(rewards), got)
    order = np.array([2, 0, 1])
    turned = function(rewards.reshape(3, 4)[order].ravel())
    equal(np.asarray(turned).reshape(3, 4), got.reshape(3, 4)[order])
    level = np.ptp(rewards.reshape(3, 4), axis=1) == 0
    assert not got.reshape(3, 4)[level].any()


@pytest.mark.parametrize("name", OF_GROUPS)
def test_advantages_refuse_groups_of_one(name):
    with pytest.raises(ValueError, match="whole groups of at least 2"):
        OF_GROUPS[name](jnp.ones(3), group_size=1)


PER_TOKEN = {
    "whiten": advantages.whiten,
    "to_go": functools.partial(advantages.reward_to_go, discount=0.9),
    "gae": lambda x, mask: advantages.generalized_advantages(x, jnp.sin(x), mask),
    "steps": functools.partial(advantages.step_zscore, group_size=GROUP),
    "top": lambda x, mask: perception.top_share(x, mask, 0.4),
    "soft": lambda x, mask: perception.soft_share(x, mask, 0.4),
    "top_of_group": lambda x, mask: perception.top_share_of_group(
        x, mask, 0.4, group_size=GROUP
    ),
    "cgpo": lambda x, mask: token_weights.cgpo_weights(
        x, jnp.sin(x), x > 0.5, 1 + jnp.tanh(masked.mean(x, mask, axis=1)), mask
    ),
    "log_ratio": lambda x, mask: perception.log_ratio(x, jnp.sin(x), mask),
    "top_of_batch": lambda x, mask: perception.top_share_of_batch(x, mask, 0.3),
    "above": lambda x, mask: perception.above_quantile(x, mask, 0.2),
    "pgpo": lambda x, mask: token_weights.pgpo_weights(jnp.exp(x), mask),
    "pepo": lambda x, mask: token_weights.pepo_weights(jnp.sin(x), x, mask),
    "tor": lambda x, mask: token_weights.tor_weights(x, jnp.sin(x), mask),
    "dupl": lambda x, mask: token_weights.dupl_bonus(x, jnp.exp(x), mask),
    "vgpo": token_weights.vgpo_token_weights,
    "vgpo_factors": functools.partial(token_weights.vgpo_factors, group_size=GROUP),
    "vepo": lambda x, mask: token_weights.vepo_scores(x, jnp.sin(x), jnp.exp(x), mask),
    "mean_one": mismatch.mean_one,
    "mean_one_of_responses": mismatch.mean_one_of_responses,
    "min_max": functools.partial(masked.min_max, axis=1),
}


@pytest.mark.parametrize("name", PER_TOKEN)
@few
@hypothesis.given(batch=batches())
def test_rules_per_token_ignore_padding_and_row_order(name, batch):
    x, *_, mask = batch
    function = jax.jit(PER_TOKEN[name])
    got = np.asarray(function(x, mask), float)
    assert np.isfinite(got).all()
    assert not got[~np.asarray(mask)].any()
    equal(np.asarray(function(jnp.where(mask, x, jnp.nan), mask), float), got)
    equal(np.asarray(PER_TOKEN[name](x, mask), float), got, 1e-4)
    turned = np.asarray(function(x[::-1], mask[::-1]), float)
    equal(turned, got[::-1], 1e-4)


@pytest.mark.parametrize("name", PER_TOKEN)
def test_rules_per_token_of_nothing_and_of_equals(name):
    none = jnp.zeros(SHAPE, bool)
    assert not np.asarray(PER_TOKEN[name](jnp.full(SHAPE, jnp.nan), none)).any()
    level = PER_TOKEN[name](jnp.full(SHAPE, 0.1), jnp.ones(SHAPE, bool))
    assert np.isfinite(level).all()


@jax.jit
def everything(new, old, advantage, mask):
    """Every rule of this file at once, values and slopes: one program a mesh."""
    found = {}
    for name, function in OBJECTIVES.items():

        def loss(new, function=function):
            return reductions.token_mean(function(new, old, advantage, mask), mask)

        found[name] = loss(new), jax.grad(lambda x, f=loss: f(x).total)(new)
    for name, function in PER_TOKEN.items():
        found[f"token {name}"] = function(old, mask)
    rewards = jnp.round(advantage[:, 0])
    for name, function in OF_GROUPS.items():
        found[f"group {name}"] = function(rewards, group_size=GROUP)
    dependency, rows = masked.mean(new, mask, axis=1), mask.any(axis=1)
    for weights in (perception.mean_one_weights, token_weights.median_weights):
        found[weights.__name__] = weights(dependency, rows)
    return found


@hypothesis.settings(few, max_examples=3)
@hypothesis.given(batch=batches((24, 5)))
def test_mesh_shapes_agree(batch):
    """Law 4: rows on 1, 2 x 4 or 8 devices give what one array gives."""
    alone = everything(*batch)
    for shape in ((1, 1), (2, 4), (8, 1)):
        devices = jax.devices()[: shape[0] * shape[1]]
        kinds = (jax.sharding.AxisType.Auto,) * 2
        mesh = jax.make_mesh(shape, ("data", "fsdp"), kinds, devices=devices)
        rows = jax.sharding.NamedSharding(mesh, P(("data", "fsdp")))
        spread = [jax.device_put(x, rows) for x in batch]
        assert len(spread[0].sharding.device_set) == len(devices)
        equal(everything(*spread), alone, 1e-4)


def test_generalized_advantages_by_hand():
    # delta = 1 + .5*2 - 1, (3 + .5*4 - 2), (5 - 4); decay .5: A = d + .25 A'.
    rewards = jnp.array([[1.0, 9.0, 3.0, 5.0]])
    values = jnp.array([[1.0, 9.0, 2.0, 4.0]])
    mask = jnp.array([[True, False, True, True]])  # a tool's words do not count
    got = advantages.generalized_advantages(
        rewards, values, mask, discount=0.5, decay=0.5
    )
    np.testing.assert_allclose(got, [[1 + 0.25 * 3.25, 0, 3.25, 1]])


def test_credit_by_steps_by_hand():
    # GRPO with process supervision: rewards of steps, z-scored over the group.
    rewards = jnp.array([[1.0, 0.0], [1.0, 9.0]])
    mask = jnp.array([[True, True], [True, False]])
    scored = advantages.step_zscore(rewards, mask, group_size=2, eps=0)
    z = np.array([[1, -2], [1, 0]]) / np.sqrt(3)  # mean 2/3, std 1/sqrt(3)
    np.testing.assert_allclose(scored, z, rtol=1e-6, atol=1e-7)
    credit = advantages.reward_to_go(scored, mask)
    number = jnp.array([[0, 0, 1], [0, 0, 0]])
    tokens = jnp.array([[True, False, True], [True, True, False]])
    got = advantages.at_tokens(credit, number, tokens)
    expected = np.array([[-1, 0, -2], [1, 1, 0]]) / np.sqrt(3)
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_preferences_by_hand():
    # STIC's worked example: margin .7, log-prob -120.
    one = lambda x: jnp.array([x])
    got = preference.dpo_with_likelihood(one(5.0), one(-2.0), one(-120.0))
    np.testing.assert_allclose(got, [0.520374], rtol=1e-5)
    slope = jax.grad(
        lambda c: preference.dpo_with_likelihood(c, one(-2.0), c - 125.0).sum()
    )(one(5.0))
    np.testing.assert_allclose(slope, [-0.034158], rtol=1e-4)
    # CogFlow's: s+ = 1 against 0, -.5, .5, -1, .2.
    rejected = jnp.array([[0.0, -0.5, 0.5, -1.0, 0.2, jnp.nan]])
    valid = jnp.arange(6)[None] < 5
    got = preference.softmax_dpo(one(1.0), rejected, valid)
    np.testing.assert_allclose(got, [1.023244], rtol=1e-6)
    assert preference.softmax_dpo(one(1.0), rejected, valid & False) == 0
    np.testing.assert_allclose(
        preference.softmax_dpo(one(1.0), rejected, jnp.arange(6)[None] < 1),
        preference.dpo(one(1.0), one(0.0), beta=1.0),
        rtol=1e-6,
    )
    np.testing.assert_allclose(preference.ipo(one(7.0), one(3.0)), [1.0])


def test_softmax_dpo_gradient_survives_padding():
    rejected = jnp.array([[0.0, jnp.nan]])
    valid = jnp.array([[True, False]])
    slope = jax.grad(
        lambda r: preference.softmax_dpo(jnp.array([1.0]), r, valid).sum()
    )(rejected)
    assert np.isfinite(slope).all() and slope[0, 1] == 0


def test_priority_resampling_draws_by_the_printed_weights():
    """ReVisual-R1's worked example: E = {2, 3, 4, 5} at T = (.03, .97)."""
    a = jnp.array([0, 0.02, 0.5, -0.5, 0.9, -0.1, 1.5, 0])
    valid = filters.advantage_band(a, low=0.03, high=0.97)
    np.testing.assert_array_equal(np.flatnonzero(valid), [2, 3, 4, 5])
    keys = jax.random.split(jax.random.key(0), 4000)
    first = jax.vmap(
        lambda key: filters.priority_resampling(key, a, valid, count=1)[0][0]
    )(keys)
    share = np.bincount(first, minlength=8) / 4000
    expected = [0, 0, 0.165091, 0.165091, 0.626300, 0.043518, 0, 0]
    np.testing.assert_allclose(share, expected, atol=0.04)  # 5 standard deviations
    rows, real = filters.priority_resampling(keys[0], a, valid, count=6)
    assert set(np.asarray(rows)[real]) == {2, 3, 4, 5} and real.sum() == 4
    drawn = filters.priority_resampling_released(keys[0], a, valid, count=4000)
    share = np.bincount(drawn, minlength=8) / 4000
    expected = [0, 0, 0.222005, 0.222005, 0.536133, 0.019857, 0, 0]
    np.testing.assert_allclose(share, expected, atol=0.04)


def test_gates_by_hand():
    """PEARL's worked example: three of five groups' means."""
    scores = jnp.array([1, 2 / 3, 2 / 3, 1 / 3, 1, 0.2, 0.2, 0.2, 0.2, 0.2] + [0.0] * 5)
    soft = filters.soft_gate(scores, group_size=5)
    np.testing.assert_allclose(soft[::5], [0.733333, 0.5, 0.5], rtol=1e-5)
    # As printed: 1.09544 becomes .54772.
    capped = filters.capped_gate(scores, group_size=5)
    np.testing.assert_allclose(capped[::5], [0.5, 0.2, 0], rtol=1e-6)
    unscored = jnp.where(jnp.arange(15) % 5 == 1, jnp.nan, scores)
    known = filters.soft_gate(unscored, group_size=5)
    np.testing.assert_allclose(known[::5], [0.75, 0.5, 0.5], rtol=1e-6)
    hard = filters.hard_gate(scores, group_size=5)
    np.testing.assert_array_equal(hard, [True, True, False])


def test_finished_responses_by_hand():
    mask = jnp.array([[True, False], [True, True]])
    kept = filters.finished_responses(mask, jnp.array([True, False]))
    np.testing.assert_array_equal(kept, [[True, False], [False, False]])


def test_cgpo_weights_by_hand():
    entropy = jnp.array([[9.0, 1, 8, 0], [0, 7, 0, 0]])
    dependency = jnp.array([[5.0, 0, 0, 1], [0, 6, 7, 0]])
    mask = jnp.ones((2, 4), bool)
    inside, weights = jnp.zeros((2, 4), bool).at[1, 3].set(True), jnp.array([1.1, 0.9])
    # ceil(.3 * 8) = 3 of each: entropies 9, 8, 7, dependencies 5, 6, 7; and, beyond
    # the share, the token inside a box.
    got = token_weights.cgpo_weights(entropy, dependency, inside, weights, mask)
    np.testing.assert_allclose(got, [[1.1, 0, 1, 0], [0, 0.9, 0.9, 0.9]], rtol=1e-6)


def test_top_share_of_group_by_hand():
    scores = jnp.array([[1.0, 2], [8, 9], [3, 1], [0, 5]])
    mask = jnp.array([[1, 1], [1, 1], [1, 1], [0, 1]], bool)
    got = perception.top_share_of_group(scores, mask, 0.5, group_size=2)
    np.testing.assert_array_equal(got, [[0, 0], [1, 1], [1, 0], [0, 1]])


def test_log_ratios_by_hand():
    old, blind = jnp.array([[-1.0, -3, 0]]), jnp.array([[-4.0, -1, jnp.nan]])
    mask = jnp.array([[True, True, False]])
    got = perception.log_ratio(old, blind, mask)
    np.testing.assert_array_equal(got, [[3, -2, 0]])
    got = perception.absolute_log_ratio(old, blind, mask)
    np.testing.assert_array_equal(got, [[3, 2, 0]])


def test_vgpo_by_hand():
    similarity = jnp.array([[0.1, 0.2, 0.3, 0.5]])
    mask = jnp.ones((1, 4), bool)
    # The tail is .3, .5; its top ceil(.2 * 2) = 1 is .5 * (1 + .3 * 3 / 3) = .65.
    weights = token_weights.vgpo_token_weights(similarity, mask)
    np.testing.assert_allclose(weights, [[0, 1 / 5.5, 2 / 5.5, 1]], rtol=1e-5)
    both = jnp.concatenate([weights, weights / 2])
    factors = token_weights.vgpo_factors(both, jnp.ones((2, 4), bool), group_size=2)
    within = 1 + np.asarray(both) - np.asarray(both).mean(1, keepdims=True)
    expected = np.array([[1.5], [0.9]]) * within
    np.testing.assert_allclose(factors, expected, rtol=1e-5)


def test_floor_and_ceil_share_are_exact():
    count = jnp.arange(200)
    for share, over in ((0.3, (3, 10)), (0.29, (29, 100)), (2e-4, (1, 5000))):
        floor = np.arange(200) * over[0] // over[1]
        ceil = -(-np.arange(200) * over[0] // over[1])
        np.testing.assert_array_equal(masked.floor_share(share, count), floor)
        np.testing.assert_array_equal(masked.ceil_share(share, count), ceil)
