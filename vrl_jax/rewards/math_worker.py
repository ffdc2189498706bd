"""One process that compares answers: a question in JSON in, a verdict out.

Started as a script by `math_verifier`, and so imports nothing of this library. It
asks the kernel to end it when one comparison outlasts the limit: that also stops
code that never comes back to the interpreter, and leaves nothing running when the
parent has died.
"""

import functools
import json
import logging
import os
import re
import resource
import signal
import sys

import sympy
from latex2sympy2_extended.latex2sympy2 import _Latex2Sympy
from math_verify import parse, parser, verify

MAX_DEPTH = 200
"""Brackets in brackets: the parser's time grows faster than their number."""

REMEMBERED = 4096
"""Formulas whose reading is kept: a group's answers share their gold."""

_PLAIN = re.compile(
    r"(-?)(?:([0-9]{1,30})|([0-9]{0,30}\.[0-9]{1,30})"
    r"|(?:\\frac\{(-?[0-9]{1,30})\}\{([0-9]{1,30})\}|([0-9]{1,30})/([0-9]{1,30})))"
)
_EXPONENT = "e[+-]?[0-9]+"
_TOKEN = re.compile(
    rf"([0-9]+{_EXPONENT}|(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:{_EXPONENT})?)"
    r"|(0+(?![0-9])|[1-9][0-9]*)|([^\W0-9]\w*)|(\*\*|[-+*/^!()])"
)
_FUNCTIONS = {"": lambda x: x, "sqrt": sympy.sqrt, "ln": sympy.log}
_GREEK = ("mu", "nu", "xi")
_MEANS_MORE = {
    *("oo", "zoo", "nan", "rf", "ff", "gff", "re", "im", "csc", "li", "jn", "yn"),
    *("fft", "ntt", "fu", "eye", "all", "id"),
}
"""Names of sympy with two letters, or two different ones, that are no product."""
_read_in_full = parser.parse_latex_cached.__wrapped__


def math_verify_equal(prediction: str, gold: str) -> tuple[bool, str]:
    """Whether math-verify finds the two equal, and why it could not tell if so.

    Both are parsed with the library's defaults, as whole texts: boxes and dollars
    first, then bare numbers. A gold answer that does not parse equals nothing.
    https://github.com/huggingface/Math-Verify
    """
    if max(map(depth, (prediction, gold))) > MAX_DEPTH:
        return False, f"brackets nest more than {MAX_DEPTH} deep"
    expected = list(_parsed(gold))
    if not expected:
        return False, "gold does not parse"
    found = list(_parsed(prediction))
    if "%" not in prediction + gold and are_other_numbers(expected, found):
        return False, ""
    return bool(verify(expected, found, timeout_seconds=None)), ""


@functools.lru_cache(maxsize=REMEMBERED)
def _parsed(text: str) -> tuple:
    return tuple(parse(text, parsing_timeout=None))


def are_other_numbers(expected: list, found: list) -> bool:
    """All readings are numbers, and each pair is a thousandth apart or more.

    math-verify would find the same, by simplifying first, which takes most of its time.
    A percent sign makes two numbers of one, so such texts are not for here.
    """
    readings = [r for r in (*expected, *found) if not isinstance(r, str)]
    if not all(isinstance(r, sympy.Expr) and r.is_number for r in readings):
        return False
    for a in expected:
        for b in found:
            if isinstance(a, str) or isinstance(b, str):
                if a == b:
                    return False
                continue
            x, y = complex(a), complex(b)
            if not abs(x - y) > 1e-3 * max(1, abs(x), abs(y)):
                return False
    return True


def difference_is_zero(prediction: str, gold: str) -> tuple[bool, str]:
    """Whether sympy simplifies gold - prediction to 0, both read by `read_formula`."""
    if max(map(depth, (prediction, gold))) > MAX_DEPTH:
        return False, f"brackets nest more than {MAX_DEPTH} deep"
    terms = [read_formula(text) for text in (gold, prediction)]
    if None in terms:
        return False, ""
    return bool(sympy.simplify(terms[0] - terms[1]) == 0), ""


def read_formula(text: str) -> sympy.Expr | None:
    """The whole text as a formula, or None: no part of it is read for all of it.

    Numbers, letters, + - * / ^ **, a factorial's !, round brackets, sqrt(), ln() and
    pi, as sympy's parser reads them when it may leave out signs of multiplication, and
    without its evaluation of the text: 2xy is 2 x y, x2 is 2 x, 1/2x is x/2, and x_1
    one letter.
    """
    tokens = _tokens(text)
    if tokens is None:
        return None
    tokens.reverse()  # the next one is the last: it is popped
    try:
        found = _sum(tokens)
    except (IndexError, KeyError):  # an end, or a sign, where a term should begin
        return None
    return None if tokens else found


def _tokens(text: str) -> list[str | sympy.Expr] | None:
    """Signs and functions as texts, numbers and letters as sympy has them."""
    tokens, place = [], 0
    for found in _TOKEN.finditer(text):
        if found.start() != place:
            return None
        place = found.end()
        decimal, integer, name, sign = found.groups()
        if integer:
            tokens.append(sympy.Integer(integer))
        elif decimal:
            tokens.append(sympy.Float(decimal))
        elif sign:
            tokens.append("^" if sign == "**" else sign)
        elif name in _FUNCTIONS:
            tokens.append(name)
        elif name == "pi":
            tokens.append(sympy.pi)
        elif not name.isidentifier() or name in _MEANS_MORE:
            return None
        elif "_" in name or name in _GREEK:
            tokens.append(sympy.Symbol(name))
        else:
            tokens += [
                sympy.Integer(part) if part[0].isdigit() else sympy.Symbol(part)
                for part in re.findall("[0-9]+|.", name)
            ]
    return tokens if place == len(text) else None


def _sum(tokens: list[str | sympy.Expr]) -> sympy.Expr:
    total = _product(tokens)
    while tokens and tokens[-1] in ("+", "-"):
        sign = tokens.pop()
        term = _product(tokens)
        total = total + term if sign == "+" else total - term
    return total


def _product(tokens: list[str | sympy.Expr]) -> sympy.Expr:
    """Factors with * or / between them, or nothing."""
    product = _power(tokens)
    while tokens and tokens[-1] not in ("+", "-", ")", "^", "!"):
        sign = tokens.pop() if tokens[-1] in ("*", "/") else "*"
        factor = _power(tokens)
        product = product * factor if sign == "*" else product / factor
    return product


def _power(tokens: list[str | sympy.Expr]) -> sympy.Expr:
    """[+-]* atom [!] [^ power]: a sign before it is weaker, one after ^ stronger."""
    minus = False
    while tokens[-1] in ("+", "-"):
        minus ^= tokens.pop() == "-"
    power = _atom(tokens)
    if tokens and tokens[-1] == "!":
        tokens.pop()
        power = sympy.factorial(power)
    if tokens and tokens[-1] == "^":
        tokens.pop()
        power = power ** _power(tokens)
    return -power if minus else power


def _atom(tokens: list[str | sympy.Expr]) -> sympy.Expr:
    token = tokens.pop()
    if not isinstance(token, str):
        return token
    function = _FUNCTIONS[token if token != "(" else ""]
    if token != "(" and tokens.pop() != "(":
        raise KeyError(token)
    inside = _sum(tokens)
    if tokens.pop() != ")":
        raise KeyError(token)
    return function(inside)


def depth(text: str) -> int:
    """How deep brackets nest at most."""
    deepest = here = 0
    for character in text:
        if character in "([{":
            here += 1
            deepest = max(deepest, here)
        elif character in ")]}":
            here = max(here - 1, 0)
    return deepest


def hasten() -> None:
    """Lets math-verify read LaTeX in a third of the time, with the same results.

    The version is pinned; a test compares what is read with and without this.
    """
    parser.parse_latex_cached = read_latex


def read_latex(latex: str) -> sympy.Basic:
    """What `math_verify.parser.parse_latex_cached` reads, or its exception."""
    found = _read_once(latex)
    if isinstance(found, Exception):
        raise found
    return found


@functools.lru_cache(maxsize=REMEMBERED)
def _read_once(latex: str) -> sympy.Basic | Exception:
    """Plain numbers at sight; else a quick parse, and the full one where that fails."""
    number = plain_number(latex)
    if number is not None:
        return number
    try:
        is_real = not parser.should_treat_as_complex(latex)
        return _Quick(is_real=is_real, convert_degrees=False).parse(latex)
    except Exception:
        pass  # only the full parser can say that this is no formula
    try:
        return _read_in_full(latex)
    except Exception as error:
        return error.with_traceback(None)


class _Quick(_Latex2Sympy):
    """latex2sympy with ANTLR's SLL prediction, and numbers that are read at sight.

    Where SLL finds a tree it is the one that full prediction finds, else it reports an
    error: https://www.antlr.org/api/Java/org/antlr/v4/runtime/atn/PredictionMode.html
    """

    def create_parser(self, latex_str: str) -> object:
        """The same parser in the quicker mode."""
        made = super().create_parser(latex_str)
        full = made._interp.predictionMode
        made._interp.predictionMode = type(full).SLL
        return made

    def parse_number(self, text: str) -> sympy.Number:
        """Without sympy's evaluation of the digits as a Python expression."""
        is_number = re.fullmatch(r"[0-9]{1,30}|[0-9]{0,30}\.[0-9]{1,30}", text)
        return plain_number(text) if is_number else super().parse_number(text)


def plain_number(latex: str) -> sympy.Number | None:
    """An integer, decimal or quotient of integers as latex2sympy reads it, or None."""
    found = _PLAIN.fullmatch(latex)
    if not found:
        return None
    minus, integer, decimal, *quotients = found.groups()
    if integer:
        number = sympy.Integer(integer)
    elif decimal:
        number = sympy.Float(decimal)
    else:
        above, below = (int(part) for part in quotients if part)
        if not below:
            return None
        number = sympy.Rational(above, below)
    return -number if minus else number


OPERATIONS = {"math_verify": math_verify_equal, "difference": difference_is_zero}


def main() -> None:
    """Answers lines of standard input until it ends."""
    limit, memory = float(sys.argv[1]), int(sys.argv[2])
    resource.setrlimit(
        resource.RLIMIT_AS, (memory, resource.getrlimit(resource.RLIMIT_AS)[1])
    )
    # math-verify warns that its own time-outs, alarm handlers in Python, are off.
    logging.disable(logging.WARNING)
    hasten()
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a parser prints is not a reply
    print("ready", file=replies, flush=True)
    for line in sys.stdin:
        operation, prediction, gold = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, limit)
        try:
            reply = OPERATIONS[operation](prediction, gold)
        except Exception as error:
            reply = (False, f"{type(error).__name__}: {error}"[:200])
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main()
