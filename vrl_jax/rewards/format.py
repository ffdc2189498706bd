"""Does a response keep to the layout that was asked for?"""

import re
from collections.abc import Callable, Sequence

from vrl_jax.rewards.parse import answer_tag, last_boxed, read_json, tool_calls

_TURN = re.compile(r"</think>\s*<answer>")
_BRACKETS = re.compile(r"([<>/])")
_TAGS = ("<think>\n", "\n</think>\n", "\n<answer>\n", "\n</answer>")


def think_then_answer(text: str) -> bool:
    """The whole text is a think block, blanks, an answer block.

    Not even a newline may follow. R1-V, https://github.com/Deep-Agent/R1-V, and
    EasyR1's `r1v` reward, https://github.com/hiyouga/EasyR1.
    """
    opening, closing = "<think>", "</answer>"
    return (
        text.startswith(opening)
        and text.endswith(closing)
        and _TURN.search(text, len(opening), len(text) - len(closing)) is not None
    )


def think_then_boxed(text: str) -> bool:
    """The text begins with a think block and a box follows it.

    Blanks around `<`, `>` and `/` are ignored. EasyR1's `math` reward,
    https://github.com/hiyouga/EasyR1.
    """
    return _in_order(without_blanks_at_brackets(text), "</think>", r"\boxed{", "}")


def described_then_boxed(text: str) -> bool:
    """The whole text is a description block, a think block, and a box.

    Blanks around `<`, `>` and `/`, and at the ends, are ignored. Vision-SR1,
    https://arxiv.org/abs/2508.19652, as released.
    """
    plain, opening = without_blanks_at_brackets(text).strip(), "<description>"
    _, turn, rest = plain.partition("</description><think>")
    _, closing, box = rest.rpartition("</think>")
    return (
        plain.startswith(opening)
        and bool(turn and closing)
        and box.startswith(r"\boxed{")
        and box.endswith("}")
    )


def without_blanks_at_brackets(text: str) -> str:
    """The text with the blanks around `<`, `>` and `/` removed.

    EasyR1's math reward reads format and box after this.
    """
    first, *rest = _BRACKETS.split(text)
    if not rest:
        return text
    return "".join([first.rstrip(), *map(str.strip, rest[:-1]), rest[-1].lstrip()])


def _in_order(text: str, *marks: str) -> bool:
    """The text begins with <think>, and the marks follow in this order."""
    place = len("<think>")
    for mark in marks:
        place = text.find(mark, place)
        if place < 0:
            return False
        place += len(mark)
    return text.startswith("<think>")


def has_box(text: str) -> bool:
    """The last box of the text is complete."""
    return last_boxed(text) is not None


def tag_share(text: str) -> float:
    """0.25 for each of the four think and answer tags that occurs exactly once.

    Tags count with their newlines, as in the code of V-Triune; its report has bare
    tags. https://github.com/MiniMax-AI/One-RL-to-See-Them-All
    """
    return sum(0.25 for tag in _TAGS if text.count(tag) == 1)


def tag_share_bare(text: str) -> float:
    """`tag_share` of tags without their newlines: V-Triune's report."""
    return sum(0.25 for tag in _TAGS if text.count(tag.strip()) == 1)


def has_think_then_answer(text: str) -> bool:
    """A think block and then an answer block stand somewhere in the text.

    The lenient rule of VLM-R1's grounding, https://github.com/om-ai-lab/VLM-R1.
    """
    start = text.find("<think>")
    turn = _TURN.search(text, start + len("<think>")) if start >= 0 else None
    return turn is not None and "</answer>" in text[turn.end() :]


def blocks_in_order(text: str, names: Sequence[str]) -> bool:
    """The text is these blocks, each once and in this order, with blanks between.

    No mark of a block may stand inside another. DIP-R1 (think, look, answer),
    https://arxiv.org/abs/2505.23179; CogFlow has its own names.
    """
    rest = text.strip()
    for name in names:
        opening, closing = f"<{name}>", f"</{name}>"
        if text.count(opening) != 1 or text.count(closing) != 1:
            return False
        inside, closed, after = rest.removeprefix(opening).partition(closing)
        marks = [f"<{n}>" for n in names] + [f"</{n}>" for n in names]
        if not rest.startswith(opening) or not closed:
            return False
        if any(mark in inside for mark in marks):
            return False
        rest = after.lstrip()
    return not rest


def think_then_json_answer(text: str) -> bool:
    r"""Think block and answer block on lines of their own; the answer a flat object.

    `<think>\n...\n</think>\n<answer>\n{...}\n</answer>`, the braces without braces
    inside. Q-Insight, https://arxiv.org/abs/2503.22679.
    """
    body = _answer_on_lines(text, str.rpartition)
    return (
        body is not None
        and body.startswith("{")
        and body.endswith("}")
        and not set("{}") & set(body[1:-1])
    )


def think_then_any_answer(text: str) -> bool:
    r"""The same with any text as the answer: Q-Insight's comparisons.

    https://arxiv.org/abs/2503.22679.
    """
    return _answer_on_lines(text, str.rpartition) is not None


def think_then_boxed_answer(text: str) -> bool:
    r"""The same with a `\boxed{...}` in the answer: Perception-R1.

    Newlines are part of the layout. https://arxiv.org/abs/2506.07218.
    """
    body = _answer_on_lines(text, str.partition) or ""
    _, box, rest = body.partition(r"\boxed{")
    return bool(box) and "}" in rest


def _answer_on_lines(
    text: str, split: Callable[[str, str], tuple[str, str, str]]
) -> str | None:
    r"""The `...` of a text `<think>\n*\n</think>\n<answer>\n...\n</answer>`.

    `split` finds the first or the last turn from thought to answer.
    """
    head, turn, answer = split(text, "\n</think>\n<answer>\n")
    body = answer.removesuffix("\n</answer>")
    kept = turn and head.startswith("<think>\n") and body != answer
    return body if kept else None


def json_answer(text: str) -> bool:
    """The last answer tag holds JSON: an object or a list, as it is or repaired."""
    tagged = answer_tag(text)
    return tagged is not None and read_json(tagged) is not None


def well_formed_tool_calls(text: str) -> bool:
    """Every `<tool_call>` is closed and holds a call; true of none."""
    opened, closed = text.count("<tool_call>"), text.count("</tool_call>")
    return opened == closed == len(tool_calls(text))


def balanced_tags(text: str, names: Sequence[str]) -> bool:
    """Each of the tags is closed as often as it is opened.

    DeepEyes pays -1 where they are not, https://arxiv.org/abs/2505.14362.
    """
    return all(text.count(f"<{n}>") == text.count(f"</{n}>") for n in names)
