"""Questions about what is to be seen, before the question itself."""

from collections.abc import Sequence

from vrl_jax.engine.conversation import Ask, user
from vrl_jax.engine.episode import Check, Outcome, Steps
from vrl_jax.engine.processing import question
from vrl_jax.types import PLACEHOLDER, Sample

EACH = "Answer each in its tag: <a1>...</a1>, <a2>...</a2>."


def checklist_branch(
    sample: Sample, *, passes: Check, probe: str = "checklist"
) -> Steps:
    """The annotation `probe` is asked of the pictures; if that passes, the question.

    Two conversations: row 0 perceives, row 1 reasons and is empty where the gate is
    shut. The branches and gate of PEARL, https://arxiv.org/abs/2511.18437, which shuts
    it for whole groups: give `passes` what the group got, or ask for the second branch
    in a step of its own.
    """
    shown = PLACEHOLDER * len(sample.images)
    asked = user(shown + sample.annotations[probe], sample.images)
    perceived = yield Ask((asked,))
    if not passes(sample, perceived):
        return Outcome((perceived,), {"gate": 0})
    reasoned = yield Ask(question(sample))
    return Outcome((perceived, reasoned), {"gate": 1})


def checklist_of(questions: Sequence[str]) -> str:
    """Numbered questions in tags, with how to answer them."""
    asked = "\n".join(f"<q{i}>{q}</q{i}>" for i, q in enumerate(questions, start=1))
    return f"{asked}\n{EACH}"
