"""`vrl-jax` as a user types it: the exit code, and lines that can be acted on."""

import base64
import json
import tomllib
from pathlib import Path

import pytest

from vrl_jax import cli
from vrl_jax.rewards import named

from .fixtures.small import png

PICTURE = "data:image/png;base64," + base64.b64encode(png(0, 64, 96)).decode()
GOOD = [{"problem": "1+2?", "answer": "3"}, {"problem": "2+2?", "answer": "4"}]


@pytest.fixture
def data(tmp_path):
    def write(rows):
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(file)

    return write


def run(*arguments):
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    return ended.value.code


def test_the_command_is_installed_under_its_name():
    file = Path(cli.__file__).parents[1] / "pyproject.toml"
    scripts = tomllib.loads(file.read_text())["project"]["scripts"]
    assert scripts == {"vrl-jax": "vrl_jax.cli:main"}


def test_data_check_of_sound_rows(data, capsys):
    rows = [*GOOD, {"problem": "no answer"}]
    assert run("data", "check", data(rows), "--reward", "exact") == 0
    said = capsys.readouterr().out
    assert "2 of 3 rows can be used" in said
    assert "1 x no answer" in said
    assert "gold       1.000 mean of 2 rows, 0 below full marks" in said
    assert said.endswith("nothing suspicious\n")


def test_data_check_of_bad_rows_as_json(data, capsys):
    rows = [*GOOD, {"id": "odd", "problem": "how many?", "answer": "a lot"}]
    assert run("data", "check", data(rows), "--reward", "count", "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert found["suspicious"] and found["data"]["used"] == 3
    assert [row["id"] for row in found["gold_below"]] == ["odd"]


def test_data_check_of_the_reward_of_a_file(data, capsys, tmp_path):
    own = tmp_path / "mine.py"
    own.write_text(
        "def compute_score(data_source, solution_str, ground_truth, extra_info=None):\n"
        "    return float(solution_str == f'It is {ground_truth}.')\n"
    )
    command = ["data", "check", data(GOOD), "--reward", f"{own}:compute_score"]
    assert run(*command, "--response", "It is {answer}.") == 0
    assert ":compute_score, called as verl's (--style)" in capsys.readouterr().out
    assert run(*command) == 1  # none of the common responses is paid
    assert "gold answers below full marks" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "style"),
    [
        ("def f(reward_inputs): ...", "easyr1"),
        ("def f(predicts, ground_truths): ...", "easyr1"),
        ("def f(predict, ground_truth): ...", "easyr1"),
        ("def f(data_source, solution_str, ground_truth): ...", "verl"),
        ("def f(data_sources, solution_strs, ground_truths): ...", "verl"),
        ("def f(episodes): ...", "native"),
        ("def f(completions, solution, **kwargs): ...", "vlm_r1"),
        ("def f(prompts, completions, **kwargs): ...", "trl"),
        ("def f(queries, prompts, labels): ...", "openrlhf"),
        ("class f:\n    def __call__(self, completions, **kwargs): ...", "ms_swift"),
    ],
)
def test_a_signature_tells_whose_it_is(tmp_path, source, style):
    own = tmp_path / "mine.py"
    own.write_text(source + "\n")
    assert named.style_of(f"{own}:f") == style


@pytest.mark.parametrize(
    ("reward", "more", "said"),
    [
        ("exat", [], "there is no reward 'exat': the library's are accuracy, "),
        ("nowhere.py:f", [], "there is no file"),
        ("{own}:g", [], "the file has no function g; it has f"),
        ("{own}:f", [], "takes x, which is no signature that is known"),
        ("{own}:f", ["--style", "mine"], "styles are native, easyr1"),
        ("{broken}:f", [], "ZeroDivisionError"),
        ("exact", ["--style", "trl"], "--style is for path.py:function"),
        ("iou", ["--gold-frame", "feet"], "frames are original, resized, norm1000"),
        ("exact", ["--response", "x"], "must hold {answer}"),
        ("exact", ["--rows", "0"], "at least one row"),
    ],
)
def test_an_error_of_the_user_is_one_line(data, capsys, tmp_path, reward, more, said):
    own, broken = tmp_path / "own.py", tmp_path / "broken.py"
    own.write_text("def f(x): ...\n")
    broken.write_text("1 / 0\n")
    reward = reward.replace("{own}", str(own)).replace("{broken}", str(broken))
    assert run("data", "check", data(GOOD), "--reward", reward, *more) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_a_file_that_is_not_there_is_one_line(capsys):
    assert run("data", "check", "no.jsonl", "--reward", "exact") == 2
    assert "there is no data file no.jsonl" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", [*named.LIBRARY, *named.OF_MATHEMATICS, *named.OF_BOXES]
)
def test_every_named_reward_pays_its_own_gold(data, capsys, name):
    answers = {"mcq": ["A", "C"], "yes_no": ["yes", "no"], "anls": ["cat", "a dog"]}
    boxes = ["[1, 2, 30, 40]", "[50, 2, 90, 40]"]
    objects = [f'[{{"Position": {box}, "Confidence": 1}}]' for box in boxes]
    answers["detection"] = objects
    answers["letters"] = ["A, C", "BD"]
    rows = [
        {"problem": "?", "answer": answer, **picture}
        for answer, picture in zip(
            answers.get(name, boxes if name in named.OF_BOXES else ["3", "40"]),
            [{"image": PICTURE}] * 2 if name in named.OF_BOXES else [{}, {}],
            strict=True,
        )
    ]
    assert run("data", "check", data(rows), "--reward", name) == 0, capsys.readouterr()


def test_report_writes_the_page_of_a_run_folder(tmp_path, capsys):
    row = {"phase": "rl", "step": 1, "critic/score/mean": 0.5}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    assert run("report", str(tmp_path)) == 0
    page = tmp_path / "report.html"
    assert capsys.readouterr().out.strip() == str(page) and page.exists()


def test_report_of_no_run_is_one_line(tmp_path, capsys):
    assert run("report", str(tmp_path)) == 2
    error = capsys.readouterr().err
    assert "metrics.jsonl" in error and error.count("\n") == 1
