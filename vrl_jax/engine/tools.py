"""Tools between turns: a model's call as text in, pictures and text out.

A call is JSON in tags, `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`. A
tool is a function of the episode's pictures and the call's arguments. Whatever is wrong
with a call becomes text for the model, and the episode goes on; nothing raises.

Boxes are [x1, y1, x2, y2] in pixels of the picture as it came; `target_image` counts
from 1, the pictures of the question first, then those that tools returned.
"""

import dataclasses
import functools
import io
import json
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps

from vrl_jax.models.front_end import load_image, on_white
from vrl_jax.types import PLACEHOLDER, ImageRef

CALL_BEGIN, CALL_END = "<tool_call>", "</tool_call>"

MIN_SIDE = 28
MAX_ASPECT = 100
MAX_PIXELS = 2**25
"""Of a picture that a tool returns: 100 MB, and far less than what may be loaded."""

Box = Sequence[float]


class ToolError(Exception):
    """What was wrong with a call, as the model is told."""


class Call(NamedTuple):
    """A tool's name, and the arguments that it is called with."""

    name: str
    arguments: Mapping[str, Any]


class Observation(NamedTuple):
    """What a call gave: text with `<image>` for each picture. `error` names a fault."""

    text: str
    images: tuple[ImageRef, ...] = ()
    error: str = ""


Tool = Callable[..., Image.Image | str]
"""tool(pictures, **arguments) -> a picture or text; raises `ToolError`."""


def calls(text: str) -> list[Call | ToolError]:
    """The calls in a text, in order; what cannot be read is an error in its place.

    A call that is opened and never closed is one too.
    """
    found: list[Call | ToolError] = []
    start = text.find(CALL_BEGIN)
    while start >= 0:
        start += len(CALL_BEGIN)
        end = text.find(CALL_END, start)
        if end < 0:  # nothing behind it is closed either
            found.append(ToolError("a tool call was opened and not closed."))
            break
        try:
            found.append(_call(text[start:end]))
        except ToolError as error:
            found.append(error)
        start = text.find(CALL_BEGIN, end)
    return found


def _call(body: str) -> Call:
    try:
        return call_of(json.loads(body))
    except (ValueError, RecursionError) as error:
        raise ToolError(f"the call is not valid JSON: {error}.") from None


def call_of(read: Any) -> Call:
    """The call that an object names. `ToolError` where it names none."""
    name = read.get("name") if isinstance(read, dict) else None
    arguments = read.get("arguments", {}) if isinstance(read, dict) else None
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise ToolError('a call is {"name": "...", "arguments": {...}}.')
    return Call(name, arguments)


def call_text(call: Call) -> str:
    """The call as `calls` reads it, and as the chat templates of Qwen write it."""
    body = json.dumps(call._asdict(), ensure_ascii=False)
    return f"{CALL_BEGIN}\n{body}\n{CALL_END}"


def response_text(text: str) -> str:
    """What a tool said, as these templates write it into a user's turn."""
    return f"<tool_response>\n{text}\n</tool_response>"


def tools_text(schemas: Sequence[Mapping[str, Any]]) -> str:
    """What these templates write under the system message: each tool's JSON schema.

    That of Qwen3-VL-Instruct, and of Qwen2.5, whose words are the same.
    """
    lines = [json.dumps(schema, ensure_ascii=False) for schema in schemas]
    return "\n".join([_TOOLS, *lines, _CALLS])


_TOOLS = """\
# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>"""
_CALLS = """\
</tools>

For each function call, return a json object with function name and arguments within \
<tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call>"""


def run(
    call: Call | ToolError,
    tools: Mapping[str, Tool],
    images: Sequence[ImageRef],
    *,
    seconds: float = 10.0,
) -> Observation:
    """What the call gives. A tool that takes longer than `seconds` is left behind.

    So is one whose picture takes longer to encode.
    """
    if isinstance(call, ToolError):
        return _fault("unreadable", str(call))
    if call.name not in tools:
        known = ", ".join(sorted(tools))
        return _fault("unknown", f"there is no tool {call.name!r}; there is {known}.")
    done: list[bytes | str | Exception] = []

    def work() -> None:
        try:
            pictures = [opened(image) for image in images]
            result = tools[call.name](pictures, **call.arguments)
            if isinstance(result, Image.Image):
                small_enough(*result.size)
                result = as_png(result)
            done.append(result)
        except Exception as error:
            done.append(error)

    # A thread of its own: it must not keep the program from ending.
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if not done:
        return _fault("timeout", f"{call.name} took longer than {seconds:g} s.")
    (result,) = done
    if isinstance(result, ToolError):
        return _fault("refused", str(result))
    if isinstance(result, TypeError):
        return _fault("arguments", f"{call.name} cannot take them: {result}.")
    if isinstance(result, Exception):
        return _fault("failed", f"{call.name} failed: {type(result).__name__}.")
    if isinstance(result, str):
        return Observation(result)
    return Observation(PLACEHOLDER, (result,))


def opened(image: ImageRef) -> Image.Image:
    """The picture, decoded: a copy, that may be drawn on.

    A few are kept as they were decoded: all episodes of a group look at one, and a
    large photograph takes longer to decode than to cut.
    """
    return _decoded(image).copy()


@dataclasses.dataclass(eq=False)
class _Decoded:
    """A picture that is decoded once, whoever asks for it first."""

    image: ImageRef
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)
    picture: Image.Image | None = None

    def copy(self) -> Image.Image:
        """One of its own for each who asks."""
        with self.lock:
            if self.picture is None:
                self.picture = load_image(self.image, on_white)
        return self.picture.copy()


_decoded = functools.lru_cache(maxsize=8)(_Decoded)


def _fault(kind: str, text: str) -> Observation:
    return Observation(f"Error: {text}", error=kind)


def as_png(picture: Image.Image) -> bytes:
    """The picture, encoded: in a third of the usual time, for some more bytes."""
    file = io.BytesIO()
    picture.convert("RGB").save(file, "PNG", compress_level=1)
    return file.getvalue()


def small_enough(width: int, height: int) -> None:
    """`ToolError` where a picture that is to be made is too large."""
    if width * height > MAX_PIXELS:
        raise ToolError(
            f"the result of {width} x {height} pixels is too large; it may have "
            f"{MAX_PIXELS} pixels."
        )


def picture_of(pictures: Sequence[Image.Image], number: int) -> Image.Image:
    """Picture `number`, counted from 1."""
    if not isinstance(number, int) or not 1 <= number <= len(pictures):
        raise ToolError(f"there are {len(pictures)} pictures, and no {number!r}.")
    return pictures[number - 1]


def numbers_of(values: Any, count: int, name: str) -> list[float]:
    """`count` finite numbers."""
    good = isinstance(values, list) and len(values) == count
    if not good or not all(
        isinstance(value, int | float) and math.isfinite(value) for value in values
    ):
        raise ToolError(f"{name} must be {count} numbers, got {values!r}.")
    return [float(value) for value in values]


def number_of(value: Any, low: float, high: float, name: str) -> float:
    """A number in its range."""
    if not isinstance(value, int | float) or not low <= value <= high:
        raise ToolError(f"{name} must be from {low:g} to {high:g}, got {value!r}.")
    return float(value)


def crop_box(box: Box, width: int, height: int) -> tuple[int, int, int, int]:
    """The whole pixels to cut: verl's rule, verl/tools/image_zoom_in_tool.py.

    The box is clamped to the picture. If a side is shorter than 28 pixels, both grow by
    28 / the shorter one about the centre, as far as the picture allows, and are shifted
    inside. Sides may differ by a factor of 100.
    """
    left, top = max(0.0, box[0]), max(0.0, box[1])
    right, bottom = min(float(width), box[2]), min(float(height), box[3])
    wide, high = right - left, bottom - top
    if wide <= 0 or high <= 0 or max(wide, high) > MAX_ASPECT * min(wide, high):
        raise ToolError(
            f"the box {list(box)} has no area inside the picture of {width} x {height} "
            f"pixels, or is more than {MAX_ASPECT} times as long as wide."
        )
    if min(wide, high) < MIN_SIDE:
        grow = MIN_SIDE / min(wide, high)
        grow = min(grow, width / wide, height / high)
        wide, high = wide * grow, high * grow
        left = min(max(0.0, (left + right - wide) / 2), width - wide)
        top = min(max(0.0, (top + bottom - high) / 2), height - high)
    cut = (
        math.floor(left),
        math.floor(top),
        min(width, math.ceil(left + wide)),
        min(height, math.ceil(top + high)),
    )
    if min(cut[2] - cut[0], cut[3] - cut[1]) < MIN_SIDE:
        raise ToolError(f"the box {list(box)} is too narrow to grow to {MIN_SIDE} px.")
    return cut


def crop(
    pictures: Sequence[Image.Image], *, bbox_2d: Any, target_image: int = 1
) -> Image.Image:
    """A part of a picture, at its own resolution."""
    picture = picture_of(pictures, target_image)
    box = numbers_of(bbox_2d, 4, "bbox_2d")
    return picture.crop(crop_box(box, picture.width, picture.height))


def zoom(
    pictures: Sequence[Image.Image],
    *,
    bbox_2d: Any,
    factor: float = 2.0,
    target_image: int = 1,
) -> Image.Image:
    """A part of a picture, enlarged."""
    part = crop(pictures, bbox_2d=bbox_2d, target_image=target_image)
    factor = number_of(factor, 1, 8, "factor")
    size = (round(part.width * factor), round(part.height * factor))
    small_enough(*size)
    return part.resize(size, Image.Resampling.BICUBIC)


def rotate(
    pictures: Sequence[Image.Image], *, angle: float, target_image: int = 1
) -> Image.Image:
    """The whole picture turned against the clock, on white."""
    picture = picture_of(pictures, target_image)
    angle = number_of(angle, -360, 360, "angle")
    return picture.rotate(angle, expand=True, fillcolor="white")


def flip(
    pictures: Sequence[Image.Image], *, axis: str, target_image: int = 1
) -> Image.Image:
    """Mirrored: `horizontal` swaps left and right, `vertical` top and bottom."""
    picture = picture_of(pictures, target_image)
    ways = {"horizontal": ImageOps.mirror, "vertical": ImageOps.flip}
    if axis not in ways:
        raise ToolError(f"axis must be one of {sorted(ways)}, got {axis!r}.")
    return ways[axis](picture)


def denoise(
    pictures: Sequence[Image.Image], *, size: int = 3, target_image: int = 1
) -> Image.Image:
    """Each pixel the median of size x size around it."""
    picture = picture_of(pictures, target_image)
    if size not in (3, 5, 7):
        raise ToolError(f"size must be 3, 5 or 7, got {size!r}.")
    return picture.filter(ImageFilter.MedianFilter(size))


def contrast(
    pictures: Sequence[Image.Image], *, factor: float, target_image: int = 1
) -> Image.Image:
    """Distances from the mean grey times `factor`."""
    picture = picture_of(pictures, target_image)
    factor = number_of(factor, 0, 10, "factor")
    return ImageEnhance.Contrast(picture).enhance(factor)


def mark(
    pictures: Sequence[Image.Image], *, bbox_2d: Any, target_image: int = 1
) -> Image.Image:
    """The picture with a red frame around the box."""
    picture = picture_of(pictures, target_image).copy()
    x1, y1, x2, y2 = numbers_of(bbox_2d, 4, "bbox_2d")
    box = (max(0, x1), max(0, y1), min(picture.width, x2), min(picture.height, y2))
    if box[0] >= box[2] or box[1] >= box[3]:
        raise ToolError(f"the box {bbox_2d} has no area inside the picture.")
    width = max(2, min(picture.size) // 100)
    ImageDraw.Draw(picture).rectangle(box, outline=(255, 0, 0), width=width)
    return picture


PICTURE_TOOLS: Mapping[str, Tool] = {
    "crop": crop,
    "zoom": zoom,
    "rotate": rotate,
    "flip": flip,
    "denoise": denoise,
    "contrast": contrast,
    "mark": mark,
}
