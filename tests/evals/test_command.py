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
