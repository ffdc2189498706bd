"""One process that compares answers: a question in JSON in, a verdict out.

Started as a script by `math_verifier`, and so imports nothing of this library. It
asks the kernel to end it when one comparison outlasts the limit: that also stops
code that never comes back to the interpreter, and leaves nothing running when the
parent has died.
"""

import json
import logging
import os
import resource
import signal
import sys

import sympy
from math_verify import parse, verify

MAX_DEPTH = 200
"""Brackets in brackets: the parser's time grows faster than their number."""


def math_verify_equal(prediction: str, gold: str) -> tuple[bool, str]:
    """Whether math-verify finds the two equal, and why it could not tell if so.

    Both are parsed with the library's defaults, as whole texts: boxes and dollars
    first, then bare numbers. A gold answer that does not parse equals nothing.
    https://github.com/huggingface/Math-Verify
    """
    if max(map(depth, (prediction, gold))) > MAX_DEPTH:
        return False, f"brackets nest more than {MAX_DEPTH} deep"
    expected = parse(gold, parsing_timeout=None)
    if not expected:
        return False, "gold does not parse"
    found = parse(prediction, parsing_timeout=None)
    if "%" not in prediction + gold and are_other_numbers(expected, found):
        return False, ""
    return bool(verify(expected, found, timeout_seconds=None)), ""


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
    """Whether sympy simplifies prediction - gold to 0, decimals as fractions."""
    if max(map(depth, (prediction, gold))) > MAX_DEPTH:
        return False, f"brackets nest more than {MAX_DEPTH} deep"
    terms = [_expression(text) for text in (prediction, gold)]
    if None in terms:
        return False, ""
    exact = [sympy.nsimplify(term, rational=True) for term in terms]
    return bool(sympy.simplify(exact[0] - exact[1]) == 0), ""


def _expression(text: str) -> sympy.Expr | None:
    """The text's first reading, if that is an expression."""
    latex = text.replace("sqrt(", r"\sqrt(").replace("pi", r"\pi ")
    found = parse(f"${latex}$", parsing_timeout=None)
    return found[0] if found and isinstance(found[0], sympy.Expr) else None


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


OPERATIONS = {"math_verify": math_verify_equal, "difference": difference_is_zero}


def main() -> None:
    """Answers lines of standard input until it ends."""
    limit, memory = float(sys.argv[1]), int(sys.argv[2])
    resource.setrlimit(
        resource.RLIMIT_AS, (memory, resource.getrlimit(resource.RLIMIT_AS)[1])
    )
    # math-verify warns that its own time-outs, alarm handlers in Python, are off.
    logging.disable(logging.WARNING)
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
