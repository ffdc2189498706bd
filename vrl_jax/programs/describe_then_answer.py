"""A description of the pictures, and an answer by one who reads nothing else."""

from vrl_jax.engine.conversation import Ask, user
from vrl_jax.engine.play import Steps
from vrl_jax.types import PLACEHOLDER, Sample, literal

DESCRIBE = """\
{question}

Do not answer. Describe the picture: everything in it that the answer depends on."""

ANSWER = """\
A picture is described so:

{seen}

{question}"""


def describe_then_answer(
    sample: Sample,
    *,
    describe: str = DESCRIBE,
    answer: str = ANSWER,
    reader: str = "policy",
) -> Steps:
    """Two conversations; the second has no picture. `reader` names who answers.

    With a frozen reader the description alone is trained, by whether the answer was
    right: RACRO, https://arxiv.org/abs/2506.04559. Then an episode has one row, else
    two.
    """
    asked = describe.format(question=sample.question)
    seen = yield Ask((user(asked, sample.images),))
    words = sample.question.replace(PLACEHOLDER, "").strip()
    read = answer.format(seen=literal(seen.text), question=words)
    answered = yield Ask((user(read),), model=reader)
    return seen, answered
