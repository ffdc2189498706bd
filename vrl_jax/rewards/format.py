"""Does a response keep to the layout that was asked for?"""

import re

from vrl_jax.rewards.parse import last_boxed

_THINK_ANSWER = re.compile(r"<think>.*?</think>\s*<answer>.*?</answer>", re.DOTALL)
_THINK_BOX = re.compile(r"<think>.*</think>.*\\boxed\{.*\}.*", re.DOTALL)
_BLANKS_AT_BRACKETS = re.compile(r"\s*(<|>|/)\s*")
_TAGS = ("<think>\n", "\n</think>\n", "\n<answer>\n", "\n</answer>")


def think_then_answer(text: str) -> bool:
    """The whole text is a think block, blanks, an answer block.

    Not even a newline may follow. R1-V, https://github.com/Deep-Agent/R1-V, and
    EasyR1's `r1v` reward, https://github.com/hiyouga/EasyR1.
    """
    return _THINK_ANSWER.fullmatch(text) is not None


def think_then_boxed(text: str) -> bool:
    """The text begins with a think block and a box follows it.

    Blanks around `<`, `>` and `/` are ignored. EasyR1's `math` reward,
    https://github.com/hiyouga/EasyR1.
    """
    return _THINK_BOX.fullmatch(_BLANKS_AT_BRACKETS.sub(r"\1", text)) is not None


def has_box(text: str) -> bool:
    """The last box of the text is complete."""
    return last_boxed(text) is not None


def tag_share(text: str) -> float:
    """0.25 for each of the four think and answer tags that occurs exactly once.

    Tags count with their newlines, as in the code of V-Triune; its report has bare
    tags. https://github.com/MiniMax-AI/One-RL-to-See-Them-All
    """
    return sum(0.25 for tag in _TAGS if text.count(tag) == 1)
