"""Rows of agents as Qwen's chat templates write them."""

import dataclasses
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vrl_jax.engine import tools
from vrl_jax.engine.conversation import conversation, ids_of
from vrl_jax.engine.processing import chat_text, own_system, question
from vrl_jax.models.qwen_vl.families import QWEN2_5_VL, QWEN3_VL
from vrl_jax.programs.dialogue import dialogue
from vrl_jax.programs.recital import demonstrated
from vrl_jax.training.data import asked, read_dialogues, read_samples
from vrl_jax.types import Turn
from vrl_jax.worlds import tiny

from ..fixtures import gemma, small

# What transformers' apply_chat_template (5.24.0) makes of MESSAGES and TOOLS with the
# template of Qwen/Qwen3-VL-8B-Instruct, chat_template.json. That of Qwen2.5-Instruct,
# tokenizer_config.json, makes the same of it, under a system message of its own.
GOLDEN = """\
<|im_start|>system
# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{"type": "function", "function": {"name": "crop", "description": "Vergrößert einen \
Teil.", "parameters": {"type": "object", "properties": {"bbox_2d": {"type": \
"array"}}}}}
{"type": "function", "function": {"name": "size", "parameters": {}}}
</tools>

For each function call, return a json object with function name and arguments within \
<tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call><|im_end|>
<|im_start|>user
<|vision_start|><|image_pad|><|vision_end|>What is it?<|im_end|>
<|im_start|>assistant
I look closer.
<tool_call>
{"name": "crop", "arguments": {"bbox_2d": [0, 0, 28, 28], "label": "größer"}}
</tool_call>
<tool_call>
{"name": "size", "arguments": {}}
</tool_call><|im_end|>
<|im_start|>user
<tool_response>
<|vision_start|><|image_pad|><|vision_end|>a part
</tool_response>
<tool_response>
[28, 28]
</tool_response><|im_end|>
<|im_start|>assistant
<tool_call>
{"name": "size", "arguments": {}}
</tool_call><|im_end|>
<|im_start|>user
<tool_response>
[28, 28]
</tool_response><|im_end|>
<|im_start|>assistant
It is it.<|im_end|>
"""
SCHEMA = {
    "type": "object",
    "properties": {"bbox_2d": {"type": "array"}},
}
CROP = {"name": "crop", "description": "Vergrößert einen Teil.", "parameters": SCHEMA}
SIZE = {"name": "size", "parameters": {}}
TOOLS = [{"type": "function", "function": one} for one in (CROP, SIZE)]
BOX = {"bbox_2d": [0, 0, 28, 28], "label": "größer"}


def called(name, arguments):
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


MESSAGES = [
    {
        "role": "user",
        "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}],
    },
    {
        "role": "assistant",
        "content": "I look closer.",
        "tool_calls": [called("crop", BOX), called("size", {})],
    },
    {
        "role": "tool",
        "content": [{"type": "image"}, {"type": "text", "text": "a part"}],
    },
    {"role": "tool", "name": "size", "content": "[28, 28]"},
    {"role": "assistant", "content": "", "tool_calls": [called("size", {})]},
    {"role": "tool", "content": "[28, 28]"},
    {"role": "assistant", "content": "It is it."},
]
# The same conversation in ms-swift's messages and in LLaMA-Factory's.
SWIFT = [
    {"role": "user", "content": "<image>What is it?"},
    {"role": "assistant", "content": "I look closer."},
    {"role": "tool_call", "content": json.dumps({"name": "crop", "arguments": BOX})},
    {"role": "tool_call", "content": '{"name": "size", "arguments": {}}'},
    {"role": "tool_response", "content": "<image>a part"},
    {"role": "tool", "content": "[28, 28]"},
    {"role": "tool_call", "content": '{"name": "size"}'},
    {"role": "tool_response", "content": "[28, 28]"},
    {"role": "assistant", "content": "It is it."},
]
FACTORY = {"user": "human", "assistant": "gpt", "tool": "observation"}
FACTORY |= {"tool_call": "function_call", "tool_response": "observation"}
AGENTS = {
    "OpenAI and TRL": {"messages": MESSAGES, "tools": TOOLS},
    "arguments as JSON": {
        "messages": [
            {
                **turn,
                "tool_calls": [
                    called(
                        one["function"]["name"],
                        json.dumps(one["function"]["arguments"]),
                    )
                    for one in turn.get("tool_calls", ())
                ],
            }
            for turn in MESSAGES
        ],
        "tools": json.dumps(TOOLS),
    },
    "ms-swift": {"messages": SWIFT, "tools": json.dumps([CROP, SIZE])},
    "LLaMA-Factory": {
        "conversations": [
            {"from": FACTORY[turn["role"]], "value": turn["content"]} for turn in SWIFT
        ],
        "tools": [*map(json.dumps, TOOLS)],
    },
}
PICTURES = {"a.png": small.png(0, 28, 28), "b.png": small.png(1, 28, 28)}


@pytest.fixture
def folder(tmp_path) -> Path:
    for name, picture in PICTURES.items():
        (tmp_path / name).write_bytes(picture)
    return tmp_path


def jsonl(folder, *rows):
    file = folder / "rows.jsonl"
    file.write_text(
        "".join(json.dumps({"images": [*PICTURES], **row}) + "\n" for row in rows)
    )
    return file


def processor(family=QWEN3_VL):
    """Whose template is the family's, the system message that it puts in too."""
    own, tokenizer = small.actor().processor, small.tokenizer()
    tokenizer = type(tokenizer)(
        tokenizer_object=tokenizer.backend_tokenizer,
        chat_template=tiny.chat_template(family),
    )
    return dataclasses.replace(own, tokenizer=tokenizer)


def whole(sample, family=QWEN3_VL):
    """The conversation as it is recited, in words; and what of them is learnt."""
    read, steps, known = processor(family), dialogue(sample), {}
    ask, said = next(steps), demonstrated(sample)
    for number, text in enumerate(said):
        context = ask.context
        turn = Turn(text, tuple(ids_of(read, text).tolist()), number=number)
        try:
            ask = steps.send(turn)
        except StopIteration:
            break
    text = conversation(read, context, known).text
    return f"{text}{said[-1]}<|im_end|>\n"


@pytest.mark.parametrize("project", AGENTS)
def test_conversations_with_tools_are_what_the_template_writes(folder, project):
    [sample], report = read_dialogues(jsonl(folder, AGENTS[project]))
    assert not report.dropped and whole(sample) == GOLDEN
    assert [*sample.images] == [str(folder / name) for name in PICTURES]
    # What is learnt: calls that our tool programs read, and the answer.
    first, second, last = sample.annotations["demonstration"]
    assert tools.calls(first) == [tools.Call("crop", BOX), tools.Call("size", {})]
    assert tools.calls(second) == [tools.Call("size", {})]
    assert last == sample.answer == "It is it." and not tools.calls(last)
    assert sample.annotations["asks"][1].startswith("<tool_response>\n<image>a part\n")


def test_what_a_template_says_by_itself_stands_before_the_tools(folder):
    [sample], _ = read_dialogues(jsonl(folder, AGENTS["ms-swift"]))
    own, brief = "You are a helpful assistant.\n\n# Tools", "Be brief.\n\n# Tools"
    assert whole(sample, QWEN2_5_VL) == GOLDEN.replace("# Tools", own, 1)
    (told,) = asked([sample], "", "Be brief.")
    assert whole(told, QWEN2_5_VL) == GOLDEN.replace("# Tools", brief, 1)
    system = {"role": "system", "content": "Be brief."}
    row = {**AGENTS["ms-swift"], "messages": [system, *SWIFT]}
    [sample], _ = read_dialogues(jsonl(folder, row))
    assert whole(sample) == GOLDEN.replace("# Tools", brief, 1)


@pytest.mark.parametrize(
    ("tokenizer", "said"),
    [
        (lambda: processor(QWEN2_5_VL).tokenizer, "You are a helpful assistant."),
        (lambda: processor(QWEN3_VL).tokenizer, ""),
        (gemma.tokenizer, ""),
    ],
)
def test_own_system_is_what_the_template_puts_in(tokenizer, said):
    assert own_system(tokenizer()) == said


def test_the_page_of_ms_swift_s_second_sample_is_read_as_it_says(folder):
    """Of its page on agents, encoded for qwen2_5_vl: a thought that ends its line."""
    call = '{"name": "click", "arguments": {"x": 105, "y": 132}}'
    seen = '{"images": "<image>", "status": "success"}'
    messages = [
        {"role": "user", "content": "<image>What time is it now?"},
        {"role": "assistant", "content": "<think>\nThe calendar.\n</think>\n"},
        {"role": "tool_call", "content": call},
        {"role": "tool_response", "content": seen},
        {"role": "assistant", "content": "11 o'clock."},
    ]
    [sample], _ = read_dialogues(jsonl(folder, {"messages": messages, "tools": "[]"}))
    assert "tools_message" not in sample.annotations
    assert sample.annotations["demonstration"] == [
        f"<think>\nThe calendar.\n</think>\n<tool_call>\n{call}\n</tool_call>",
        "11 o'clock.",
    ]
    assert sample.annotations["asks"][1] == f"<tool_response>\n{seen}\n</tool_response>"


def test_what_parquet_fills_in_is_left_out(tmp_path):
    """Arrow gives every struct the fields of all: null where a row has none."""
    bare = {"role": None, "content": None, "tool_calls": None}
    messages = [
        {**bare, "role": "user", "content": "What is it?"},
        {
            **bare,
            "role": "assistant",
            "tool_calls": [
                called("crop", {"bbox_2d": [1, 2]}),
                called("turn", {"by": 90}),
            ],
        },
        {**bare, "role": "tool", "content": "a part"},
        {**bare, "role": "assistant", "content": "it"},
    ]
    row = {
        "messages": messages,
        "tools": [TOOLS[0], {"type": "function", "function": SIZE}],
    }
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "rows.parquet")
    [sample], _ = read_dialogues(tmp_path / "rows.parquet")
    first, _ = sample.annotations["demonstration"]
    assert tools.calls(first) == [
        tools.Call("crop", {"bbox_2d": [1, 2]}),
        tools.Call("turn", {"by": 90}),
    ]
    assert '{"name": "size", "parameters": {}}}' in sample.annotations["tools_message"]
    assert "null" not in sample.annotations["tools_message"]


def test_prompts_and_columns_of_other_rows(folder):
    """A question alone is told of its tools; a column beside a plain text stays one."""
    prompt = {
        "prompt": MESSAGES[:1],
        "tools": TOOLS,
        "answer": "it",
        "images": ["a.png"],
    }
    asked = {**prompt, "problem": "<image>How much is it?"}
    del asked["prompt"]
    plain = {"problem": "What?", "tools": "crop, zoom", "answer": "it", "images": []}
    (told, alone, other), _ = read_samples(jsonl(folder, prompt, asked, plain))
    text = chat_text(processor(), question(told))
    assert text == GOLDEN[: GOLDEN.index("I look closer.")]
    assert alone.annotations["tools_message"] == told.annotations["tools_message"]
    assert other.annotations == {"tools": "crop, zoom"}


@pytest.mark.parametrize("words", ["", "I look."])
def test_a_call_is_spelled_alike_wherever_a_row_has_it(folder, words):
    """In a field, in OpenAI's older one, in a message of its own."""
    call = {"name": "size", "arguments": {}}
    older = {"name": "size", "arguments": "{}"}
    rows = [
        [{"role": "assistant", "content": words, "tool_calls": [{"function": call}]}],
        [{"role": "assistant", "content": words, "function_call": older}],
        [
            {"role": "assistant", "content": words},
            {"role": "tool_call", "content": json.dumps(call)},
        ],
    ]
    first, *_ = said("user")
    rest = said("tool", "assistant")
    read, report = read_dialogues(
        jsonl(
            folder, *({"messages": [first, *row, *rest], "images": []} for row in rows)
        )
    )
    assert not report.dropped
    spoken = {sample.annotations["demonstration"][0] for sample in read}
    gap = "\n" if words else ""
    written = '<tool_call>\n{"name": "size", "arguments": {}}\n</tool_call>'
    assert spoken == {f"{words}{gap}{written}"}


def said(*roles):
    """Messages of these roles, whose words are calls where they must be."""
    call = '{"name": "size"}'
    return [{"role": r, "content": call if r == "tool_call" else "so"} for r in roles]


def with_calls(calls, role="assistant"):
    return [MESSAGES[0], {"role": role, "content": "", "tool_calls": calls}]


TURNS = "messages that do not take turns"
CALL = "a tool call that cannot be read"
BAD = {
    "a tool first": (
        {"messages": said("tool", "assistant")},
        TURNS,
        "tool, assistant; w",
    ),
    "a tool after the user": (
        {"messages": said("user", "tool", "assistant")},
        TURNS,
        "user, tool, assistant; what tools say follows an answer or a call",
    ),
    "a user after a tool": (
        {"messages": said("user", "tool_call", "tool", "user", "assistant")},
        TURNS,
        "user, tool_call, tool, user, assistant; what",
    ),
    "nothing after a tool": (
        {"messages": said("user", "tool_call", "tool_response")},
        TURNS,
        "user, tool_call, tool; what tools say follows an answer or a call, and is ans",
    ),
    "calls that are not JSON": (
        {"messages": with_calls("crop(0, 0)"), "images": ["a.png"]},
        CALL,
        "'crop(0, 0)' is not valid JSON: Expecting value: line 1 column 1 (char 0). Wr",
    ),
    "arguments that are not JSON": (
        {"messages": with_calls([called("crop", "{bbox")]), "images": ["a.png"]},
        CALL,
        "'{bbox' is not valid JSON",
    ),
    "a call without a name": (
        {"messages": with_calls([{"arguments": {}}]), "images": ["a.png"]},
        CALL,
        'a call is {"name": "...", "arguments": {...}}.',
    ),
    "a call that is a text": (
        {"messages": [*said("user"), {"role": "tool_call", "content": "crop"}]},
        CALL,
        "'crop' is not valid JSON",
    ),
    "the user's calls": (
        {"messages": [{**said("user")[0], "tool_calls": [called("size", {})]}]},
        "calls of others than the assistant",
        "a call of user",
    ),
    "a thought beside its answer": (
        {
            "messages": [
                *said("user"),
                {**said("assistant")[0], "reasoning_content": "Hm."},
            ]
        },
        "a thought beside its answer",
        "write `reasoning_content` into the content",
    ),
    "tools that are not JSON": (
        {"messages": said("user", "assistant"), "tools": "{API_LIST}"},
        "tools that cannot be read",
        "'{API_LIST}' is not valid JSON",
    ),
    "a tool without a name": (
        {"messages": said("user", "assistant"), "tools": [{"parameters": {}}]},
        "tools that cannot be read",
        "a tool is a JSON schema with a name, got {'parameters': {}}. `tools` beside",
    ),
    "a tool's picture that is missing": (
        {"messages": SWIFT, "images": ["a.png", "lost.png"]},
        "a picture file is missing",
        "lost.png",
    ),
    "a tool's picture that the row has not": (
        {"messages": SWIFT, "images": ["a.png"]},
        "<image> and pictures differ in number",
        "2 <image>, 1 pictures",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_rows_of_agents_that_cannot_be_read_are_named(folder, what):
    row, reason, why = BAD[what]
    good = {"messages": said("user", "assistant"), "images": []}
    bad = {"id": "odd", "images": [], **row}
    _, report = read_dialogues(jsonl(folder, good, bad))
    [[message]] = report.dropped.values()
    assert [*report.dropped] == [reason]
    assert message.startswith("rows.jsonl row 1 (id odd): ") and why in message
