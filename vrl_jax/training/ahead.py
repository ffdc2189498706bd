"""Ahead of the step: pictures of the next prompts, and sampling itself if one wants.

`Ahead` changes nothing but time: while the device works, threads decode and lay out the
pictures of the samples that come next. `one_step_behind` changes the method: the
responses of a step are sampled while the step before is learned from, by the policy as
it was then, and an importance weight corrects for that.
"""

import copy
import dataclasses
import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from vrl_jax import mismatch
from vrl_jax.engine.actor import Actor
from vrl_jax.engine.processing import Processor, prepare
from vrl_jax.training.iteration import Recipe
from vrl_jax.training.sampler import Correct, corrected
from vrl_jax.types import Rollout, Sample


class Ahead:
    """The samples of a stream, the pictures of the next `count` being prepared.

    `processor` is the one given, with what is prepared: the actor must have it. The
    state is that of the stream before the first sample that was not handed out, so a
    resumed run reads what an unbroken one would have read.

    Pictures wait until they are read or, if nobody reads them as they are, until `kept`
    more samples have been handed out, by default `count`: at least a batch.
    """

    def __init__(
        self,
        stream: Any,
        processor: Processor,
        count: int,
        *,
        kept: int | None = None,
        threads: int = 2,
    ) -> None:
        self.processor = dataclasses.replace(processor, prepared={})
        self._stream, self._count = stream, count
        self._kept = count if kept is None else kept
        self._waiting: deque[tuple[Sample, Any]] = deque()
        self._handed: deque[Sample] = deque()
        self._threads = ThreadPoolExecutor(threads)

    def __iter__(self) -> Iterator[Sample]:
        return self

    def __next__(self) -> Sample:
        self._fill(1)
        sample, _ = self._waiting.popleft()
        self._handed.append(sample)
        self._fill(self._count)
        while len(self._handed) > self._kept:
            self._let_go(self._handed.popleft())
        return sample

    def _let_go(self, sample: Sample) -> None:
        """A program that shows other pictures than the sample's leaves those behind."""
        wanted = itertools.chain(self._handed, (other for other, _ in self._waiting))
        needed = {image for other in wanted for image in other.images}
        for image in set(sample.images) - needed:
            if left := self.processor.prepared.pop(image, None):
                left.cancel()

    def _fill(self, count: int) -> None:
        prepared = self.processor.prepared
        while len(self._waiting) < count:
            state = copy.deepcopy(self._stream.get_state())
            sample = next(self._stream)
            self._waiting.append((sample, state))
            for image in sample.images:
                if image not in prepared:
                    prepared[image] = self._threads.submit(
                        prepare, self.processor, image
                    )

    def get_state(self) -> Any:
        """Where the next sample comes from."""
        return self._waiting[0][1] if self._waiting else self._stream.get_state()

    def set_state(self, state: Any) -> None:
        """Goes on from there; what was waiting is forgotten."""
        self._waiting.clear()
        self._handed.clear()
        self.processor.prepared.clear()
        self._stream.set_state(state)

    def close(self) -> None:
        """No thread is left behind."""
        self._threads.shutdown(cancel_futures=True)


class Upcoming:
    """Lists of `size` samples of a stream, of which some may be looked at ahead.

    `drawn` collects the samples of those that were taken. `get_state` is where the
    stream was before the first list that was not, so a resumed run takes it again.
    """

    def __init__(self, stream: Any, size: int) -> None:
        self.drawn: list[Sample] = []
        self._stream, self._size = stream, size
        self._waiting: deque[tuple[list[Sample], Any]] = deque()

    def __iter__(self) -> Iterator[list[Sample]]:
        return self

    def __next__(self) -> list[Sample]:
        self._fill(1)
        batch, _ = self._waiting.popleft()
        self.drawn += batch
        return batch

    def ahead(self) -> Iterator[list[Sample]]:
        """What the next calls will give: drawn from the stream, and not taken yet."""
        for number in itertools.count():
            self._fill(number + 1)
            yield self._waiting[number][0]

    def _fill(self, count: int) -> None:
        while len(self._waiting) < count:
            state = copy.deepcopy(self._stream.get_state())
            batch = list(itertools.islice(self._stream, self._size))
            self._waiting.append((batch, state))

    def get_state(self) -> Any:
        """Where the next list comes from."""
        return self._waiting[0][1] if self._waiting else self._stream.get_state()


class Pending(NamedTuple):
    """What a thread is playing: its rollout, what it read, what it observed."""

    rollout: Future[Rollout]
    read: list[Sequence[Sample]]
    observed: list[tuple[Any, ...]]


def one_step_behind(recipe: Recipe, *, correct: Correct = mismatch.truncated) -> Recipe:
    """The recipe on responses of the policy as it was one update phase earlier.

    While a step is learned from, a thread samples the next one with a copy of the
    params, which `sampler.corrected` makes up for with `correct`. Rewards run in the
    thread. The first step, also of a resumed run, waits for its own responses; so a
    resumed run is another draw. What the thread reads is looked at `ahead`, as
    `Upcoming` allows, and what it plays is observed when its step comes. On a mesh of
    several devices it raises `ValueError`: two threads there may start their programs
    in another order on each device, which then wait for each other for ever.
    """
    thread = ThreadPoolExecutor(1)
    pending: list[Pending] = []

    def taken(actor: Actor, batches: Upcoming, then: Pending) -> Rollout:
        rollout = then.rollout.result()
        for _ in then.read:
            next(batches)
        for group in then.observed:
            actor.observe(*group)
        return rollout

    def submitted(actor: Actor, batches: Upcoming, key: Key[Array, ""]) -> Pending:
        read: list[Sequence[Sample]] = []
        observed: list[tuple[Any, ...]] = []
        coming = batches.ahead()
        # Drawn here and not in the thread: the state that is saved is before it.
        coming = itertools.chain([next(coming)], coming)

        def noted() -> Iterator[Sequence[Sample]]:
            for batch in coming:
                read.append(batch)
                yield batch

        actor = dataclasses.replace(
            actor, observe=lambda *group: observed.append(group)
        )
        return Pending(thread.submit(recipe.act, actor, noted(), key), read, observed)

    def act(actor: Actor, batches: Upcoming, key: Key[Array, ""]) -> Rollout:
        if jax.sharding.get_mesh().size > 1:
            raise ValueError(
                "one_step_behind samples in a thread of its own and runs on one "
                "device: leave it out on a mesh, or leave out the mesh."
            )
        if pending:
            now = taken(actor, batches, pending.pop())
        else:
            now = recipe.act(actor, batches, key)
        if not actor.total_steps or actor.step + 1 < actor.total_steps:
            # The update that follows takes the memory of the params that came.
            params = jax.tree.map(jnp.copy, actor.params)
            coming = dataclasses.replace(actor, params=params, step=actor.step + 1)
            after = jax.random.fold_in(key, 1)
            pending.append(submitted(coming, batches, after))
        return now

    return corrected(recipe, correct=correct)._replace(act=act)
