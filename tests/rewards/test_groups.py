"""Worked examples of the papers that each function names, by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vrl_jax.rewards import groups, quality, steps
from vrl_jax.rewards.boxes import Boxes


def test_tool_preference_of_chain_of_focus():
    agar = jax.jit(groups.tool_preference)
    correct = jnp.array([True, True, False, False])
    tool = jnp.array([False, True, True, False])
    kept = jnp.array([True, True, True, True])
    np.testing.assert_allclose(agar(correct, tool, kept), [1, 0.8, 0.5, 0.1])
    only_tools = jnp.array([False, True, False, False])
    np.testing.assert_allclose(agar(only_tools, tool, ~kept), [0, 1, 0.5, 0])
    none = jnp.zeros(4, bool)
    np.testing.assert_allclose(agar(none, tool, kept), [0.1, 0.5, 0.5, 0.1])


@pytest.mark.parametrize(
    ("callers", "n", "divisor", "expected"),
    [
        (1, 1, 2, 0.175),
        (1, 2, 2, 0.125),
        (2, 1, 2, 0.025),
        (4, 2, 2, -0.05),
        (1, 1, 1.5, 0.233333),
    ],
)
def test_tool_curiosity_of_pixel_reasoner(callers, n, divisor, expected):
    calls = jnp.zeros(8, int).at[:callers].set(n)
    got = groups.tool_curiosity(calls, divisor=divisor)
    np.testing.assert_allclose(got[0], expected, atol=1e-6)
    assert got[-1] == 0 and not groups.tool_curiosity(0 * calls).any()


def test_majority_and_agreement():
    answers = jnp.array([[2, 1, 1, -1], [-1, -1, -1, -1], [5, 3, 3, 5]])
    np.testing.assert_allclose(
        groups.agreement(answers),
        [[0.25, 0.5, 0.5, 0], [0, 0, 0, 0], [0.5] * 4],
    )
    np.testing.assert_allclose(
        groups.majority(answers), [[0, 1, 1, 0], [0, 0, 0, 0], [1, 0, 0, 1]]
    )


def stacked(rows):
    """Lists of boxes as Boxes with a leading axis."""
    size = max(map(len, rows)) or 1
    boxes, mask = (
        np.zeros((len(rows), size, 4), np.float32),
        np.zeros((len(rows), size), bool),
    )
    for row, items in enumerate(rows):
        for place, item in enumerate(items):
            boxes[row, place], mask[row, place] = item, True
    return Boxes(boxes, mask, np.zeros(mask.shape, int), np.ones(mask.shape))


def test_disagreement_look_of_dip_r1():
    corners = [0, 200, 400]
    gold = jax.tree.map(
        lambda x: x[0], stacked([[(c, 0, c + 100, 100) for c in corners]])
    )
    # Matched IoU of four responses with the three gold boxes.
    table = [[0.9, 0.8, 0], [0.85, 0, 0.6], [0.9, 0.7, 0], [0.88, 0, 0]]
    answers = stacked(
        [
            [(c, 0, c + 100 * u, 100) for c, u in zip(corners, row, strict=True) if u]
            for row in table
        ]
    )
    looks = stacked(
        [[(c, 0, c + 60, 100) for c in seen] for seen in ([200], [200, 400], [0], [])]
    )
    size = jnp.array([1000.0, 1000.0])
    look = jax.jit(groups.disagreement_look)
    all_did = jnp.ones(4, bool)
    got = look(answers, looks, gold, size, all_did)
    np.testing.assert_allclose(got, [0.676259, 0.998004, 0.001996, 0], atol=2e-5)
    same = jax.tree.map(lambda x: np.stack([x[0]] * 4), answers)
    # All agree: 1 for no look, psi / 2 with one; psi is 0.5 at 60 of 80 columns.
    np.testing.assert_allclose(look(same, looks, gold, size, all_did)[2:], [0.5, 1])
    small = look(same, looks, gold, jnp.array([80.0, 100.0]), all_did)
    np.testing.assert_allclose(small[2:], [0.25, 1], rtol=1e-6)
    # Half of the picture is free, and holds all that is unsure.
    half = stacked([[(0, 0, 1000, 500)], [], [], []])
    got = look(answers, half, gold, size, all_did)
    np.testing.assert_allclose(got, [1, 0, 0, 0], rtol=1e-6)


def test_disagreement_look_takes_each_union_once():
    """Of n boxes: n tests of (2n - 1)^2 cells each, for each of the group."""
    n, size = 16, jnp.array([9.0, 9.0])
    given = stacked([[(0, 0, 1, 1)] * n] * 3)
    gold = jax.tree.map(lambda x: x[0], given)
    done = jax.make_jaxpr(groups.disagreement_look)(
        given, given, gold, size, jnp.ones(3, bool)
    )
    largest = max(out.aval.size for step in done.eqns for out in step.outvars)
    assert largest == 3 * n * (2 * n - 1) ** 2


@pytest.mark.parametrize("rule", [groups.disagreement_look, groups.spread_look])
def test_looks_ask_only_who_answered(rule):
    """Two agree and a third is silent: what it holds is noise, and changes nothing."""
    found, other = (0, 0, 100, 100), (200, 0, 300, 100)
    gold = jax.tree.map(lambda x: x[0], stacked([[found, other]]))
    looks = stacked([[found], [], [other]])
    size = jnp.array([1000.0, 1000.0])
    heard, everyone = jnp.array([True, True, False]), jnp.ones(3, bool)
    look = jax.jit(rule)
    same = look(stacked([[found]] * 3), looks, gold, size, everyone)
    for noise in ([], [found, other]):
        answers = stacked([[found], [found], noise])
        got = look(answers, looks, gold, size, heard)
        np.testing.assert_allclose(got, same, atol=1e-6)
        assert abs(look(answers, looks, gold, size, everyone) - same).max() > 0.4


def test_spread_look_of_dip_r1():
    """By hand on 4 x 4 points of a picture 8 wide and 4 high."""
    left, right = (0, 0, 4, 2), (4, 0, 8, 2)  # four points each
    answers = stacked([[left, right], [left], [left, (4, 0, 6, 2)], []])
    # Variances 3/16 on the left; on the right 1/4 and 3/16, two points of each.
    looks = stacked([[left], [right], [(4, 0, 6, 2), (5, 1, 6, 2)], []])
    size, whole = jnp.array([8.0, 4.0]), 4 * 3 + 2 * 4 + 2 * 3
    look = jax.jit(functools.partial(groups.spread_look, cells=4))
    gold = jax.tree.map(lambda x: x[0], answers)  # which is not asked
    all_did = jnp.ones(4, bool)
    expected = [12 / whole - 1 / 4, 14 / whole - 1 / 4, 8 / whole - 1 / 8, 0]
    got = look(answers, looks, gold, size, all_did)
    np.testing.assert_allclose(got, expected, atol=1e-6)
    same = jax.tree.map(lambda x: np.stack([x[0]] * 4), answers)
    agreed = [-1 / 4, -1 / 4, -1 / 8, 0]
    got = look(same, looks, gold, size, all_did)
    np.testing.assert_allclose(got, agreed, atol=1e-6)


def test_spread_look_sees_things_smaller_than_a_cell():
    """By hand: of 1000 x 1000 pixels in 10 x 10 cells, two things 2 wide and high.

    Both vary alike: a look at the cell of one has half of the variance in a hundredth
    of the picture; one at the thing itself has 4 / 10,000 of both.
    """
    first, second = (1, 1, 3, 3), (501, 1, 503, 3)
    answers = stacked([[first, second], [], [first, second]])
    looks = stacked([[(0, 0, 100, 100)], [first], [(40, 40, 50, 50)]])
    size, all_did = jnp.array([1000.0, 1000.0]), jnp.ones(3, bool)
    gold = jax.tree.map(lambda x: x[0], answers)
    look = jax.jit(functools.partial(groups.spread_look, cells=10))
    got = look(answers, looks, gold, size, all_did)
    wanted = [0.5 - 0.01, 0.0002 - 4e-6, 0.005 - 1e-4]
    np.testing.assert_allclose(got, wanted, rtol=1e-4)


def test_spread_look_costs_where_all_agree():
    """Any look in the picture, however small; not one of no area or beside it."""
    size, all_did = jnp.array([1000.0, 1000.0]), jnp.ones(5, bool)
    answers = stacked([[(10, 10, 333, 777), (300, 1, 801, 300)]] * 5)
    beside, no_area = (1000, 0, 1100, 100), (15, 15, 15, 15)
    looks = stacked([[(1, 1, 3, 3)], [(0, 0, 1000, 1000)], [no_area], [beside], []])
    gold = jax.tree.map(lambda x: x[0], answers)
    got = jax.jit(groups.spread_look)(answers, looks, gold, size, all_did)
    np.testing.assert_allclose(got, [-4e-6, -1, 0, 0, 0], rtol=1e-4)


SCORES = jnp.array([[0.9, 0.8, 0.7], [0.95, 0.2, 0.1], [0.6, 0.6, 0.4]])


def test_aggregates_of_gm_prm():
    mask = jnp.ones(SCORES.shape, bool)
    for rule, expected in (
        (steps.mean_step, [0.8, 0.416667, 0.533333]),
        (steps.worst_step, [0.7, 0.1, 0.4]),
        (steps.product_of_steps, [0.504, 0.019, 0.144]),
        (steps.last_step, [0.7, 0.1, 0.4]),
        (steps.first_error, [3, 1, 2]),
    ):
        np.testing.assert_allclose(jax.jit(rule)(SCORES, mask), expected, atol=1e-6)
        padded = jnp.pad(SCORES, ((0, 0), (0, 2)), constant_values=jnp.nan)
        kept = jnp.pad(mask, ((0, 0), (0, 2)))
        if rule is not steps.first_error:  # whose answer for none is the width
            np.testing.assert_allclose(rule(padded, kept), expected, atol=1e-6)
            assert (rule(padded, kept & False) == 0).all()
    rewards = steps.outcome_and_process(jnp.array([1.0, 0]), jnp.array([0.9, 0.8]))
    np.testing.assert_allclose(rewards, [1.45, 0.4])


def test_share_to_go_by_hand():
    mask = jnp.array([True, True, False])
    got = steps.share_to_go(jnp.array([0.5, 0.3, jnp.nan]), mask)
    np.testing.assert_allclose(got, [0.4, 0.15, 0], atol=1e-7)


def test_one_shot_score_of_vl_prm():
    got = steps.one_shot_score(
        jnp.array([0.95, 0.80, 0.40, 0.97]), jnp.array([900, 400, 500, 420])
    )
    np.testing.assert_allclose(got, [0.0166254, 0.0256857, -1, 0.0264291], rtol=1e-5)
    p = steps.right_token_probability(jnp.array(2.0), jnp.array(0.5))
    assert p == pytest.approx(0.817574, abs=1e-6)


def test_scores_of_some_lengths_are_a_table():
    table, mask = steps.as_table([[0.5, 0.25, 1.0], [], [0.75]])
    assert table.tolist() == [[0.5, 0.25, 1, 0], [0] * 4, [0.75, 0, 0, 0]]
    assert mask.sum(1).tolist() == [3, 0, 1] and mask[0, :3].all()
    assert steps.as_table([[], []])[0].shape == (2, 1)
    assert steps.as_table([])[1].shape == (0, 1)
    assert steps.as_table([[0.0] * 4])[1].shape == (1, 4)


def test_step_labels_of_vl_prm():
    scores = jnp.array([0.75, 0.5625, 0.3125, 0, 0])
    mask = jnp.ones(5, bool)
    labels = jax.jit(steps.step_labels)
    np.testing.assert_array_equal(labels(scores, mask, 2), [1, 1, 0, -1, -1])
    np.testing.assert_array_equal(labels(scores, mask, 5), [1, 1, 1, 0, -1])
    np.testing.assert_array_equal(labels(0 * scores + 1, mask, 5), [1, 1, 1, 1, 1])


def test_fact_share_of_perception_r1():
    verdicts = jnp.array([[1, 0, 0, 1], [2, jnp.nan, 7, 7]])
    mask = jnp.array([[True] * 4, [True, True, False, False]])
    np.testing.assert_allclose(steps.fact_share(verdicts, mask), [0.5, 0.5], atol=1e-6)


def test_correlations_of_q_insight():
    human = jnp.array([1.0, 2, 3, 4])
    mask = jnp.ones(4, bool)
    first, second = jnp.array([1.2, 1.9, 3.5, 3.6]), jnp.array([1.2, 3.5, 1.9, 3.6])
    plcc, srcc = jax.jit(quality.plcc), jax.jit(quality.srcc)
    assert plcc(human, first, mask) == pytest.approx(0.954494, abs=1e-6)
    assert plcc(human, second, mask) == pytest.approx(0.607405, abs=1e-6)
    assert srcc(human, second, mask) == pytest.approx(0.8, abs=1e-6)
    assert plcc(human, 0 * human + 0.1, mask) == 0
    # Ties share a rank: by hand, ranks 1.5 1.5 3 4, sqrt(0.9).
    tied = jnp.array([1.0, 1, 2, 3])
    assert srcc(human, tied, mask) == pytest.approx(0.9**0.5, abs=1e-6)
    padded = jnp.append(human, jnp.nan), jnp.append(first, 7.0), jnp.append(mask, False)
    assert plcc(*padded) == pytest.approx(0.954494, abs=1e-6)


@pytest.mark.parametrize(
    ("rating", "expected"), [(3.10, 1), (3.349, 1), (3.351, 0), (2.66, 1), (np.nan, 0)]
)
def test_within_band(rating, expected):
    assert quality.within_band(jnp.array(rating), jnp.array(3.0)) == expected


def test_ratings_and_degradations_are_read():
    assert quality.rating_of('<answer>{"rating": 3.10}</answer>') == 3.1
    assert quality.rating_of('<answer>{"rating": 3.1.2}</answer>') is None
    assert quality.rating_of('{"rating": 3.1}') is None
    answer = '<answer>{"distortion_class": "%s", "severity": "%s"}</answer>'
    gold = ("blur", "moderate")
    for given, score in (
        (("blur", "moderate"), 1),
        (("blur", "slight"), 0.25),
        (("noise", "moderate"), 0),
        (("Blur", "moderate"), 0),
    ):
        assert quality.degradation_score(answer % given, *gold) == score
    null = '<answer>{"distortion_class": null, "severity": null}</answer>'
    assert quality.degradation_score(null, "null", "null") == 1
    assert quality.degradation_score("none", "null", "null") == 0


def test_log_tame_noisy_of_paco_rl():
    # h = 0.711 for the first, 0.053 for the second: only the first is tamed.
    consistency = jnp.array([0.9, 0.1, 0.6, 0.2, jnp.nan])
    steady = jnp.array([0.28, 0.30, 0.26, 0.27])
    tame = jax.jit(groups.log_tame_noisy)
    expected = [0.641854, 0.095310, 0.470004, 0.182322, np.nan]
    np.testing.assert_allclose(tame(consistency), expected, atol=1e-6)
    np.testing.assert_array_equal(tame(steady), steady)


def test_anchored_perception_by_hand():
    """VAPO: later cuts count more, a half is chance, nothing asked earns nothing."""
    right = jnp.array([[1, 0, 1, jnp.nan], [1, 1, 1, 0], [0, 1, 0, 0], [1, 1, 1, 1.0]])
    place = jnp.array(
        [[0.1, 0.5, 0.9, jnp.nan], [0.2, 0.4, 0.6, 0], [0.1, 0.2, 0.3, 0.4]]
    )
    place = jnp.concatenate([place, place[1:2]])
    mask = jnp.array([[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0]], bool)
    early, middle, late = np.exp(1.5 * np.array([0.1, 0.5, 0.9]))
    first = 2 * (early + late) / (early + middle + late) - 1
    found = steps.anchored_perception(right, place, mask)
    np.testing.assert_allclose(found, [first, 1, 0, 0], rtol=1e-6)
