"""MMKC-Bench: what wins where evidence and memory, or two pieces of evidence, differ?

"Benchmarking Multimodal Knowledge Conflict for Large Multimodal Models", 2025,
https://arxiv.org/abs/2505.19509; code https://github.com/MLLMKCBENCH/MLLMKC, which is
followed.

    original    question and its picture: the model's own answer a
    ie          before them one counterfactual text with a picture: answer b,
                S = {the answer that the text asks for}
    ee          two such texts that differ: answer b, S = the answers of both
    eligible    a not in S, and both answers read; n of them
    retained    share of b = a
    misled      share of b != a, b in S
    irrelevant  the rest
    preference  of memory: retained / (retained + misled)

It asks whether memory persists, so a need not be right. One greedy answer of up to 512
tokens each:

    items = read_items(json.loads(Path("ER.json").read_text()), root=Path("data"))
    told = held_out.answers(actor, passes(items), key)
    summary([row(one, 0) for (one,) in told])

or, by the command line,

    write_parquet(passes(items), "passes.parquet")
    vrl-jax eval --data passes.parquet --model M --response-tokens 512 --out runs/kc \\
        --reward vrl_jax/evals/mmkc_bench.py:context_faithful
    summary(read_lines(Path("runs/kc/predictions.jsonl")))

Whether a model notices that a text is not true is asked by `evals.mmkc_detection`.

What differs here: words of instructions are ours. An answer is read by `strict_letter`;
the code's `first_letter` finds an A in "The answer is C". The code compares the whole
response with a letter of S to see what is eligible, `raw_is_counter`, so that a wordy
one always is; here its letter is. The code does not score open answers: here
one is compared as text with a and with the options that S names.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vrl_jax.evals.benchmark import Row
from vrl_jax.rewards.columns import chosen, column
from vrl_jax.rewards.parse import box_or_tag
from vrl_jax.types import PLACEHOLDER, Episode, ImageRef, Sample, literal

HEADER = "Here is information from elsewhere:"
LETTER = "Look at context and picture, and answer with the letter of the right choice."
PHRASE = "Look at context and picture, and answer with a single word or phrase."


class Aspect(NamedTuple):
    """Of an item about knowledge: its key in `mis_knowledge`, its sentence from 0."""

    key: str
    sentence: int


ASPECTS: Mapping[str, Aspect] = {
    "temporal": Aspect("Temporal_error", 0),
    "location": Aspect("location_error", 1),
    "Career": Aspect("Career_error", 2),
    "time": Aspect("time_error", 0),
    "creator": Aspect("creator_error", 1),
    "content": Aspect("content_error", 2),
}
"""By the endings of the data set's columns; of people the first three, of logos the
others."""

CONFLICTS = ("ie", "ee")
NOTHING = "-"

Read = Callable[[str], str | None]
"""A response -> the answer in it, None where there is none."""
Asks = Callable[[Sample], tuple[str, tuple[str, str]]]
"""An item -> the question without pictures, the answers that its texts ask for."""
Filter = Callable[[str, str | None, Sequence[str]], bool]
"""(own response, own answer, S) -> whether there is no conflict."""

_LEADING = re.compile(r"\W*([A-Da-d])(?:[.):\]]|\W*$)")
# An A before a small word is an article.
_ALONE = re.compile(r"(?<![A-Za-z])(?:[B-D]|A(?!\s+[a-z]))(?![A-Za-z])")
_OPTION = re.compile(r"^[ \t]*\(?([A-D])[.):][ \t]*(\S.*)$", re.MULTILINE)


def read_items(
    rows: Iterable[Mapping[str, Any]], *, root: Path = Path()
) -> list[Sample]:
    """The items of the data set's rows: one a row, or one for each aspect that it has.

    A row has `ID`, `instance`, `type` and `image_path`, three pictures: of the question
    and of both texts, paths from `root` or their bytes. Of the other columns each
    function here asks for what it reads. `ValueError` for a row that lacks one, and
    where two rows would be one.
    """
    items: dict[str, Sample] = {}
    for number, row in enumerate(rows):
        bare = Sample(f"row {number}", "", "", (), "", row)
        name = str(column(bare, "ID", str | int, "the number of the row"))
        instance = column(bare, "instance", str, "what the row is about")
        bare = dataclasses.replace(bare, id=f"{name}:{instance}")
        source = column(bare, "type", str, "the kind of conflict")
        images = _pictures(bare, root)
        for aspect in [a for a in ASPECTS if f"mcq_query_{a}" in row] or [""]:
            item = Sample(
                f"{bare.id}:{aspect}" if aspect else bare.id,
                source,
                "",
                images,
                "",
                {**row, "aspect": aspect},
            )
            if item.id in items:
                raise ValueError(
                    f"{item.id} comes twice; rows are told apart by `ID`, `instance` "
                    "and aspect: read each file of the data set by itself."
                )
            items[item.id] = item
    return list(items.values())


def _pictures(bare: Sample, root: Path) -> tuple[ImageRef, ...]:
    given = column(bare, "image_path", list | tuple, "three pictures")
    paths = [one if isinstance(one, bytes) else root / str(one) for one in given]
    missing = [str(p) for p in paths if isinstance(p, Path) and not p.is_file()]
    if len(paths) != 3 or missing:
        raise ValueError(
            f"{bare.id} needs three pictures in 'image_path', files in {root}; got "
            f"{len(paths)}, of which are missing: {', '.join(missing) or 'none'}."
        )
    return tuple(one if isinstance(one, bytes) else str(one) for one in paths)


def by_letter(item: Sample) -> tuple[str, tuple[str, str]]:
    """The question with choices; S holds letters."""
    query = column(item, _named(item, "mcq_query"), str, "a question with choices")
    return f"{query.strip()}\n{LETTER}", _letters(item)


def by_phrase(item: Sample) -> tuple[str, tuple[str, str]]:
    """The open question; S holds the `plain` options of the one with choices."""
    query = column(item, _named(item, "open_query"), str, "an open question")
    listed = column(item, _named(item, "mcq_query"), str, "a question with choices")
    options = dict(_OPTION.findall(listed))
    first, second = (
        plain(chosen(item, "an option a line in its choices", letter, options))
        for letter in _letters(item)
    )
    return f"{query.strip()}\n{PHRASE}", (first, second)


def _letters(item: Sample) -> tuple[str, str]:
    first, second = (
        chosen(item, f"a letter in {name!r}", item.annotations.get(name), _LETTERS)
        for name in (_counter(item, 1), _counter(item, 2))
    )
    return first, second


_LETTERS = {letter: letter for letter in "ABCD"}


def _named(item: Sample, column_name: str) -> str:
    aspect = item.annotations["aspect"]
    return f"{column_name}_{aspect}" if aspect else column_name


def _counter(item: Sample, number: int) -> str:
    aspect = item.annotations["aspect"]
    return f"mcq_disanswer_{aspect}_{number}" if aspect else f"mcq_disanswer{number}"


def passes(items: Sequence[Sample], *, asks: Asks = by_letter) -> list[Sample]:
    """The three questions of each item: original, ie, ee.

    The answer of the last two is S as JSON; the first has none, NOTHING.
    """
    return [one for item in items for one in _passes(item, asks)]


def _passes(item: Sample, asks: Asks) -> list[Sample]:
    query, counters = asks(item)
    texts = counterfactuals(item)
    question_image, *evidence = item.images
    found = []
    for name, shown in (("original", 0), ("ie", 1), ("ee", 2)):
        told = [f"{PLACEHOLDER}\n{literal(text)}\n" for text in texts[:shown]]
        before = f"{HEADER}\n{''.join(told)}" if shown else ""
        found.append(
            Sample(
                id=f"{item.id}/{name}",
                source=item.source,
                question=f"{before}{literal(query)}\n{PLACEHOLDER}",
                images=(*evidence[:shown], question_image),
                answer=json.dumps(counters[:shown]) if shown else NOTHING,
            )
        )
    return found


def counterfactuals(item: Sample) -> tuple[str, str]:
    """Two texts, of the whole description or of the item's aspect.

    `ValueError` for an item without."""
    aspect = item.annotations["aspect"]
    if aspect:
        key, names = ASPECTS[aspect].key, ("mis_knowledge1", "mis_knowledge2")
        given = column(item, "mis_knowledge", Mapping, "texts by aspect").get(key)
        where = f"mis_knowledge.{key}"
    else:
        where, names = (
            "mis_description",
            ("incorrect_description_1", "incorrect_description_2"),
        )
        given = item.annotations.get(where)
    texts = [given.get(name) for name in names] if isinstance(given, Mapping) else []
    if len(texts) != 2 or not all(isinstance(text, str) and text for text in texts):
        raise ValueError(
            f"{item.id} needs the texts {' and '.join(names)} in {where!r}; got "
            f"{given!r:.200}."
        )
    return texts[0], texts[1]


def first_letter(text: str) -> str | None:
    """The first of the letters a to d in any word: the code's rule, and its trap."""
    found = re.search("[A-Da-d]", text)
    return found.group().upper() if found else None


def strict_letter(text: str) -> str | None:
    """A choice that leads, alone or with a dot, colon or bracket; else the only letter.

    Read in the last box or answer tag, or in all of the text where there is none. Only
    capitals that stand alone are letters, and an A before a small word is none; two
    different ones are no answer.
    """
    inside = box_or_tag(text)
    given = text if inside is None else inside
    if found := _LEADING.match(given):
        return found.group(1).upper()
    letters = set(_ALONE.findall(given))
    return letters.pop() if len(letters) == 1 else None


def plain(text: str) -> str:
    """The answer in lower case, blanks as one, without a final dot: for `by_phrase`."""
    inside = box_or_tag(text)
    words = (text if inside is None else inside).lower().split()
    return " ".join(words).rstrip(". ")


def plain_or_none(text: str) -> str | None:
    """The same; None where nothing is left."""
    return plain(text) or None


def letter_is_counter(
    response: str, answer: str | None, counters: Sequence[str]
) -> bool:
    """There is no conflict where the own answer, as read, is in S."""
    del response
    return answer in counters


def raw_is_counter(response: str, answer: str | None, counters: Sequence[str]) -> bool:
    """Where the own response is nothing but a letter of S: the code's rule."""
    del answer
    return response in counters


class Case(NamedTuple):
    """An item under evidence: own answer, the answer then, S; None was not read."""

    type: str
    own: str | None
    told: str | None
    counters: Sequence[str]
    filtered: bool = False


def cases(
    lines: Iterable[Row],
    conflict: str,
    *,
    read: Read = strict_letter,
    filtered: Filter = letter_is_counter,
) -> list[Case]:
    """Lines of `evals.benchmark`, the responses to `passes`, as cases of ie or ee.

    Of several responses to one question the first counts. An item whose own answer was
    never asked has none, and so is not read.
    """
    said: dict[tuple[str, str], Row] = {}
    for line in lines:
        item, _, name = line["id"].rpartition("/")
        said.setdefault((item, name), line)
    found = []
    for (item, name), line in said.items():
        if name != conflict:
            continue
        counters = json.loads(line["answer"])
        first = said.get((item, "original"), {"response": ""})["response"]
        own = read(first)
        found.append(
            Case(
                line["benchmark"],
                own,
                read(line["response"]),
                counters,
                filtered(first, own, counters),
            )
        )
    return found


def rates(cases: Sequence[Case]) -> dict[str, float | int | None]:
    """`n`, `retained`, `misled`, `irrelevant`, `memory_preference`; None of none.

    `filtered` have no conflict, of `unread` an answer could not be read: both are left
    out of `n`.
    """
    kept = [case for case in cases if not case.filtered]
    read = [case for case in kept if case.own is not None and case.told is not None]
    same = [case.told == case.own for case in read]
    misled = [case.told != case.own and case.told in case.counters for case in read]
    n, r, m = len(read), sum(same), sum(misled)
    return {
        "n": n,
        "retained": r / n if n else None,
        "misled": m / n if n else None,
        "irrelevant": (n - r - m) / n if n else None,
        "memory_preference": r / (r + m) if r + m else None,
        "filtered": len(cases) - len(kept),
        "unread": len(kept) - n,
    }


def macro(by_type: Iterable[Mapping[str, float | int | None]]) -> dict[str, Any]:
    """The mean over types of each rate, of those types that have one."""
    names = ("retained", "misled", "irrelevant", "memory_preference")
    given = [*by_type]
    told = {name: [r[name] for r in given if r[name] is not None] for name in names}
    return {name: sum(x) / len(x) if x else None for name, x in told.items()}


def summary(
    lines: Sequence[Row],
    *,
    read: Read = strict_letter,
    filtered: Filter = letter_is_counter,
) -> dict[str, Any]:
    """Under ie and ee, which have an n of their own: `rates`, those by type, `macro`.

    Open answers are read by `plain_or_none`; the code's numbers are had with
    first_letter and raw_is_counter.
    """
    found = {}
    for conflict in CONFLICTS:
        given = cases(lines, conflict, read=read, filtered=filtered)
        types = {
            name: rates([case for case in given if case.type == name])
            for name in dict.fromkeys(case.type for case in given)
        }
        found[conflict] = {
            **rates(given),
            "types": types,
            "macro": macro(types.values()),
        }
    return found


def context_faithful(
    episodes: Sequence[Episode], *, read: Read = strict_letter
) -> list[float | None]:
    """1 where the answer is one that the evidence asks for: rows of `passes`.

    The paper trains nothing; this reward and the next one are optional, and ours. It
    does not apply to an original, which shows no evidence: that is unscored.
    """
    return [
        float(read(e.text) in json.loads(e.sample.answer))
        if e.sample.answer != NOTHING
        else None
        for e in episodes
    ]


def memory_faithful(
    episodes: Sequence[Episode], *, read: Read = strict_letter
) -> list[float]:
    """1 where the answer is the row's `own_answer`: rows of `remembering`."""
    what = "what the model says without evidence, as remembering() notes it"
    return [
        float(read(e.text) == column(e.sample, "own_answer", str, what))
        for e in episodes
    ]


def remembering(
    asked: Sequence[Sample],
    lines: Iterable[Row],
    *,
    read: Read = strict_letter,
    filtered: Filter = letter_is_counter,
) -> tuple[list[Sample], list[str]]:
    """The ie and ee of `passes` with `own_answer`, and the ids that have no conflict.

    `lines` are responses to the originals; an own answer that was not read is no
    conflict either.
    """
    first = {line["id"]: line["response"] for line in lines}
    kept, left = [], []
    for sample in asked:
        item, _, name = sample.id.rpartition("/")
        if name not in CONFLICTS:
            continue
        response = first.get(f"{item}/original", "")
        own = read(response)
        if own is None or filtered(response, own, json.loads(sample.answer)):
            left.append(sample.id)
        else:
            annotations = {**sample.annotations, "own_answer": own}
            kept.append(dataclasses.replace(sample, annotations=annotations))
    return kept, left
