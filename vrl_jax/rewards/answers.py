"""Is a given answer the right one, as text?

Mathematical equality is `vrl_jax.rewards.math_verifier`. Where projects differ in a
rule, each has a function of its own; the one without a project's name is ours.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence

from vrl_jax.rewards.parse import answer_or_rest, last_boxed

# Macros and what \text{...} holds are not words: math-verify knows units and such.
_MACRO = re.compile(r"\\(text|mathrm|textbf)\s*\{[^{}]*\}|\\[A-Za-z]+")
_LETTER = re.compile(r"(?<![A-Z])[A-Z](?=[.,?!:;]|$)")
# A letter, and behind marks or a blank a text: "box" is no B.
_LETTERED = re.compile(
    r"[(\[{]?\s*([A-Za-z])(?:(?:\s*[)\]}.:,])+|\s|\Z)\s*(.*)", re.DOTALL
)
_DRESSED = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mathsf|boxed)\s*\{([^{}]*)\}"
)
_ANSWER_IS = re.compile(r"answer is:?\s{0,9}[(*]{0,3}([A-Z])\b", re.IGNORECASE)
_CUES = ("ANSWER", "CORRECT", "CHOOSE", "SELECT", "RIGHT", "THINK", "BELIEVE", "SHOULD")
_COUNT = re.compile(r"<answer>\s*([0-9]{1,18})\s*</answer>")
_WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    *("ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen"),
    *("seventeen", "eighteen", "nineteen", "twenty"),
)
_WORD = re.compile(r"[A-Za-z]{3}|^\s*[A-Za-z]{2}\s*$")

_WORD_OR_MARK = re.compile(r"\w+|[^\w\s]")
_OUTER = re.compile(r"^[\s\[\"'“”‘’]+|[\s\]\"'“”‘’]+$")


def exact(prediction: str | None, gold: str) -> bool:
    """The same text, however much white space stands between its words."""
    return prediction is not None and prediction.split() == gold.split()


def is_words(gold: str) -> bool:
    """Whether an answer must be compared as text.

    math-verify reads an unmarked word as a product of letters, so that "silent"
    equals "listen". Three letters in a row, or two that are the whole answer, make a
    word; LaTeX macros and their text do not.
    """
    return _WORD.search(_MACRO.sub(" ", gold)) is not None


def choice(prediction: str | None, gold: str, options: Sequence[str] = ()) -> bool:
    r"""Multiple choice: the letter alone, with its option's text, or that text alone.

    Brackets, a final dot, a `\boxed` and other marks of LaTeX and markdown around the
    letter are passed over, and case. "B or C" is no answer. `options` are the texts of
    A, B, ..., empty where there is no such option; without them a letter may be
    followed by nothing. A letter is a letter first: "B" is the second option even where
    that is the text of another. A text that two options share names neither.
    """
    if prediction is None or not gold.strip():
        return False
    box = last_boxed(prediction)
    given, texts = prediction if box is None else box, [_plain(o) for o in options]
    wanted = _chosen(gold, texts)
    if wanted is None:
        return _plain(given) == _plain(gold)
    return _chosen(given, texts) == wanted


def _chosen(text: str, options: Sequence[str]) -> str | None:
    """The letter that a text names by itself or by the text of its option."""
    plain = _plain(text)
    named = dict(zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", options, strict=False))
    found = _LETTERED.fullmatch(plain)
    if found:
        letter, rest = found.group(1).upper(), found.group(2)
        of_another = letter not in named and plain in options
        if not of_another and rest in ("", named.get(letter, "")):
            return letter
    same = [letter for letter, option in named.items() if option and option == plain]
    return same[0] if len(same) == 1 else None


def _plain(text: str) -> str:
    """In lower case, blanks as one, without a final dot and what `_undressed` drops."""
    return " ".join(_undressed(text).casefold().split()).rstrip(".").rstrip()


def _undressed(text: str) -> str:
    """Without the marks of LaTeX and markdown that change how letters look."""
    for _ in range(3):  # \text{\textbf{...}}; deeper ones stay
        text = _DRESSED.sub(r"\1", text)
    return re.sub(r"\*\*|[$`]", "", text).strip().strip("*_")


def letter_set(prediction: str | None, gold: str) -> bool:
    """Several choices: the same set of letters, in any order.

    "A, C", "CA", "(a) and (c)" are one set; a text with another word is none.
    LogicVista, https://arxiv.org/abs/2407.04973, where a part of them is wrong.
    """
    given, wanted = (_letters(text or "") for text in (prediction, gold))
    return bool(wanted) and given == wanted


def _letters(text: str) -> set[str]:
    words = re.split(r"(?:[\s.,;:&/+()\[\]{}]|\band\b)+", _undressed(text))
    named = [word for word in words if word]
    if not all(re.fullmatch("[A-Z]{1,26}|[a-z]", word) for word in named):
        return set()
    return set("".join(named).upper())


def letter_vlm_r1(text: str) -> str | None:
    """The choice letter by the rule of VLM-R1, or None.

    In capitals, a letter that no letter precedes and that . , ? ! : ; or the end
    follows. Of several, the one with most points: 1 for each cue word (answer, correct,
    ...) within 20 characters, 2 in the last 30 % of the text, 1 for punctuation behind.
    "(B)" and a boxed B give nothing. https://github.com/om-ai-lab/VLM-R1
    """
    text = " ".join(text.upper().split())
    points: dict[str, int] = {}
    for found in _LETTER.finditer(text):
        place = found.start()
        around = text[max(0, place - 20) : place + 20]
        score = sum(cue in around for cue in _CUES)
        score += 2 * (place > 0.7 * len(text)) + (text[place + 1 : place + 2] in _STOPS)
        points[found.group()] = points.get(found.group(), 0) + score
    return max(points, key=points.__getitem__) if points else None


_STOPS = (".", ",", "!", "?", ":", ";")


def letter_vlmevalkit(text: str, options: Mapping[str, str]) -> str | None:
    """The option that VLMEvalKit finds before it asks a judge, or None.

    `options` are texts by their letters. The only letter among the words, where it is
    one of the last four; else what "answer is" says; else the only option whose text
    the answer holds, in an answer of at most twice the length of all options. A word
    "A" is an option as well. https://github.com/open-compass/VLMEvalKit
    """
    words = re.sub(r"[.()\[\],:;!*#{}]", " ", text).split()
    letters = [letter for letter in options if letter in words]
    if len(letters) == 1 and words.index(letters[0]) > len(words) - 5:
        return letters[0]
    said = [letter for letter in _ANSWER_IS.findall(text) if letter.upper() in options]
    if said:
        return said[-1].upper()
    if len(text) > 2 * sum(map(len, options.values())):
        return None
    held = [a for a, option in options.items() if option.lower() in text.lower()]
    return held[0] if len(held) == 1 else None


def letter_ergo(text: str, gold: str) -> bool:
    """All latin letters of the answer, joined, are the gold letter: "B. cat" is not B.

    The answer is what the first answer tag holds, closed or not, or else the text.
    https://github.com/nota-github/ERGO
    """
    answer = answer_or_rest(text) if "<answer>" in text else text
    letters = "".join(re.findall("[A-Za-z]", answer)).lower()
    return letters != "" and letters == gold.strip().lower()


def letter_vl_prm(text: str) -> str:
    """The answer with "B." and "(B)" read as B, anything else as it stands.

    https://github.com/theogbrand/vlprm
    """
    found = re.fullmatch(r"\(?([A-Za-z])[.)]?", text.strip())
    return found.group(1) if found else text.strip()


def letters_curr_reft(text: str) -> str:
    """Every isolated letter A to E once, in order of appearance: "A,C".

    Stage 2 of Curr-ReFT, https://arxiv.org/abs/2503.07065, which compares this.
    """
    found = re.findall(r"(?<![A-Za-z])[A-E](?![A-Za-z])", text)
    return ",".join(dict.fromkeys(found))


def yes_no(prediction: str | None, gold: str) -> bool:
    """The first of the words yes and no in each is the same one.

    Whole words, unlike VLM-R1's, where "know" is a no and two texts without either
    agree; here they do not.
    """
    words = [
        re.search(r"\b(yes|no)\b", text, re.IGNORECASE)
        for text in (prediction or "", gold)
    ]
    return all(words) and words[0].group().lower() == words[1].group().lower()


def relaxed_numeric(
    prediction: str | None,
    gold: str,
    *,
    tolerance: float = 0.05,
    year_guard: bool = True,
) -> bool:
    """|p - g| / |g| <= tolerance; the same text where gold is 0 or no number.

    A final percent sign is dropped on both sides. `year_guard` compares four characters
    that start with 20 as text: 2004 is not nearly 2005. VL-PRM's reading of ChartQA's
    rule, https://github.com/theogbrand/vlprm; `relaxed_accuracy` is ChartQA's own.
    """
    if prediction is None:
        return False
    given, wanted = (
        text.strip().removesuffix("%").strip() for text in (prediction, gold)
    )
    if year_guard and len(wanted) == 4 and wanted.startswith("20"):
        return given.lower() == wanted.lower()
    return _nearly(given, wanted, number, tolerance)


def relaxed_accuracy(
    prediction: str | None, gold: str, *, tolerance: float = 0.05
) -> bool:
    """|p - g| / |g| <= tolerance, 50% as 0.5; the same text where g is 0 or no number.

    Case does not count. ChartQA, https://arxiv.org/abs/2203.10244, section 5.1, with
    the percent sign of its usual code, pix2struct's,
    https://github.com/google-research/pix2struct; that reads no commas in thousands.
    """
    if prediction is None:
        return False
    return _nearly(prediction.strip(), gold.strip(), _of_percent, tolerance)


def _of_percent(text: str) -> float | None:
    value = number(text.removesuffix("%"))
    return value / 100 if value is not None and text.endswith("%") else value


def _nearly(
    given: str, wanted: str, read: Callable[[str], float | None], tolerance: float
) -> bool:
    p, g = read(given), read(wanted)
    if p is None or not g:
        return given.lower() == wanted.lower()
    return abs(p - g) <= tolerance * abs(g) * (1 + 1e-12)


def number(text: str) -> float | None:
    """A finite number as `float` reads it, thousands separated by commas or not."""
    if len(text) > 400:
        return None
    plain = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text.strip())
    try:
        value = float(plain.replace("_", "x"))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def amount(text: str) -> float | None:
    """`number`, or a number's word from zero to twenty: CountBench's answers.

    A final dot does not count.
    """
    plain = text.strip().removesuffix(".")
    word = plain.lower()
    return float(_WORDS.index(word)) if word in _WORDS else number(plain)


def count_in_tag(text: str, gold: str) -> bool:
    """The first answer tag that holds digits alone holds the gold number.

    R1-V's counting evaluation, https://github.com/Deep-Agent/R1-V: "12 cats" fails, and
    a later tag does not count, as it does in `final_answer.count`.
    """
    found = _COUNT.search(text)
    return found is not None and number(gold) == int(found.group(1))


def set_overlap(prediction: str, gold: str) -> float:
    """|P and G| / |P or G| of the items, split at commas and blanks, brackets dropped.

    Classification of Curr-ReFT, https://arxiv.org/abs/2503.07065. Nothing on either
    side is 0: an empty answer earns nothing.
    """
    p, g = (
        set(re.split(r"[\s,\[\]'\"{}()]+", t.lower())) - {""}
        for t in (prediction, gold)
    )
    return len(p & g) / len(p | g) if p | g else 0.0


def contains_either_way(prediction: str | None, gold: str) -> bool:
    """One contains the other, blanks and underscores dropped, in lower case.

    Classification of Visual-RFT, https://arxiv.org/abs/2503.01785. An empty text
    contains nothing here: it would be in every answer.
    """
    p, g = (re.sub(r"[\s_]", "", text or "").lower() for text in (prediction, gold))
    return bool(p) and bool(g) and (p in g or g in p)


def one_of(prediction: str | None, golds: Sequence[str]) -> bool:
    """The stripped answer is one of the accepted ones, case and all.

    SATORI-R1, https://arxiv.org/abs/2505.19094.
    """
    return prediction is not None and prediction.strip() in golds


def span_in_caption(
    prediction: str, span: str, caption: str, *, more_words: int = 10
) -> bool:
    """The span stands in the prediction, and the prediction in the caption, in words.

    So words around the span may be copied along, but no more than `more_words`: the
    whole caption is no answer. Marks stand apart from words, so that a comma after the
    span does not hide it, and are not counted; brackets and quotes around all of it do
    not matter. ViCrit, https://arxiv.org/abs/2506.10128, which sets no bound.
    """
    p, s, c = (
        f" {' '.join(_WORD_OR_MARK.findall(_OUTER.sub('', text).lower()))} "
        for text in (prediction, span, caption)
    )
    short = _words(p) <= _words(s) + more_words
    return s.strip() != "" and short and s in p and p in c


def _words(text: str) -> int:
    """Marks are not counted."""
    return len(re.findall(r"\w+", text))
