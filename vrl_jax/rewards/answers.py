"""Is a given answer the right one, as text?

Mathematical equality is `vrl_jax.rewards.math_verifier`.
"""

import re

# Macros and what \text{...} holds are not words: math-verify knows units and such.
_MACRO = re.compile(r"\\(text|mathrm|textbf)\s*\{[^{}]*\}|\\[A-Za-z]+")
_WORD = re.compile(r"[A-Za-z]{3}|^\s*[A-Za-z]{2}\s*$")


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
