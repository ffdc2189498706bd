"""`vrl-jax eval` as a user types it. What it finds on an export: test_finetuning.py."""

import base64
import csv
import json

import pytest

from vrl_jax import cli
from vrl_jax.training.files import read_lines

from ..fixtures import folders, small


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return folders.model(tmp_path_factory.mktemp("hub") / "model")


@pytest.fixture
def data(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"problem": "1+2?", "answer": "3"}))
    return file


PROGRAM = """
from vrl_jax.engine.conversation import Ask, user
from vrl_jax.engine.episode import Outcome
from vrl_jax.engine.processing import question

def look_twice(sample):
    first = yield Ask(question(sample), max_new_tokens=2)
    again = user("<image>Which one?", sample.images)
    second = yield Ask((*question(sample), first, again), max_new_tokens=2)
    return Outcome((first, second), {"read": second.read})

def judged(sample):
    said = yield Ask(question(sample))
    verdict = yield Ask((user("<image>Is it?", sample.images),), model="judge")
    return said, verdict

def alone(sample):
    yield Ask((user("<image>Is it?", sample.images),))

def passing_on(sample):
    return look_twice(sample)

def with_tools(sample, tools):
    yield Ask(question(sample))
"""
LOOKING = ("--row-tokens", 64, "--pictures", 1, "--temperature", 1, "--prompts", 1)


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """Rows with a picture, and a file of programs beside them."""
    folder = tmp_path_factory.mktemp("shown")
    (folder / "seen.png").write_bytes(small.samples()[0].images[0])
    row = {"problem": "<image>What is it?", "images": ["seen.png"], "answer": "it"}
    rows = [{**row, "id": f"row-{number}"} for number in range(3)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "looking.py").write_text(PROGRAM)
    return folder


def ended(model, data, *flags):
    """The exit code of `vrl-jax eval`."""
    reward = () if "--reward" in flags else ("--reward", "exact")
    command = ["eval", "--model", model, "--data", data, *reward, *flags]
    with pytest.raises(SystemExit) as end:
        cli.main([*map(str, command)])
    return end.value.code


@pytest.fixture(scope="module")
def looked(model, shown):
    """The folder of an evaluation with a program from a file, and its flags."""
    program = ("--program", f"{shown / 'looking.py'}:look_twice", *LOOKING)
    out = shown / "looked"
    assert ended(model, shown / "rows.jsonl", "--out", out, *program) == 0
    return out, program


def test_a_program_of_one_s_own_is_asked_and_its_turns_written(looked):
    out, _ = looked
    lines = read_lines(out / "predictions.jsonl")
    assert len(lines) == 3
    for line in lines:
        first, told, second = line["turns"]
        assert (first["chosen"], told["chosen"], second["chosen"]) == (1, 0, 1)
        assert told["text"] == "<image>Which one?" and told["images"] == line["images"]
        assert second["text"] == line["response"]
        assert 2 <= line["meta"]["tokens"] <= 4
        assert line["meta"]["facts"]["read"] > 0
    found = json.loads((out / "summary.json").read_text())
    reads = [line["meta"]["facts"]["read"] for line in lines]
    assert found["fact/read"] == pytest.approx(sum(reads) / 3)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["program"].endswith("looking.py:look_twice")
    assert list(manifest["program_file"]) == ["looking.py"]
    assert (manifest["row_tokens"], manifest["pictures"]) == (64, 1)


def test_a_system_message_is_said_and_another_refused(model, shown, capsys):
    """A reward of one's own sees the whole prompt."""
    reward = shown / "told.py"
    reward.write_text(
        "def told(episodes):\n"
        "    return [float('system\\nLook!<|im_end|>' in e.prompt) for e in episodes]\n"
    )
    out, rows = shown / "system", ("--rows", 1, "--response-tokens", 2, "--json")
    flags = ("--out", out, "--reward", f"{reward}:told", *rows, "--system")
    assert ended(model, shown / "rows.jsonl", *flags, "Look!") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["accuracy"] == 1
    assert ended(model, shown / "rows.jsonl", *flags, "Look?") == 2
    assert "system was 'Look!' and is 'Look?'" in capsys.readouterr().err


def test_a_program_goes_on_where_its_evaluation_was_cut(model, shown, looked):
    out, program = looked
    file = out / "predictions.jsonl"
    whole = file.read_text()
    file.write_text(whole[: len(whole) // 2])
    assert ended(model, shown / "rows.jsonl", "--out", out, *program) == 0
    assert file.read_text() == whole


def test_a_program_of_a_module_is_the_same(model, shown, looked, monkeypatch):
    monkeypatch.syspath_prepend(shown)
    out, flags = shown / "of_module", ("--program", "looking:look_twice", *LOOKING)
    assert ended(model, shown / "rows.jsonl", "--out", out, *flags) == 0
    known = (looked[0] / "predictions.jsonl").read_text()
    assert (out / "predictions.jsonl").read_text() == known


def test_a_changed_program_needs_another_folder(model, shown, looked, capsys):
    out, flags = looked
    file = shown / "looking.py"
    try:
        file.write_text(PROGRAM + "# another")
        assert ended(model, shown / "rows.jsonl", "--out", out, *flags) == 2
    finally:
        file.write_text(PROGRAM)
    said = capsys.readouterr().err
    assert "program_file was" in said and "Choose another --out" in said


@pytest.fixture(scope="module")
def judged(shown):
    """The flags of an evaluation by a frozen model of another family."""
    judge = folders.other(shown / "judge")
    frozen = ("--frozen", f"judge={judge}", "--frozen-temperature", 0)
    sizes = ("--frozen-tokens", 4, "--response-tokens", 2, "--dtype", "float32")
    program = ("--program", f"{shown / 'looking.py'}:judged")
    return (*program, "--rows", 1, *frozen, *sizes, "--frozen-prompt-tokens", 40)


def test_a_program_asks_a_frozen_model_by_its_name(model, shown, judged, capsys):
    out = shown / "judged"
    assert ended(model, shown / "rows.jsonl", "--out", out, *judged) == 0
    assert "frozen judge: " in capsys.readouterr().out
    (line,) = read_lines(out / "predictions.jsonl")
    said, *_, verdict = line["turns"]
    assert said["chosen"] and not verdict["chosen"]
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["frozen"] == {"judge": str(shown / "judge")}
    assert [*manifest["frozen_weights"]["judge"]] == ["model.safetensors"]
    assert manifest["frozen_tokens"] == 4 and "frozen_slots" not in manifest
    # What it says is the model's of that folder, which here is the policy too.
    flags = ("--program", f"{shown / 'looking.py'}:alone", "--rows", 1, "--dtype")
    flags += ("float32", "--response-tokens", 4, "--out", shown / "alone")
    assert ended(shown / "judge", shown / "rows.jsonl", *flags) == 0
    (alone,) = read_lines(shown / "alone" / "predictions.jsonl")
    assert verdict["text"] == alone["response"]


def test_a_changed_frozen_model_needs_another_folder(model, shown, judged, capsys):
    other = [f"judge={model}" if str(x).startswith("judge=") else x for x in judged]
    assert ended(model, shown / "rows.jsonl", "--out", shown / "judged", *other) == 2
    said = capsys.readouterr().err
    assert "frozen was" in said and "Choose another --out" in said


@pytest.mark.parametrize(
    ("frozen", "said"),
    [
        ((), "asks the model 'judge', and there is only 'policy': name its folder, "),
        (("--frozen", "reader={}"), "there is only 'policy', 'reader'"),
        (("--frozen", "judge=nowhere"), "the frozen model 'judge': There is no model"),
        (("--frozen", "judge"), "--frozen is NAME=FOLDER, got 'judge'"),
        (("--frozen", "a={}", "--frozen", "b={}"), "there is only 'a', 'b', 'policy'"),
        (("--frozen-tokens", 9, "--row-tokens", 8), "are more than --row-tokens 8"),
    ],
)
def test_a_model_that_is_not_there_is_one_line(model, shown, capsys, frozen, said):
    flags = ("--program", f"{shown / 'looking.py'}:judged", "--out", shown / "never")
    given = [str(flag).format(model) for flag in frozen]
    assert ended(model, shown / "rows.jsonl", *flags, *given) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and said in line


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("look_twice", "is path.py:function or package.module:function, got"),
        ("{}/none.py:look_twice", "there is no file"),
        ("{}/looking.py:look", "has no function look; it has"),
        ("{}/looking.py:passing_on", "is no generator function"),
        ("{}/looking.py:with_tools", "is called with a sample alone: missing a"),
        ("nowhere_to_be_found:f", "No module named 'nowhere_to_be_found'"),
        ("vrl_jax.programs.tool_turns:f", "has no attribute 'f'"),
    ],
)
def test_a_program_that_cannot_be_is_one_line(shown, capsys, reference, said):
    program = reference.format(shown)
    rows, out = shown / "rows.jsonl", shown / "never"
    assert ended(shown, rows, "--out", out, "--program", program) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --program ") and said in line


def test_eval_of_a_benchmark_s_table_gives_it_back_answered(model, tmp_path, capsys):
    picture = base64.b64encode(small.samples()[0].images[0]).decode()
    cells = [f"{i}\t{picture}\tWhat is it?\tone\ttwo\tB" for i in (3, 5)]
    file = tmp_path / "MMStar.tsv"
    file.write_text("\n".join(["index\timage\tquestion\tA\tB\tanswer", *cells]))
    command = [
        *("eval", "--model", model, "--data", file, "--reward", "mcq"),
        *("--out", tmp_path / "out", "--response-tokens", 4, "--dtype", "float32"),
        *("--table", tmp_path / "answered.tsv"),
    ]
    with pytest.raises(SystemExit) as ended:
        cli.main([*map(str, command)])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "MMStar.tsv: 2 of 2 rows can be used." in said
    assert "accuracy 0.000 [0.000, 0.000] of 2 questions" in said
    with (tmp_path / "answered.tsv").open(newline="") as lines:
        rows = [*csv.DictReader(lines, delimiter="\t")]
    responses = read_lines(tmp_path / "out" / "predictions.jsonl")
    assert [row["index"] for row in rows] == ["3", "5"]
    assert [row["prediction"] for row in rows] == [r["response"] for r in responses]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--each", "2"], "give --temperature"),
        (["--each", "0"], "at least once, got --each 0"),
        (["--temperature", "-1"], "at least 0, got -1"),
        (["--dtype", "int4"], "dtypes are bfloat16, float32"),
        (["--pictures", "2"], "without one there are single turns, got None and 2"),
        (["--row-tokens", "0"], "--row-tokens is at least 1"),
        (["--frozen", "judge=a"], "asked by a --program: without one there are single"),
        (["--frozen-tokens", "4"], "leave --frozen and what begins so out"),
        (["--rows", "-1"], "at least one row is needed, got -1"),
        (["--model", "./nowhere"], "There is no model folder './nowhere'"),
        (["--reward", "nice"], "there is no reward 'nice'"),
        (["--table", "t.tsv"], "--table is for a benchmark's TSV, and --data is"),
        (["--reward", "iou"], "iou needs --frame, what the numbers of a box count"),
    ],
)
def test_wrong_flags_of_eval_are_one_line(model, data, tmp_path, capsys, flags, said):
    usual = {"--model": model, "--data": data, "--reward": "exact"}
    usual["--out"] = tmp_path
    given = [str(x) for pair in usual.items() if pair[0] not in flags for x in pair]
    with pytest.raises(SystemExit) as ended:
        cli.main(["eval", *given, *flags])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and said in line
