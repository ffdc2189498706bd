"""Experts in a row: the next is asked where the one before is not sure, or declines."""

import dataclasses
from collections.abc import Generator, Sequence

from vrl_jax.engine.conversation import Ask
from vrl_jax.engine.episode import Check, Outcome, Steps
from vrl_jax.engine.processing import question
from vrl_jax.programs.verdicts import probability, said_first, verdict
from vrl_jax.types import Episode, Sample, Turn

ACCEPT, REJECT = "accept", "reject"
"""Decisions: in the vocabulary of Qwen's models both are one token."""

ANSWERED = "answered/"
"""Before a model's name: the fact that its answer ended the cascade."""


def cascade(
    sample: Sample, *, sure: Check, experts: Sequence[str] = ("policy", "expert")
) -> Steps:
    """Asks the named models in order until one is sure; the rewards see all answers."""
    said, _ = yield from _in_turn(sample, Ask(question(sample)), sure, experts)
    return Outcome(said, {"experts": len(said)})


def decide_then_answer(
    sample: Sample, *, accept: str = ACCEPT, reject: str = REJECT
) -> Steps:
    """One token says whether the question is the policy's own; then its answer follows.

    Both are one row, and a rejection is all there is. The rewards see two turns: the
    decision, and the answer without it.
    """
    decision = yield Ask(question(sample), allowed=(accept, reject), max_new_tokens=1)
    whole = dataclasses.replace(decision, finished=True)
    if not accepted(decision, accept=accept, reject=reject):
        return Outcome((whole,), {"accepted": 0})
    said = yield Ask(question(sample), given=decision)
    return Outcome((whole, _behind(accept, said)), {"accepted": 1})


def first_to_accept(
    sample: Sample,
    *,
    experts: Sequence[str] = ("policy",),
    fallback: str = "general",
    threshold: float = 0.5,
    accept: str = ACCEPT,
    reject: str = REJECT,
) -> Steps:
    """The first of the experts to accept the question answers, else the fallback.

    An expert accepts where p(accept) / (p(accept) + p(reject)) >= threshold, whatever
    its actor's temperature: with .5, where acceptance is the likelier token. The facts
    count the `probes` and name who answered, see `answered_by`; the rewards see the
    answer alone, as the policy's.

    This is for measuring, not for training. A batch needs a row of the policy's: where
    it is the first of the experts, each episode has one, its decision.
    """
    probe = verdict(question(sample), words=(accept, reject), trained=True)

    def accepts(sample: Sample, decision: Turn) -> bool:
        return acceptance(decision, accept=accept, reject=reject) >= threshold

    probes, taken = yield from _in_turn(sample, probe, accepts, experts)
    who = experts[len(probes) - 1] if taken else fallback
    given = accept if taken else ""
    said = yield Ask(question(sample), model=who, trained=False, given=given)
    # The cascade is what is measured: whoever of it answers, it is its last word.
    said = dataclasses.replace(_behind(given, said), chosen=True)
    return Outcome((said,), {"probes": len(probes), f"{ANSWERED}{who}": 1})


def accepted(decision: Turn, *, accept: str = ACCEPT, reject: str = REJECT) -> bool:
    """Whether a decision accepts. `ValueError` where it is neither of the two."""
    return said_first(decision, (accept, reject))


def acceptance(decision: Turn, *, accept: str = ACCEPT, reject: str = REJECT) -> float:
    """p(accept) / (p(accept) + p(reject)), whichever of the two was drawn.

    The decision was drawn from these two alone, at temperature 1 and not greedily.
    """
    return probability(decision, (accept, reject))


def answered_by(episode: Episode) -> str | None:
    """Who answered in `first_to_accept`; None where the episode ended before."""
    names = (name for name, fact in episode.facts.items() if fact)
    found = (name for name in names if name.startswith(ANSWERED))
    return next((name.removeprefix(ANSWERED) for name in found), None)


def _in_turn(
    sample: Sample, ask: Ask, sure: Check, experts: Sequence[str]
) -> Generator[Ask, Turn, tuple[list[Turn], bool]]:
    """What the models said up to the first that is sure, and whether there is one."""
    said: list[Turn] = []
    for expert in experts:
        said.append((yield dataclasses.replace(ask, model=expert)))
        if sure(sample, said[-1]):
            return said, True
    return said, False


def _behind(mark: str, said: Turn) -> Turn:
    """What was written behind a mark of one token, or behind nothing."""
    rest = said.tokens[1:] if mark else said.tokens
    return dataclasses.replace(
        said, text=said.text.removeprefix(mark), tokens=rest, given=0
    )
