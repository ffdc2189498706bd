"""The decode loop on a chain that one can calculate by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from vrl_kernels.linear_head import linear_head

from vrl_jax.engine.sampling import generate, greedy, response_positions, row_keys

from ..fixtures.chain import chain, chain_prompts

VOCABULARY = 6
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
    temperature=1.0,
    seed=0,
    choose=jax.random.categorical,
    policy=None,
):
    rows = len(last) * group
    return jax.jit(
        functools.partial(generate, policy or chain(VOCABULARY)),
        static_argnames=("max_new_tokens", "choose"),
    )(
        {"table": table},
        chain_prompts(last),
        row_keys(jax.random.key(seed), jnp.arange(len(last)), group),
        jnp.full(rows, temperature, jnp.float32),
        allowed,
        jnp.array(stop),
        max_new_tokens=budget,
        choose=choose,
    )


def test_generate_stops_at_the_stop_token_and_keeps_it_in_the_mask():
    sampled = play(TABLE, [0, 3, 2], choose=greedy)
    # The chain by hand: 0 -> 1 2 5, 3 -> 3 3 3 3 until the budget ends, 2 -> 5.
    np.testing.assert_array_equal(
        sampled.tokens, [[1, 2, 5, 5], [3, 3, 3, 3], [5, 5, 5, 5]]
    )
    np.testing.assert_array_equal(
        sampled.mask, [[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]]
    )
    np.testing.assert_array_equal(sampled.finished, [True, False, True])
    likely = np.log(np.exp(2) / (np.exp(2) + 5))
    np.testing.assert_allclose(sampled.logprobs, likely * sampled.mask, rtol=1e-6)
    # Positions go on after the prompt's largest, which is 1.
    np.testing.assert_array_equal(sampled.positions[1], [[t] * 3 for t in (2, 3, 4, 5)])


def test_generate_finishes_on_the_last_token_of_the_budget():
    sampled = play(TABLE, [0, 3], budget=3, choose=greedy)
    np.testing.assert_array_equal(sampled.finished, [True, False])
    assert sampled.mask.all()


def test_generate_takes_any_of_the_stop_ids_and_fills_up_with_the_first():
    sampled = play(TABLE, [0], stop=(4, 2), choose=greedy)
    np.testing.assert_array_equal(sampled.tokens, [[1, 2, 4, 4]])
    np.testing.assert_array_equal(sampled.mask, [[1, 1, 0, 0]])


@pytest.mark.parametrize(("last", "steps"), [([0, 2], 2), ([2, 2], 0), ([0, 3], 7)])
def test_generate_ends_when_all_rows_have_ended(last, steps):
    """The first token comes from the prompt; a step of the decoder for each further."""
    taken = []
    plain = chain(VOCABULARY)

    def extend(*arguments):
        jax.debug.callback(lambda: taken.append(1))
        return plain.extend(*arguments)

    counting = plain._replace(extend=extend)
    sampled = play(TABLE, last, budget=8, choose=greedy, policy=counting)
    jax.block_until_ready(sampled)
    jax.effects_barrier()
    assert len(taken) == steps
    rest = slice(steps + 1, None)  # nobody touched it
    np.testing.assert_array_equal(sampled.tokens[:, rest], 5)
    np.testing.assert_array_equal(sampled.logprobs[:, rest], 0)
    assert not sampled.mask[:, rest].any()


def test_generate_draws_from_the_softmax_of_the_allowed_ids():
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


def test_generate_never_takes_a_blocked_id_however_likely():
    table = RANDOM.at[:, 3].set(1e4)
    sampled = play(table, [0], group=64, allowed=EVERY.at[3].set(False))
    assert not (sampled.tokens == 3).any()
    assert (sampled.logprobs > -20).all()


def test_generate_reports_the_head_s_logprobs_in_bfloat16_too():
    """bfloat16 products add up in float32 in both, so no rounding comes between."""
    random = np.random.RandomState(1)
    states = jnp.asarray(random.randn(1, 64), jnp.bfloat16)
    head = jnp.asarray(random.randn(VOCABULARY, 64) / 4, jnp.bfloat16)
    dense = chain(VOCABULARY)._replace(
        prefill=lambda *_: (jnp.broadcast_to(states[:, None], (1, 3, 64)), None),
        extend=lambda *_: (jnp.broadcast_to(states, (1, 8, 1, 64)), jnp.zeros(())),
        head=lambda params: head,
    )
    sampled = generate(  # without jit, which may leave out a rounding
        dense,
        {},
        chain_prompts([0]),
        row_keys(jax.random.key(0), jnp.array([0]), 8),
        jnp.ones(8),
        EVERY,
        jnp.array([-1]),
        max_new_tokens=2,
    )
    tokens = sampled.tokens[:, 0]
    stats = linear_head(jnp.repeat(states, 8, axis=0), head, tokens)
    np.testing.assert_allclose(sampled.logprobs[:, 0], stats.logprobs, atol=1e-6)


def test_generate_draws_a_row_the_same_in_any_company():
    """The same key and the same prompt, another place and other neighbours."""
    keys = row_keys(jax.random.key(0), jnp.array([7, 8, 9]), 2)
    tables = {"table": RANDOM}
    run = jax.jit(
        functools.partial(generate, chain(VOCABULARY)),
        static_argnames="max_new_tokens",
    )

    def tokens(last, keys):
        rows = len(keys)
        return np.asarray(
            run(
                tables,
                chain_prompts(last),
                keys,
                jnp.ones(rows),
                EVERY,
                jnp.array([5]),
                max_new_tokens=6,
            ).tokens
        )

    together = tokens([0, 2, 4], keys)
    np.testing.assert_array_equal(
        tokens([4, 0], keys[jnp.array([4, 5, 0, 1])]), together[[4, 5, 0, 1]]
    )


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


def test_generate_differs_by_seed():
    one, other = (play(RANDOM, [0], group=16, seed=seed).tokens for seed in (0, 1))
    assert (one != other).any()


def test_response_positions_count_on_all_axes():
    np.testing.assert_array_equal(
        response_positions(jnp.array([4, 9]), 2),
        [[[4] * 3, [5] * 3], [[9] * 3, [10] * 3]],
    )
