"""Episodes whose answers came together go on at once, and what they show beforehand."""

import dataclasses
import threading

import jax
import numpy as np

from vrl_jax.engine.conversation import Ask, user
from vrl_jax.engine.desk import Limits, TooManyAsks
from vrl_jax.engine.play import play
from vrl_jax.engine.processing import question
from vrl_jax.engine.tools import PICTURE_TOOLS, Call, run

from ..fixtures import small

KEY = jax.random.key(7)
ROOM = Limits(row_tokens=64, pictures=1)
PART = small.png(99, 56, 28)


def shown_a_part(sample):
    """A picture of the answer's own making between two turns, by a tool."""
    first = yield Ask(question(sample))
    seen = run(Call("flip", {"axis": "vertical"}), PICTURE_TOOLS, [PART])
    second = yield Ask((*question(sample), first, user("<image>And?", seen.images)))
    return first, second


def test_programs_that_go_on_at_once_are_played_as_one_after_the_other():
    alone, beside = (
        play(
            dataclasses.replace(small.chain_actor(), program_threads=threads),
            shown_a_part,
            small.samples(),
            KEY,
            group_size=3,
            limits=ROOM,
        )
        for threads in (0, 3)
    )
    assert [[one.episode for one in group] for group in alone] == [
        [one.episode for one in group] for group in beside
    ]
    for group, other in zip(alone, beside, strict=True):
        for one, two in zip(group, other, strict=True):
            for mine, theirs in zip(one.rows, two.rows, strict=True):
                np.testing.assert_array_equal(mine.whole.tokens, theirs.whole.tokens)


def test_as_many_programs_as_threads_go_on_at_once():
    """Two wait for each other after their first answer; alone they wait in vain."""

    def facts(threads, seconds):
        gate = threading.Barrier(2, timeout=seconds)

        def meets(sample):
            first = yield Ask(question(sample), max_new_tokens=1)
            gate.wait()
            return first

        actor = dataclasses.replace(small.chain_actor(), program_threads=threads)
        groups = play(actor, meets, small.samples()[:2], KEY)
        return [one.episode.facts for (one,) in groups]

    assert not any("ended/BrokenBarrierError" in told for told in facts(2, 60))
    assert all("ended/BrokenBarrierError" in told for told in facts(0, 0.1))


def test_what_was_laid_out_ahead_and_is_not_read_is_let_go():
    """An ask too many shows a picture; and one that is read is used."""
    actor = small.chain_actor()
    processor = dataclasses.replace(actor.processor, prepared={})
    actor = dataclasses.replace(actor, processor=processor)
    left = []

    def once_too_often(sample):
        first = yield Ask(question(sample))
        try:
            yield Ask((*question(sample), first, user("<image>And?", [PART])))
        except TooManyAsks:
            left.append([*processor.prepared])
        return first

    row = small.samples()[:1]
    play(actor, once_too_often, row, KEY, limits=ROOM._replace(asks=1))
    assert left == [[PART]] and not processor.prepared
    play(actor, once_too_often, row, KEY, limits=ROOM)
    assert len(left) == 1 and not processor.prepared
