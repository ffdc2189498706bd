"""An answer, and whether one who has read so far still sees the picture: VAPO.

ICLR 2026, https://arxiv.org/abs/2509.25848. The reward of a response is

    0.8 accuracy + 0.1 format + 0.1 accuracy R,
    R = max(0, 2 sum_k w_k s_k / sum_k w_k - 1),    w_k = exp(1.5 place_k)

where s_k says whether the policy judged a claim about the picture rightly after the
part of the response that ends at place_k, from 0 to 1. `weighted` adds it up:

    program = functools.partial(anchored_claims, right=right)
    reward = weighted({
        "accuracy": (accuracy, 0.8),
        "format": (form, 0.1),
        "perception": (fact("anchored_perception"), 0.1),
    })
"""

import random
import re

import numpy as np

from vrl_jax.engine.conversation import Ask, user
from vrl_jax.engine.desk import OutOfRoom
from vrl_jax.engine.episode import Check, Outcome, Steps
from vrl_jax.engine.processing import question
from vrl_jax.rewards.steps import anchored_perception
from vrl_jax.types import Sample, literal

MARKS = re.compile(r"[.,;:!?](?=\s|$)|[。，；：！？]")
"""Where a response may be cut: after a mark that ends a clause, and not in a number."""

NOTHING = {"anchored_perception": 0.0, "claims": 0}
"""The facts where no claim was judged."""

PROBE = """\
{question}

Somebody has written so far:

{prefix}

Look at the picture again. Is this true of it? {claim}
Answer {yes} or {no}."""
"""It ends without a space: the released one ends with one, after which a tokenizer that
joins spaces to words favours digits, and fewer claims are judged rightly."""


def anchored_claims(
    sample: Sample,
    *,
    right: Check,
    cuts: int = 20,
    probe: str = PROBE,
    answers: tuple[str, str] = ("Yes", "No"),
    emphasis: float = 1.5,
) -> Steps:
    """A right answer is cut at `cuts` marks; after each, the policy judges a claim.

    Fewer marks are all used, and without any R is 0, as it is for a wrong answer.
    `annotations["claims"]` are pairs of a claim and whether it holds,
    `[["The left digit is 4.", true], ...]`; which marks and which claims are drawn by
    the row and the response, so that a replay draws them again. Probes are greedy, one
    token, all in flight together, and never trained: `cuts` prompts with the picture
    for each right response. The fact `anchored_perception` is R, `claims` how many were
    judged; where a probe has no room, none is asked, which is counted. A sample without
    claims is a ValueError, and so are fewer than one cut.
    """
    if cuts < 1:
        raise ValueError(f"a response is cut at one mark or more, not at cuts={cuts}.")
    claims = _claims(sample)
    said = yield Ask(question(sample))
    places = [mark.end() for mark in MARKS.finditer(said.text)]
    if not places or not right(sample, said):
        return Outcome((said,), NOTHING)
    drawn = random.Random(f"{sample.id} {said.text}")
    places = sorted(drawn.sample(places, min(cuts, len(places))))
    judged = [drawn.choice(claims) for _ in places]
    yes, no = answers

    def asked(place: int, claim: str) -> Ask:
        prefix = literal(said.text[:place])
        words = {"question": sample.question, "prefix": prefix, "claim": literal(claim)}
        told = user(probe.format(**words, yes=yes, no=no), sample.images)
        return Ask(
            (*question(sample)[:-1], told),
            trained=False,
            max_new_tokens=1,
            top_k=1,
            allowed=answers,
        )

    probes = [asked(at, claim) for at, (claim, _) in zip(places, judged, strict=True)]
    try:
        replies = yield probes
    except OutOfRoom:
        return Outcome((said,), {**NOTHING, "ended/claims did not fit": 1})
    # Always `cuts` places, so that one program serves all responses.
    held, place = np.zeros((2, cuts), np.float32)
    for number, (reply, (_, holds)) in enumerate(zip(replies, judged, strict=True)):
        held[number] = reply.text.strip() == (yes if holds else no)
        place[number] = places[number] / len(said.text)
    asked_for = np.arange(cuts) < len(places)
    score = anchored_perception(held, place, asked_for, emphasis=emphasis)
    facts = {"anchored_perception": float(score), "claims": len(places)}
    return Outcome((said,), facts)


def _claims(sample: Sample) -> list[tuple[str, bool]]:
    match sample.annotations.get("claims"):
        case [*pairs] if pairs and all(map(_is_claim, pairs)):
            return [(text, holds) for text, holds in pairs]
        case given:
            raise ValueError(
                f"{sample.id} needs annotations['claims'], pairs of a claim about the "
                "picture and whether it holds, such as [['It is red.', true]]; got "
                f"{given!r}."
            )


def _is_claim(pair: object) -> bool:
    match pair:
        case [str(), bool()]:
            return True
    return False
