"""Answers again until one is accepted."""

from vrl_jax.engine.conversation import Ask
from vrl_jax.engine.play import Check, Outcome, Steps
from vrl_jax.engine.processing import question
from vrl_jax.types import Sample


def gated_resample(sample: Sample, *, accept: Check, tries: int = 4) -> Steps:
    """Fresh answers to the question, up to `tries`; the rewards see the last.

    Each is a row: an episode has up to `tries` of them.
    """
    said, accepted = [], False
    while len(said) < tries and not accepted:
        said.append((yield Ask(question(sample))))
        accepted = accept(sample, said[-1])
    return Outcome(said[-1:], {"tries": len(said), "accepted": accepted})
