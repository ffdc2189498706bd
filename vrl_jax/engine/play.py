"""Episodes: programs ask, slots write, and what was asked becomes rows to train on.

A program is a generator for one sample, written as if it were alone:

    def describe_then_answer(sample):
        seen = yield Ask((user(f"<image>Describe: {sample.question}", sample.images),))
        answer = yield Ask((user(ANSWER.format(seen.text, sample.question)),))
        return seen, answer

It yields one `Ask` and gets a `Turn`, or several and gets a list; it returns the turns
that rewards shall see (None: all that the policy wrote). `play` interleaves all
episodes over the slots of each model; with the actor's `program_threads` those whose
answers came together go on at once, in threads. The key of an answer is folded from
(key, sample, rollout, number of the ask), so neither slots nor order change what is
sampled.

What a program does is bounded: a context that has no room, too many asks, or an
exception end the episode, which is counted under its reason; asks for which another
model had no room are counted under its name too, `no_room/...`, whatever the program
makes of it. The program hears of the first two, `OutOfRoom` and `TooManyAsks`, and may
return what it has. Only a program that never comes to its next ask is waited for; slow
work belongs into a tool, which has its time. A model that is not there, and a return
that is no turn, end the whole run.

Of several processes each plays every episode. Programs and their tools must therefore
be deterministic, the same in all processes: one that depends on the clock or on the
machine makes their asks differ, and they then wait for each other on the mesh until the
run ends.
"""

import contextlib
import functools
import itertools
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from vrl_jax.engine.actor import Actor
from vrl_jax.engine.decoding import decode
from vrl_jax.engine.desk import Desk, Limits, Write, nothing
from vrl_jax.engine.episode import Answer, Played, Program
from vrl_jax.engine.playing import Playing
from vrl_jax.engine.sampling import row_keys
from vrl_jax.types import Sample


def ignore(number: int, group: list[Played]) -> None:
    """The observer that looks away."""


def play(
    actor: Actor,
    program: Program,
    samples: Sequence[Sample],
    key: Key[Array, ""],
    *,
    group_size: int = 1,
    models: Mapping[str, Actor] | None = None,
    limits: Limits | None = None,
    ended: Callable[[int, list[Played]], None] = ignore,
    meanwhile: Callable[[], None] = nothing,
    write: Write = decode,
) -> list[list[Played]]:
    """Plays the program `group_size` times for each sample; a list for each sample.

    `models` are the others that it may ask, by name: each an actor with its own policy,
    tokenizer, budgets and slots. `ended` is told of each group as its last episode
    ends, with the sample's number; `meanwhile` is called while a device is at work.
    `write` answers what is queued, as `decoding.decode` does: it yields the responses
    that are ready, again and again. `ValueError` if a model is asked that is not there.
    """
    limits = limits or Limits()
    numbers = np.array([zlib.crc32(s.id.encode()) for s in samples], np.uint32)
    keys = row_keys(key, jnp.asarray(numbers), group_size)
    keys = np.asarray(jax.random.key_data(keys))
    everyone = {**(models or {}), "policy": actor}
    desks = {
        name: Desk(one, limits, meanwhile, write) for name, one in everyone.items()
    }
    groups = [
        [
            Playing(
                sample,
                keys[row * group_size + rollout],
                program(sample),
                limits.asks,
                row,
            )
            for rollout in range(group_size)
        ]
        for row, sample in enumerate(samples)
    ]
    played: dict[int, list[Played]] = {}

    def go_on(heard: Sequence[tuple[Playing, Answer | None]]) -> None:
        steps = [begun(one.step, answer, desks) for one, answer in heard]
        for (episode, _), step in zip(heard, steps, strict=True):
            episode.go_on(step, desks)
            group = groups[episode.number]
            if all(one.over for one in group):
                played[episode.number] = [one.played(actor) for one in group]
                ended(episode.number, played[episode.number])

    with _at_once(actor.program_threads) as begun:
        go_on([(episode, None) for episode in itertools.chain(*groups)])
        while any(desk.waiting for desk in desks.values()):
            for desk in desks.values():
                heard = []
                for response in desk.run():
                    episode, place = response.request.tag
                    episode.hear(place, response, desk)
                    if len(episode.heard) == len(episode.asked):
                        heard.append((episode, episode.answer()))
                go_on(heard)
    return [played[number] for number in range(len(groups))]


@contextlib.contextmanager
def _at_once(count: int) -> Iterator[Callable[..., Callable[[], Any]]]:
    """begun(function, *arguments)() is what the function gives, or raises.

    So many are run at once, in the order in which they are begun; with none, each runs
    when it is asked for what it gives.
    """
    if not count:
        yield functools.partial
        return
    threads = ThreadPoolExecutor(count)
    try:
        yield lambda *what: threads.submit(*what).result
    finally:
        threads.shutdown(cancel_futures=True)
