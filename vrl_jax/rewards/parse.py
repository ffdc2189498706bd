"""The answer inside a response: boxes of LaTeX, tags, JSON, tool calls.

Everything here takes time linear in the text and gives None, or nothing, for what it
cannot read: no response makes it raise. Nothing is ever evaluated.
"""

import json
import re
from typing import Any

import json_repair

_BOX = re.compile(r"\\boxed(?![A-Za-z])\s*")
_FENCE = re.compile(r"```[A-Za-z0-9]*[ \t]*\n?")
_SAID = re.compile(r"\banswer[*_]{0,2}\s{0,3}(?:is\b|:)[\s:*_]{0,9}", re.IGNORECASE)
_LAST_LINE = re.compile(r"answer\s*:\s*([^\n]+)", re.IGNORECASE)
# Of "A cat" and "I see", A and I are words; "U.S." has no letters that stand alone.
_LETTER = re.compile(r"(?<![\w.'’\\])(?![AI]\s+[a-z])[A-Z](?![\w'’]|\.[A-Za-z])")
_NUMBER = re.compile(
    r"(?<![\w./-])-?[0-9][0-9,]{0,30}(?:\.[0-9]{1,30})?%?(?![\w/]|\.[0-9])"
)
_QUOTES = str.maketrans({"\u201c": '"', "\u201d": '"', "\u2018": "'", "\u2019": "'"})

MAX_REPAIRED = 20_000
"""Characters; longer JSON must be whole, since repair is not linear in the length."""


def last_boxed(text: str) -> str | None:
    r"""What the last `\boxed{...}` holds; braces balance, `\{` and `\}` do not count.

    None where there is no box, or where the last one has no brace or is not closed:
    an earlier, complete box does not stand in for it.
    """
    boxes = list(_BOX.finditer(text))
    return _braced(text, boxes[-1].end()) if boxes else None


def first_boxed(text: str) -> str | None:
    r"""What the first `\boxed{...}` holds: ViCrit, https://arxiv.org/abs/2506.10128.

    Read as `last_boxed` reads the last.
    """
    box = _BOX.search(text)
    return _braced(text, box.end()) if box else None


def _braced(text: str, start: int) -> str | None:
    """What the braces that open at `start` hold; None where none do, or for ever."""
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


def boxed_or_none_text(text: str) -> str:
    r"""What the last `\boxed{` holds, or the four letters "None": mathruler's rule.

    A trap: a sample whose answer is None then pays for every response without a box.
    Escaped braces count as braces, and `\boxed 3` is passed over.
    https://github.com/hiyouga/MathRuler
    """
    start = text.rfind(r"\boxed{") + len(r"\boxed{")
    if start < len(r"\boxed{"):
        return "None"
    depth = 1
    for place in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if not depth:
            return text[start:place].strip()
    return "None"


def last_tag(text: str, name: str) -> str | None:
    """What the last closed `<name>...</name>` holds; it may span lines.

    It starts at the last opening tag before its closing tag: a torn one does not count,
    as it does in `last_pair`.
    """
    opening, closing = f"<{name}>", f"</{name}>"
    end = text.rfind(closing)
    while end >= 0:
        start = text.rfind(opening, 0, end)
        if start < 0:
            return None
        inside = text[start + len(opening) : end]
        if closing not in inside:
            return inside.strip()
        end = start + len(opening) + inside.index(closing)
    return None


def last_pair(text: str, name: str) -> str | None:
    """The last of the pairs `<name>...</name>` that are found from the left.

    After a torn opening tag it holds everything from there: VLM-R1's accuracy rewards,
    `re.findall`, https://github.com/om-ai-lab/VLM-R1.
    """
    opening, closing = f"<{name}>", f"</{name}>"
    inside, start = None, text.find(opening)
    while start >= 0:
        end = text.find(closing, start + len(opening))
        if end < 0:
            break
        inside = text[start + len(opening) : end].strip()
        start = text.find(opening, end)
    return inside


def first_tag(text: str, name: str) -> str | None:
    """From the first `<name>` to the next `</name>`; it may span lines."""
    opening, closing = f"<{name}>", f"</{name}>"
    start = text.find(opening)
    end = text.find(closing, start + len(opening))
    return None if start < 0 or end < 0 else text[start + len(opening) : end].strip()


def answer_tag(text: str) -> str | None:
    """What the last `<answer>...</answer>` holds; it may span lines."""
    return last_tag(text, "answer")


def answer_or_rest(text: str) -> str:
    """From the first `<answer>` to `</answer>`, or to the end where that is missing.

    A repeated `<answer>` is dropped; without one, nothing.
    """
    inside = text.partition("<answer>")[2].partition("</answer>")[0]
    return inside.replace("<answer>", "").strip()


def last_answer_line(text: str) -> str | None:
    """What the last `<answer>...</answer>` on one line holds."""
    found = (last_tag(line, "answer") for line in reversed(text.split("\n")))
    return next((answer for answer in found if answer is not None), None)


def first_answer_line(text: str) -> str | None:
    """What the first `<answer>...</answer>` on one line holds.

    The rule of R1-V, https://github.com/Deep-Agent/R1-V, and of EasyR1's `r1v`
    reward, https://github.com/hiyouga/EasyR1. Both compare the whole response where
    this finds nothing.
    """
    found = (first_tag(line, "answer") for line in text.split("\n"))
    return next((answer for answer in found if answer is not None), None)


def final_answer_line(text: str) -> str | None:
    """What follows the last "Answer:" of the last 300 characters, to the line's end.

    In any case of letters, with blanks around the colon or the answer on a line of its
    own. Of two on one line the first counts. The rule of DAPO's mathematics,
    https://github.com/volcengine/verl; `dapo_answer` compares and pays it.
    """
    found = _LAST_LINE.findall(text[-300:])
    return found[-1].strip() if found else None


def without_thinking(text: str) -> str:
    """What stands outside of `<think>...</think>`.

    Thinking that never ends leaves what came before it; a `</think>` without its
    opening tag ends thinking that the prompt began.
    """
    first, *rest = text.split("<think>")
    return first.rpartition("</think>")[2] + "".join(
        piece.rpartition("</think>")[2] if "</think>" in piece else "" for piece in rest
    )


def box_or_tag(text: str) -> str | None:
    """The last box; without one, the last answer tag; without either, None."""
    box = last_boxed(text)
    return answer_tag(text) if box is None else box


def said_answer(text: str) -> str | None:
    """What follows the last "answer is" or "Answer:", to the line's end.

    Stars around it and one final dot are dropped.
    """
    places = [found.end() for found in _SAID.finditer(text)]
    if not places:
        return None
    line = text[places[-1] :].partition("\n")[0].strip(" \t\r*")
    return line.removesuffix(".").rstrip(" *") or None


def final_answer(text: str) -> str | None:
    """What the response names as its answer, thinking left out; None if it names none.

    `box_or_tag` or, without either, `said_answer`. Nothing is guessed.
    """
    said = without_thinking(text)
    named = box_or_tag(said)
    return said_answer(said) if named is None else named


def last_letter(text: str) -> str | None:
    """The last capital that stands alone, thinking left out; a guess at a choice.

    A and I before a small letter are words.
    """
    found = _LETTER.findall(without_thinking(text))
    return found[-1] if found else None


def last_number(text: str) -> str | None:
    """The last number, thinking left out; a guess at an amount.

    Digits within a word, a date, a range or a quotient are none.
    """
    found = _NUMBER.findall(without_thinking(text))
    return found[-1].rstrip(",") if found else None


def paragraphs(text: str) -> list[str]:
    """What blank lines part, without the blanks around it: the steps of a solution.

    VL-PRM, https://arxiv.org/abs/2509.23250.
    """
    return [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]


def json_text(text: str) -> str:
    """Where JSON is to be expected: the last fenced block, or all of the text.

    The last fence may be left open, as in a response that was cut. VLM-R1,
    https://github.com/om-ai-lab/VLM-R1. Fences inside the strings of a text that is
    JSON as it stands are none.
    """
    pieces = _FENCE.split(text)
    if len(pieces) < 2 or isinstance(_strict_json(text), dict | list):
        return text.strip()
    # text, block, text, block, ...: blocks have odd places.
    last = len(pieces) - 1 if len(pieces) % 2 == 0 else len(pieces) - 2
    return pieces[last].strip()


def read_json(text: str) -> Any | None:
    """JSON as it stands, then with curly quotes and doubled brackets straightened,
    then repaired by json_repair (single quotes, trailing commas, a cut end).

    None for what is no object or list. Never `eval`: GUI-R1 runs sampled text.
    """
    straight = text.translate(_QUOTES)
    for attempt in (text, straight):
        try:
            found = json.loads(attempt)
        except (ValueError, RecursionError):
            continue
        return found if isinstance(found, dict | list) else None
    if len(text) > MAX_REPAIRED or _depth(straight) > 100:
        return None
    try:
        found = json_repair.loads(straight, skip_json_loads=True)
    except (ValueError, RecursionError, IndexError, TypeError, AttributeError):
        return None  # json_repair has bugs of its own on torn input
    return found if isinstance(found, dict | list) and found else None


def json_in(text: str) -> Any | None:
    """The JSON of the last answer tag, or of the whole text where there is none."""
    tagged = answer_tag(text)
    return read_json(json_text(text if tagged is None else tagged))


def tool_calls(text: str) -> list[dict[str, Any]]:
    """The calls {"name": ..., "arguments": {...}} in `<tool_call>` tags, in order.

    What is not JSON, has no name, or has arguments that are no object is skipped; a
    text of JSON stands for its arguments. The format of Qwen's chat template and of
    verl's "hermes" parser, https://github.com/volcengine/verl.
    """
    calls = []
    for piece in text.split("<tool_call>")[1:]:
        body, closed, _ = piece.partition("</tool_call>")
        call = _strict_json(body) if closed else None
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            continue
        arguments = call.get("arguments", {})
        if isinstance(arguments, str):
            arguments = _strict_json(arguments)
        if isinstance(arguments, dict):
            calls.append({"name": call["name"], "arguments": arguments})
    return calls


def _strict_json(text: str) -> Any | None:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _depth(text: str) -> int:
    """How deep brackets nest at most, quotes ignored: a bound for recursive code."""
    depth = deepest = 0
    for character in text:
        if character in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]}":
            depth = max(depth - 1, 0)
    return deepest
