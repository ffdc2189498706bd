"""One question, one answer, sampled G times."""

from collections.abc import Iterator, Sequence

from jaxtyping import Array, Key

from vrl_jax.engine.actor import Actor
from vrl_jax.engine.conversation import Ask
from vrl_jax.engine.episode import Steps
from vrl_jax.engine.processing import question
from vrl_jax.programs.acting import act
from vrl_jax.types import Rollout, Sample


def answer(sample: Sample) -> Steps:
    """The question as the data set asks it."""
    said = yield Ask(question(sample))
    return (said,)


def single_turn(
    actor: Actor,
    batches: Iterator[Sequence[Sample]],
    key: Key[Array, ""],
    *,
    group_size: int,
) -> Rollout:
    """y_1..y_G ~ pi(. | images, question) for the next batch; R_i = reward(y_i)."""
    return act(actor, batches, key, program=answer, group_size=group_size)
