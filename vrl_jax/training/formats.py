"""One row as a sample, in the formats of the projects that people come from.

EasyR1 (`problem`, `images`, `answer`), TRL and R1-V (`image`, `solution`), verl
(`prompt` as messages with one user turn, `reward_model.ground_truth`), V-Triune (its
`reward_model.answer`), ms-swift (`messages`), VLM-R1 and ShareGPT (`conversations`),
OpenRLHF-M (`message`, which is JSON), GUI sets (`instruction`, `gt_bbox` or `bbox`).

Messages may be those of agents: of ms-swift (`tool_call`, `tool_response`), of OpenAI
and TRL (`tool_calls`, `tool`), of LLaMA-Factory (`function_call`, `observation`). They
become text as Qwen's chat templates write it, so that what is learnt is what
`programs.tool_turns` asks and reads; so does the column `tools`, where a row has it.
https://swift.readthedocs.io/en/latest/Instruction/Agent-support.html,
https://huggingface.co/docs/trl/dataset_formats
"""

import base64
import contextlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from vrl_jax.engine.tools import ToolError, response_text
from vrl_jax.rewards.parse import answer_tag
from vrl_jax.training.tool_messages import calls_written, tools_written
from vrl_jax.types import PLACEHOLDER, ImageRef, Sample, text_pieces

CHATS = ("messages", "conversations")
_SPELLED = "message"
"""A list of messages, as JSON."""
QUESTIONS = ("problem", "prompt", "question", "instruction", *CHATS, _SPELLED)
_PICTURES = ("images", "image")
_TOLD = ("answer", "solution", "ground_truth", "reward_model")
_BOXES = ("gt_bbox", "bbox")
"""The answer where there is no other, as it stands: the reward knows its frame."""
ANSWERS = (*_TOLD, *_BOXES)
_SOURCES = ("data_source", "source")
_TOOL, _CALL = "tool", "tool_call"
_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "developer": "system",
    "tool_response": _TOOL,
    "observation": _TOOL,
    "function_call": _CALL,
}
"""Names of ShareGPT, OpenAI, ms-swift and LLaMA-Factory."""
_SPEAKERS = {_TOOL: "user", _CALL: "assistant"}
_GOES_ON = {_TOOL: (_TOOL,), _CALL: ("assistant", _CALL)}
"""After which messages one of this role is part of the same turn."""
_BLANKS = ("<ref-object>", "<bbox>")
"""What ms-swift fills from a column `objects`."""
_CARRIED = ("image", "image_url", "url", "path")
"""Where a part of a message holds its own picture, beside `base64`."""
_BOUNDS = ("min_pixels", "max_pixels", "resized_height", "resized_width")
"""What verl's pictures may say of their size, beside `image`."""
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]{64,}={0,2}\s*")
"""Without the prefix of a data URI; a shorter text is a path."""


class Unusable(Exception):
    """(reason, detail) of a row that cannot be used."""


class Exchange(NamedTuple):
    """What a row asks, turn by turn, what it answers, its system message, its tools.

    What tools say is asked, and their calls are answers.
    """

    asks: Sequence[str]
    answers: Sequence[str] = ()
    system: str = ""
    pictures: Sequence[Any] = ()
    tools: str = ""


def one_turn(exchange: Exchange) -> None:
    """`Unusable` where several questions are asked."""
    if len(exchange.asks) > 1:
        raise Unusable(
            "questions of several turns",
            "one question a row is wanted here; several are for read_dialogues and "
            f"experiments/sft_qwen_traces.py: {exchange.asks[0][:80]!r}",
        )


def answered(exchange: Exchange) -> None:
    """`Unusable` where the messages hold no answer."""
    if not exchange.answers:
        raise Unusable("no answer among the messages", f"{exchange.asks[-1][:80]!r}")


def read_exchange(row: Mapping[str, Any]) -> Exchange:
    """The questions as text; of messages, with their answers and system message."""
    if "" in row:
        raise Unusable("not a JSON object", repr(row[""][:80]))
    question = _first(row, QUESTIONS)
    if _column(row, QUESTIONS) == _SPELLED and isinstance(question, str):
        question = _messages(question)
    if isinstance(question, str):
        # Beside a plain question the column may hold anything else: it is kept.
        with contextlib.suppress(Unusable):
            return Exchange([question], tools=_tools(row))
        return Exchange([question])
    if not isinstance(question, list) or not all(
        isinstance(turn, Mapping) for turn in question
    ):
        raise Unusable("no question", f"{question!r}"[:80])
    texts = _spoken(question)
    turns = [role for role, _ in texts if role != "system"]
    pairs = len(turns) // 2
    if turns not in (["user"], ["user", "assistant"] * max(pairs, 1)):
        raise _out_of_turn(question)
    if has(row, "objects") and any(b in text for _, text in texts for b in _BLANKS):
        raise Unusable("blanks to fill", f"{' or '.join(_BLANKS)}, from `objects`")
    system = "\n".join(text for role, text in texts if role == "system")
    asks = [text for role, text in texts if role == "user"]
    answers = [text for role, text in texts if role == "assistant"]
    return Exchange(asks, answers, system, _pictures_in(question), _tools(row))


def _messages(text: str) -> list[Any]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise Unusable(
            "a message that is not JSON", f"{error}: {text[:80]!r}"
        ) from error
    if not isinstance(found, list):
        raise Unusable("a message that is not JSON", f"no list: {text[:80]!r}")
    return found


def _spoken(turns: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """(role, text) of each turn; what tools say is the user's, calls are answers.

    A call belongs to the answer before it, and what several tools say is one turn. As
    ms-swift joins them: what ends a line needs no other.
    """
    said: list[tuple[str, str]] = []
    before = ""
    for turn in turns:
        role, text = _role(turn), _said(turn)
        if role == _TOOL and before not in ("assistant", _CALL, _TOOL):
            raise _out_of_turn(turns)
        if before in _GOES_ON.get(role, ()):
            _, whole = said.pop()
            gap = "" if whole.endswith("\n") or not whole else "\n"
            text = f"{whole}{gap}{text}"
        said.append((_SPEAKERS.get(role, role), text))
        before = role
    return said


def _out_of_turn(turns: Sequence[Mapping[str, Any]]) -> Unusable:
    roles = [_role(turn) for turn in turns]
    other = {*roles} - {"system", "user", "assistant"}
    way = "; what tools say follows an answer or a call, and is answered"
    told = ", ".join(roles) + (way if other else "")
    return Unusable("messages that do not take turns", told)


def _tools(row: Mapping[str, Any]) -> str:
    try:
        return tools_written(row["tools"]) if has(row, "tools") else ""
    except ToolError as error:
        way = "`tools` beside messages is a list of JSON schemas, or that as JSON"
        raise Unusable("tools that cannot be read", f"{error} {way}") from error


def _role(turn: Mapping[str, Any]) -> str:
    role = str(turn.get("role") or turn.get("from"))
    return _ROLES.get(role, role)


def _said(turn: Mapping[str, Any]) -> str:
    """The text of a message, with the calls in it."""
    role, calls = _role(turn), turn.get("tool_calls") or turn.get("function_call")
    if turn.get("reasoning_content"):
        way = "write `reasoning_content` into the content, as it is to be learnt"
        raise Unusable("a thought beside its answer", way)
    if role == _CALL:
        return _calls(_content(turn))
    text = _text(turn)
    if role == _TOOL:
        return response_text(text)
    if not calls:
        return text
    if role != "assistant":
        raise Unusable("calls of others than the assistant", f"a call of {role}")
    return "\n".join(filter(None, [text, _calls(calls)]))


def _calls(calls: Any) -> str:
    try:
        return calls_written(calls)
    except ToolError as error:
        way = "Write each call as JSON with its name and arguments."
        raise Unusable("a tool call that cannot be read", f"{error} {way}") from error


def _text(turn: Mapping[str, Any]) -> str:
    """The text of a message; each picture among its parts becomes a placeholder."""
    content = _content(turn)
    if isinstance(content, str):
        return content
    if isinstance(content, int | float) and _role(turn) == "assistant":
        return str(content)  # as VLM-R1 reads a number that is the answer
    if not isinstance(content, list):
        raise Unusable("a message that is not text", f"{content!r}"[:80])
    return "".join(map(_part, content))


def _content(turn: Mapping[str, Any]) -> Any:
    """What the message holds; nothing is empty text."""
    found = (turn.get(name) for name in ("content", "value"))
    return next((content for content in found if content is not None), "")


def _part(part: Any) -> str:
    if not isinstance(part, Mapping):
        raise Unusable("a part that is not read", f"{part!r}"[:80])
    if _is_picture(part):
        return PLACEHOLDER
    kind, text = part.get("type") or "text", part.get("text")
    if kind != "text" or not isinstance(text, str) or _carried(part) is not None:
        raise Unusable(
            "a part that is not read",
            f"of type {kind} with {', '.join(key for key in part if part[key])}"[:80],
        )
    return text


def _is_picture(part: Mapping[str, Any]) -> bool:
    """Whether it says so or, without a type, holds `image` and no text."""
    kind = part.get("type")
    return kind == "image" or bool(
        not kind and part.get("image") and part.get("text") is None
    )


def _carried(part: Mapping[str, Any]) -> Any:
    """The picture that a part of a message holds itself, if it does."""
    if part.get("base64"):
        return f"data:;base64,{part['base64']}"
    found = next((part[name] for name in _CARRIED if part.get(name)), None)
    bounds = {name: part[name] for name in _BOUNDS if part.get(name)}
    return {"image": found, **bounds} if found and bounds else found


def _pictures_in(turns: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Those that parts of questions and of what tools say hold; elsewhere none may."""
    found = []
    for turn in turns:
        content = _content(turn)
        role = _role(turn)
        parts = content if isinstance(content, list) and role != _CALL else []
        images = [part for part in parts if _is_picture(part)]
        if images and role not in ("user", _TOOL):
            raise Unusable("a picture outside of a question", f"of {role}")
        found += [_carried(part) for part in images]
    return [picture for picture in found if picture is not None]


class Read(NamedTuple):
    """A row's sample; whether placeholders were put in front; pictures with bounds."""

    sample: Sample
    prepended: bool
    bounded: int


def read_sample(
    row: Mapping[str, Any], exchange: Exchange, file: Path, number: int, root: Path
) -> Read:
    """The sample of a row, and what of it is told in the report."""
    if has(row, "videos") or has(row, "video"):
        raise Unusable("has videos", "only pictures are read")
    pictures = _first(row, _PICTURES) or exchange.pictures
    pictures = pictures if isinstance(pictures, list | tuple) else [pictures]
    images = tuple(_picture(picture, root) for picture in pictures)
    bounded = sum(_has_bounds(picture) for picture in pictures)
    first, *others = exchange.asks
    placeholders = sum(len(text_pieces(text)) - 1 for text in exchange.asks)
    prepended = not placeholders and bool(images)
    if prepended:
        first = PLACEHOLDER * len(images) + first
    elif placeholders != len(images):
        raise Unusable(
            f"{PLACEHOLDER} and pictures differ in number",
            f"{placeholders} {PLACEHOLDER}, {len(images)} pictures: {first[:80]!r}",
        )
    told = {"system": exchange.system, "tools_message": exchange.tools}
    found: dict[str, Any] = {name: text for name, text in told.items() if text}
    if others:
        found |= {"asks": [first, *others], "demonstration": list(exchange.answers)}
    elif exchange.answers:
        found["demonstration"] = exchange.answers[0]
    sample = Sample(
        id=str(row["id"] if has(row, "id") else f"{file.stem}:{number}"),
        source=str(_first(row, _SOURCES) or file.stem),
        question="\n\n".join([first, *others]),
        images=images,
        answer=_answer(row, exchange.answers),
        annotations={**_unread(row), **_annotations(row), **found},
    )
    return Read(sample, prepended, bounded)


def has(row: Mapping[str, Any], column: str) -> bool:
    """Whether the row fills the column."""
    return row.get(column) not in (None, "", [])


def _column(row: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """The first of the columns that the row fills."""
    return next((name for name in names if has(row, name)), None)


def _first(row: Mapping[str, Any], names: Sequence[str]) -> Any:
    return row.get(_column(row, names))


def _unread(row: Mapping[str, Any]) -> dict[str, Any]:
    """The columns that are not a field of the sample as they stand."""
    fields = (QUESTIONS, _PICTURES, _SOURCES)
    read = {_column(row, names) for names in fields} | {"id", "answer", "annotations"}
    read |= {name for names in fields for name in names if not has(row, name)}
    return {name: value for name, value in row.items() if name not in read}


def _answer(row: Mapping[str, Any], answers: Sequence[str]) -> str:
    """The row's own, or the last among its messages, or its box."""
    answer = _first(row, _TOLD)
    if isinstance(answer, Mapping):
        answer = _first(answer, ("ground_truth", "answer"))
    if answer is None and answers:
        answer = answers[-1]
    if answer is None:
        answer = _first(row, _BOXES)
    if answer is None:
        raise Unusable("no answer", f"none of {', '.join(ANSWERS)} is filled")
    if not isinstance(answer, str):
        try:
            return json.dumps(answer)
        except (TypeError, ValueError) as error:
            raise Unusable("an answer that is not JSON", str(error)) from error
    tagged = answer_tag(answer)  # R1-V stores its solutions in answer tags
    return answer if tagged is None else tagged


def _annotations(row: Mapping[str, Any]) -> dict[str, Any]:
    annotations = row.get("annotations")
    if isinstance(annotations, str):
        with contextlib.suppress(ValueError, RecursionError):  # then it stays text
            annotations = json.loads(annotations)
    if isinstance(annotations, Mapping):
        return dict(annotations)
    return {} if annotations is None else {"annotations": annotations}


def _has_bounds(cell: Any) -> bool:
    return isinstance(cell, Mapping) and any(cell.get(name) for name in _BOUNDS)


def _picture(cell: Any, root: Path) -> ImageRef:
    """The encoded picture, or its path; found and readable."""
    if isinstance(cell, Mapping) and cell.get("image"):
        cell = cell["image"]
    if isinstance(cell, Mapping):
        cell = cell.get("bytes") or cell.get("path") or cell.get("url")
    if isinstance(cell, str) and cell.startswith("data:"):
        cell = _decoded(cell.partition(",")[2])
    if isinstance(cell, str):
        if cell.startswith(("http://", "https://")):
            raise Unusable("a picture is behind a URL", f"download {cell} first")
        cell = _file_or_base64(cell.removeprefix("file://"), root)
    if not isinstance(cell, bytes | str):
        raise Unusable("a picture is neither bytes nor a path", type(cell).__name__)
    try:
        with Image.open(cell if isinstance(cell, str) else io.BytesIO(cell)) as image:
            image.verify()  # checksums of a PNG, headers of others: no pixels
    except Exception as error:  # whatever a decoder makes of broken bytes
        # Pillow names a BytesIO by its address, which says nothing.
        name = cell if isinstance(cell, str) else f"{len(cell)} bytes"
        raise Unusable(
            "a picture does not decode", f"{name}: {type(error).__name__}"
        ) from error
    return cell


def _file_or_base64(text: str, root: Path) -> ImageRef:
    """The file at a whole path, or at one from `root`; else what base64 holds."""
    file = root / text
    try:
        found = file.is_file()
    except OSError:  # longer than names may be
        found = False
    if found:
        return str(file)
    if _BASE64.fullmatch(text):
        return _decoded("".join(text.split()))
    raise Unusable("a picture file is missing", str(file)[:200])


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:  # letters that base64 lacks, or a wrong length
        raise Unusable("a picture does not decode", f"base64: {error}") from error
