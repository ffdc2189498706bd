"""From a program to a rollout: play it, score it."""

import contextlib
import itertools
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
from jaxtyping import Array, Key

from vrl_jax.engine.actor import Actor
from vrl_jax.engine.desk import Limits
from vrl_jax.engine.episode import Played, Program
from vrl_jax.engine.play import play
from vrl_jax.engine.rows import as_rollout
from vrl_jax.rewards.combine import call_safely
from vrl_jax.training import processes
from vrl_jax.types import Episode, Rollout, Sample

Scores = list[dict[str, float]]


def act(
    actor: Actor,
    batches: Iterator[Sequence[Sample]],
    key: Key[Array, ""],
    *,
    program: Program,
    group_size: int,
    rows: int = 1,
    models: Mapping[str, Actor] | None = None,
    limits: Limits | None = None,
) -> Rollout:
    """G episodes of the program for each sample of the next batch, with rewards.

    `rows` is how many conversations with the policy an episode may have.
    """
    told = {"program": program, "models": models, "limits": limits}
    groups, scores = measured(actor, batches, key, group_size=group_size, **told)
    return as_rollout(actor, groups, scores, rows=rows, limits=limits)


def measured(
    actor: Actor,
    batches: Iterator[Sequence[Sample]],
    key: Key[Array, ""],
    *,
    program: Program,
    group_size: int,
    models: Mapping[str, Actor] | None = None,
    limits: Limits | None = None,
) -> tuple[list[list[Played]], Scores]:
    """What `act` plays and scores, without the arrays that training reads.

    So there may be any number of conversations, or no answer at all. The rewards of
    a group are computed as soon as its last episode has ended, while the device writes
    others: a slow verifier costs only what it takes beyond the sampling.
    """
    samples = next(batches)
    with Scoring(actor) as scoring:
        groups = play(
            actor,
            program,
            samples,
            key,
            group_size=group_size,
            models=models,
            limits=limits,
            ended=scoring.take,
            meanwhile=scoring.work,
        )
        return groups, scoring.results()


def played(
    actor: Actor,
    program: Program,
    samples: Sequence[Sample],
    key: Key[Array, ""],
    *,
    size: int | None = None,
    limits: Limits | None = None,
) -> Iterator[Episode]:
    """An episode of the program for each sample, in order, of any number of samples.

    `size` samples are played at a time, by default `prompts_per_pass`: no more pictures
    are in memory, laid out, than those show. What is sampled does not depend on it.
    """
    size = size or actor.prompts_per_pass
    for start in range(0, len(samples), size):
        # Answers' keys are folded from the ids: a pass needs none of its own.
        part = samples[start : start + size]
        for (one,) in play(actor, program, part, key, limits=limits):
            yield one.episode


class Scoring(contextlib.AbstractContextManager):
    """The rewards of groups as they come: in this thread, or in threads of their own.

    In this thread unless the actor says otherwise: code with alarm signals, such as
    math-verify's, works in no other. Of several processes each scores its share, on
    devices of its own if it needs any, unless the actor says that all score all.
    """

    def __init__(self, actor: Actor) -> None:
        self.actor = actor
        self.groups: dict[int, list[Episode]] = {}
        self.waiting: deque[int] = deque()
        self.found: dict[int, Scores | Future[Scores]] = {}
        count = actor.reward_threads
        self.threads = ThreadPoolExecutor(count) if count else None

    def __exit__(self, *error: Any) -> None:
        """No thread is left behind."""
        if self.threads:
            self.threads.shutdown(cancel_futures=True)

    def take(self, number: int, group: Sequence[Played]) -> None:
        """Group `number` has been played."""
        self.groups[number] = [one.episode for one in group]
        share = number % jax.process_count() == jax.process_index()
        if not share and not self.actor.rewards_everywhere:
            return
        if self.threads:
            self.found[number] = self.threads.submit(self.score, number)
        else:
            self.waiting.append(number)

    def score(self, number: int) -> Scores:
        """Those of one group."""
        together = self.actor.rewards_everywhere
        with contextlib.nullcontext() if together else processes.alone():
            return call_safely(self.actor.reward, self.groups[number])

    def work(self) -> None:
        """Scores one of the groups that wait."""
        if self.waiting:
            number = self.waiting.popleft()
            self.found[number] = self.score(number)

    def results(self) -> Scores:
        """All scores in the order of the groups; the observer is told of each."""
        while self.waiting:
            self.work()
        own = {
            number: found.result() if isinstance(found, Future) else found
            for number, found in self.found.items()
        }
        shares = processes.gathered([*own.items()])
        everyone = dict(itertools.chain(*shares))
        for number in sorted(self.groups):
            self.actor.observe(self.groups[number], everyone[number])
        return [*itertools.chain(*(everyone[number] for number in sorted(everyone)))]


def scored(actor: Actor, groups: Sequence[Sequence[Episode]]) -> Scores:
    """The scores of groups that are there already."""
    with Scoring(actor) as scoring:
        for number, group in enumerate(groups):
            scoring.take(number, [Played(episode, ()) for episode in group])
        return scoring.results()
