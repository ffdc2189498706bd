"""MMKC-Bench's other half: does a text agree with what the model knows?

Yes is right for the true text, No for the counterfactual. The paper is
https://arxiv.org/abs/2505.19509, as of `evals.mmkc_bench`, whose items these are:

    asked, skipped = detection(read_items(rows, root=Path("data")))
    told = held_out.answers(actor, asked, key)
    detected([row(one, 0) for (one,) in told])

or by `vrl-jax eval` of the rows, with the reward `notices`, and `detected` of the lines
that it writes. The released code has no scorer for this: here the first word is read.
In the fine form the true text is one sentence as well; the code shows all of it, which
tells the two apart by length.
"""

import re
from collections.abc import Callable, Iterable, Sequence

from vrl_jax.evals.benchmark import Row
from vrl_jax.evals.mmkc_bench import ASPECTS, HEADER, counterfactuals
from vrl_jax.rewards.columns import column
from vrl_jax.rewards.parse import box_or_tag
from vrl_jax.types import PLACEHOLDER, Episode, Sample, literal

DETECT = """\
Read what follows. Does it agree with what you know? Answer Yes if it does, No if it
does not."""

Texts = Callable[[Sample], tuple[str, str] | None]
"""An item -> what is true, what is not; None where it has no such texts."""

_FIRST_WORD = re.compile(r"[\W_]*(yes|no)\b", re.IGNORECASE)


def coarse(item: Sample) -> tuple[str, str]:
    """All of the true text, and all of the first counterfactual one."""
    name = "knowledge" if item.annotations["aspect"] else "description"
    true = column(item, name, str | list | tuple, "the true text, or its sentences")
    true = true if isinstance(true, str) else " ".join(map(str, true))
    return true, counterfactuals(item)[0]


def fine(item: Sample) -> tuple[str, str] | None:
    """Of both the sentence of the item's aspect; None where one has no such sentence.

    Sentences end with a dot and a blank, as in the code.
    """
    aspect = item.annotations["aspect"]
    if not aspect:
        return None
    place = ASPECTS[aspect].sentence
    both = [[s.strip() for s in text.split(". ") if s] for text in coarse(item)]
    if any(len(sentences) <= place for sentences in both):
        return None
    return both[0][place], both[1][place]


def detection(
    items: Sequence[Sample], *, texts: Texts = coarse
) -> tuple[list[Sample], list[str]]:
    """Each text with the first picture of the evidence, and the ids that have none.

    The answer is "yes" or "no".
    """
    asked, skipped = [], []
    for item in items:
        both = texts(item)
        if both is None:
            skipped.append(item.id)
            continue
        for name, text, answer in zip(
            ("true", "counter"), both, ("yes", "no"), strict=True
        ):
            shown = f"{DETECT}\n{HEADER}\n{PLACEHOLDER}\n{literal(text)}"
            asked.append(
                Sample(
                    f"{item.id}/{name}", item.source, shown, item.images[1:2], answer
                )
            )
    return asked, skipped


def detected(lines: Iterable[Row]) -> dict[str, float | int | None]:
    """`detection_rates` of lines of `evals.benchmark`, the responses to `detection`."""
    return detection_rates(
        [(line["answer"], yes_or_no(line["response"])) for line in lines]
    )


def detection_rates(
    told: Sequence[tuple[str, str | None]],
) -> dict[str, float | int | None]:
    """`accuracy` of (expected, said) pairs; `balanced`, the mean over yes and no.

    What could not be read is wrong, and counted as `unread`.
    """
    right = {
        kind: [said == kind for expected, said in told if expected == kind]
        for kind in ("yes", "no")
    }
    shares = [sum(x) / len(x) if x else None for x in right.values()]
    return {
        "n": len(told),
        "accuracy": sum(map(sum, right.values())) / len(told) if told else None,
        "balanced": None if None in shares else sum(shares) / 2,
        "unread": sum(said is None for _, said in told),
    }


def yes_or_no(text: str) -> str | None:
    """The first word, if it is yes or no, of the last box or answer tag or the text."""
    inside = box_or_tag(text)
    found = _FIRST_WORD.match(text if inside is None else inside)
    return found.group(1).lower() if found else None


def notices(episodes: Sequence[Episode]) -> list[float]:
    """1 where the first word is right: rows of `detection`."""
    return [float(yes_or_no(e.text) == e.sample.answer) for e in episodes]
