"""An answer, what a critic says of it, and a better answer."""

from vrl_jax.engine.conversation import Ask, user
from vrl_jax.engine.desk import OutOfRoom
from vrl_jax.engine.episode import Steps
from vrl_jax.engine.processing import question
from vrl_jax.types import Sample, literal

CRITIC = """\
{question}

Somebody answered:

{answer}

What is wrong with it? Be brief. If nothing is, say: nothing."""

AGAIN = """\
A reader says:

{critique}

Answer again."""


def critique_and_continue(
    sample: Sample, *, critic: str = "critic", rounds: int = 1
) -> Steps:
    """The critic sees question, pictures and answer; the policy's conversation goes on.

    `critic` may be the policy itself, which then has a row more for each round.
    """
    context = question(sample)
    said = [(yield Ask(context))]
    for _ in range(rounds):
        asked = CRITIC.format(question=sample.question, answer=literal(said[-1].text))
        critique = yield Ask((user(asked, sample.images),), model=critic)
        said.append(critique)
        told = user(AGAIN.format(critique=literal(critique.text)))
        context = (*context, said[-2], told)
        try:
            said.append((yield Ask(context)))
        except OutOfRoom:
            break
    return said
