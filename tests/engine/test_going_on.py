"""A conversation that goes on is read from where its slot stands."""

import dataclasses

import jax
import numpy as np
import pytest

from vrl_jax.engine import slots
from vrl_jax.engine.conversation import Ask, user
from vrl_jax.engine.desk import Limits
from vrl_jax.engine.play import play
from vrl_jax.engine.processing import question
from vrl_jax.models.qwen_vl.parameters import parameter_table
from vrl_jax.models.sharding import make_mesh, spread
from vrl_jax.types import Turn

from ..fixtures import small
from ..fixtures.actors import DENSE, of_family
from ..fixtures.talks import look_again

ROOM = Limits(row_tokens=64, pictures=1)


def played(program, actor, **more):
    rows = small.samples()
    groups = play(
        actor, program, rows, jax.random.key(7), group_size=2, limits=ROOM, **more
    )
    return [one for group in groups for one in group]


def anew(actor):
    """It reads every context from its beginning."""
    return dataclasses.replace(actor, policy=actor.policy._replace(resume=None))


@pytest.fixture
def reads(monkeypatch):
    """Tokens of each context that is read: at the beginning, and behind a response."""
    counted = {"read": [], "read_on": []}

    def counting(name):
        function = getattr(slots, name)

        def call(*arguments):
            prompts = arguments[-1]
            lengths = np.asarray(prompts.mask).sum(axis=1).tolist()
            counted[name].append((lengths, prompts.images is not None))
            return function(*arguments)

        return call

    for name in counted:
        monkeypatch.setattr(slots, name, counting(name))
    return counted


def same(one, other):
    """Tokens are equal, log-probs but for float error; what is not trained too."""
    for mine, its in zip(one, other, strict=True):
        assert mine.episode.turns == its.episode.turns
        for turn, its_turn in zip(mine.episode.turns, its.episode.turns, strict=True):
            assert turn.logprob == pytest.approx(its_turn.logprob, abs=1e-4)
        for row, its_row in zip(mine.rows, its.rows, strict=True):
            for said, its_said in zip(row.said, its_row.said, strict=True):
                np.testing.assert_array_equal(
                    said.response.tokens, its_said.response.tokens
                )
                np.testing.assert_allclose(
                    said.response.logprobs, its_said.response.logprobs, atol=1e-5
                )


@pytest.mark.parametrize("family", ["small", *DENSE])
def test_what_is_said_does_not_depend_on_where_it_was_read_from(family, reads):
    actor = small.actor() if family == "small" else of_family(family)
    groups = played(look_again, actor)
    begun, on = (list(reads[name]) for name in ("read", "read_on"))
    same(groups, played(look_again, anew(actor)))
    # The four openings once, then what is new, with its picture or without vision.
    rows = [one.rows[0] for one in groups]
    openings = {len(row.prompt.tokens) for row in rows}
    assert {length for lengths, _ in begun for length in lengths} == openings
    for number in (1, 2):
        new = {
            len(row.said[number].read.tokens)
            - len(row.said[number - 1].read.tokens)
            - len(row.said[number - 1].response.tokens)
            for row in rows
        }
        shown = number == 1
        found = {n for lengths, seen in on if seen is shown for n in lengths}
        assert found == new
    assert len(reads["read_on"]) == len(on)  # the other had to begin anew


def stopped(sample):
    """The first answer is cut at a text; what was written behind it is not read."""
    first = yield Ask(question(sample), stops=("t", "i"))
    here = (*question(sample), first, user("And now?"))
    return first, (yield Ask(here))


def corrected(sample):
    """The second ask goes on with other words than were said."""
    first = yield Ask(question(sample))
    tokens = (9 if first.tokens[0] != 9 else 10, *first.tokens[1:])
    other = dataclasses.replace(first, tokens=tokens, text="", number=None)
    return (yield Ask((*question(sample), other, user("And now?")), trained=False))


def in_the_middle(sample):
    """The same answer goes on where its limit ended it, and then another."""
    first = yield Ask(question(sample), max_new_tokens=3)
    whole = yield Ask(question(sample), given=first, max_new_tokens=3)
    return whole, (yield Ask((*question(sample), whole, user("And now?"))))


def branches(sample):
    """Two answers at once: when the later one comes, the earlier one's slot is lost."""
    one, other = yield [Ask(question(sample)), Ask(question(sample))]
    here = [(*question(sample), turn, user("And now?")) for turn in (one, other)]
    return (yield [Ask(context) for context in here])


@pytest.mark.parametrize(
    ("program", "goes_on"),
    [(stopped, True), (corrected, False), (in_the_middle, True), (branches, False)],
)
def test_a_slot_is_gone_on_from_where_it_holds_what_is_read(program, goes_on, reads):
    groups = played(program, small.actor())
    assert bool(reads["read_on"]) == goes_on
    if program is stopped:  # in the slots of some stands more than they said
        firsts = [one.episode.turns[0].tokens for one in groups]
        stops = np.asarray(small.actor().stop_ids)
        assert any(len(t) < small.BUDGET and t[-1] not in stops for t in firsts)
    same(groups, played(program, anew(small.actor())))


def judged(sample):
    """A judge is asked between two turns, in slots of its own."""
    first = yield Ask(question(sample))
    verdict = yield Ask((user(f"Is {first.text!r} right?"),), model="judge")
    here = (*question(sample), first, user(f"One said {verdict.text!r}."))
    second = yield Ask(here)
    assert isinstance(second, Turn)
    return first, second


def test_another_model_in_between_makes_it_read_anew(reads):
    judge = small.actor(max_new_tokens=3)
    groups = played(judged, small.actor(), models={"judge": judge})
    assert not reads["read_on"]
    same(groups, played(judged, anew(small.actor()), models={"judge": judge}))


def test_a_mesh_changes_nothing_that_is_said():
    alone = played(look_again, small.actor())
    with jax.set_mesh(make_mesh(data=2, fsdp=2, tensor=2)):
        params = spread(small.params(), parameter_table(small.spec()))
        same(alone, played(look_again, small.actor(params=params)))
