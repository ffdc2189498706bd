"""Cheap experts first: the next is asked where the one before is not sure."""

from collections.abc import Sequence

from vrl_jax.engine.conversation import Ask
from vrl_jax.engine.play import Check, Outcome, Steps
from vrl_jax.engine.processing import question
from vrl_jax.types import Sample, Turn


def cascade(
    sample: Sample, *, sure: Check, experts: Sequence[str] = ("policy", "expert")
) -> Steps:
    """Asks the named models in order until one is sure; the rewards see all answers."""
    said: list[Turn] = []
    for expert in experts:
        said.append((yield Ask(question(sample), model=expert)))
        if sure(sample, said[-1]):
            break
    return Outcome(said, {"experts": len(said)})
