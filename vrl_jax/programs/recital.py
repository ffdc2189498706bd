"""Demonstrations of several turns: a program whose every answer is the data set's.

Expert trajectories, learnt by teacher forcing in the very words, and with the very
pictures, that the program will show.
"""

import dataclasses
import functools
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from vrl_jax.engine.actor import Actor
from vrl_jax.engine.decoding import Model, Request, Response
from vrl_jax.engine.desk import Limits
from vrl_jax.engine.play import Played, Program, play
from vrl_jax.engine.rows import as_rollout
from vrl_jax.programs.demonstrations import spelled
from vrl_jax.types import Rollout, Sample


def recited(
    actor: Actor,
    batches: Iterator[Sequence[Sample]],
    key: Key[Array, ""],
    *,
    program: Program,
    group_size: int = 1,
    rows: int = 1,
    models: Sequence[str] = (),
    limits: Limits | None = None,
) -> Rollout:
    """One episode a sample, in which every answer is the sample's own.

    The annotation `demonstration` lists what is said to each ask of the program, in
    order and without what the ask gives; one text is one turn. `models` are the names
    of the others that it asks, whose answers are listed too and not trained. A stop
    token ends each answer, unless the ask does not allow it or a stop string is there.
    Every `group_size` samples in a row are one group, such as what is said well and
    badly to one question: what they read alike is one prompt.

    Nobody scored or sampled it: the reward is NaN, the old log-probs are 0, the
    temperature is 1. Raises `ValueError`, with the sample, where answers are missing,
    left over, longer than their budget or not allowed, or where an episode ends early.
    """
    del key  # nothing is drawn
    samples = next(batches)
    if len(samples) % group_size:
        raise ValueError(
            f"{len(samples)} samples are not whole groups of group_size={group_size}."
        )
    everyone = _played(actor, samples, program, models, limits)
    starts = range(0, len(everyone), group_size)
    groups = [everyone[start : start + group_size] for start in starts]
    unscored = [{"overall": float("nan")}] * len(samples)
    rollout = as_rollout(actor, groups, unscored, rows=rows, limits=limits)
    return dataclasses.replace(rollout, temperature=jnp.ones_like(rollout.temperature))


def recitable(
    actor: Actor,
    samples: Sequence[Sample],
    *,
    program: Program,
    models: Sequence[str] = (),
    limits: Limits | None = None,
) -> tuple[list[Sample], list[str]]:
    """The samples that `recited` takes, and of each other one what it would raise.

    Each is recited once, so that a run meets no surprise. `ValueError` if none is left.
    """
    kept, left_out = [], []
    for sample in samples:
        try:
            _played(actor, [sample], program, models, limits)
        except ValueError as error:
            left_out.append(str(error))
        else:
            kept.append(sample)
    if not kept:
        raise ValueError(f"no demonstration can be recited. {' '.join(left_out[:3])}")
    return kept, left_out


def _played(
    actor: Actor,
    samples: Sequence[Sample],
    program: Program,
    models: Sequence[str],
    limits: Limits | None,
) -> list[Played]:
    """An episode of each, which has said all that its sample says."""
    groups = play(
        actor,
        program,
        samples,
        jax.random.key(0),  # nothing is drawn
        models=dict.fromkeys(models, actor),
        limits=limits,
        write=functools.partial(_recite, actor),
    )
    for (one,) in groups:
        _check_end(one)
    return [one for (one,) in groups]


def demonstrated(sample: Sample) -> Sequence[str]:
    """The sample's `demonstration`, turn by turn. `ValueError` if it is no text."""
    said = sample.annotations.get("demonstration")
    turns = (said,) if isinstance(said, str) else said
    if not isinstance(turns, list | tuple) or not all(
        isinstance(turn, str) for turn in turns
    ):
        raise ValueError(
            f"sample {sample.id} needs the annotation `demonstration`, a text or a "
            f"list of what is said in each turn, got {said!r}."
        )
    return turns


def _recite(
    actor: Actor,
    model: Model,
    queue: deque[Request],
    meanwhile: Callable[[], None],
) -> Iterator[list[Response]]:
    """Answers what is queued, in place of `decoding.decode`."""
    del model, meanwhile  # no device is at work
    while True:
        yield [_answer(actor, queue.popleft()) for _ in range(len(queue))]


def _answer(actor: Actor, request: Request) -> Response:
    episode, _ = request.tag
    said, number = demonstrated(episode.sample), request.turn
    what = f"turn {number + 1} of the demonstration of sample {episode.sample.id}"
    if number >= len(said):
        raise ValueError(f"{what} is asked for, and there are {len(said)}: {said!r}.")
    text, (stop, *_), allowed = said[number], *request.rule
    ended = text.endswith(request.stop_strings)
    ends = not ended and (allowed is None or stop in allowed)
    ids = spelled(
        actor.processor, text, (stop,) if ends else (), most=request.limit, what=what
    )
    if allowed is not None and {*ids} - {*allowed}:
        raise ValueError(f"{what} is {text!r}, which the ask does not allow.")
    tokens, zeros = np.array(ids, np.int32), np.zeros(len(ids), np.float32)
    nothing = np.zeros((len(ids), 0))
    return Response(request, tokens, zeros, zeros, nothing, finished=ends or ended)


def _check_end(played: Played) -> None:
    """That all was said, and that the program came to its own end."""
    sample, facts = played.episode.sample, played.episode.facts
    for fact in facts:
        if fact.startswith("ended/"):
            raise ValueError(
                f"the demonstration of sample {sample.id} ends early, by "
                f"{fact.removeprefix('ended/')}: where it has no room, raise the "
                "limits' row_tokens and pictures (--row-tokens, --pictures); what a "
                "program raised is in the log."
            )
    said = len(demonstrated(sample))
    if facts["asks"] != said:
        raise ValueError(
            f"the demonstration of sample {sample.id} has {said} turns, and the "
            f"program asked {facts['asks']:.0f} times: leave out what it does not ask."
        )
