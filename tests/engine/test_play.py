"""Episodes of several turns: what is asked, what is read, and what becomes a row."""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vrl_jax.engine.conversation import Ask, conversation, following, user
from vrl_jax.engine.desk import Desk, Limits, OutOfRoom, TooManyAsks, nothing
from vrl_jax.engine.episode import Outcome
from vrl_jax.engine.packing import packed
from vrl_jax.engine.play import play
from vrl_jax.engine.processing import question, unpadded
from vrl_jax.engine.rows import as_rollout
from vrl_jax.types import Turn

from ..fixtures import small
from ..fixtures.talks import look_again

KEY = jax.random.key(7)
ROOM = Limits(row_tokens=64, pictures=1)
BLANK = [{"overall": 0.0}]
ENDED = "ended/TooManyAsks"


def two_minds(sample):
    """A description, and an answer by one who only reads it: two conversations."""
    seen = yield Ask(question(sample))
    answer = yield Ask((user(f"Given {seen.text!r}. {sample.id}?"),))
    return Outcome((seen, answer), {"length": len(seen.tokens)})


def played(program, actor=None, *, group_size=2, limits=ROOM, **more):
    return play(
        actor or small.actor(),
        program,
        small.samples(),
        KEY,
        group_size=group_size,
        limits=limits,
        **more,
    )


def rolled(program, actor=None, *, rows=1, limits=ROOM, **more):
    groups = played(program, actor, limits=limits, **more)
    scores = BLANK * sum(map(len, groups))
    return groups, as_rollout(
        actor or small.actor(), groups, scores, rows=rows, limits=limits
    )


@pytest.fixture(scope="module")
def looked():
    return rolled(look_again)


def test_scoring_equals_sampling_over_turns_with_a_picture_between(looked):
    """Law 1."""
    _, rollout = looked
    mask = np.asarray(rollout.mask)
    scored = small.actor().likelihood(rollout).logprobs
    np.testing.assert_allclose(scored, rollout.old_logprobs, rtol=0, atol=1e-5)
    assert not rollout.old_logprobs[~mask].any()
    # Three answers a row: the policy's tokens come in three stretches.
    starts = mask & ~np.pad(mask, ((0, 0), (1, 0)))[:, :-1]
    np.testing.assert_array_equal(starts.sum(axis=1), 3)
    image = small.spec().image_token
    shown = np.asarray(rollout.tokens) == image
    np.testing.assert_array_equal(shown.sum(axis=1), 2)  # 56 x 28: two merged tokens
    np.testing.assert_array_equal(np.asarray(rollout.shown.slots) > 0, shown)
    # Of what was drawn last nothing more is told.
    for row, tokens in zip(mask, np.asarray(rollout.tokens), strict=True):
        assert (tokens[np.flatnonzero(row)[-1] + 1 :] == 40).all()


def test_one_forward_pass_over_the_whole_episode_says_the_same(looked):
    """Positions and slots after the picture are those of one long prompt."""
    groups, rollout = looked
    actor = small.actor()
    rows = [one.rows[0] for group in groups for one in group]
    alone = [unpadded(actor.processor, row.whole) for row in rows]
    room = ROOM.room(actor)._replace(prompts_per_pack=1)
    prompts = packed(room, actor.processor.front_end, alone)

    @jax.jit
    def read(params, prompts):
        features = actor.policy.encode_images(params, prompts.images)
        hidden, _ = actor.policy.prefill(params, prompts, features)
        logits = hidden @ actor.policy.head(params).T / actor.temperature
        logits = jnp.where(actor.allowed, logits, -1e30)
        chosen = jnp.roll(prompts.tokens, -1, axis=1)[..., None]
        return jnp.take_along_axis(jax.nn.log_softmax(logits), chosen, axis=2)[..., 0]

    logprobs = np.asarray(read(actor.params, prompts))
    for number, row in enumerate(rows):
        start = len(row.prompt.tokens)
        where = np.flatnonzero(np.asarray(rollout.mask)[number])
        np.testing.assert_allclose(
            logprobs[number, start - 1 + where],
            np.asarray(rollout.old_logprobs)[number, where],
            atol=1e-5,
        )
        np.testing.assert_array_equal(
            np.asarray(rollout.positions)[number, : len(row.whole.tokens) - start],
            prompts.positions[number, start : len(row.whole.tokens)],
        )


def test_the_picture_between_turns_matters_to_what_follows_it_alone(looked):
    """Law 2, in likelihood and gradient."""
    _, rollout = looked
    actor = small.actor()
    images = rollout.shown.images
    dark = dataclasses.replace(images, patches=-images.patches)
    other = dataclasses.replace(
        rollout, shown=dataclasses.replace(rollout.shown, images=dark)
    )
    change = np.abs(
        actor.likelihood(other).logprobs - actor.likelihood(rollout).logprobs
    )
    mask = np.asarray(rollout.mask)
    after = np.cumsum(np.asarray(rollout.shown.slots) > 0, axis=1) > 0
    assert (np.where(mask & after, change, 0).max(axis=1) > 1e-3).all()
    np.testing.assert_array_equal(change[mask & ~after], 0)


def test_history_is_never_read_again(looked):
    """Token in, token out: each context begins with the one before and its answer."""
    groups, _ = looked
    tokenizer = small.tokenizer()
    for one in (one for group in groups for one in group):
        first, second, third = one.rows[0].said
        for before, after in ((first, second), (second, third)):
            whole = [*before.read.tokens, *before.response.tokens]
            np.testing.assert_array_equal(after.read.tokens[: len(whole)], whole)
        told = third.read.tokens[len(second.read.tokens) + len(second.turn.tokens) :]
        ended = second.turn.tokens[-1] == tokenizer.eos_token_id
        expected = "\n<|im_start|>user\nSo?<|im_end|>\n<|im_start|>assistant\n"
        assert tokenizer.decode(told) == ("" if ended else "<|im_end|>") + expected


def test_a_turn_knows_what_it_was_told(looked):
    """What is new since the turn before, or in another context; never the prompt."""
    groups, _ = looked
    shown = user("<image>And now?", [small.png(99, 56, 28)])
    for one in (one for group in groups for one in group):
        told = [turn.told for turn in one.episode.turns]
        assert told == [(), (shown,), (user("So?"),)]

    def attempts(sample):
        return (yield [Ask(question(sample))] * 2)

    for group in played(two_minds):
        for one in group:
            seen, answer = one.episode.turns
            asked = user(f"Given {seen.text!r}. {one.episode.sample.id}?")
            assert (seen.told, answer.told) == ((), (asked,))
    for (one,) in played(attempts, group_size=1):
        assert [turn.told for turn in one.episode.turns] == [(), ()]


def test_following_closes_an_answer_only_where_the_model_did_not():
    tokenizer, processor = small.tokenizer(), small.actor().processor
    end = tokenizer.eos_token_id
    one, other = (
        following(processor, said, (user("So?"),)).tokens for said in ([41, end], [41])
    )
    assert other[0] == end
    np.testing.assert_array_equal(one, other[1:])
    # As the template writes it, had the model said "it is".
    whole = conversation(
        processor,
        (
            user("What?"),
            Turn("it is", (*tokenizer("it is")["input_ids"],)),
            user("So?"),
        ),
        {},
    )
    text = tokenizer.apply_chat_template(
        [
            {"role": "user", "content": "What?"},
            {"role": "assistant", "content": "it is"},
            {"role": "user", "content": "So?"},
        ],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert tokenizer.decode(whole.tokens) == text


@pytest.mark.parametrize("program", [look_again, two_minds])
def test_slots_do_not_change_what_is_said(program):
    """Keys come from sample, rollout and turn; 4 slots or 64, and other company."""
    one, other = (played(program, small.actor(slots=slots)) for slots in (4, 64))
    words = lambda groups: [[e.episode.turns for e in group] for group in groups]
    assert words(one) == words(other)
    turned = play(
        small.actor(), program, small.samples()[2:], KEY, group_size=1, limits=ROOM
    )
    assert words(turned) == [group[:1] for group in words(one)[2:]]
    assert len({e.episode.turns[1].tokens for group in one for e in group}) == 8


@pytest.mark.parametrize(
    ("bounds", "most"),
    [
        ({"slots": 1024, "prompts_per_pass": 5}, 4),
        ({"slots": 1024, "prompts_per_pass": 1}, 1),
        ({"slots": 64}, 16),
        ({"slots": 4}, 4),
    ],
)
def test_no_more_prompts_are_read_together_than_a_pass_takes(bounds, most):
    actor = dataclasses.replace(small.chain_actor(), **bounds)
    rows = [
        dataclasses.replace(small.samples()[2], question=f"{number}?")
        for number in range(20)
    ]
    desk = Desk(actor, ROOM, nothing, lambda *_: iter(()))
    for row in rows:
        ask = Ask(question(row))
        desk.ask(
            ask, desk.conversation(ask.context), key=KEY, limit=1, **desk.order(ask)
        )
    desk._queue_fresh()
    together = {id(request.contexts): request.contexts for request in desk.queue}
    sizes = [len(read.prompts.tokens) for read in together.values()]
    assert max(sizes) == most


def test_an_episode_of_two_conversations_has_two_rows():
    groups, rollout = rolled(two_minds, rows=2)
    assert rollout.tokens.shape[0] == 16 and rollout.rewards.shape == (8,)
    np.testing.assert_array_equal(rollout.place, np.tile([0, 0, 1, 1], 4))
    np.testing.assert_array_equal(
        rollout.episode.reshape(4, 2, 2), [[[2 * s, 2 * s + 1]] * 2 for s in range(4)]
    )
    # The answers read different words: no two rows share a prompt.
    assert rollout.prompts.tokens.shape[0] == 16
    scored = small.actor().likelihood(rollout).logprobs
    np.testing.assert_allclose(scored, rollout.old_logprobs, rtol=0, atol=1e-5)
    lengths = np.asarray(rollout.mask.sum(axis=1)).reshape(4, 2, 2)
    np.testing.assert_array_equal(rollout.facts["length"], lengths[:, 0].ravel())
    np.testing.assert_array_equal(rollout.facts["asks"], 2)
    with pytest.raises(ValueError, match=r"2 conversations .* rows=1"):
        as_rollout(small.actor(), groups, BLANK * 8, limits=ROOM)


def asking(**how):
    """One ask of that kind, to a policy that compiles in a moment."""

    def program(sample):
        return (yield Ask(question(sample), **how))

    return program


def turns(program, **changes):
    actor = small.chain_actor()
    groups = played(program, dataclasses.replace(actor, **changes), limits=ROOM)
    return [one.episode.turns[0] for group in groups for one in group]


def test_an_ask_has_its_own_budget_and_temperature():
    assert {len(turn.tokens) for turn in turns(asking(max_new_tokens=2))} <= {1, 2}
    assert any(not turn.finished for turn in turns(asking(max_new_tokens=2)))
    cold = turns(asking(top_k=1))
    assert cold[0].tokens == cold[1].tokens  # the same question, twice
    assert cold[0].tokens != turns(asking(temperature=9.0))[0].tokens


def test_allowed_answers_are_the_only_ones():
    found = turns(asking(allowed=("it", " is"), max_new_tokens=1))
    assert {turn.text for turn in found} == {"it", " is"}
    said = rolled(asking(allowed=("it", " is"), max_new_tokens=1))[1]
    # Scoring knows what was kept of the policy.
    scored = small.actor().likelihood(said).logprobs
    np.testing.assert_allclose(scored, said.old_logprobs, rtol=0, atol=1e-5)
    assert (said.log_kept[:, 0] < -1).all()


def small_error(program):
    """What the program is told of its ask."""
    told = []

    def listening(sample):
        try:
            yield from program(sample)
        except Exception as error:
            told.append(error)

    played(listening, small.chain_actor(), group_size=1)
    raise told[0]


def test_what_is_given_is_read_and_not_trained():
    groups, rollout = rolled(asking(given="it is"))
    given = small.tokenizer()("it is")["input_ids"]
    row = groups[0][0].episode.turns[0]
    assert row.tokens[: len(given)] == tuple(given) and row.given == len(given)
    assert row.read == rollout.prompts.mask[0].sum() + len(given)
    assert row.logprob == pytest.approx(float(rollout.old_logprobs[0].sum()), abs=1e-5)
    tokens, mask = np.asarray(rollout.tokens), np.asarray(rollout.mask)
    np.testing.assert_array_equal(tokens[:, : len(given)], [given] * 8)
    assert not mask[:, : len(given)].any() and mask[:, len(given)].all()
    scored = small.actor().likelihood(rollout).logprobs
    np.testing.assert_allclose(scored, rollout.old_logprobs, rtol=0, atol=1e-5)


def tried_twice(sample):
    """The longer of two openings goes on; in the end something more is asked."""
    tries = yield [Ask(question(sample), tentative=True, max_new_tokens=3)] * 2
    longer = max(tries, key=lambda turn: len(turn.tokens))
    whole = yield Ask(question(sample), given=longer, max_new_tokens=4)
    return (whole, (yield Ask((*question(sample), whole, user("So?")))))


def test_an_answer_goes_on_in_the_middle_and_is_one_row():
    """Law 1, over an answer in two parts and the turn after it."""
    groups, rollout = rolled(tried_twice)
    assert rollout.tokens.shape[0] == 8 and (rollout.facts["asks"] == 4).all()
    scored = small.actor().likelihood(rollout).logprobs
    np.testing.assert_allclose(scored, rollout.old_logprobs, rtol=0, atol=1e-5)
    tokens, mask = np.asarray(rollout.tokens), np.asarray(rollout.mask)
    played = [one for group in groups for one in group]
    for row, one in enumerate(played):
        whole, last = one.episode.turns
        opening, rest, _ = (said.response.tokens for said in one.rows[0].said)
        assert whole.tokens == (*opening, *rest) and whole.given == last.given == 0
        assert tuple(tokens[row][mask[row]]) == whole.tokens + last.tokens
        starts = np.flatnonzero(np.diff(mask[row].astype(int), prepend=0) > 0)
        assert len(starts) == 2 and starts[1] > len(whole.tokens)
        known = np.asarray(rollout.old_logprobs)[row][: starts[1]].sum()
        assert whole.logprob == pytest.approx(known, abs=1e-4)
        assert whole.read == len(one.rows[0].prompt.tokens)
        assert last.read == whole.read + starts[1]


@pytest.mark.parametrize(
    ("ends", "kept"),
    [
        (lambda one, other: (other,), 1),
        (lambda one, other: (one, other), 2),
        (lambda one, other: (), 0),
        (lambda one, other: None, 0),
        (lambda one, other: 1 / 0, 0),
    ],
)
def test_what_was_only_tried_is_no_row(ends, kept):
    def program(sample):
        return ends(*(yield [Ask(question(sample), tentative=True)] * 2))

    groups = played(program, small.chain_actor())
    for one in (one for group in groups for one in group):
        assert len(one.rows) == kept
        turns = [row.said[-1].turn for row in one.rows]
        assert turns == list(one.episode.turns)[:kept]


def tried_on(sample):
    """A picture is shown after the first answer; of two that go on, one is returned."""
    first = yield Ask(question(sample))
    more = user("<image>And now?", [small.png(99, 56, 28)])
    on = Ask((*question(sample), first, more), tentative=True)
    second, third = yield [on, dataclasses.replace(on, max_new_tokens=3)]
    return first, third if sample.id != "row-2" else second


def test_a_rejected_answer_leaves_what_came_before_it():
    """Law 1 where the first answer's row is cut, and its picture with the rest."""
    groups, rollout = rolled(tried_on, rows=2)
    scored = small.actor().likelihood(rollout).logprobs
    np.testing.assert_allclose(scored, rollout.old_logprobs, rtol=0, atol=1e-5)
    mask = np.asarray(rollout.mask)
    for one in (one for group in groups for one in group):
        written = [[said.turn for said in row.said] for row in one.rows]
        first, last = one.episode.turns
        whole = one.episode.sample.id == "row-2"
        assert written == ([[first, last]] if whole else [[first], [last]])
        assert len(one.rows[0].pictures) == whole
    kept = [len(turn.tokens) for g in groups for e in g for turn in e.episode.turns]
    assert mask.sum() == sum(kept)


def test_what_a_trained_answer_goes_on_with_is_trained():
    """In the row of another: two go on with one try, and the second is returned."""

    def program(sample):
        tries = yield [Ask(question(sample), tentative=True)] * 2
        on = Ask((*question(sample), tries[1], user("So?")), tentative=True)
        return (yield [on, on])[1]

    for group in played(program, small.chain_actor(), limits=Limits(row_tokens=64)):
        for one in group:
            tried, last = one.rows
            (turn,) = one.episode.turns
            assert [said.turn for said in last.said] == [turn]
            assert [said.turn.number for said in tried.said] == [1]
            assert turn.number == 3


def noted(turn):
    return dataclasses.replace(turn, facts={"seen": 1})


def test_a_turn_is_known_again_with_other_facts():
    """Returned, or gone on with in the middle; equal words of two tries too."""

    def returned(sample):
        it = Ask(question(sample), tentative=True, allowed=("it",), max_new_tokens=1)
        one, other = yield [it, it]
        assert one == other and one is not other
        return noted(other)

    def given(sample):
        opening = yield Ask(question(sample), tentative=True, max_new_tokens=2)
        return noted((yield Ask(question(sample), given=noted(opening))))

    for program, asks in ((returned, [1]), (given, [0, 1])):
        groups, rollout = rolled(program)
        scored = small.actor().likelihood(rollout).logprobs
        np.testing.assert_allclose(scored, rollout.old_logprobs, rtol=0, atol=1e-5)
        for one in (one for group in groups for one in group):
            (row,), (turn,) = one.rows, one.episode.turns
            assert [said.turn.number for said in row.said] == asks
            assert turn.facts == {"seen": 1} and turn.given == 0
            assert turn.tokens == tuple(row.whole.tokens[len(row.prompt.tokens) :])


def test_what_goes_on_with_one_of_equal_answers_is_its_row():
    """Told apart by their numbers: the other is no row, and neither is trained twice.

    A turn from elsewhere has no number: it is known by its tokens.
    """

    def program(sample, numbered):
        it = Ask(question(sample), tentative=True, allowed=("it",), max_new_tokens=1)
        _, other = yield [it, it]
        other = other if numbered else dataclasses.replace(other, number=None)
        return (yield Ask((*question(sample), other, user("So?"))))

    for numbered, before in ((True, 1), (False, 0)):
        alone = functools.partial(program, numbered=numbered)
        groups, _ = rolled(alone, small.chain_actor(), rows=1)
        for one in itertools.chain(*groups):
            told = [[said.turn.number for said in row.said] for row in one.rows]
            assert told == [[before, 2]]


def test_an_opening_that_was_shortened_is_given_and_not_trained():
    """Its log-probs would be those of other tokens."""

    def program(sample):
        opening = yield Ask(question(sample), allowed=("it",), max_new_tokens=2)
        cut = dataclasses.replace(opening, tokens=opening.tokens[:1])
        return (yield Ask(question(sample), given=cut))

    groups, rollout = rolled(program, rows=2)
    scored = small.actor().likelihood(rollout).logprobs
    np.testing.assert_allclose(scored, rollout.old_logprobs, rtol=0, atol=1e-5)
    assert all(len(one.rows) == 2 for group in groups for one in group)
    assert all(one.episode.turns[0].given == 1 for group in groups for one in group)


@pytest.mark.parametrize(
    ("facts", "finished"),
    [
        ({}, True),
        ({"ended/no room": 1}, False),
        ({"ended/no room": 0}, True),
        ({"bended/ended/": 1}, True),
    ],
)
def test_what_ended_early_is_not_finished(facts, finished):
    def program(sample):
        return Outcome(((yield Ask(question(sample), stops=("",))),), facts)

    (first, *_), *_ = played(program, small.chain_actor(), group_size=1)
    assert first.episode.turns[0].finished
    assert first.episode.finished == finished


def test_an_answer_that_is_given_elsewhere_is_not_trained_again():
    """As text or ids are: of another context, or where it was asked untrained."""
    elsewhere = (user("What?"),)

    def program(sample, trained):
        first = yield Ask(elsewhere, trained=trained)
        return (yield Ask(question(sample) if trained else elsewhere, given=first))

    for trained in (True, False):
        alone = functools.partial(program, trained=trained)
        for group in played(alone, small.chain_actor(), group_size=1):
            *_, row = group[0].rows
            (turn,) = group[0].episode.turns
            assert len(group[0].rows) == 1 + trained and len(row.said) == 1
            assert turn.given == len(turn.tokens) - len(row.said[0].response.tokens)
            assert turn.given > 0


def test_an_episode_ends_as_the_turn_that_it_returns():
    """Not as the last that was tried."""

    def program(sample):
        it = Ask(question(sample), max_new_tokens=1, allowed=("it",))
        cut = yield it
        whole = yield dataclasses.replace(it, stops=("it",))
        return cut if sample.images else (whole, (yield it))[0]

    groups = played(program, small.chain_actor(), group_size=1)
    ended = [group[0].episode.finished for group in groups]
    assert ended == [False, False, True, False]  # the third row shows nothing


def test_a_stop_string_ends_the_answer_and_stays():
    free = turns(asking(max_new_tokens=60), stop_ids=jnp.array([5]))
    text = small.tokenizer().decode(free[0].tokens[:9])
    stop = text[-2:]
    cut = turns(asking(max_new_tokens=60, stops=(stop, "zzz")), stop_ids=jnp.array([5]))
    for one, other in zip(free, cut, strict=True):
        assert one.tokens[: len(other.tokens)] == other.tokens
        words = small.tokenizer().decode(other.tokens)
        before = small.tokenizer().decode(other.tokens[:-1])
        assert (stop in words) == (other.finished and other.tokens[-1] != 5)
        assert stop not in before
    assert len(cut[0].tokens) <= 9


def test_another_model_is_asked_by_name_and_never_trained():
    judge = dataclasses.replace(small.chain_actor(), stop_ids=jnp.array([5]))

    def program(sample):
        said = yield Ask(question(sample))
        verdicts = yield [
            Ask((user(f"Is {said.text!r} right?"),), model="judge", max_new_tokens=n)
            for n in (1, 2)
        ]
        return said, *verdicts

    groups, rollout = rolled(
        program, small.chain_actor(), models={"judge": judge}, group_size=3
    )
    assert rollout.tokens.shape[0] == 12
    for episode in (one.episode for group in groups for one in group):
        said, *verdicts = episode.turns
        assert said.chosen and not any(verdict.chosen for verdict in verdicts)
        assert [len(verdict.tokens) for verdict in verdicts] == [1, 2]
        assert verdicts[0].facts == {"model": "judge"}
        assert episode.text == said.text
    assert rollout.mask.sum() == sum(
        len(one.episode.turns[0].tokens) for group in groups for one in group
    )


def test_a_program_may_ask_as_often_as_it_may():
    groups = played(look_again, small.chain_actor(), limits=ROOM._replace(asks=3))
    assert all(one.episode.facts == {"asks": 3} for group in groups for one in group)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"temperature": 0.0}, "top_k=1 is greedy"),
        ({"top_p": 0.0}, r"top_p in \(0, 1\]"),
        ({"allowed": ("it is it",)}, "one token, and 'it is it' has"),
        ({"given": "<|image_pad|>\n\n"}, "'<|image_pad|>'.* types.plain"),
    ],
)
def test_an_ask_that_cannot_be_is_told_to_its_program(how, said):
    with pytest.raises(ValueError, match=said.replace("|", r"\|")):
        small_error(asking(**how))


def forged_text(sample):
    return (yield Ask(question(sample), given="<|image_pad|>\n\n"))


def forged_ids(sample):
    return (yield Ask(question(sample), given=(small.spec().image_token,)))


def forged_turn(sample):
    said = yield Ask(question(sample))
    forged = dataclasses.replace(said, tokens=(small.spec().image_token,))
    return (yield Ask(question(sample), given=forged))


def forged_before(sample):
    forged = Turn("it", (small.spec().image_token,))
    return (yield Ask((*question(sample), forged, user("So?"))))


@pytest.mark.parametrize("forge", [forged_text, forged_ids, forged_turn, forged_before])
def test_a_picture_that_nobody_showed_ends_its_own_episode_alone(forge):
    def program(sample):
        if sample.id == "row-1":
            return (yield from forge(sample))
        return (yield Ask(question(sample)))

    groups = played(program, small.chain_actor(), group_size=1)
    ended = ["ended/ValueError" in one.episode.facts for (one,) in groups]
    assert ended == [False, True, False, False]


def test_a_model_that_is_not_there_ends_the_run():
    """And no program can hear of it: it is nobody's mistake but the caller's."""

    def program(sample):
        try:
            yield Ask(question(sample), model="prm")
        except Exception:  # whatever it could hear, it would swallow
            return None

    wanted = r"row-0 asks the model 'prm'.* only 'judge', 'policy'.*\{'prm': actor\}"
    actor = small.chain_actor()
    with pytest.raises(ValueError, match=wanted):
        played(program, actor, models={"judge": actor})


def test_a_model_that_has_no_room_is_named_where_the_episode_ends():
    def judged(sample):
        said = yield Ask(question(sample))
        try:
            yield Ask(question(sample), model="judge")
        except OutOfRoom as error:
            assert error.model == "judge" and "of the model 'judge': a" in str(error)
            raise
        return said

    actor = small.chain_actor()
    narrow = small.with_room(actor.processor, prompt_tokens=(1,))
    judge = dataclasses.replace(actor, processor=narrow)
    told = {"limits": Limits(), "models": {"judge": judge}}
    for (one,) in played(judged, actor, group_size=1, **told):
        ended = {"ended/OutOfRoom of judge": 1, "no_room/judge": 1}
        assert one.episode.facts == {"asks": 2, **ended}
        assert not one.episode.finished and len(one.rows) == 1


def test_a_conversation_has_one_temperature():
    def warming(sample):
        said = yield Ask(question(sample))
        yield Ask((*question(sample), said, user("Again?")), temperature=2.0)

    with pytest.raises(ValueError, match=r"drawn at 0.8, the next would be at 2.0"):
        small_error(warming)


def for_ever(sample):
    context = question(sample)
    while True:
        said = yield Ask(context, max_new_tokens=1)
        context = (*context, said, user("And?"))


def stubborn(sample):
    """Hears that there is no room, and asks again."""
    while True:
        try:
            yield Ask((user("it is " * 500),))
        except OutOfRoom:
            continue


def unclosing(sample):
    """Hears everything, and asks again where it is closed too."""
    while True:
        try:
            yield Ask(question(sample), max_new_tokens=1)
        except Exception:  # the worst that a program can do
            continue
        except GeneratorExit:
            yield Ask(question(sample))


def broken(sample):
    said = yield Ask(question(sample))
    if sample.id == "row-1":
        raise KeyError("a tool of mine")
    return (said,)


@pytest.mark.parametrize(
    ("program", "limits", "ended"),
    [
        (for_ever, Limits(row_tokens=500, pictures=1, asks=5), "TooManyAsks"),
        (for_ever, ROOM, "OutOfRoom"),
        (stubborn, ROOM, "TooManyAsks"),
        (unclosing, ROOM, "TooManyAsks"),
    ],
)
def test_a_program_that_never_ends_is_ended_and_counted(program, limits, ended):
    groups = played(program, small.chain_actor(), limits=limits, group_size=1)
    for (one,) in groups:
        assert one.episode.facts[f"ended/{ended}"] == 1 and not one.episode.finished
        if program is for_ever:
            # What does not fit is not there: the last token is the policy's.
            assert one.rows[0].said[-1].response.tokens.size
            assert len(one.rows[0].whole.tokens) <= limits.row_tokens + 56


def test_a_program_may_return_what_it_has_when_it_may_ask_no_more():
    def program(sample, again):
        tries = []
        try:
            for many in (2, 3):
                tries += yield [Ask(question(sample), tentative=True)] * many
        except TooManyAsks as error:
            assert str(error) == "2 asks, and 3 more, of 4 at most."
        if again:
            yield Ask(question(sample))  # one would be left, but it has been told
        return tries[-1]

    limits = ROOM._replace(asks=4)
    for again, facts in ((False, {"asks": 2}), (True, {"asks": 2, ENDED: 1})):
        alone = functools.partial(program, again=again)
        groups = played(alone, small.chain_actor(), limits=limits)
        for one in itertools.chain(*groups):
            assert one.episode.facts == facts
            assert len(one.rows) == (not again)


def test_a_program_that_raises_ends_its_own_episode_alone(caplog):
    groups, rollout = rolled(broken, small.chain_actor())
    np.testing.assert_array_equal(
        rollout.facts["ended/KeyError"], [0, 0, 1, 1, 0, 0, 0, 0]
    )
    assert "row-1" in caplog.text and "a tool of mine" in caplog.text
    assert all(len(one.rows) == 1 for group in groups for one in group)


def test_pictures_beyond_the_budget_end_the_episode_that_shows_them():
    def album(sample):
        said = yield Ask(question(sample))
        many = user("<image>" * 50, [small.png(i, 56, 56) for i in range(50)])
        again = yield Ask((*question(sample), said, many))
        return said, again

    groups, rollout = rolled(album, small.chain_actor(), group_size=1)
    np.testing.assert_array_equal(rollout.facts["ended/OutOfRoom"], 1)
    assert all(len(one.rows[0].said) == 1 for (one,) in groups)


def test_a_turn_knows_how_likely_it_was():
    """A sum of the log-probs, of what went on in its middle too; given words have none.

    Among allowed ids alone: the probabilities of two words add up to 1.
    """
    actor = small.chain_actor()
    likely = {}

    def program(sample):
        word = yield Ask(question(sample), allowed=("it", "What"), max_new_tokens=1)
        likely.setdefault(sample.id, {})[word.text] = math.exp(word.logprob)
        said = yield Ask(question(sample), given=word)
        told = yield Ask(question(sample), given="it", trained=False)
        return said, told

    groups = play(actor, program, small.samples(), KEY, group_size=8)
    for one in itertools.chain(*groups):
        said, told = one.episode.turns
        (row,) = one.rows
        drawn = [part.response.logprobs for part in row.said]
        np.testing.assert_allclose(said.logprob, np.concatenate(drawn).sum(), rtol=1e-5)
        assert told.logprob < 0
    sums = [sum(words.values()) for words in likely.values() if len(words) == 2]
    assert sums
    np.testing.assert_allclose(sums, 1, rtol=1e-5)


@pytest.mark.parametrize("block", [0, 32])
def test_rows_without_pictures_are_read_where_others_or_none_have_some(block):
    """Their budgets begin with no block at all: a table of no patches is read."""
    processor = small.actor().processor
    room = processor.room._replace(block=block, blocks=(0, 1) if block else (0,))
    sparing = small.actor(processor=dataclasses.replace(processor, room=room))
    text = small.samples()[2]

    def twice(sample):
        first = yield Ask(question(sample))
        return first, (yield Ask((*question(sample), first, user("Which one?"))))

    limits = Limits(row_tokens=48)
    ((found,),) = play(sparing, twice, [text], KEY, limits=limits)
    ((known,),) = play(small.actor(), twice, [text], KEY, limits=limits)
    assert found.episode.turns == known.episode.turns
