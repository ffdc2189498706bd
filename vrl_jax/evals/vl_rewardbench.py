"""VL-RewardBench: of two answers, does a judge name the one that people preferred?

"VL-RewardBench: A Challenging Benchmark for Vision-Language Generative Reward Models",
2024, https://arxiv.org/abs/2411.17451; code
https://github.com/vl-rewardbench/VL_RewardBench, which is followed.

    ask     K times a pair: question, Answer 1, Answer 2, the picture; each call swaps
            the two with probability 1/2
    vote    agree where the preferred answer is named, reject where the other one is,
            no verdict where neither is
    label   what more than half of the pair's votes say, else undecided
    score   agree / (agree + reject) over the labels of a group of pairs: general,
            hallucination, reasoning; `overall` of all pairs, `macro` the groups' mean

A judge is a policy under training, by any program; then K calls are K draws:

    pairs, repeated = read_pairs(parquet.read_table("test.parquet").to_pylist())
    actor = replace(actor, temperature=0.2, top_p=0.2, max_new_tokens=2048)
    told = held_out.answers(actor, calls(pairs), key, greedy=False)
    summary(votes_written([row(one, 0) for (one,) in told]))

or a `Judge` or `ModelJudge` that reads replies by `verdict`. Those write the likeliest
words, so that their calls of one order are one opinion:

    summary(votes_of(Judge(Endpoint(url, name, max_tokens=2048), read=verdict), pairs))

or a folder, by the command line, from the rows that `worlds.writing` keeps:

    write_parquet(calls(pairs), "calls.parquet")
    vrl-jax eval --data calls.parquet --temperature 0.2 --top-p 0.2 \\
        --reward vrl_jax/evals/vl_rewardbench.py:agreement --model M --out runs/judge
    summary(votes_written(read_lines(Path("runs/judge/predictions.jsonl"))))

What differs here: PROMPT is ours. A verdict for an answer 3 is none; in the code it
agrees. The draws of a swap depend on the pair and the seed alone. The code draws ten
votes and takes K of them in shuffled order; here K are drawn. It leaves undecided pairs
out of the score; `summary` also says what it is where they are wrong, as `strict/`. No
reply at all is no verdict. With an even K ties are undecided.
"""

import hashlib
import json
import math
import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from vrl_jax.engine.tools import as_png
from vrl_jax.evals.benchmark import Row
from vrl_jax.models.front_end import load_image, on_white
from vrl_jax.rewards.columns import column
from vrl_jax.rewards.judge import AnswersQuestions, Message, picture_part
from vrl_jax.types import (
    PLACEHOLDER,
    Episode,
    ImageRef,
    Sample,
    literal,
    text_pieces,
)

PROMPT = """\
Two answers were given to a question about a picture. Compare them.

Question: {question}

Answer 1: {first}

Answer 2: {second}

Go through these four points, and say a sentence or two on each: is it accurate, does it
agree with the picture; is it complete; is it clear; is it relevant to the question. Do
not let order or length decide. Then end with one line:
Overall Judgment: Answer X is better.
X is 1 or 2."""

GROUPS: Mapping[str, str] = {
    "wildvision": "general",
    "povid": "hallucination",
    "hallucination": "hallucination",  # rows of POVID
    "rlaif": "hallucination",
    "rlhf": "hallucination",
    "mathverse": "reasoning",
    "mmmu": "reasoning",
}
"""Of what an id starts with, up to its first - or _; those of VLFeedback, which have no
start in common, are all others: general."""

Vote = Literal["agree", "reject", "no verdict"]
Label = Literal["agree", "reject", "no verdict", "undecided"]

_CUE = re.compile("Overall Judgment|Therefore", re.IGNORECASE)
_BETTER = re.compile(
    r"Answer\s*(\d+)\s*is\s*(?:the\s*)?(?:slightly\s*)?better", re.IGNORECASE
)


class Cast(NamedTuple):
    """A vote on a pair of a group."""

    pair: str
    group: str
    vote: Vote


def group_of(name: str) -> str:
    """The group of a pair with this id."""
    return GROUPS.get(re.split("[-_]", name, maxsplit=1)[0].lower(), "general")


def identity(name: str, query: str, responses: Sequence[str]) -> str:
    """One name for a pair whichever answer comes first: ids alone repeat."""
    whole = json.dumps([name, query, *sorted(responses)])
    return f"{name}:{hashlib.sha256(whole.encode()).hexdigest()[:12]}"


def read_pairs(
    rows: Iterable[Mapping[str, Any]], *, root: Path = Path()
) -> tuple[list[Sample], list[str]]:
    """The pairs of the data set's rows, each once, and the ids of those that repeat.

    A row has `id`, `query`, `image` (its bytes, a path from `root`, or a dict of
    either), `response`, two texts, and `human_ranking`, [0, 1] where the first is
    preferred. `ValueError` for a row that lacks one.
    """
    pairs: dict[str, Sample] = {}
    repeated = []
    for number, row in enumerate(rows):
        pair = _pair(row, number, root)
        if pair.id in pairs:
            repeated.append(str(row["id"]))
        pairs.setdefault(pair.id, pair)
    return list(pairs.values()), repeated


def _pair(row: Mapping[str, Any], number: int, root: Path) -> Sample:
    given = Sample(f"row {number}", "", "", (), "", row)
    name = column(given, "id", str, "the name of the pair")
    given = Sample(name, "", "", (), "", row)
    query = column(given, "query", str, "the question")
    both = column(given, "response", list | tuple, "two answers")
    ranking = column(given, "human_ranking", list | tuple, "[0, 1] or [1, 0]")
    if len(both) != 2 or not all(isinstance(one, str) for one in both):
        raise ValueError(f"{name} needs two texts in 'response', got {both!r}.")
    if list(ranking) not in ([0, 1], [1, 0]):
        raise ValueError(
            f"{name} needs [0, 1] in 'human_ranking', where the first answer is "
            f"preferred, or [1, 0]; got {ranking!r}."
        )
    return Sample(
        id=identity(name, query, both),
        source=group_of(name),
        question=query.replace(PLACEHOLDER, "").strip() + PLACEHOLDER,
        images=(_picture(given, root),),
        answer=both[list(ranking).index(0)],
        annotations={"response": tuple(both)},
    )


def _picture(given: Sample, root: Path) -> ImageRef:
    cell = given.annotations.get("image")
    if isinstance(cell, Mapping):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, str) and (root / cell).is_file():
        return str(root / cell)
    if isinstance(cell, bytes):
        return cell
    raise ValueError(
        f"{given.id} needs a picture in 'image', its bytes or a path from {root}; got "
        f"{cell!r:.80}. Read the rows with pyarrow, which decodes nothing."
    )


def calls(
    pairs: Sequence[Sample],
    *,
    votes: int = 5,
    seed: int = 0,
    prompt: str = PROMPT,
) -> list[Sample]:
    """What the judge is asked, `votes` times a pair; the answer is "1" or "2".

    The same pair, vote and seed have the same order, whatever else is asked. In
    `prompt`, `{question}`, `{first}` and `{second}` are filled in.
    """
    return [
        _call(pair, number, seed, prompt) for pair in pairs for number in range(votes)
    ]


def _call(pair: Sample, number: int, seed: int, prompt: str) -> Sample:
    both = pair.annotations["response"]
    swapped = random.Random(f"{seed}/{number}/{pair.id}").random() < 0.5
    shown = both[::-1] if swapped else both
    values = {
        "question": text_pieces(pair.question)[0],
        "first": shown[0],
        "second": shown[1],
    }
    # Not str.format: braces of an answer must not be read.
    text = re.sub(r"\{(question|first|second)\}", lambda m: values[m[1]], prompt)
    return Sample(
        id=f"{pair.id}#{number}",
        source=pair.source,
        question=f"{literal(text)}\n{PLACEHOLDER}",
        images=pair.images,
        answer=str(1 + shown.index(pair.answer)),
        annotations={"swapped": swapped},
    )


def verdict(reply: str) -> float | None:
    """1 or 2, the answer that the reply finds better; None where it says of neither.

    Line breaks and asterisks dropped, the last "Answer N is [the] [slightly] better"
    behind the first "Overall Judgment" or "Therefore", in any case.
    """
    text = reply.replace("\n", "").replace("*", "")
    cue = _CUE.search(text)
    named = _BETTER.findall(text, cue.end()) if cue else []
    return {"1": 1.0, "2": 2.0}.get(named[-1]) if named else None


def vote(found: float | None, preferred: str) -> Vote:
    """What a verdict, None or NaN where there is none, says of the preferred answer."""
    if found is None or math.isnan(found):
        return "no verdict"
    return "agree" if found == float(preferred) else "reject"


def agreement(episodes: Sequence[Episode]) -> list[dict[str, float]]:
    """The reward of a call: 1 for the preferred answer, -1 for another or no verdict.

    For training the paper has none; the signs are ours. No verdict costs as much as a
    wrong one, so that silence is no way out of a hard pair. Parts: `accuracy`, 1 or 0,
    and `no_verdict`.
    """
    votes = [vote(verdict(e.text), e.sample.answer) for e in episodes]
    return [
        {
            "overall": 1.0 if one == "agree" else -1.0,
            "accuracy": float(one == "agree"),
            "no_verdict": float(one == "no verdict"),
        }
        for one in votes
    ]


def messages(call: Sample) -> list[Message]:
    """The call as chat messages, text and pictures in the order of the question."""
    first, *rest = text_pieces(call.question)
    parts: list[Message] = [{"type": "text", "text": first}]
    for image, text in zip(call.images, rest, strict=True):
        parts.append(picture_part(as_png(load_image(image, on_white))))
        parts += [{"type": "text", "text": text}] if text else []
    return [{"role": "user", "content": parts}]


def votes_of(
    judge: AnswersQuestions, pairs: Sequence[Sample], *, votes: int = 5, seed: int = 0
) -> list[Cast]:
    """What a judge that reads replies by `verdict` votes in `calls(pairs, ...)`."""
    asked = calls(pairs, votes=votes, seed=seed)
    found = judge.verdicts([messages(call) for call in asked])
    return [
        Cast(_pair_of(call.id), call.source, vote(one, call.answer))
        for call, one in zip(asked, found, strict=True)
    ]


def votes_written(lines: Iterable[Row]) -> list[Cast]:
    """The votes in lines of `evals.benchmark`, the responses to `calls`."""
    return [
        Cast(
            _pair_of(line["id"]),
            line["benchmark"],
            vote(verdict(line["response"]), line["answer"]),
        )
        for line in lines
    ]


def _pair_of(call: str) -> str:
    return call.rpartition("#")[0]


def label(votes: Sequence[Vote]) -> Label:
    """What more than half of them say."""
    said, count = Counter(votes).most_common(1)[0]
    return said if count > len(votes) / 2 else "undecided"


def accuracies(labels: Sequence[tuple[str, Label]]) -> dict[str, float | None]:
    """agree / (agree + reject) of each group, `overall`, and `macro`.

    None where no label of a group is either, and then for `macro` too.
    """
    of: dict[str, list[Label]] = {}
    for group, one in labels:
        of.setdefault(group, []).append(one)
    found = {group: _agreed(given) for group, given in sorted(of.items())}
    known = [share for share in found.values() if share is not None]
    whole = bool(known) and len(known) == len(found)
    return {
        **found,
        "overall": _agreed([one for _, one in labels]),
        "macro": sum(known) / len(known) if whole else None,
    }


def strict(labels: Sequence[tuple[str, Label]]) -> list[tuple[str, Label]]:
    """The same labels, where all that does not agree is wrong."""
    return [(group, one if one == "agree" else "reject") for group, one in labels]


def _agreed(labels: Sequence[Label]) -> float | None:
    count = Counter(labels)
    decided = count["agree"] + count["reject"]
    return count["agree"] / decided if decided else None


def summary(cast: Iterable[Cast], *, votes: int | None = None) -> dict[str, Any]:
    """What the votes come to, by the first `votes` of each pair; all for None.

    `accuracies`, and under `strict/` those where undecided is wrong; `pairs`, and how
    many have no verdict, are undecided; `fewest_votes` that a pair has.
    """
    given: dict[tuple[str, str], list[Vote]] = {}
    for pair, group, one in cast:
        given.setdefault((group, pair), []).append(one)
    if not given:
        raise ValueError("there is no vote to sum up.")
    labels = [(group, label(said[:votes])) for (group, _), said in given.items()]
    count = Counter(one for _, one in labels)
    return {
        **accuracies(labels),
        **{f"strict/{k}": v for k, v in accuracies(strict(labels)).items()},
        "pairs": len(labels),
        "undecided": count["undecided"],
        "no_verdict": count["no verdict"],
        "fewest_votes": min(len(said[:votes]) for said in given.values()),
    }
