"""The answer inside a response."""

import re

_BOX = re.compile(r"\\boxed(?![A-Za-z])\s*")
_TAG = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL)
_TAG_ON_ONE_LINE = re.compile(r"<answer>(.*?)</answer>")


def last_boxed(text: str) -> str | None:
    r"""What the last `\boxed{...}` holds; braces balance, `\{` and `\}` do not count.

    None where there is no box, or where the last one has no brace or is not closed:
    an earlier, complete box does not stand in for it.
    """
    boxes = list(_BOX.finditer(text))
    if not boxes:
        return None
    start = boxes[-1].end()
    if text[start : start + 1] != "{":
        return None
    depth = 0
    place = start
    while place < len(text):
        if text[place] == "\\":
            place += 1  # the next character is escaped
        elif text[place] == "{":
            depth += 1
        elif text[place] == "}":
            depth -= 1
            if depth == 0:
                return text[start + 1 : place].strip()
        place += 1
    return None


def answer_tag(text: str) -> str | None:
    """What the last `<answer>...</answer>` holds; it may span lines."""
    found = _TAG.findall(text)
    return found[-1].strip() if found else None


def first_answer_line(text: str) -> str | None:
    """What the first `<answer>...</answer>` on one line holds.

    The rule of R1-V, https://github.com/Deep-Agent/R1-V, and of EasyR1's `r1v`
    reward, https://github.com/hiyouga/EasyR1. Both compare the whole response where
    this finds nothing.
    """
    found = _TAG_ON_ONE_LINE.search(text)
    return found.group(1).strip() if found else None


def final_answer(text: str) -> str | None:
    """The last box; without one, the last answer tag; without either, None."""
    box = last_boxed(text)
    return answer_tag(text) if box is None else box
