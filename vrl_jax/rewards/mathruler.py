r"""Answers compared by the rule of mathruler: normalised text, or difference 0.

Two are equal where one of three things holds: MATH's normaliser makes the same text of
both, prm800k's does, or sympy finds the difference of the latter's texts to be 0. The
third is not asked of two fractions, of an integer and something else, or of more than
two letters, and is asked item by item of tuples with the same brackets. So 60 \% is 60
and not 0.6, 2/4 is not 1/2, 0.5 is both, "(A)" is not A, and "A." is not either.

As https://github.com/hiyouga/MathRuler 0.1.0 has it, with its traps, which pay wrong
answers: an item loses its units even where nothing is left ("day" is the empty text),
and LaTeX its braces (\frac{x+1}{2} is read as x + 1/2, \sqrt[3]{2} as \sqrt{2}). Ours
differs in four things: it never evaluates text, so that sympy sees numbers, letters,
`+ - * / ^ !`, brackets, sqrt, ln and pi alone, in the pool of `math_verifier`; LaTeX
with environments stays as it is, and with braces amiss or rare macros may be read
otherwise; and of long answers see `MAX_LENGTH`.
"""

import re
import unicodedata
from collections.abc import Sequence

from vrl_jax.rewards.math_verifier import MathVerifier, Verdict

MAX_LENGTH = 1000
"""Characters; longer answers are equal as texts or not at all."""

_UNITS = (
    *("degree", "cm", "centimeter", "meter", "mile", "second", "minute", "hour", "day"),
    *("week", "month", "year", "foot", "feet", "inch", "yard"),
)
_POWERS = {"million": "*10^6", "billion": "*10^9", "trillion": "*10^12"}
_TEXT = re.compile(r"\\text\{(.+?)\}$")
_THOUSANDS = re.compile(r"([0-9]),([0-9]{3})(?![0-9])")
_FRACTION = re.compile(r"-?[0-9]+.?/0*[1-9][0-9]*.?$")
_TOWER = re.compile(r"\^[{(]|\^[0-9]+\^|\^[0-9][0-9]")

_PIECE = re.compile(r"\\(?:[A-Za-z]+|.?)\s*|.", re.DOTALL)
_SYMBOLS = {
    "pi": "pi", "infty": "inf", "cup": "U", "cdot": "*", "times": "*", "le": "≤",
    "leq": "≤", "ge": "≥", "geq": "≥", "neq": "≠", "approx": "≈", "pm": "±",
    "mp": "∓", "div": "÷", "circ": "∘", "in": "∈", "cap": "∩", "emptyset": "∅",
    "varnothing": "∅", "angle": "∠", "ldots": "…", "cdots": "⋯", "dots": "…",
    "to": "→", "rightarrow": "→", "perp": "⊥", "parallel": "∥", "sim": "∼",
    "cong": "≅", "equiv": "≡", "propto": "∝", "subset": "⊂", "supset": "⊃",
    "forall": "∀", "exists": "∃", "langle": "⟨", "rangle": "⟩", "sum": "∑",
    "prod": "∏", "int": "∫", "vee": "∨", "wedge": "∧", "mid": "|", "vert": "|",
    "ell": "ℓ", "epsilon": "ϵ", "varepsilon": "ε", "lambda": "λ", "Lambda": "Λ",
    "phi": "ϕ", "varphi": "φ", "vartheta": "ϑ", "quad": " ", "qquad": " ",
    ",": " ", ";": " ", ":": " ", " ": " ", "\\": "\n",
    **{character: character for character in "{}%$#_&"},
    **{name: name for name in ("sin", "cos", "tan", "arcsin", "arccos", "arctan",
       "sinh", "cosh", "tanh", "log", "ln", "exp", "lim", "max", "min")},
}  # fmt: skip
"""What pylatexenc writes for a macro; Greek letters are found by their names."""
_STYLES = {
    *("mathbf", "mathit", "mathsf", "mathbb", "mathtt", "mathcal", "mathscr"),
    *("mathfrak", "hat", "bar", "vec", "tilde", "dot", "ddot", "acute", "grave"),
    *("check", "breve"),
}
"""Of letters; it writes other ones."""


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
    if math_normalized(prediction) == math_normalized(gold):
        return []
    p, g = prm800k_normalized(prediction), prm800k_normalized(gold)
    if p == g:
        return []
    if not p or not g:
        return None
    p_items, g_items = _items(p), _items(g)
    other_brackets = (p[0], p[-1]) != (g[0], g[-1])
    if len(p_items) != len(g_items) or (len(g_items) > 1 and other_brackets):
        return None
    open_pairs = []
    for a, b in zip(p_items, g_items, strict=True):
        if _FRACTION.match(a) and _FRACTION.match(b):
            if a != b:
                return None
        elif _comparable(a, b):
            open_pairs.append((a, b))
        else:
            return None
    return open_pairs


def _comparable(p: str, g: str) -> bool:
    """Whether sympy is asked at all."""
    if (_integer(p) is None) != (_integer(g) is None):
        return False
    both = (p + " " + g).replace("sqrt", "").replace("frac", "")
    letters = {character for character in both if character.isalpha()}
    return len(letters) <= 2 and not _TOWER.search(p) and not _TOWER.search(g)


def _items(text: str) -> list[str]:
    text = _without_thousands(text)
    inner = text[1:-1]
    if inner and {text[0], text[-1]} <= {*"()[]"} and not {*"()[]"} & {*inner}:
        return [item.strip() for item in inner.split(",")]
    return [text]


def math_normalized(text: str) -> str:
    r"""An answer as MATH's code compares it: without blanks, units in \text, percent.

    "k = 3" is 3, `\frac12` gets its braces, as 1/2 does, and `\sqrt2`; 0.5 is 1/2.
    Where a macro stands without what it needs, the answer stays as it is.
    https://github.com/openai/prm800k
    """
    answer = text.strip()
    if found := _TEXT.match(answer):
        answer = found.group(1).strip()
    plain = answer
    for old, new in (
        ("\n", ""), (r"\!", ""), ("\\\\", "\\"), ("tfrac", "frac"), ("dfrac", "frac"),
        (r"\left", ""), (r"\right", ""), (r"^{\circ}", ""), (r"^\circ", ""),
        (r"\$", ""),
    ):  # fmt: skip
        plain = plain.replace(old, new)
    plain, _, unit = plain.partition(r"\text{ ")
    if r"\text{ " in unit:
        return answer  # the code fails here, and takes this
    for old, new in ((r"\%", ""), ("%", ""), (" .", " 0."), ("{.", "{0.")):
        plain = plain.replace(old, new)
    if plain.startswith("."):
        plain = "0" + plain
    sides = plain.split("=")
    if len(sides) == 2 and len(sides[0]) <= 2:
        plain = sides[1]
    if plain.endswith(r"\sqrt") or r"\sqrt\sqrt" in plain:
        return answer
    plain = re.sub(r"\\sqrt([^{])", r"\\sqrt{\1}", plain).replace(" ", "")
    if plain.endswith(r"\frac") or r"\frac\frac" in plain:
        return answer
    plain = _with_braces(plain)
    if plain == "0.5":
        return r"\frac{1}{2}"
    return re.sub(r"\A(0|-?[1-9][0-9]*)/(0|-?[1-9][0-9]*)\Z", r"\\frac{\1}{\2}", plain)


def _with_braces(text: str) -> str:
    r"""Around the two characters after each `\frac` that have none."""
    if re.search(r"\\frac[^{](\\frac|\Z)", text):
        return text
    first, *rest = text.split(r"\frac")
    return first + "".join(r"\frac" + _braced(after) for after in rest)


def _braced(after: str) -> str:
    if after.startswith("{"):
        return after
    above, below, rest = after[0], after[1], after[2:]
    return f"{{{above}}}{'{' if below == '{' else f'{{{below}}}'}{rest}"


def prm800k_normalized(text: str) -> str:
    """An answer as prm800k's code compares it: small letters without blanks and units.

    A whole number is written as one, "or" and "and" are commas, 7 3/4 is 7+3/4, and
    LaTeX becomes plain text. https://github.com/openai/prm800k
    """
    if found := _TEXT.match(text):
        text = found.group(1)
    for mark in (r"\%", r"\$", "$", "%"):
        text = text.replace(mark, "")
    text = text.replace(" or ", " , ").replace(" and ", " , ")
    for name, power in _POWERS.items():
        text = text.replace(name, power)
    for unit in _UNITS:
        text = re.sub(rf"{unit}(es)?s? *(\^[0-9]+)?", "", text)
    text = re.sub(r"\^ *\\circ", "", text)
    if text.startswith("{") and text.endswith("}"):
        text = text[1:-1]
    text = re.sub(r",\\! *", "", text)
    try:
        if abs(float(text) - round(float(text))) <= 1e-7:
            text = str(round(float(text)))
    except (ValueError, OverflowError):
        pass
    if "\\" in text:
        text = _flattened(text)
    text = re.sub("([0-9]) +([0-9])", r"\1+\2", re.sub("- *", "-", text))
    text = re.sub("[ {}]", "", text).lower()
    number = _integer(text)
    return text if number is None else str(number)


def _integer(text: str) -> int | None:
    """What the text says where that is a whole number, or nearly one."""
    try:
        value = float(_without_thousands(text))
        near = abs(value - round(value)) <= 1e-7
        return int(float(text.replace(",", ""))) if near else None
    except (ValueError, OverflowError):
        return None


def _without_thousands(text: str) -> str:
    while (shorter := _THOUSANDS.sub(r"\1\2", text)) != text:
        text = shorter
    return text


def _flattened(latex: str) -> str:
    """LaTeX as pylatexenc writes it in plain text, or unchanged where it is torn."""
    for name in (r"\tfrac", r"\dfrac", r"\frac"):
        latex = latex.replace(name, r" \frac")
    if r"\begin" in latex:
        return latex
    pieces = _PIECE.findall(latex.replace("--", "–"))[::-1]  # the next one is the last
    try:
        flat = _until_closed(pieces, nested=False)
    except (IndexError, RecursionError):  # a macro without what it needs, or too deep
        return latex
    return flat.strip()


def _until_closed(pieces: list[str], *, nested: bool) -> str:
    """A brace that is missing stands at the end; one too many is passed over."""
    flat = []
    while pieces:
        piece = pieces.pop()
        if piece != "}":
            flat.append(_one(piece, pieces))
        elif nested:
            break
    return "".join(flat)


def _one(piece: str, pieces: list[str]) -> str:
    """The text of a piece, which takes from the next ones what belongs to it."""
    if piece == "{":
        return _until_closed(pieces, nested=True)
    if not piece.startswith("\\"):
        return piece
    name = piece[1:].strip() or piece[1:2]
    if name == "frac":
        return f"{_argument(pieces)}/{_argument(pieces)}"
    if name == "sqrt":
        if pieces[-1] == "[":
            while pieces.pop() != "]":
                pass
        return f"sqrt({_argument(pieces)})"
    if name in _STYLES:  # another letter than the plain one
        return f"\\{name}{_argument(pieces)}"
    kind = "SMALL" if name.islower() else "CAPITAL"
    try:
        return _SYMBOLS.get(name) or unicodedata.lookup(f"GREEK {kind} LETTER {name}")
    except KeyError:
        return ""  # what its braces hold follows as it is


def _argument(pieces: list[str]) -> str:
    """What the next piece, or the next braces, say."""
    while pieces[-1].isspace():
        pieces.pop()
    if pieces[-1] == "}":
        raise IndexError
    return _one(pieces.pop(), pieces)
