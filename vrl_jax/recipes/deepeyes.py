"""DeepEyes: the policy asks for parts of the picture, and is paid if that helped.

"DeepEyes: Incentivizing 'Thinking with Images' via Reinforcement Learning", Zheng et
al., 2025, https://arxiv.org/abs/2505.14362; code
https://github.com/Visual-Agent/DeepEyes, which trains with verl.

    act     y_1..y_G ~ pi_old, up to five turns: a thought and the call of a tool, the
            part of the picture that it shows, ..., the answer in its tags;
            R_i = 0.8 accuracy + 0.2 format + 1.2 [accuracy > 0.5 and a part was shown]
    score   nothing; log pi_ref(y_i), with an anchor
    credit  A_it = (R_i - mean(R)) / (std(R) + 1e-6), on what the policy wrote in all
            turns
    loss    clipped surrogate (0.2, 0.2; 3 where A < 0), mean over all tokens

There is no cold start: a released model is told of the tool by `tools_message()`, as
its system message, and by `INSTRUCTION` under the question; rows of the released data
have both already, in words of their own. A row whose column `env_name` is empty is
asked once and without tools, and is paid 1.2 accuracy + 0.4 format, with one box as the
format: the code's reward of mathematics.

The code counts the marks of pictures in all that was said, which a policy could write
itself; here counts what a tool gave. It also reads the answer from there, and so from
the words that come with a picture where the last turn has no tags. All words are ours.
Boxes are in pixels of the picture as it came, as in the code, which crops it as it came
whatever the model was shown; `zoom_tools` are those for other units.
"""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from PIL import Image

from vrl_jax import advantages, objectives, reductions
from vrl_jax.engine.conversation import Ask
from vrl_jax.engine.desk import Limits
from vrl_jax.engine.episode import Outcome, Steps
from vrl_jax.engine.processing import question
from vrl_jax.engine.reference import Anchor, free
from vrl_jax.engine.tools import (
    MAX_ASPECT,
    Call,
    Tool,
    ToolError,
    calls,
    number_of,
    numbers_of,
)
from vrl_jax.models.front_end import FrontEnd
from vrl_jax.programs.acting import act as play
from vrl_jax.programs.tool_turns import Syntax, in_response_tags, tool_turns
from vrl_jax.rewards.combine import Reward, as_parts
from vrl_jax.rewards.format import balanced_tags
from vrl_jax.rewards.grounding import Frame
from vrl_jax.rewards.parse import last_pair
from vrl_jax.training.clipped_recipe import clipped_recipe
from vrl_jax.training.iteration import Recipe
from vrl_jax.types import Episode, ImageSize, Sample

ZOOM, ROTATE = "image_zoom_in_tool", "image_rotate_tool"

INSTRUCTION = f"""\
Think in <think> and </think>. If a part of the picture must be seen closer, call \
{ZOOM} in <tool_call> and </tool_call>; if not, answer in <answer> and </answer>."""

NEXT = """\
Think again, then call the tool once more, or answer in <answer> and </answer>."""

NARROW = 30
"""Pixels: both sides of a part are longer."""
LONG_ANSWER = 1000
"""Characters with which an answer no longer counts, so that no judge is talked over."""


def tools_message(units: str = "pixels") -> str:
    """The system message that tells of the zoom, as Qwen's templates tell of tools.

    `units` are those of its boxes.
    """
    box = {
        "type": "array",
        "items": {"type": "number"},
        "minItems": 4,
        "maxItems": 4,
        "description": f"left, top, right and bottom of the part, in {units}",
    }
    label = {"type": "string", "description": "what is to be seen there"}
    function = {
        "name": ZOOM,
        "description": "Shows a part of the picture by itself, and so closer.",
        "parameters": {
            "type": "object",
            "properties": {"bbox_2d": box, "label": label},
            "required": ["bbox_2d"],
        },
    }
    return f"""\
You are a helpful assistant.

# Tools

You may call a function to help with the question. It is described in <tools></tools>:
<tools>
{json.dumps({"type": "function", "function": function})}
</tools>

A call is a JSON object with name and arguments in <tool_call></tool_call>:
<tool_call>
{{"name": "{ZOOM}", "arguments": {{"bbox_2d": [x1, y1, x2, y2], "label": "..."}}}}
</tool_call>"""


def as_it_came(picture: Image.Image) -> tuple[float, float]:
    """Width and height of the picture in pixels."""
    return picture.size


def zoom_in(
    pictures: Sequence[Image.Image],
    *,
    bbox_2d: Any,
    label: Any = None,
    seen: Callable[[Image.Image], tuple[float, float]] = as_it_came,
) -> Image.Image:
    """A part of the first picture, at its own resolution.

    The box is cut off at the edges, and rounded to whole pixels. Both sides must be
    longer than 30 pixels, and neither more than 100 times as long as the other.
    `seen` gives width and height in the units of the box: 1000 and 1000, say.
    """
    del label  # what the policy looks for helps it alone
    picture = pictures[0]
    given = numbers_of(bbox_2d, 4, "bbox_2d")
    wide, high = seen(picture)
    across, down = picture.width / wide, picture.height / high
    left, top, right, bottom = (
        x * scale for x, scale in zip(given, (across, down) * 2, strict=True)
    )
    left, top = max(0.0, left), max(0.0, top)
    right, bottom = min(picture.width, right), min(picture.height, bottom)
    sides = sorted((right - left, bottom - top))
    if sides[0] <= NARROW or sides[1] > MAX_ASPECT * sides[0]:
        raise ToolError(
            f"the part {bbox_2d} of the picture of {wide:g} x {high:g} must have sides "
            f"of more than {NARROW} pixels of the file, {picture.width} x "
            f"{picture.height}, and at most {MAX_ASPECT} times as long as wide."
        )
    return picture.crop((round(left), round(top), round(right), round(bottom)))


def rotate(pictures: Sequence[Image.Image], *, angle: Any) -> Image.Image:
    """The first picture turned by degrees against the clock, within its own frame."""
    return pictures[0].rotate(number_of(angle, -360, 360, "angle"))


ZOOM_TOOLS: Mapping[str, Tool] = {ZOOM: zoom_in, ROTATE: rotate}
"""Both that the code has; it tells its models of the first alone."""


def zoom_tools(front_end: FrontEnd, frame: Frame) -> Mapping[str, Tool]:
    """The same for boxes in the units that a model counts in.

    A frame of `rewards.grounding`: `resized` are pixels of what it is shown, as
    Qwen2.5-VL counts, `thousandths` are Qwen2-VL's and Qwen3-VL's.
    """
    seen = functools.partial(_seen, front_end, frame)
    return {**ZOOM_TOOLS, ZOOM: functools.partial(zoom_in, seen=seen)}


def _seen(
    front_end: FrontEnd, frame: Frame, picture: Image.Image
) -> tuple[float, float]:
    width, height = _resized(front_end, picture.size)
    return frame(ImageSize(picture.height, picture.width, height, width))


@functools.lru_cache(maxsize=64)
def _resized(front_end: FrontEnd, size: tuple[int, int]) -> tuple[int, int]:
    return front_end.resize(Image.new("RGB", size)).size


def last_call(text: str) -> list[Call | ToolError]:
    """The last call of a turn; none where there is an answer too."""
    return [] if last_pair(text, "answer") else calls(text)[-1:]


def shown_closer(call: Call | ToolError, text: str) -> str:
    """What came of a call, and what may follow."""
    return f"{in_response_tags(call, text)}\n{NEXT}"


CALLS = Syntax(last_call, shown_closer)
"""For `programs.tool_turns`: Qwen's calls, and answers in tags."""


def has_tools(sample: Sample) -> bool:
    """Not where the row has an `env_name` that names none: released rows mix both."""
    return bool(sample.annotations.get("env_name", ZOOM))


def look_closer(
    sample: Sample, *, available: Mapping[str, Tool] = ZOOM_TOOLS, turns: int = 5
) -> Steps:
    """Up to `turns` turns with one call each; a single answer where there is no tool.

    The facts of `programs.tool_turns`, with `images` for the parts that were shown.
    """
    if has_tools(sample):
        told = {"available": available, "turns": turns, "images": turns}
        return (yield from tool_turns(sample, syntax=CALLS, **told))
    answer = yield Ask(question(sample))
    return Outcome((answer,), {"turns": 1, "calls": 0, "calls/valid": 0, "images": 0})


def in_tags(text: str) -> bool:
    """Thoughts and answer are closed as often as opened; the answer is no essay."""
    after = text.rpartition("</think>")[2]
    closed = balanced_tags(text, ["think"]) and balanced_tags(after, ["answer"])
    return closed and is_short(text)


def is_short(text: str) -> bool:
    """What stands in the last answer tags, or all of it without any, is no essay."""
    answer = text.rpartition("<answer>")[2].partition("</answer>")[0]
    return len(answer.strip()) < LONG_ANSWER


def in_one_box(text: str) -> bool:
    """Thoughts are closed as often as opened, and one box follows the last."""
    return balanced_tags(text, ["think"]) and _boxes(text) == 1


def _boxes(text: str) -> int:
    return text.rpartition("</think>")[2].count(r"\boxed{")


def deepeyes_reward(accuracy: Reward) -> Reward:
    """0.8 accuracy + 0.2 format + 1.2 tool; of rows without tools 1.2 and 0.4, 0.

    `accuracy`, a verifier or, as in the paper, a judge, says 0 to 1; an essay, and an
    answer without its box in a row without tools, are not right. `format` is 0, or -1
    where `in_tags`, or `in_one_box`, does not hold of all that the policy wrote. `tool`
    is 1 where something was shown and the accuracy is above 0.5. Parts by these names.
    """

    def reward(episodes: Sequence[Episode]) -> list[dict[str, float]]:
        found = map(as_parts, accuracy(episodes))
        return [
            _paid(episode, scores["overall"])
            for episode, scores in zip(episodes, found, strict=True)
        ]

    return reward


def _paid(episode: Episode, accuracy: float) -> dict[str, float]:
    text = "".join(turn.text for turn in episode.turns if turn.chosen)
    with_tools = has_tools(episode.sample)
    counts, kept = (
        (is_short(text), in_tags(text))
        if with_tools
        else (_boxes(text) > 0, in_one_box(text))
    )
    accuracy = accuracy * counts
    shown = with_tools and episode.facts.get("images", 0) > 0
    parts = {
        "accuracy": accuracy,
        "format": float(kept) - 1,
        "tool": float(shown and accuracy > 0.5),
    }
    weights = (0.8, 0.2, 1.2) if with_tools else (1.2, 0.4, 0.0)
    total = sum(w * part for w, part in zip(weights, parts.values(), strict=True))
    return {"overall": total, **parts}


def deepeyes(
    *,
    group_size: int = 16,
    available: Mapping[str, Tool] = ZOOM_TOOLS,
    turns: int = 5,
    anchor: Anchor = free,
    limits: Limits | None = None,
    clip: float = 0.2,
) -> Recipe:
    """The actor's reward is `deepeyes_reward(accuracy)`.

    All turns and what is shown between them must fit `row_tokens` of the `limits`, the
    parts its `pictures`: `turns - 1` of them at most.
    """
    act = functools.partial(
        play,
        program=functools.partial(look_closer, available=available, turns=turns),
        group_size=group_size,
        limits=limits,
    )
    return clipped_recipe(
        act,
        advantage=functools.partial(advantages.group_zscore, group_size=group_size),
        surrogate=objectives.dual_clipped_surrogate,
        reduction=reductions.token_mean,
        anchor=anchor,
        clip_low=clip,
        clip_high=clip,
    )
