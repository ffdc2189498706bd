"""What rows hold of calls and of tools, in the words of Qwen's chat templates.

Calls are ms-swift's messages of role `tool_call` and the field `tool_calls` of OpenAI
and TRL; tools are the column `tools` of all three, JSON or read already. Nothing that
is null is kept, save in JSON: parquet fills in what other rows have.
"""

import json
from collections.abc import Mapping
from typing import Any

from vrl_jax.engine.tools import ToolError, call_of, call_text, tools_text


def calls_written(calls: Any) -> str:
    """One call or a list of them as text. `ToolError` where one cannot be read."""
    found = _read(calls)
    return "\n".join(map(_call, found if isinstance(found, list) else [found]))


def tools_written(tools: Any) -> str:
    """The schemas of one tool or a list of them as text, "" for an empty list.

    One that is a bare function is wrapped as ms-swift does. `ToolError` where one
    cannot be read.
    """
    found = _read(tools)
    schemas = [*map(_schema, found if isinstance(found, list) else [found])]
    return tools_text(schemas) if schemas else ""


def _call(call: Any) -> str:
    read = _read(call)
    if isinstance(read, Mapping):
        read = read.get("function") or read
    if isinstance(read, Mapping):
        read = {**read, "arguments": _read(read.get("arguments") or {})}
    return call_text(call_of(read))


def _schema(tool: Any) -> Mapping[str, Any]:
    read = _read(tool)
    if not isinstance(read, Mapping) or not (read.get("function") or read.get("name")):
        raise ToolError(f"a tool is a JSON schema with a name, got {read!r}.")
    bare = not read.keys() & {"type", "function"}
    return {"type": "function", "function": read} if bare else read


def _read(value: Any) -> Any:
    if not isinstance(value, str):
        return _filled(value)
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise ToolError(f"{value[:80]!r} is not valid JSON: {error}.") from None


def _filled(value: Any) -> Any:
    """Without what is None."""
    if isinstance(value, Mapping):
        return {k: _filled(held) for k, held in value.items() if held is not None}
    return [*map(_filled, value)] if isinstance(value, list) else value
