"""Sampling on a chain that one can calculate by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from vrl_kernels.linear_head import linear_head

from vrl_jax.engine.decoding import Model
from vrl_jax.engine.responses import sample
from vrl_jax.engine.sampling import draw, must_sort, response_positions, row_keys

from ..fixtures.chain import chain, chain_prompts

VOCABULARY = 6
CHAIN = chain(VOCABULARY)
EVERY = jnp.ones(VOCABULARY, bool)
# Most likely: 0 -> 1 -> 2 -> 5, and 3 -> 3 for ever.
TABLE = (
    jnp.zeros((VOCABULARY, VOCABULARY))
    .at[jnp.array([0, 1, 2, 3, 4, 5]), jnp.array([1, 2, 5, 3, 4, 0])]
    .set(2.0)
)
RANDOM = jnp.asarray(np.random.RandomState(0).randn(VOCABULARY, VOCABULARY))


def play(
    table,
    last,
    *,
    budget=4,
    group=1,
    stop=(5,),
    allowed=EVERY,
    seed=0,
    slots=64,
    policy=None,
    **how,
):
    return sample(
        Model(policy or CHAIN, {"table": table}, allowed, budget, slots),
        chain_prompts(last),
        row_keys(jax.random.key(seed), jnp.arange(len(last)), group),
        stop,
        **how,
    )


def test_sample_stops_at_the_stop_token_and_keeps_it_in_the_mask():
    sampled = play(TABLE, [0, 3, 2], top_k=1)
    # The chain by hand: 0 -> 1 2 5, 3 -> 3 3 3 3 until the budget ends, 2 -> 5.
    np.testing.assert_array_equal(
        sampled.tokens, [[1, 2, 5, 5], [3, 3, 3, 3], [5, 5, 5, 5]]
    )
    np.testing.assert_array_equal(
        sampled.mask, [[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]]
    )
    np.testing.assert_array_equal(sampled.finished, [True, False, True])
    # What is written is certain; that the chain would write it was not.
    likely = np.log(np.exp(2) / (np.exp(2) + 5))
    np.testing.assert_allclose(sampled.logprobs, 0, atol=1e-6)
    np.testing.assert_allclose(sampled.log_kept, likely * sampled.mask, rtol=1e-6)
    # Positions go on after the prompt's largest, which is 1.
    np.testing.assert_array_equal(sampled.positions[1], [[t] * 3 for t in (2, 3, 4, 5)])


def test_sample_finishes_on_the_last_token_of_the_budget():
    sampled = play(TABLE, [0, 3], budget=3, top_k=1)
    np.testing.assert_array_equal(sampled.finished, [True, False])
    assert sampled.mask.all()


def test_sample_takes_any_of_the_stop_ids_and_fills_up_with_the_first():
    sampled = play(TABLE, [0], stop=(4, 2), top_k=1)
    np.testing.assert_array_equal(sampled.tokens, [[1, 2, 4, 4]])
    np.testing.assert_array_equal(sampled.mask, [[1, 1, 0, 0]])


@pytest.mark.parametrize(("last", "steps"), [([0, 2], 3), ([2, 2], 1), ([0, 3], 8)])
def test_sample_ends_when_all_rows_have_ended(last, steps):
    taken = []

    def decode(*arguments):
        jax.debug.callback(lambda: taken.append(1))
        return CHAIN.decode(*arguments)

    counting = CHAIN._replace(decode=decode)
    sampled = play(TABLE, last, budget=8, top_k=1, policy=counting)
    jax.effects_barrier()
    assert len(taken) == steps
    rest = slice(steps, None)  # nobody touched it
    np.testing.assert_array_equal(sampled.tokens[:, rest], 5)
    np.testing.assert_array_equal(sampled.logprobs[:, rest], 0)
    assert not sampled.mask[:, rest].any()


def test_sample_draws_from_the_softmax_of_the_allowed_ids():
    rows, temperature = 4096, 1.7
    allowed = EVERY.at[jnp.array([1, 4])].set(False)
    sampled = play(
        RANDOM, [2], budget=2, group=rows, allowed=allowed, temperature=temperature
    )
    odds = np.exp(np.asarray(RANDOM, np.float64) / temperature) * np.asarray(allowed)
    p = odds / odds.sum(axis=1, keepdims=True)
    first, second = np.asarray(sampled.tokens).T
    found = np.bincount(first, minlength=VOCABULARY) / rows
    np.testing.assert_array_equal(found[[1, 4]], 0)
    # Five standard deviations of a share among 4096 draws are below 0.04.
    np.testing.assert_allclose(found, p[2], atol=0.04)
    after = np.bincount(second[first == 0], minlength=VOCABULARY)
    np.testing.assert_allclose(after / after.sum(), p[0], atol=0.1)
    # What is reported is the log-probability of that very distribution.
    np.testing.assert_allclose(sampled.logprobs[:, 0], np.log(p[2][first]), atol=1e-6)


def test_sample_never_takes_a_blocked_id_however_likely():
    table = RANDOM.at[:, 3].set(1e4)
    sampled = play(table, [0], group=64, allowed=EVERY.at[3].set(False))
    assert not (sampled.tokens == 3).any()
    assert (sampled.logprobs > -20).all()


def test_draw_reports_the_head_s_logprobs_in_bfloat16_too():
    """bfloat16 products add up in float32 in both, so no rounding comes between."""
    random = np.random.RandomState(1)
    states = jnp.asarray(random.randn(8, 64), jnp.bfloat16)
    head = jnp.asarray(random.randn(VOCABULARY, 64) / 4, jnp.bfloat16)
    logits = jnp.einsum("bh,vh->bv", states, head, preferred_element_type=jnp.float32)
    drawn = drawn_from(logits, seed=0)
    stats = linear_head(states, head, drawn.tokens)
    np.testing.assert_allclose(drawn.logprobs, stats.logprobs, atol=1e-6)


def drawn_from(logits, *, seed, base=None, allowed=None, **how):
    rows, size = logits.shape
    every = jnp.ones((rows, size), bool)
    settings = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, **how}
    by_row = {name: jnp.full(rows, value) for name, value in settings.items()}
    return draw(
        jax.random.split(jax.random.key(seed), rows),
        logits,
        base=every[0] if base is None else base,
        allowed=every if allowed is None else allowed,
        sorts=must_sort(by_row["top_k"], by_row["top_p"]),
        **by_row,
    )


# By hand: p = .5 .25 .15 .1. The top 3 are .9 of it. The top .7 of the mass needs .5
# and .25, of the top 3 renormalised too (.556 + .278); so does the top .75 (exactly);
# the top .76 needs three.
@pytest.mark.parametrize(
    ("how", "kept"),
    [
        ({}, [0, 1, 2, 3]),
        ({"top_k": 3}, [0, 1, 2]),
        ({"top_k": 1}, [0]),
        ({"top_k": 9}, [0, 1, 2, 3]),
        ({"top_p": 0.7}, [0, 1]),
        ({"top_p": 0.74}, [0, 1]),
        ({"top_p": 0.76}, [0, 1, 2]),
        ({"top_p": 0.01}, [0]),
        ({"top_k": 3, "top_p": 0.82}, [0, 1]),
        ({"top_k": 3, "top_p": 0.84}, [0, 1, 2]),
        ({"allowed": [1, 3]}, [1, 3]),
        ({"allowed": [1, 2, 3], "top_k": 2}, [1, 2]),
        ({"allowed": [1, 2, 3], "top_p": 0.45}, [1]),
    ],
)
def test_draw_keeps_the_top_and_says_how_much_that_was(how, kept):
    odds, rows = np.array([0.5, 0.25, 0.15, 0.1, 1e-9]), 2000
    how = dict(how)
    if "allowed" in how:
        mask = np.isin(np.arange(5), how["allowed"])
        how["allowed"] = jnp.broadcast_to(mask, (rows, 5))
    logits = jnp.broadcast_to(jnp.log(jnp.asarray(odds)), (rows, 5)) + 3.0
    base = jnp.arange(5) < 4
    drawn = drawn_from(logits, seed=0, base=base, **how)
    mass = odds[kept].sum()
    tokens = np.asarray(drawn.tokens)
    assert sorted(set(tokens.tolist())) == kept
    shares = np.bincount(tokens, minlength=5)[kept] / rows
    # Four standard deviations of a share among 2000 draws are below 0.045.
    np.testing.assert_allclose(shares, odds[kept] / mass, atol=0.045)
    np.testing.assert_allclose(drawn.log_kept, np.log(mass), atol=1e-6)
    np.testing.assert_allclose(drawn.logprobs, np.log(odds[tokens] / mass), atol=1e-5)
    if len(kept) == 4:
        np.testing.assert_array_equal(drawn.log_kept, 0)


@pytest.mark.parametrize("slots", [4, 5, 64])
def test_sample_does_not_depend_on_the_number_of_slots(slots):
    """Nor on the order of the prompts, or their company."""
    last = [0, 2, 4, 1, 3]
    one = play(RANDOM, last, budget=40, group=3)
    other = play(RANDOM, last, budget=40, group=3, slots=slots)
    jax.tree.map(np.testing.assert_array_equal, one, other)
    lengths = one.mask.sum(axis=1)
    assert lengths.min() < 4 and lengths.max() > 10
    keys = row_keys(jax.random.key(0), jnp.array([3, 0]), 3)
    turned = sample(
        Model(CHAIN, {"table": RANDOM}, EVERY, 40, slots),
        chain_prompts([1, 0]),
        keys,
        (5,),
    )
    np.testing.assert_array_equal(turned.tokens[:3], one.tokens[9:12])
    np.testing.assert_array_equal(turned.tokens[3:], one.tokens[:3])


def test_row_keys_depend_on_sample_and_rollout_alone():
    data = lambda *x: jax.random.key_data(row_keys(*x)).tolist()
    key, other = jax.random.key(0), jax.random.key(1)
    three = data(key, jnp.array([5, 6, 5]), 2)
    assert three[:2] == three[4:]
    assert three[2:4] == data(key, jnp.array([6]), 2)
    assert data(key, jnp.array([6]), 3)[:2] == three[2:4]
    assert len({tuple(k) for k in three}) == 4
    assert not {tuple(k) for k in data(other, jnp.array([5, 6]), 2)} & {
        tuple(k) for k in three
    }


def test_sample_differs_by_seed():
    one, other = (play(RANDOM, [0], group=16, seed=seed).tokens for seed in (0, 1))
    assert (one != other).any()


def test_response_positions_count_on_all_axes():
    np.testing.assert_array_equal(
        response_positions(jnp.array([4, 9]), 2),
        [[[4] * 3, [5] * 3], [[9] * 3, [10] * 3]],
    )
