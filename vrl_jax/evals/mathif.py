"""MathIF: does a reasoner keep to the form that it was told, and is it still right?

"Scaling Reasoning, Losing Control: Evaluating Instruction Following in Large Reasoning
Models", 2025, https://arxiv.org/abs/2505.14810; code
https://github.com/TingchenFu/MathIF, which is followed.

    ask      question, CUE, the descriptions of one to three constraints
    check    v, what follows the thoughts: c_j = whether it keeps constraint j, by one
             of 15 rules; all are broken where v is empty
    HAcc     mean over items of [all c_j]
    SAcc     mean over items of mean_j c_j
    correct  mean over items of grade(v); again without constraints, for comparison

Temperature 1, top-p 0.95, up to 16384 tokens:

    samples, _ = read_samples("math500_double.jsonl")
    reward = correct_and_soft(boxed_math(verifier), detect=langdetect.detect)
    told = held_out.answers(replace(actor, reward=reward), [*map(asked, samples)], key,
                            greedy=False)
    summary([row(one, 0) for (one,) in told])

or, from a file reward.py that says `reward = correct_and_soft(...)` and the rows that
`write_parquet(map(asked, samples), "asked.parquet")` writes,

    vrl-jax eval --data asked.parquet --reward reward.py:reward --temperature 1 ...
    summary(read_lines(Path("out/predictions.jsonl")))

The run without constraints is `training.data.asked(samples, CUE)`. A language is told
by a function that you pass, text -> ISO 639-1 code, None or an error where it cannot
tell. The code's is langdetect, whose draws must be fixed once:
`langdetect.DetectorFactory.seed = 0`. Rows without such a constraint need none.

What differs here: CUE is ours. Keywords are texts, not patterns. A row whose argument
is missing, 0 or empty is an error; the code draws one at random. Words in capitals are
letters, digits, hyphens and apostrophes without a gap; NLTK, which downloads its rules,
parts DON'T in two and leaves X=3 whole. A bullet is read on its own line.
"""

import dataclasses
import itertools
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from vrl_jax.evals.benchmark import Row
from vrl_jax.rewards.columns import chosen, column
from vrl_jax.rewards.combine import Reward, paid_if, per_response, weighted
from vrl_jax.types import Episode, Sample, literal

CUE = r"Think step by step, and give the final answer in \boxed{}."

DETECTED = 10_000
"""Characters of a text of which the language is told."""

Detect = Callable[[str], str | None]
"""A text -> the code of its language, as in "en"; None where it cannot tell."""

LESS, AT_LEAST = "less than", "at least"

_log = logging.getLogger(__name__)


def words(text: str, number: int, relation: str) -> bool:
    r"""So many runs of \w, "at least" or "less than"."""
    return _compared(len(re.findall(r"\w+", text)), number, relation)


def in_language(text: str, code: str, *, language: str | None) -> bool:
    """True where the detector could not tell, as in the code."""
    del text
    return language in (code, None)


def has_keywords(text: str, keywords: Sequence[str]) -> bool:
    """Each stands somewhere, in any case, also inside a word."""
    return all(_count(keyword, text) for keyword in keywords)


def keyword_frequency(text: str, keyword: str, number: int, relation: str) -> bool:
    """It stands so many times, in any case, also inside words."""
    return _compared(_count(keyword.strip(), text), number, relation)


def without_words(text: str, forbidden: Sequence[str]) -> bool:
    """None stands as a word, in any case."""
    bounded = (rf"\b{re.escape(word)}\b" for word in forbidden)
    return not any(re.search(one, text, re.IGNORECASE) for one in bounded)


def no_comma(text: str) -> bool:
    """Not even in a number."""
    return "," not in text


def english_lowercase(text: str, *, language: str | None) -> bool:
    """No capital and some letter, in English."""
    return text.islower() and language in ("en", None)


def english_capital(text: str, *, language: str | None) -> bool:
    """Capitals and no other letter, in English."""
    return text.isupper() and language in ("en", None)


def capital_words(text: str, number: int, relation: str) -> bool:
    """So many words in capitals, those of one letter too."""
    found = [word for word in re.findall(r"[\w'’-]+", text) if word.isupper()]
    return _compared(len(found), number, relation)


def bullets(text: str, number: int) -> bool:
    """Exactly so many lines that start with a dash, or one star; -4 is a bullet."""
    lines = [line.lstrip() for line in text.split("\n")]
    stars = sum(line.startswith("*") and line[1:2] != "*" for line in lines)
    return stars + sum(line.startswith("-") for line in lines) == number


def highlights(text: str, number: int) -> bool:
    """At least so many spans on a line between stars or between pairs of them."""
    found = re.findall(r"\*([^\n*]*)\*", text) + re.findall(r"\*\*([^\n*]*)\*\*", text)
    return sum(span.strip() != "" for span in found) >= number


def sections(text: str, splitter: str, number: int) -> bool:
    """At least so many times the splitter and a number, "Section 1"."""
    return len(re.findall(rf"{re.escape(splitter)}\s?\d+", text)) >= number


def repeats_prompt(text: str, prompt: str) -> bool:
    """It starts with the prompt, in any case."""
    return text.strip().lower().startswith(prompt.strip().lower())


def ends_with(text: str, phrase: str) -> bool:
    """In any case; double quotes around the text are passed over."""
    return text.strip().strip('"').lower().endswith(phrase.strip().lower())


def quoted(text: str) -> bool:
    """All of it stands in double quotes."""
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


def _count(keyword: str, text: str) -> int:
    return len(re.findall(re.escape(keyword), text, re.IGNORECASE))


def _compared(count: int, number: int, relation: str) -> bool:
    return count < number if relation == LESS else count >= number


class Kind(NamedTuple):
    """What an argument of a rule must be."""

    holds: Callable[[Any], bool]
    what: str


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value.strip() != ""


NUMBER = Kind(lambda x: type(x) is int and x > 0, "a whole number of at least 1")
RELATION = Kind(lambda x: x in (LESS, AT_LEAST), f"{LESS!r} or {AT_LEAST!r}")
TEXT = Kind(_is_text, "a text")
TEXTS = Kind(
    lambda x: isinstance(x, list | tuple) and len(x) > 0 and all(map(_is_text, x)),
    "a list of texts",
)


class Rule(NamedTuple):
    """check(text, *values of the arguments), and `language=` where it reads that."""

    category: str
    check: Callable[..., bool]
    arguments: Mapping[str, Kind] = {}
    reads_language: bool = False


RULES: Mapping[str, Rule] = {
    "length_constraint_checkers:number_words": Rule(
        "length", words, {"num_words": NUMBER, "relation": RELATION}
    ),
    "language:response_language": Rule(
        "lexical", in_language, {"language": TEXT}, reads_language=True
    ),
    "keywords:existence": Rule("lexical", has_keywords, {"keywords": TEXTS}),
    "keywords:frequency": Rule(
        "lexical",
        keyword_frequency,
        {"keyword": TEXT, "frequency": NUMBER, "relation": RELATION},
    ),
    "keywords:forbidden_words": Rule(
        "lexical", without_words, {"forbidden_words": TEXTS}
    ),
    "punctuation:no_comma": Rule("format", no_comma),
    "change_case:english_lowercase": Rule(
        "format", english_lowercase, reads_language=True
    ),
    "change_case:english_capital": Rule("format", english_capital, reads_language=True),
    "change_case:capital_word_frequency": Rule(
        "format",
        capital_words,
        {"capital_frequency": NUMBER, "capital_relation": RELATION},
    ),
    "detectable_format:number_bullet_lists": Rule(
        "format", bullets, {"num_bullets": NUMBER}
    ),
    "detectable_format:number_highlighted_sections": Rule(
        "format", highlights, {"num_highlights": NUMBER}
    ),
    "detectable_format:multiple_sections": Rule(
        "format", sections, {"section_spliter": TEXT, "num_sections": NUMBER}
    ),
    "combination:repeat_prompt": Rule(
        "affix", repeats_prompt, {"prompt_to_repeat": TEXT}
    ),
    "startend:end_checker": Rule("affix", ends_with, {"end_phrase": TEXT}),
    "startend:quotation": Rule("affix", quoted),
}
"""By the name that a row gives in `constraint_name`; arguments as in its
`constraint_args`, spelled as the data set spells them."""


class Constraint(NamedTuple):
    """A rule with the values of its arguments."""

    rule: Rule
    values: tuple[Any, ...]


class Kept(NamedTuple):
    """Whether each constraint holds; `undetected`: the language could not be told."""

    each: tuple[bool, ...]
    undetected: bool = False


def constraints(sample: Sample) -> list[Constraint]:
    """Those of the row's columns `constraint_name` and `constraint_args`.

    `ValueError` for a name that there is not, and for an argument that is missing.
    """
    names, arguments = (
        column(sample, name, list | tuple, "a list, one a constraint")
        for name in ("constraint_name", "constraint_args")
    )
    if len(names) != len(arguments) or not names:
        raise ValueError(
            f"{sample.id} needs as many 'constraint_args' as 'constraint_name', at "
            f"least one; got {len(arguments)} and {len(names)}."
        )
    return [
        _constraint(sample, name, given or {})
        for name, given in zip(names, arguments, strict=True)
    ]


def _constraint(sample: Sample, name: Any, given: Any) -> Constraint:
    rule = chosen(sample, "rules in 'constraint_name'", name, RULES)
    values = []
    for argument, kind in rule.arguments.items():
        value = given.get(argument) if isinstance(given, Mapping) else None
        if not kind.holds(value):
            raise ValueError(
                f"{sample.id} needs {argument!r} of {name} in 'constraint_args', "
                f"{kind.what}; got {value!r}. Leave the row out: nothing can be told "
                "of it."
            )
        values.append(value)
    return Constraint(rule, tuple(values))


def asked(sample: Sample, *, cue: str = CUE) -> Sample:
    """The row's question, the cue, and what `constraint_desc` says, joined by blanks.

    `ValueError` where its constraints cannot be checked, or one is not described.
    """
    given = constraints(sample)
    said = column(sample, "constraint_desc", list | tuple, "a text a constraint")
    if len(said) != len(given) or not TEXTS.holds(said):
        raise ValueError(
            f"{sample.id} needs the column 'constraint_desc', a text for each of its "
            f"{len(given)} constraints: without it nobody asks for them; got {said!r}."
        )
    told = literal(" ".join(one.strip() for one in said))
    return dataclasses.replace(sample, question=f"{sample.question} {cue} {told}")


def checked_text(
    response: str, *, opening: str = "<think>", closing: str = "</think>"
) -> str:
    """What follows the thoughts, of that what stands in answer tags.

    From the first opening tag on; of that between the first and the second closing
    one; of that between the first answer tag and the next tag of answers. A tag that is
    not there takes nothing away.
    """
    for tag in (opening, closing, "<answer>"):
        if tag in response:
            response = response.split(tag)[1]
    return response.split("</answer>")[0]


def keeps(
    text: str, given: Sequence[Constraint], *, language: str | None = None
) -> tuple[bool, ...]:
    """Which constraints a checked text keeps: none where it is empty.

    `language` is the code of the text's, None where it cannot be told.
    """
    if not text.strip():
        return (False,) * len(given)
    return tuple(
        rule.check(text, *values, language=language)
        if rule.reads_language
        else rule.check(text, *values)
        for rule, values in given
    )


def kept(sample: Sample, response: str, *, detect: Detect | None = None) -> Kept:
    """What `keeps` says of the response's `checked_text` and the row's constraints.

    `ValueError` for a row that `constraints` does not read, and for one that asks for a
    language where there is no `detect`.
    """
    given, text = constraints(sample), checked_text(response)
    if not any(rule.reads_language for rule, _ in given):
        return Kept(keeps(text, given))
    if detect is None:
        raise ValueError(
            f"{sample.id} has a constraint on the language: pass detect=, a function "
            "from a text to the code of its language, such as langdetect.detect."
        )
    language = _language(text, detect) if text.strip() else None
    undetected = language is None and text.strip() != ""
    return Kept(keeps(text, given, language=language), undetected)


def _language(text: str, detect: Detect) -> str | None:
    try:
        return detect(text[:DETECTED])
    except Exception as error:  # langdetect raises where a text has no letters
        _log.debug("no language: %r", error)
        return None


def soft(detect: Detect | None = None) -> Reward:
    """mean_j c_j of the response's `checked_text`.

    Parts: `constraints`, how many there are; `undetected`, 1 where a language was asked
    for and not told.
    """
    return _share(lambda each: sum(each) / len(each), detect)


def hard(detect: Detect | None = None) -> Reward:
    """1 where all c_j hold; parts as those of `soft`."""
    return _share(lambda each: float(all(each)), detect)


def _share(rule: Callable[[Sequence[bool]], float], detect: Detect | None) -> Reward:
    def score(episode: Episode) -> dict[str, float]:
        found = kept(episode.sample, episode.text, detect=detect)
        return {
            "overall": rule(found.each),
            "constraints": float(len(found.each)),
            "undetected": float(found.undetected),
        }

    return per_response(score)


def graded(correct: Reward) -> Reward:
    """`correct`, such as `boxed.boxed_math(verifier)`, of the `checked_text` alone."""
    return lambda episodes: correct([_as_checked(episode) for episode in episodes])


def _as_checked(episode: Episode) -> Episode:
    """The same with the checked text as the policy's last words."""
    text = checked_text(episode.text)
    turns = list(episode.turns)
    last = max(place for place, turn in enumerate(turns) if turn.chosen)
    turns[last] = dataclasses.replace(turns[last], text=text)
    return dataclasses.replace(episode, turns=tuple(turns))


def gated(correct: Reward, *, detect: Detect | None = None) -> Reward:
    """`graded(correct)` where all constraints hold, else 0."""
    return paid_if(hard(detect), graded(correct))


def correct_and_soft(
    correct: Reward, *, detect: Detect | None = None, weight: float = 0.5
) -> Reward:
    """graded(correct) + weight soft: what an evaluation needs, and what may be trained.

    The paper trains nothing; the weight is ours. Parts: `accuracy`, which is
    correctness alone, `soft` and `hard`, so that their conflict shows.
    """
    return weighted(
        {
            "accuracy": (graded(correct), 1.0),
            "soft": (soft(detect), weight),
            "hard": (hard(detect), 0.0),
        }
    )


class Item(NamedTuple):
    """A response's scores; `correct` is None where nobody could grade it."""

    source: str
    constraints: int
    tokens: int
    hard: float
    soft: float
    correct: float | None
    undetected: bool = False


def items(lines: Iterable[Row]) -> list[Item]:
    """Lines of `evals.benchmark` that `correct_and_soft` has scored.

    `ValueError` for one that has other scores or none: its reward failed, or is
    another.
    """
    found = []
    for line in lines:
        scores = line["meta"]["scores"]
        if scores.get("soft_constraints") is None:
            raise ValueError(
                f"{line['id']} was not scored by correct_and_soft, only "
                f"{scores}: look for the reward's error in the log, or evaluate again."
            )
        found.append(
            Item(
                line["benchmark"],
                int(scores["soft_constraints"]),
                line["meta"]["tokens"],
                scores["hard"],
                scores["soft"],
                line["correct"],
                scores["soft_undetected"] > 0,
            )
        )
    return found


def measured(given: Sequence[Item]) -> dict[str, float | int | None]:
    """`HAcc`, `SAcc`, `correct`; how many items, of them `ungraded`, `undetected`."""
    graded = [one.correct for one in given if one.correct is not None]
    return {
        "items": len(given),
        "HAcc": _mean([one.hard for one in given]),
        "SAcc": _mean([one.soft for one in given]),
        "correct": _mean(graded),
        "ungraded": len(given) - len(graded),
        "undetected": sum(one.undetected for one in given),
    }


def summary(
    lines: Iterable[Row], *, bins: Sequence[int] = (1024, 2048, 4096, 8192)
) -> dict[str, Any]:
    """`measured` in all, by `sources`, by number of `constraints` and by `tokens`.

    Lengths are in bins that end below each of `bins`, and one above.
    """
    given = items(lines)
    edges = [0, *bins, None]
    names = [
        f"{low}+" if high is None else f"{low}-{high - 1}"
        for low, high in itertools.pairwise(edges)
    ]
    return {
        **measured(given),
        "sources": _by(given, lambda one: one.source),
        "constraints": _by(
            sorted(given, key=lambda one: one.constraints),
            lambda one: str(one.constraints),
        ),
        "tokens": _by(
            sorted(given, key=lambda one: one.tokens),
            lambda one: names[sum(one.tokens >= high for high in bins)],
        ),
    }


def _by(given: Sequence[Item], key: Callable[[Item], str]) -> dict[str, Any]:
    names = dict.fromkeys(map(key, given))
    return {name: measured([x for x in given if key(x) == name]) for name in names}


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
