r"""The reward of DAPO's mathematics: an "Answer:" line, compared as normalised text.

The normaliser is that of Minerva's appendix, https://arxiv.org/abs/2206.14858, as verl
has it for DAPO, https://github.com/volcengine/verl (`math_dapo.py`), and EasyR1,
https://github.com/hiyouga/EasyR1 (`dapo.py`). Nothing is computed: 1/2 is not 0.5, and
$\frac12$ is \frac{1}{2}.
"""

import re
from collections.abc import Sequence

from vrl_jax.rewards.parse import final_answer_line
from vrl_jax.types import Episode

MAX_LENGTH = 1000
"""Characters; a longer answer is taken as it stands, blanks around it aside."""

_REPLACED = (
    ("an ", ""),
    ("a ", ""),
    (".$", "$"),
    (r"\$", ""),
    (r"\ ", ""),
    (" ", ""),
    ("mbox", "text"),
    (r",\text{and}", ","),
    (r"\text{and}", ","),
    (r"\text{m}", r"\text{}"),
)
_DROPPED = (
    *("square", "ways", "integers", "dollars", "mph", "inches", "hours", "km", "units"),
    *(r"\ldots", "sue", "points", "feet", "minutes", "digits", "cents", "degrees"),
    *("cm", "gm", "pounds", "meters", "meals", "edges", "students", "childrentickets"),
    *("multiples", r"\text{s}", r"\text{.}", "\\text{\ns}", r"\text{}^2"),
    *(r"\text{}^3", "\\text{\n}", r"\text{}", r"\mathrm{th}", r"^\circ"),
    *(r"^{\circ}", r"\;", r",\!", "{,}", '"', r"\dots"),
)


def dapo_style(episodes: Sequence[Episode]) -> list[dict[str, float]]:
    """1 where the last "Answer:" line is the answer, -1 where it is not or is missing.

    The part `accuracy` is 1 or 0. Add `length.soft_overlong` for all of DAPO's reward.
    """
    right = [answers_dapo(e.text, e.sample.answer) for e in episodes]
    return [{"overall": 2.0 * one - 1.0, "accuracy": float(one)} for one in right]


def answers_dapo(text: str, gold: str) -> bool:
    """Whether `parse.final_answer_line` and gold are one text, normalised."""
    found = final_answer_line(text)
    return found is not None and normalized(found) == normalized(gold)


def normalized(answer: str) -> str:
    r"""What follows the last =, without blanks, articles, units and `\text{...}`.

    Of two dollars on a line only what they hold is left; \frac and \sqrt get braces,
    and digits lose their commas.
    """
    if len(answer) > MAX_LENGTH:
        return answer.strip()
    plain = answer.split("=")[-1]
    for old, new in _REPLACED:
        plain = plain.replace(old, new)
    for words in _DROPPED:
        plain = plain.replace(words, "")
    plain = re.sub(r".*?\$(.*?)\$.*", r"$\1$", plain)
    for macro in ("text", "textbf", "overline"):
        plain = re.sub(rf"\\{macro}\{{(.*?)\}}", r"\1", plain)
    plain = re.sub(r"\\boxed\{(.*)\}", r"\1", plain)
    plain = re.sub("frac([^{])(.)", r"frac{\1}{\2}", plain)
    plain = re.sub("sqrt([^{])", r"sqrt{\1}", plain).replace("$", "")
    digits = plain.replace(",", "")
    return digits if digits.isdigit() else plain.strip()
