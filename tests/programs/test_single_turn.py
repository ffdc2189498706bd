"""Sampling a question: keys by sample, rewards by group, nothing dropped."""

import dataclasses
import re
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vrl_jax.engine import slots
from vrl_jax.programs.demonstrations import demonstrations
from vrl_jax.programs.single_turn import single_turn

from ..fixtures import small


def play(rows, seed=3, **changes):
    samples = [small.samples()[row] for row in rows]
    return single_turn(
        small.actor(**changes),
        iter([samples]),
        jax.random.key(seed),
        group_size=small.GROUP,
    )


def groups(x):
    return np.asarray(x).reshape(-1, small.GROUP, *x.shape[1:])


def test_a_response_does_not_depend_on_the_other_rows():
    """Law 5's keys: another order, another company, the same draws."""
    one = small.rollout()
    other = play([3, 0, 0, 1])
    for column in ("tokens", "mask", "rewards"):
        mine, theirs = groups(getattr(one, column)), groups(getattr(other, column))
        np.testing.assert_array_equal(theirs, mine[[3, 0, 0, 1]])
    assert len(np.unique(groups(one.tokens)[0], axis=0)) > 1  # a group's draws differ


def test_seeds_differ_and_repeat():
    one, again, other = (play(range(4), seed).tokens for seed in (3, 3, 4))
    np.testing.assert_array_equal(one, small.rollout().tokens)
    np.testing.assert_array_equal(one, again)
    assert (one != other).any(axis=1).all()


def test_single_turn_never_samples_a_blocked_id():
    rollout = small.rollout()
    allowed = np.asarray(small.actor().allowed)
    assert allowed[np.asarray(rollout.tokens)].all()
    few = np.zeros_like(allowed)
    few[[41, 150, 200]] = True
    tokens = play(range(4), allowed=jnp.asarray(few)).tokens
    assert set(np.unique(tokens).tolist()) <= {40, 41, 150, 200}  # 40 fills up


def test_episodes_say_what_was_sampled():
    """One group at a time, in the rollout's order, told to the reward and observed."""
    rewarded, observed = [], []

    def reward(episodes):
        rewarded.append(episodes)
        return [{"overall": float(i), "place": 10.0 * i} for i in range(len(episodes))]

    rollout = play(range(4), reward=reward, observe=lambda *seen: observed.append(seen))
    stops = np.asarray(small.actor().stop_ids)
    assert [e[0].sample.id for e in rewarded] == ["row-0", "row-1", "row-2", "row-3"]
    tokens, mask = groups(rollout.tokens), groups(rollout.mask)
    for number, episodes in enumerate(rewarded):
        for place, episode in enumerate(episodes):
            written = tokens[number, place][mask[number, place]]
            assert episode.turns[0].tokens == tuple(written.tolist())
            assert episode.finished == (written[-1] in stops)
            assert len(episode.image_sizes) == len(episode.sample.images)
    np.testing.assert_array_equal(groups(rollout.rewards), [[0, 1, 2, 3]] * 4)
    np.testing.assert_array_equal(
        groups(rollout.reward_parts["place"]), [[0, 10, 20, 30]] * 4
    )
    assert [episodes for episodes, _ in observed] == rewarded
    np.testing.assert_array_equal(rollout.group, np.repeat(range(4), small.GROUP))


def test_a_reward_that_raises_is_counted_and_not_fatal(caplog):
    """Law 7: its group is unscored, which teaches nothing; the others train."""

    def reward(episodes):
        if episodes[0].sample.id == "row-1":
            raise OSError("the judge does not answer")
        return small.even_reward(episodes)

    rollout = play(range(4), reward=reward)
    wanted = groups(small.rollout().rewards).copy()
    wanted[1] = np.nan
    np.testing.assert_array_equal(groups(rollout.rewards), wanted)
    errors = groups(rollout.reward_parts["errors"])
    np.testing.assert_array_equal(errors.mean(axis=1), [0, 1, 0, 0])
    assert "row-1" in caplog.text
    assert "the judge does not answer" in caplog.text


def test_slots_change_nothing_but_float_error():
    """Law 4: with few slots, groups wait, and end in another order."""
    whole, few = small.rollout(), play(range(4), slots=3)
    for column in ("tokens", "mask", "positions", "rewards", "group"):
        np.testing.assert_array_equal(getattr(few, column), getattr(whole, column))
    np.testing.assert_allclose(few.old_logprobs, whole.old_logprobs, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, few.prompts, whole.prompts)


def test_a_reward_sees_the_row_the_pictures_the_prompt_and_the_step():
    seen = []

    def reward(episodes):
        seen.append(episodes)
        return [0.0] * len(episodes)

    play(range(4), reward=reward, step=3, total_steps=7)
    for sample, group in zip(small.samples(), seen, strict=True):
        assert len(group) == small.GROUP
        for episode in group:
            assert episode.sample is sample  # with all its columns
            assert sample.question.replace("<image>", "") in re.sub(
                r"<\|vision_start\|><\|image_pad\|><\|vision_end\|>", "", episode.prompt
            )
            assert (episode.step, episode.total_steps) == (3, 7)
    assert {e.finished for group in seen for e in group} == {True, False}
    sizes = seen[0][0].image_sizes
    # 28 x 56 pixels are a multiple of 28 and within the bounds already.
    assert [tuple(size) for size in sizes] == [(28, 56, 28, 56)]
    assert seen[2][0].image_sizes == ()


def test_a_slow_reward_overlaps_with_sampling(monkeypatch):
    """Groups are rewarded between the start and the end of a run of the slots."""
    runs, working, rewarded = [], [], []
    run, get = slots.run, jax.device_get

    def start(*arguments):
        runs.append(len(runs))
        working.append(True)
        return run(*arguments)

    def wait(value):
        working.clear()
        return get(value)

    monkeypatch.setattr(slots, "run", start)
    monkeypatch.setattr(jax, "device_get", wait)

    def reward(episodes):
        rewarded.append((episodes[0].sample.id, bool(working)))
        return [1.0] * len(episodes)

    actor = dataclasses.replace(small.chain_actor(), reward=reward, slots=4)
    single_turn(
        actor, iter([small.samples()]), jax.random.key(0), group_size=small.GROUP
    )
    assert {name for name, _ in rewarded} == {"row-0", "row-1", "row-2", "row-3"}
    # The last group's end ends the sampling.
    assert [at_work for _, at_work in rewarded] == [True, True, True, False]


def test_groups_are_scored_in_threads_if_the_reward_may():
    """As many at once as was said, and all results in their places."""
    together = threading.Barrier(4)
    observed = []

    def reward(episodes):
        together.wait(60)  # for all four groups
        return [float(episodes[0].sample.id[-1])] * len(episodes)

    actor = dataclasses.replace(
        small.chain_actor(),
        reward=reward,
        reward_threads=4,
        observe=lambda group, scores: observed.append(group[0].sample.id),
    )
    rollout = single_turn(
        actor, iter([small.samples()]), jax.random.key(0), group_size=small.GROUP
    )
    np.testing.assert_array_equal(rollout.rewards, np.repeat(range(4), small.GROUP))
    assert observed == ["row-0", "row-1", "row-2", "row-3"]


def test_rewards_run_in_the_calling_thread_unless_told_otherwise():
    """Code with alarm signals works in no other: math-verify's own time-outs."""
    threads = set()

    def reward(episodes):
        threads.add(threading.current_thread())
        return [0.0] * len(episodes)

    play(range(4), reward=reward)
    assert threads == {threading.current_thread()}


def test_demonstrations_end_with_a_stop_token():
    actor = small.actor(max_new_tokens=8)
    rollout = demonstrations(actor, iter([small.samples()]), jax.random.key(0))
    tokenizer = actor.processor.tokenizer
    stop = int(actor.stop_ids[0])
    for row, sample in enumerate(small.samples()):
        written = np.asarray(rollout.tokens[row])[np.asarray(rollout.mask[row])]
        assert tokenizer.decode(written[:-1]) == sample.annotations["demonstration"]
        assert written[-1] == stop
    np.testing.assert_array_equal(rollout.temperature, 1)
    # As sampling would place them.
    np.testing.assert_array_equal(
        rollout.positions[:, :6], small.rollout().positions[:: small.GROUP]
    )


@pytest.mark.parametrize(
    ("budget", "annotations", "said"),
    [
        (
            2,
            {"demonstration": "it is it is it"},
            r"row-0 has \d+ tokens .*, and 2 may be",
        ),
        (8, {}, "row-0 has no `demonstration`"),
    ],
)
def test_demonstrations_that_cannot_be_used_are_named(budget, annotations, said):
    sample = dataclasses.replace(small.samples()[0], annotations=annotations)
    with pytest.raises(ValueError, match=said):
        demonstrations(
            small.actor(max_new_tokens=budget), iter([[sample]]), jax.random.key(0)
        )
