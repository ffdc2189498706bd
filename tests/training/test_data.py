import base64
import dataclasses
import datetime
import decimal
import io
import itertools
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vrl_jax.training.data import asked, read_dialogues, read_samples, sample_stream
from vrl_jax.types import Sample

from ..fixtures import small


def png(side=4):
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (side, side, 3), np.uint8)
    Image.fromarray(noise).save(buffer, format="PNG")
    return buffer.getvalue()


PNG = png()


def jsonl(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def parquet(path, *rows):
    columns = dict.fromkeys(column for row in rows for column in row)
    table = pa.Table.from_pylist([columns | row for row in rows])
    pq.write_table(table, path)
    return path


GOOD = {"problem": "<image>How many?", "images": [{"bytes": PNG}], "answer": "3"}


def test_read_samples_reads_easyr1_parquet_and_keeps_other_columns(tmp_path):
    row = {**GOOD, "difficulty": 4, "data_source": "geo", "id": "a"}
    [sample], report = read_samples(parquet(tmp_path / "rows.parquet", row))
    assert sample == Sample("a", "geo", GOOD["problem"], (PNG,), "3", {"difficulty": 4})
    assert report.used == 1 and not report.dropped


def test_read_samples_reads_verl_rows(tmp_path):
    row = {
        "prompt": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "<image>How many?"},
        ],
        "images": [{"bytes": PNG, "path": None}],
        "data_source": "clevr",
        "reward_model": {"style": "rule", "ground_truth": "3"},
        "extra_info": {"index": 7},
    }
    [sample], _ = read_samples(parquet(tmp_path / "rows.parquet", row))
    assert (sample.question, sample.answer) == ("<image>How many?", "3")
    assert sample.annotations == {
        "reward_model": {"style": "rule", "ground_truth": "3"},
        "extra_info": {"index": 7},
        "system": "Be brief.",
    }


def test_read_samples_reads_jsonl_with_every_kind_of_picture_cell(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "a.png").write_bytes(PNG)
    data_url = "data:image/png;base64," + base64.b64encode(PNG).decode()
    path = jsonl(
        tmp_path / "rows.jsonl",
        {"problem": "Which?", "image": "a.png", "solution": "<answer> 3 </answer>"},
        {"problem": "Which?", "image": f"file://{folder}/a.png", "answer": 3},
        {"problem": "<image>?<image>", "images": ["a.png", data_url], "answer": "x"},
        {"problem": "No picture: 1 + 1?", "answer": "2"},
    )
    samples, report = read_samples(path, image_root=folder)
    assert [s.question for s in samples[:2]] == ["<image>Which?"] * 2
    assert [s.answer for s in samples] == ["3", "3", "x", "2"]
    assert samples[0].images == samples[1].images == (str(folder / "a.png"),)
    assert samples[2].images == (str(folder / "a.png"), PNG)
    assert samples[3].images == ()
    assert samples[0].id == "rows:0"
    assert report.prepended == 2 and "2 questions" in report.summary()


def test_read_samples_reads_a_folder_of_shards_in_order(tmp_path):
    parquet(tmp_path / "b.parquet", {**GOOD, "answer": "second", "id": "same"})
    parquet(tmp_path / "a.parquet", {**GOOD, "answer": "first", "id": "same"})
    samples, _ = read_samples(tmp_path)
    assert [sample.answer for sample in samples] == ["first", "second"]
    assert [sample.id for sample in samples] == ["same", "same#b:0"]


BROKEN = {
    "<image> and pictures differ in number": {
        **GOOD,
        "problem": "<image><image>Compare them." + "." * 100,
    },
    "a picture does not decode": {**GOOD, "images": [{"bytes": PNG[:-20]}]},
    "a picture file is missing": {**GOOD, "images": [{"path": "lost.png"}]},
    "a picture is behind a URL": {**GOOD, "images": [{"path": "https://x.org/a.png"}]},
    "no answer": {**GOOD, "answer": None},
    "no question": {**GOOD, "problem": None},
}


@pytest.mark.parametrize("reason", BROKEN)
def test_read_samples_counts_unusable_rows_by_reason(tmp_path, reason):
    rows = (GOOD, {**BROKEN[reason], "id": "bad"}, GOOD)
    samples, report = read_samples(parquet(tmp_path / "rows.parquet", *rows))
    assert len(samples) == report.used == 2
    assert list(report.dropped) == [reason]
    assert report.dropped[reason][0].startswith("rows.parquet row 1 (id bad): ")
    assert f"1 x {reason}" in report.summary() and "2 of 3 rows" in report.summary()


def test_read_samples_counts_what_is_too_long_for_a_name_as_missing(tmp_path):
    long = {**GOOD, "images": [{"path": "iVBORw0KGgo" * 1000 + ".png"}]}
    _, report = read_samples(parquet(tmp_path / "rows.parquet", GOOD, long))
    [[message]] = report.dropped.values()
    assert [*report.dropped] == ["a picture file is missing"] and len(message) < 300


SYSTEM = {"role": "system", "content": "Be brief."}
TWO_TURNS = {
    "messages": [
        SYSTEM,
        {"role": "user", "content": "<image><image>Do they differ?"},
        {"role": "assistant", "content": "Yes."},
        {
            "role": "user",
            "content": [{"type": "image"}, {"type": "text", "text": "And this?"}],
        },
        {"role": "assistant", "content": "<answer> no </answer>"},
    ],
    "images": ["a.png", "b.png", "a.png"],
    "level": 2,
}


@pytest.fixture
def pictures(tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(PNG)
    return tmp_path


def test_read_samples_reads_messages_of_ms_swift_and_conversations_of_vlm_r1(pictures):
    ask = {"role": "user", "content": "<image>How many?"}
    path = jsonl(
        pictures / "rows.jsonl",
        {"messages": [SYSTEM, ask], "images": ["a.png"], "solution": "3"},
        {
            "conversations": [
                {"from": "human", "value": "<image>How many?"},
                {"from": "gpt", "value": "<answer> 3 </answer>"},
            ],
            "image": "a.png",
        },
    )
    (swift, r1), report = read_samples(path)
    assert report.used == 2
    for sample in (swift, r1):
        assert (sample.question, sample.answer) == ("<image>How many?", "3")
        assert sample.images == (str(pictures / "a.png"),)
    assert swift.annotations == {"system": "Be brief.", "solution": "3"}
    assert r1.annotations == {"demonstration": "<answer> 3 </answer>"}


def test_read_dialogues_reads_several_turns(pictures):
    one = {
        "messages": [
            {"role": "user", "content": "What is it?"},
            {"role": "assistant", "content": "An a."},
        ],
        "images": ["a.png"],
    }
    path = jsonl(pictures / "rows.jsonl", TWO_TURNS, one)
    (several, single), report = read_dialogues(path)
    asks = ["<image><image>Do they differ?", "<image>And this?"]
    assert several == Sample(
        "rows:0",
        "rows",
        "\n\n".join(asks),
        tuple(str(pictures / name) for name in TWO_TURNS["images"]),
        "no",
        {
            "level": 2,
            "system": "Be brief.",
            "asks": asks,
            "demonstration": ["Yes.", "<answer> no </answer>"],
        },
    )
    assert single.question == "<image>What is it?" and report.prepended == 1
    assert single.annotations == {"demonstration": "An a."}


def test_pictures_of_several_turns_without_placeholders_come_first(pictures):
    plain = [{**turn, "content": "So?"} for turn in TWO_TURNS["messages"]]
    path = jsonl(pictures / "rows.jsonl", {**TWO_TURNS, "messages": plain})
    [sample], _ = read_dialogues(path)
    assert sample.annotations["asks"] == ["<image><image><image>So?", "So?"]
    assert sample.question == "<image><image><image>So?\n\nSo?"


SPOKEN = TWO_TURNS["messages"]
UNSAID = {
    "questions of several turns": (read_samples, TWO_TURNS),
    "no answer among the messages": (read_dialogues, GOOD),
    "messages that do not take turns": (read_dialogues, {"messages": SPOKEN[:-1]}),
    "<image> and pictures differ in number": (
        read_dialogues,
        {**TWO_TURNS, "images": ["a.png"]},
    ),
    "blanks to fill": (
        read_dialogues,
        {
            "messages": [{"role": "user", "content": "<bbox>?"}, SPOKEN[2]],
            "objects": {"bbox": [[0, 0, 1, 1]]},
        },
    ),
}


@pytest.mark.parametrize("reason", UNSAID)
def test_dialogues_that_cannot_be_learnt_are_counted(pictures, reason):
    read, bad = UNSAID[reason]
    bad = {**bad, "images": bad.get("images") if bad is not GOOD else ["a.png"]}
    good = {"messages": SPOKEN[1:3], "images": ["a.png", "b.png"]}
    _, report = read(jsonl(pictures / "rows.jsonl", good, bad))
    assert report.used == 1 and [*report.dropped] == [reason]


SIZED = [{"type": "image"}, {"type": "text", "text": "How many?"}]
UNREAD = {
    "an unread part": ("a part that is not read", ["How many?"]),
    "no list of parts": ("a message that is not text", {"text": "How many?"}),
    "a number": ("a message that is not text", 5),
    "a picture of another type": (
        "a part that is not read",
        [{"type": "image_url", "image_url": {"url": "a.png"}}, SIZED[1]],
    ),
    "a video": ("a part that is not read", [{"type": "video"}, SIZED[1]]),
    "a text with a picture": (
        "a part that is not read",
        [{"image": "a.png", "text": "How many?"}],
    ),
    "a picture in a text": (
        "a part that is not read",
        [{"type": "text", "text": "How many?", "image": "a.png"}],
    ),
    "a text that is a number": (
        "a part that is not read",
        [{"type": "text", "text": 5}],
    ),
    "a lost picture": (
        "a picture file is missing",
        [{"type": "image", "path": "c.png"}],
    ),
    "base64 that is none": (
        "a picture does not decode",
        [{"type": "image", "base64": "\u00e9"}],
    ),
    "a picture on the web": (
        "a picture is behind a URL",
        [{"type": "image", "image_url": {"url": "https://x.org/a.png"}}],
    ),
    "one picture of two": (
        "<image> and pictures differ in number",
        [{"type": "image", "image": "a.png"}, *SIZED],
    ),
}


@pytest.mark.parametrize("what", UNREAD)
def test_messages_that_are_not_read_are_counted(pictures, what):
    reason, content = UNREAD[what]
    good, bad = (
        {"messages": [{"role": "user", "content": held}], "answer": "3"}
        for held in ("1 + 2?", content)
    )
    _, report = read_samples(jsonl(pictures / "rows.jsonl", good, bad))
    assert report.used == 1 and [*report.dropped] == [reason]


@pytest.mark.parametrize(
    ("role", "reason"),
    [
        ("system", "a picture outside of a question"),
        ("assistant", "a picture outside of a question"),
        (["user"], "messages that do not take turns"),
    ],
)
def test_roles_that_show_no_pictures_are_counted(pictures, role, reason):
    bad = {
        "messages": [SPOKEN[1], {"role": role, "content": SIZED}],
        "images": ["a.png", "b.png"],
    }
    good = {"messages": SPOKEN[1:3], "images": ["a.png", "b.png"]}
    _, report = read_samples(jsonl(pictures / "rows.jsonl", good, bad))
    assert [*report.dropped] == [reason]


@pytest.mark.parametrize(
    "part",
    [
        {"image": "b.png"},
        {"image": {"bytes": None, "path": "b.png"}},
        {"image": "b.png", "max_pixels": 401408},
        {"type": None, "image": "b.png"},
        {"image_url": {"url": "b.png"}},
        {"url": "b.png"},
        {"path": "b.png"},
        {"base64": base64.b64encode(PNG).decode()},
    ],
)
def test_pictures_in_messages_are_read_where_the_row_has_none(pictures, part):
    messages = [
        {"role": "user", "content": [{"type": "image", **part}, SIZED[1]]},
        {"role": "assistant", "content": "3"},
        {"role": "user", "content": [SIZED[1], {"type": "image", "image": "a.png"}]},
        {"role": "assistant", "content": "4"},
    ]
    bare, held = (
        {"messages": messages, "images": images} for images in ([], ["a.png", "b.png"])
    )
    (first, second), _ = read_dialogues(jsonl(pictures / "rows.jsonl", bare, held))
    a, b = (str(pictures / name) for name in ("a.png", "b.png"))
    assert first.annotations["asks"] == ["<image>How many?", "How many?<image>"]
    assert first.images == (PNG if "base64" in part else b, a)
    assert second.images == (a, b)  # the row's own column comes first


BARE = base64.b64encode(PNG).decode()
FOREIGN = {
    "V-Triune": (
        {
            "prompt": [{"role": "user", "content": "<image>How many?"}],
            "images": ["a.png"],
            "reward_model": {"answer": "3", "verifier": "mathverify"},
        },
        "3",
    ),
    "OpenRLHF-M": (
        {
            "message": json.dumps(
                [
                    {
                        "role": "user",
                        "content": [{"type": "image", "image": "a.png"}, SIZED[1]],
                    }
                ]
            ),
            "answer": "$3$",
        },
        "$3$",
    ),
    "a GUI set": (
        {"instruction": "How many?", "image": "a.png", "gt_bbox": [1, 2, 3.5, 4]},
        "[1, 2, 3.5, 4]",
    ),
    "another": (
        {"instruction": "How many?", "image": "a.png", "bbox": [0, 0, 1, 1]},
        "[0, 0, 1, 1]",
    ),
    "VLM-R1 with a number": (
        {
            "conversations": [
                {"from": "human", "value": "<image>How many?"},
                {"from": "gpt", "value": 3.5},
            ],
            "image": "a.png",
        },
        "3.5",
    ),
    "verl with bounds": (
        {
            **GOOD,
            "problem": "<image>How many?",
            "images": [{"image": "a.png", "max_pixels": 401408}],
        },
        "3",
    ),
}


@pytest.mark.parametrize("project", FOREIGN)
def test_rows_of_other_projects_are_read(pictures, project):
    row, answer = FOREIGN[project]
    [sample], report = read_samples(jsonl(pictures / "rows.jsonl", row))
    assert (sample.question, sample.answer) == ("<image>How many?", answer)
    assert sample.images == (str(pictures / "a.png"),)
    told = "1 pictures name bounds of their own" in report.summary()
    assert told == (project == "verl with bounds") == bool(report.bounded)


def test_a_box_beside_an_answer_is_a_column_like_others(pictures):
    said = {"messages": SPOKEN[1:3], "images": ["a.png", "b.png"], "bbox": [0, 0, 1, 1]}
    told = {**FOREIGN["another"][0], "answer": "3"}
    samples, _ = read_samples(jsonl(pictures / "rows.jsonl", said, told))
    assert [sample.answer for sample in samples] == ["Yes.", "3"]
    assert all(sample.annotations["bbox"] == [0, 0, 1, 1] for sample in samples)


def test_base64_needs_no_prefix(tmp_path):
    wrapped = "\n".join(BARE[i : i + 76] for i in range(0, len(BARE), 76))
    rows = [{**GOOD, "images": [text]} for text in (BARE, wrapped, BARE[:-30])]
    samples, report = read_samples(jsonl(tmp_path / "rows.jsonl", *rows))
    assert [sample.images for sample in samples] == [(PNG,), (PNG,)]
    assert [*report.dropped] == ["a picture does not decode"]


@pytest.mark.parametrize("text", ["How many?", '{"role": "user"}'])
def test_a_message_that_is_no_list_of_json_is_counted(pictures, text):
    good, bad = FOREIGN["OpenRLHF-M"][0], {"message": text, "answer": "3"}
    _, report = read_samples(jsonl(pictures / "rows.jsonl", good, bad))
    assert report.used == 1 and [*report.dropped] == ["a message that is not JSON"]


def test_read_samples_reads_lists_of_json_and_lines_called_json(tmp_path):
    rows = [{"problem": "1 + 1?", "answer": "2"}, [1]]
    (tmp_path / "rows.json").write_text(json.dumps(rows, indent=1))
    lines = jsonl(tmp_path / "lines.json", *rows)
    for file in (tmp_path / "rows.json", lines):
        [sample], report = read_samples(file)
        assert (sample.question, sample.answer) == ("1 + 1?", "2")
        assert [*report.dropped] == ["not a JSON object"]
    lines.write_text('[{"problem": ')
    with pytest.raises(
        ValueError, match=r"lines\.json cannot be read as a list of JSON"
    ):
        read_samples(lines)


def test_read_samples_reads_csv_with_base64_and_quoted_lines(pictures):
    file = pictures / "rows.csv"
    file.write_text(
        "problem,image,answer,level\n"
        f'"How many,\nif any?",{BARE},3,2\n'
        "How many?,a.png,04,\n"
        "How many?,a.png,,\n"
    )
    (first, second), report = read_samples(file)
    assert first.question == "<image>How many,\nif any?" and first.images == (PNG,)
    assert first.annotations == {"level": "2"}
    assert second.images == (str(pictures / "a.png"),) and second.answer == "04"
    assert [*report.dropped] == ["no answer"]
    file.write_text("index,question,image,A,B,answer\n1,?,a.png,x,y,A\n")
    with pytest.raises(ValueError, match=r"options in columns.*\.tsv file"):
        read_samples(file)
    file.write_text("problem,answer\n1,2,3\n")
    with pytest.raises(ValueError, match=r"rows\.csv cannot be read as a table with"):
        read_samples(file)


@pytest.mark.parametrize("answer", [decimal.Decimal("1.5"), datetime.date(2025, 1, 1)])
def test_answers_that_are_not_json_are_counted(tmp_path, answer):
    bad = {**GOOD, "answer": None, "solution": answer}
    _, report = read_samples(parquet(tmp_path / "rows.parquet", GOOD, bad))
    assert report.used == 1 and [*report.dropped] == ["an answer that is not JSON"]


def test_read_samples_shows_both_counts_and_the_beginning_of_the_question(tmp_path):
    bad = BROKEN["<image> and pictures differ in number"]
    _, report = read_samples(parquet(tmp_path / "rows.parquet", GOOD, bad))
    [[message]] = report.dropped.values()
    assert "2 <image>, 1 pictures" in message
    assert bad["problem"][:80] in message and bad["problem"][:81] not in message


def test_read_samples_counts_lines_that_are_not_json(tmp_path):
    path = jsonl(tmp_path / "rows.jsonl", {"problem": "1 + 1?", "answer": "2"})
    path.write_text(path.read_text() + "{broken\n[1]\n\n")
    samples, report = read_samples(path)
    assert len(samples) == 1 and len(report.dropped["not a JSON object"]) == 2


@pytest.mark.parametrize("odd", ["1" * 5000, "[" * 100_000 + "]" * 100_000])
def test_read_samples_counts_lines_that_python_does_not_read(tmp_path, odd):
    path = jsonl(tmp_path / "rows.jsonl", {"problem": "What?", "answer": "1"})
    with path.open("a") as lines:
        lines.write(f'{{"problem": "What?", "answer": {odd}}}\n')
    samples, report = read_samples(path)
    assert len(samples) == 1 and len(report.dropped["not a JSON object"]) == 1


def test_read_samples_reads_the_first_row_behind_a_byte_order_mark(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"problem": "What?", "answer": "1"}\n', encoding="utf-8-sig")
    samples, report = read_samples(path)
    assert len(samples) == 1 and not report.dropped


@pytest.mark.parametrize("error", [RuntimeError, NotImplementedError, TypeError])
def test_read_samples_counts_whatever_a_decoder_raises(tmp_path, monkeypatch, error):
    """A broken AVIF is a RuntimeError, an unknown DDS a NotImplementedError."""
    plain = {"problem": "What?", "answer": "1"}
    shown = {"problem": "<image>What?", "answer": "1", "images": "rows.jsonl"}
    path = jsonl(tmp_path / "rows.jsonl", plain, shown)

    def broken(*_):
        raise error("inside")

    monkeypatch.setattr(Image, "open", broken)
    samples, report = read_samples(path)
    assert len(samples) == 1
    (message,) = report.dropped["a picture does not decode"]
    assert error.__name__ in message and "rows.jsonl row 1" in message


def test_read_samples_names_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no data file .*lost\.parquet"):
        read_samples(tmp_path / "lost.parquet")
    with pytest.raises(FileNotFoundError, match=r"without \.parquet or \.jsonl"):
        read_samples(tmp_path)


def test_read_samples_names_a_missing_answer_column(tmp_path):
    path = jsonl(tmp_path / "rows.jsonl", {"problem": "1 + 1?", "reply": "2"})
    with pytest.raises(ValueError, match=r"rows\.jsonl has no column for an answer"):
        read_samples(path)
    with pytest.raises(ValueError, match="the columns are problem, reply"):
        read_samples(path)


def test_read_samples_refuses_files_without_a_usable_row(tmp_path):
    path = parquet(tmp_path / "rows.parquet", BROKEN["a picture does not decode"])
    with pytest.raises(ValueError, match=r"(?s)no row can be used.*1 x a picture does"):
        read_samples(path)
    torn = tmp_path / "torn.parquet"
    torn.write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match=r"torn\.parquet cannot be read as parquet"):
        read_samples(torn)


SAMPLES = [Sample(str(i), "test", "?", (), str(i)) for i in range(7)]


def take(stream, number):
    return [sample.id for sample in itertools.islice(stream, number)]


def test_sample_stream_gives_every_sample_once_an_epoch_in_new_orders():
    stream = sample_stream(SAMPLES, seed=1)
    epochs = [take(stream, 7) for _ in range(4)]
    assert all(sorted(epoch) == [str(i) for i in range(7)] for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 4
    assert take(sample_stream(SAMPLES, seed=1), 7) == epochs[0]
    assert take(sample_stream(SAMPLES, seed=2), 7) != epochs[0]


@pytest.mark.parametrize("consumed", [0, 3, 7, 16])
def test_sample_stream_continues_from_a_saved_state(consumed):
    stream = sample_stream(SAMPLES, seed=1)
    take(stream, consumed)
    state = json.loads(json.dumps(stream.get_state()))
    expected = take(stream, 10)
    resumed = sample_stream(SAMPLES, seed=1)
    resumed.set_state(state)
    assert take(resumed, 10) == expected


def test_sample_stream_needs_samples():
    with pytest.raises(ValueError, match="at least one sample"):
        sample_stream([], seed=0)


def test_instructions_stand_under_the_questions():
    found = asked(small.samples(), "Box it: \\boxed{}.")
    for sample, before in zip(found, small.samples(), strict=True):
        assert sample.question == f"{before.question}\n\nBox it: \\boxed{{}}."
    assert asked(small.samples(), "") == [*small.samples()]


def test_of_several_questions_the_first_has_the_instruction():
    row = dataclasses.replace(
        small.samples()[0],
        question="<image>A?\n\nB?",
        annotations={"asks": ["<image>A?", "B?"], "demonstration": ["a", "b"]},
    )
    (found,) = asked([row], "Briefly.")
    assert found.annotations["asks"] == ["<image>A?\n\nBriefly.", "B?"]
    assert row.annotations["asks"] == ["<image>A?", "B?"]


def test_a_system_message_is_that_of_rows_without_one():
    first, second, *_ = small.samples()
    own = {**second.annotations, "system": "Mine."}
    found = asked([first, dataclasses.replace(second, annotations=own)], "", "Yours.")
    assert [row.annotations["system"] for row in found] == ["Yours.", "Mine."]
    assert found[0].question == first.question


@pytest.mark.parametrize("cell", [None, ""])
def test_an_empty_cell_is_no_system_message(tmp_path, cell):
    row = {"problem": "What?", "answer": "it", "system": cell}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    samples, _ = read_samples(tmp_path / "rows.jsonl")
    (found,) = asked(samples, "", "Yours.")
    assert found.annotations["system"] == "Yours."


@pytest.mark.parametrize("own", ["What?", 3, [1], []])
def test_a_column_asks_of_another_meaning_stays(own):
    row = dataclasses.replace(small.samples()[0], annotations={"asks": own})
    (found,) = asked([row], "Briefly.")
    assert found.annotations["asks"] == own


@pytest.mark.parametrize("role", ["tool", ["tool"], None])
def test_what_a_tool_says_is_to_follow_an_answer(tmp_path, role):
    told = [{**turn, "role": role} if n == 2 else turn for n, turn in enumerate(SPOKEN)]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": told}))
    with pytest.raises(ValueError, match="what tools say follows an answer or a call"):
        read_dialogues(tmp_path / "rows.jsonl")
