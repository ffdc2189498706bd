"""Think, call a tool, look again: one conversation until the policy calls no more.

Masks as in the sheet of tool agents: the policy's tokens of every turn are trained,
with its stop token; what tools say is read and never trained. An observation for which
there is no room is not given, so that a row ends with the policy's own token.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from vrl_jax.engine import tools
from vrl_jax.engine.conversation import Ask, user
from vrl_jax.engine.desk import OutOfRoom
from vrl_jax.engine.episode import Outcome, Steps
from vrl_jax.engine.processing import question
from vrl_jax.engine.tools import PICTURE_TOOLS, Call, Tool, ToolError
from vrl_jax.types import Sample, Turn, literal


class Syntax(NamedTuple):
    """How calls are written, and how the model is told what came of one.

    `calls` reads a turn: what cannot be read is a `ToolError` in its place, and a turn
    without any is the answer. `told` is given a call and what it gave, in which
    `<image>` stands for a picture. A turn also ends at one of the `stops`.
    """

    calls: Callable[[str], list[Call | ToolError]]
    told: Callable[[Call | ToolError, str], str]
    stops: tuple[str, ...] = ()


def in_response_tags(call: Call | ToolError, text: str) -> str:
    """As Qwen's chat template writes it."""
    return tools.response_text(text)


TAGS = Syntax(tools.calls, in_response_tags, (tools.CALL_END,))
"""`<tool_call>{"name": ..., "arguments": {...}}</tool_call>`; no call is the answer."""


def tool_turns(
    sample: Sample,
    *,
    available: Mapping[str, Tool] = PICTURE_TOOLS,
    turns: int = 5,
    images: int = 8,
    calls_a_turn: int = 1,
    characters: int = 1024,
    seconds: float = 10.0,
    syntax: Syntax = TAGS,
) -> Steps:
    """Up to `turns` answers; a turn ends where a call is closed, or with the answer.

    Of a turn, the first `calls_a_turn` calls are run. At most `images` pictures come
    back, and of a text its first `characters`. A call that is wrong in any way is
    answered with what is wrong, counted under its kind, and the episode goes on. The
    fact `images` counts pictures that the policy wrote something after.

    Of several processes each plays every episode and runs every tool. What a tool gives
    must be the same in all of them, or they ask the mesh for different work and the run
    ends: no tool may depend on the machine, and `seconds` must be far above what the
    slowest takes.
    """
    context, shown = question(sample), list(sample.images)
    said: list[Turn] = []
    counts = {"calls": 0, "calls/valid": 0, "images": 0}
    made = 0
    for _ in range(turns):
        try:
            said.append((yield Ask(context, stops=syntax.stops)))
        except OutOfRoom:
            counts["ended/observation did not fit"] = 1
            break
        counts["images"] = made
        asked = syntax.calls(said[-1].text)[:calls_a_turn]
        if not asked:
            break
        texts, pictures = [], []
        for call in asked:
            seen = tools.run(call, available, shown, seconds=seconds)
            if made + len(seen.images) > images:
                text = f"Error: no more than {images} pictures can be shown."
                seen = tools.Observation(text, error="images")
            kind = f"calls/{seen.error or 'valid'}"
            counts[kind] = counts.get(kind, 0) + 1
            counts["calls"] += 1
            made += len(seen.images)
            text = seen.text if seen.images else literal(seen.text)[:characters]
            texts.append(syntax.told(call, text))
            pictures += seen.images
        shown += pictures
        context = (*context, said[-1], user("\n".join(texts), pictures))
    return Outcome(said, {"turns": len(said), **counts})
