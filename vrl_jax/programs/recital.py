"""Demonstrations of several turns: a program whose every answer is the data set's.

Expert trajectories, learnt by teacher forcing in the very words, and with the very
pictures, that the program will show.
"""

import dataclasses
import functools
import itertools
import operator
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from vrl_jax.engine.actor import Actor
from vrl_jax.engine.decoding import Model, Request, Response
from vrl_jax.engine.desk import Limits
from vrl_jax.engine.episode import Played, Program, Steps
from vrl_jax.engine.play import play
from vrl_jax.engine.processing import Measure, Processor, Size, check_room, unpadded
from vrl_jax.engine.rows import as_rollout
from vrl_jax.programs.demonstrations import spelled
from vrl_jax.types import Rollout, Sample

ANY_PROMPT = 2**30
"""Tokens: more than any prompt has."""


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


def recital_size(
    actor: Actor,
    *,
    program: Program,
    models: Sequence[str] = (),
    limits: Limits | None = None,
) -> Measure:
    """How large what `recited` makes of a sample is: the measure of `fitting`.

    The prompt is what comes before the first answer, `row_tokens` and `shown` what
    follows. Of an episode with several conversations the longest prompt and row, and
    all pictures. `ValueError` is what `recited` would raise, so a run that leaves these
    samples out meets no surprise.
    """

    def size(processor: Processor, sample: Sample) -> Size:
        room = processor.room._replace(prompt_tokens=(ANY_PROMPT,))
        roomy = dataclasses.replace(processor, room=room)  # checked below, in its words
        now = dataclasses.replace(actor, processor=roomy, program_threads=0)
        (one,) = _played(now, [sample], program, models, limits)
        if not one.rows:
            raise ValueError(f"sample {sample.id} has no answer that is to be learnt.")
        prompts = [unpadded(processor, row.prompt) for row in one.rows]
        for prompt in prompts:
            try:
                check_room(processor.room, prompt)
            except ValueError as error:
                raise ValueError(f"Sample {sample.id}: {error}") from error
        tokens = [len(prompt.tokens) for prompt in prompts]
        wholes = [len(row.whole.tokens) for row in one.rows]
        shown = itertools.chain(*(row.pictures for row in one.rows))
        return Size(
            max(tokens),
            [*itertools.chain(*(prompt.sizes for prompt in prompts))],
            max(map(operator.sub, wholes, tokens)),
            [len(picture.patches) for picture in shown],
        )

    return size


def _played(
    actor: Actor,
    samples: Sequence[Sample],
    program: Program,
    models: Sequence[str],
    limits: Limits | None,
) -> list[Played]:
    """An episode of each, which has said all that its sample says."""
    raised: dict[str, Exception] = {}
    groups = play(
        actor,
        functools.partial(_noting, program, raised),
        samples,
        jax.random.key(0),  # nothing is drawn
        models=dict.fromkeys(models, actor),
        limits=limits,
        write=functools.partial(_recite, actor),
    )
    for (one,) in groups:
        _check_end(one, raised.get(one.episode.sample.id))
    return [one for (one,) in groups]


def _noting(program: Program, raised: dict[str, Exception], sample: Sample) -> Steps:
    """The program; what ends it is noted by the sample's id, and told in our words."""
    try:
        return (yield from program(sample))
    except Exception as error:
        raised[sample.id] = error
        return ()


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


def _check_end(played: Played, raised: Exception | None) -> None:
    """That all was said, and that the program came to its own end."""
    sample, facts = played.episode.sample, played.episode.facts
    ends = [type(raised).__name__] if raised else []
    ends += [fact.removeprefix("ended/") for fact in facts if fact.startswith("ended/")]
    if ends:
        why = f" The program raised: {raised}" if raised else ""
        raise ValueError(
            f"the demonstration of sample {sample.id} ends early, by {ends[0]}: where "
            "it has no room, raise the limits' row_tokens and pictures (--row-tokens, "
            f"--pictures).{why}"
        ) from raised
    said = len(demonstrated(sample))
    if facts["asks"] != said:
        raise ValueError(
            f"the demonstration of sample {sample.id} has {said} turns, and the "
            f"program asked {facts['asks']:.0f} times: leave out what it does not ask."
        )
