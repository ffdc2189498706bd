r"""Answers compared by the rule of mathruler: normalised text, or difference 0.

Units, percent signs, thousands' commas and text macros are dropped, so 60 \% is 60 and
not 0.6. Two fractions agree as texts only: 2/4 is not 1/2, and 0.5 is. An integer
equals only what reads as that integer. Tuples keep brackets and order. "(A)" is A, and
"A." is not. Behaviour as observed of https://github.com/hiyouga/MathRuler 0.1.0; ours
never evaluates text, and sympy's part runs in the pool of `math_verifier`.
"""

import re
from collections.abc import Sequence

from vrl_jax.rewards.math_verifier import MathVerifier, Verdict

MAX_LENGTH = 1000
"""Characters; longer answers are equal as texts or not at all."""

_UNITS = re.compile(
    r"(?<=[\d\s})])\s*(degree|cm|centimeter|meter|mile|second|minute|hour|day|week|month|"
    r"year|foot|feet|inch|yard)(es|s)?\b\s*(\^\s*\{?\d+\}?)?"
)
_TEXT_UNIT = re.compile(r"(?<=.)\\text\{\s[^{}]*\}(\^\{?\d+\}?)?\s*$", re.DOTALL)
_TEXT = re.compile(r"\\(?:text|mathrm|textbf|mathbf)\{([^{}]*)\}")
_FRACTION = re.compile(r"\\[dt]?frac\s*(?:\{([^{}]*)\}|(\w))\s*(?:\{([^{}]*)\}|(\w))")
_MIXED = re.compile(r"(?<![\d.])(\d{1,20})\s+(\d{1,20}/\d{1,20})")
_MIXED_LATEX = re.compile(
    r"(?<![\d.])(\d{1,20})\s*\\[dt]?frac\s*\{?(\d+)\}?\s*\{?(\d+)\}?"
)
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_THIN_SPACES = re.compile(r"(?<=\d)\s+(?=\d{3}(?!\d))")
_FULL_FRACTION = re.compile(r"\(?-?\d+\)?/\(?-?\d+\)?")
_INTEGER = re.compile(r"-?\d+")
_ZEROS = re.compile(r"(?<![\d.])(\d+)\.0+(?!\d)")
_POWER_OF_TEN = re.compile(r"-?\d{1,15}(\.\d{1,15})?e\+?\d{1,2}")
_NAMES = re.compile(r"sqrt|frac|pi|sin|cos|tan|log|ln|exp|infty")


def mathruler(
    verifier: MathVerifier, pairs: Sequence[tuple[str, str]]
) -> list[Verdict]:
    """A verdict for each (prediction, gold), by the rule above.

    The texts are what the boxes hold. `parse.boxed_or_none_text` gives "None" without a
    box, and None equals None: the trap of the public code. Keep Python's None apart.
    """
    decided = [_decide(prediction, gold) for prediction, gold in pairs]
    questions = [pair for open_pairs in decided for pair in open_pairs or ()]
    answers = dict(
        zip(questions, verifier.differences_are_zero(questions), strict=True)
    )
    return [_all(open_pairs, answers) for open_pairs in decided]


def _all(
    open_pairs: list[tuple[str, str]] | None, answers: dict[tuple[str, str], Verdict]
) -> Verdict:
    if open_pairs is None:
        return Verdict(False)
    verdicts = [answers[pair] for pair in open_pairs]
    problems = "; ".join(v.problem for v in verdicts if v.problem)
    return Verdict(all(v.equal for v in verdicts), problems)


def _decide(prediction: str, gold: str) -> list[tuple[str, str]] | None:
    """Pairs whose difference must be 0; none of them for equal texts, None for no."""
    if max(len(prediction), len(gold)) > MAX_LENGTH:
        return [] if prediction.strip() == gold.strip() else None
    p, g = normalized(prediction), normalized(gold)
    if p == g:
        return []
    if not p or not g:
        return None
    p_items, g_items = _items(p), _items(g)
    if len(g_items) > 1 or len(p_items) > 1:
        same = (p[0], p[-1], len(p_items)) == (g[0], g[-1], len(g_items))
        if not same or g[0] not in "([":
            return None
    open_pairs = []
    for a, b in zip(p_items, g_items, strict=True):
        if a == b:
            continue
        if not _comparable(a, b):
            return None
        open_pairs.append((a, b))
    return open_pairs


def _comparable(p: str, g: str) -> bool:
    """Whether sympy is asked at all."""
    if _FULL_FRACTION.fullmatch(p) and _FULL_FRACTION.fullmatch(g):
        return False
    if bool(_INTEGER.fullmatch(p)) != bool(_INTEGER.fullmatch(g)):
        return False
    unknown = [set(re.findall("[a-z]", _NAMES.sub("", text))) for text in (p, g)]
    powers = re.compile(r"\^[({]|\^\d+\^|\^\d\d\d")
    return max(map(len, unknown)) <= 2 and not powers.search(p) and not powers.search(g)


def _items(text: str) -> list[str]:
    inner = text[1:-1]
    if text[0] in "([" and text[-1] in ")]" and not set("()[]") & set(inner):
        return inner.split(",")
    return [text]


def normalized(text: str) -> str:
    """An answer without what must not matter, in lower case and without blanks."""
    text = text.strip()
    for old, new in (
        ("\n", " "),
        (r"\!", ""),
        (r"\left", ""),
        (r"\right", ""),
        (r"^{\circ}", ""),
        (r"^\circ", ""),
        (r"\%", ""),
        (r"\$", ""),
        (r"\,", ""),
        (r"\ ", " "),
        (r"\cdot", "*"),
        (r"\times", "*"),
        (r"\pi", "pi"),
        (r"\{", "{{"),
        (r"\}", "}}"),
    ):
        text = text.replace(old, new)
    text = _TEXT.sub(r"\1", _TEXT_UNIT.sub("", text))
    sides = text.split("=")
    if len(sides) == 2 and len(sides[0].strip()) <= 2:
        text = sides[1]
    text = text.replace(" or ", ",").replace(" and ", ",")
    text = _UNITS.sub("", text).replace("%", "").replace("$", "")
    text = _THIN_SPACES.sub("", _THOUSANDS.sub("", text.strip()))
    text = _MIXED_LATEX.sub(r"(\1+\2/\3)", _MIXED.sub(r"(\1+\2)", text))
    text = _FRACTION.sub(_as_quotient, text)
    text = re.sub(r"\\sqrt\s*(\w)", r"\\sqrt{\1}", text)
    text = re.sub(r"\\sqrt\s*\{([^{}]*)\}", r"sqrt(\1)", text).replace("\\", "")
    text = re.sub(r"\s", "", text).lower()
    if len(text) > 1 and text[-1] == "." and text[-2].isdigit():
        text = text[:-1]
    text = re.sub(r"(?<!\d)\.(?=\d)", "0.", text)
    text = _ZEROS.sub(r"\1", re.sub(r"(\.\d*?[1-9])0+(?!\d)", r"\1", text))
    text = _braces_around_all(text)
    if re.fullmatch(r"\([a-z0-9]\)", text):
        text = text[1:-1]
    if _POWER_OF_TEN.fullmatch(text) and float(text).is_integer():
        text = str(int(float(text)))
    return {"0.5": "1/2"}.get(text, text)


def _as_quotient(found: re.Match[str]) -> str:
    over, one, under, other = found.groups()
    top, bottom = (
        over if over is not None else one,
        under if under is not None else other,
    )
    top, bottom = top.strip(), bottom.strip()
    plain = re.compile(r"-?\w+")
    if not plain.fullmatch(top):
        top = f"({top})"
    if not plain.fullmatch(bottom):
        bottom = f"({bottom})"
    return f"{top}/{bottom}"


def _braces_around_all(text: str) -> str:
    single = text.startswith("{") and text.endswith("}") and not text.startswith("{{")
    return text[1:-1] if single else text
