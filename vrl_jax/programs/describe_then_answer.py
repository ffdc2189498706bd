"""A description of the pictures, and an answer by one who reads nothing else."""

from vrl_jax.engine.conversation import Ask, user
from vrl_jax.engine.desk import OutOfRoom
from vrl_jax.engine.episode import Check, Outcome, Steps
from vrl_jax.engine.processing import question
from vrl_jax.rewards.parse import first_tag
from vrl_jax.types import Message, Sample, literal, wording

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
    two. A description for which there is no room is all there is, and is counted.
    """
    asked = describe.format(question=sample.question)
    seen = yield Ask((user(asked, sample.images),))
    try:
        answered = yield Ask(_reading(sample, seen.text, answer), model=reader)
    except OutOfRoom:
        return Outcome((seen,), {"ended/description did not fit": 1})
    return Outcome((seen, answered))


def answer_and_reread(
    sample: Sample,
    *,
    right: Check,
    tag: str = "description",
    answer: str = ANSWER,
    reader: str = "policy",
) -> Steps:
    """An answer that describes first; does another, from the description, come right?

    The description is what stands in `tag`, or the whole text. Who reads it sees no
    picture and is not trained; the fact `reread` is 1 where `right` says so of what it
    answers, else 0, for the reward to read with `fact("reread")`. Vision-SR1,
    https://arxiv.org/abs/2508.19652, as released. A description for which there is no
    room earns 0 and is counted.
    """
    said = yield Ask(question(sample))
    described = first_tag(said.text, tag)
    seen = said.text if described is None else described
    try:
        reread = yield Ask(_reading(sample, seen, answer), model=reader, trained=False)
    except OutOfRoom:
        facts = {"reread": 0, "ended/description did not fit": 1}
        return Outcome((said,), facts)
    return Outcome((said,), {"reread": int(right(sample, reread))})


def _reading(sample: Sample, seen: str, answer: str) -> tuple[Message, ...]:
    """The question without its pictures, after what was seen in them."""
    words = literal(wording(sample.question))
    return (user(answer.format(seen=literal(seen), question=words)),)
