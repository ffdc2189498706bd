"""V-ToolRL: the policy draws on a chart, zooms and reads, and is paid for the answer.

"OpenThinkIMG: Learning to Think with Images via Visual Tool Reinforcement Learning",
Su et al., 2025, https://arxiv.org/abs/2505.08617; code
https://github.com/zhaochen0110/OpenThinkIMG.

    act     y_1..y_G ~ pi_old, up to six turns: a thought and one action of a tool as
            JSON, what the tool gave, ..., the action Terminate with the answer;
            R_i = accuracy of the last turn + weight * share of turns that are JSON
    score   log pi_ref(y_i), with an anchor
    credit  A_it = (R_i - mean(R)) / (std(R) + 1e-4), on what the policy wrote in all
            turns
    loss    clipped surrogate (0.2, 0.2) + weight k3(l_it, l_ref_it), mean over each
            response, then over responses

The paper trains the model's tokens of every turn, as here; the released code leaves
observations out of the sequence, shows the first picture alone, and stops its mask at
the first end of a turn. It takes one update a rollout, where ratios are 1 and no clip
binds; its anchor is its library's, near(reference, weight=0.04).

A turn ends the episode by its action's name, where the code looks for the word
"Terminate" anywhere; one without an action is told so, where the code says the question
again. A picture comes with the tool that made it, and the words around it are ours. As
in the code, of the `actions` the first is run, and tools see the newest picture,
whatever their argument `image` says. OCR, Point, segments and detectors are models: a
function of your own, `available={**DRAWING_TOOLS, "OCR": read}`. The cold start is
`programs.recital.recited` with `program=functools.partial(tool_turns, syntax=ACTIONS,
available=DRAWING_TOOLS)`. Charts to try it on: `worlds.tasks.line_at_the_bar`.
"""

import functools
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from PIL import Image, ImageDraw

from vrl_jax import advantages, objectives, reductions
from vrl_jax.engine.desk import Limits
from vrl_jax.engine.reference import Anchor, free
from vrl_jax.engine.tools import Call, Tool, ToolError, crop
from vrl_jax.programs.acting import act as play
from vrl_jax.programs.tool_turns import Syntax, tool_turns
from vrl_jax.rewards.answers import exact, is_words
from vrl_jax.rewards.combine import Reward, per_response, weighted
from vrl_jax.rewards.math_verifier import MathVerifier
from vrl_jax.rewards.parse import answer_tag
from vrl_jax.training.clipped_recipe import clipped_recipe
from vrl_jax.training.iteration import Recipe
from vrl_jax.types import Episode, literal

FORM = '{"thought": "...", "actions": [{"name": "...", "arguments": {...}}]}'

OBSERVATION = """\
OBSERVATION of {name}:
{text}
Go on, or give the answer to the question by Terminate."""

_NUMBER = r'\s*=\s*"?(\d{1,6}(?:\.\d{1,6})?)"?'
_POINTS = re.compile(rf"x{_NUMBER}\s*y{_NUMBER}")

MOST_BRACES = 64
"""Places of a text at which its JSON object is looked for."""
MOST_NAME = 64
"""Characters of a tool's name that the policy is told again."""


def spoken(text: str) -> dict[str, Any] | None:
    """The first JSON object with a thought or actions that stands in the text."""
    braces = (found.start() for found in re.finditer(r"\{", text))
    for start in itertools.islice(braces, MOST_BRACES):
        try:
            found, _ = json.JSONDecoder().raw_decode(text, start)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict) and {"thought", "actions"} & found.keys():
            return found
    return None


def first_action(text: str) -> Call | ToolError:
    """What the turn does; an error says how it would be written."""
    actions = (spoken(text) or {}).get("actions")
    action = actions[0] if isinstance(actions, list) and actions else None
    name = action.get("name") if isinstance(action, dict) else None
    arguments = action.get("arguments", {}) if isinstance(action, dict) else None
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return ToolError(f"there is no action. A turn is {FORM}.")
    return Call(name, arguments)


def actions(text: str) -> list[Call | ToolError]:
    """The first action, or none where it is Terminate."""
    action = first_action(text)
    return [] if isinstance(action, Call) and action.name == "Terminate" else [action]


def observed(call: Call | ToolError, text: str) -> str:
    """What a tool gave, under its name, which is whatever the policy called it."""
    name = (
        literal(call.name)[:MOST_NAME] if isinstance(call, Call) else "what you wrote"
    )
    return OBSERVATION.format(name=name, text=text)


ACTIONS = Syntax(actions, observed)
"""For `programs.tool_turns`: turns as JSON with thought and actions."""


def points_of(coordinate: Any, size: tuple[int, int]) -> list[tuple[int, int]]:
    """Pixels of pairs such as `x="21.5" y="28.5"`, in percent of width and height.

    Pairs above 100 are passed over; `ToolError` where none is left.
    """
    pairs = _POINTS.findall(coordinate) if isinstance(coordinate, str) else []
    shares = [(float(x), float(y)) for x, y in pairs]
    width, height = size
    points = [
        (round(x * width / 100), round(y * height / 100))
        for x, y in shares
        if max(x, y) <= 100
    ]
    if not points:
        raise ToolError(
            'a coordinate is x="..." y="...", in percent of the picture\'s width and '
            f"height; got {coordinate!r}."
        )
    return points


def draw_lines(
    pictures: Sequence[Image.Image],
    *,
    coordinate: Any,
    image: Any = None,
    along: Literal["x", "y"],
) -> Image.Image:
    """The newest picture with a dashed line through each point, from edge to edge."""
    del image  # for the signature: the newest one, as in the paper
    picture = pictures[-1].copy()
    pen, (width, height) = ImageDraw.Draw(picture), picture.size
    thick = max(1, min(picture.size) // 150)
    dash = 4 * thick
    for x, y in points_of(coordinate, picture.size):
        for start in range(0, width if along == "x" else height, 2 * dash):
            end = start + dash - 1
            ends = (start, y, end, y) if along == "x" else (x, start, x, end)
            pen.line(ends, fill=(255, 0, 0), width=thick)
    return picture


def crop_newest(
    pictures: Sequence[Image.Image], *, coordinates: Any, image: Any = None
) -> Image.Image:
    """A part [x1, y1, x2, y2] of the newest picture, in pixels."""
    del image  # as above
    return crop(pictures[-1:], bbox_2d=coordinates)


DRAWING_TOOLS: Mapping[str, Tool] = {
    "DrawHorizontalLineByY": functools.partial(draw_lines, along="x"),
    "DrawVerticalLineByX": functools.partial(draw_lines, along="y"),
    "Crop": crop_newest,
}
"""Those of the paper's tools that need no model."""


def terminated(text: str) -> str:
    """The `ans` of the turn's first action, or the whole of a turn without JSON.

    Nothing where there is JSON and no `ans`: a call's coordinates are no answer.
    """
    if spoken(text) is None:
        return text
    action = first_action(text)
    answer = action.arguments.get("ans") if isinstance(action, Call) else None
    return "" if answer is None else str(answer)


def accuracy(verifier: MathVerifier) -> Reward:
    """1 where what was `terminated` with is the row's answer.

    The same text, or equal by math-verify where the answer is no words; what answer
    tags of the row hold stands for it. The code also takes an equal number from
    anywhere in the turn: from a thought, or from where a last call would have cut.
    """

    def reward(episodes: Sequence[Episode]) -> list[float]:
        pairs = [
            (terminated(episode.text).strip(), _gold(episode.sample.answer))
            for episode in episodes
        ]
        return [
            float(exact(given, gold) or (verdict.equal and not is_words(gold)))
            for (given, gold), verdict in zip(pairs, verifier.check(pairs), strict=True)
        ]

    return reward


def _gold(answer: str) -> str:
    inside = answer_tag(answer)
    return (answer if inside is None else inside).strip()


def _share_of_json(episode: Episode) -> float:
    told = [spoken(turn.text) is not None for turn in episode.turns if turn.chosen]
    return sum(told) / len(told)


in_json: Reward = per_response(_share_of_json)
"""The share of the policy's turns with a JSON object of thought or actions."""


def tool_reward(answer: Reward, *, format_weight: float = 0.0) -> Reward:
    """`answer`, such as `accuracy`, + format_weight `in_json`: the code's are 1 and 0.

    Nothing is paid for calls; how many there were is logged.
    """
    return weighted({"accuracy": (answer, 1.0), "format": (in_json, format_weight)})


def openthinkimg(
    *,
    group_size: int = 8,
    available: Mapping[str, Tool] = DRAWING_TOOLS,
    turns: int = 6,
    images: int = 5,
    anchor: Anchor = free,
    limits: Limits | None = None,
    clip: float = 0.2,
) -> Recipe:
    """At most `turns` answers and `images` pictures from the `available` tools.

    The actor's reward is `tool_reward(accuracy(verifier))`. All turns and what tools
    give between them must fit `row_tokens` of the `limits`, their pictures its
    `pictures`: by default there is the room of one answer and of the question's.
    """
    program = functools.partial(
        tool_turns, available=available, turns=turns, images=images, syntax=ACTIONS
    )
    act = functools.partial(play, program=program, group_size=group_size, limits=limits)
    return clipped_recipe(
        act,
        advantage=functools.partial(
            advantages.group_zscore, group_size=group_size, eps=1e-4
        ),
        surrogate=objectives.clipped_surrogate,
        reduction=reductions.sequence_mean,
        anchor=anchor,
        clip_low=clip,
        clip_high=clip,
    )
