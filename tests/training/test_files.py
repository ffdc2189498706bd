"""JSON lines that a resumed run continues."""

import json
import math

import pytest

from vrl_jax.training import files


def test_append_line_writes_json_that_every_reader_takes(tmp_path):
    file = tmp_path / "metrics.jsonl"
    files.append_line(file, {"a": 1.5, "b": math.nan, "c": math.inf, "d": "x"})
    files.append_line(file, {"a": -math.inf})

    def refuse(constant):
        raise AssertionError(constant)

    rows = [
        json.loads(line, parse_constant=refuse)
        for line in file.read_text().split("\n")[:2]
    ]
    assert rows == [{"a": 1.5, "b": None, "c": None, "d": "x"}, {"a": None}]
    assert files.read_lines(file) == rows


def test_cut_takes_back_what_came_after_the_sizes(tmp_path):
    one, other, new = (tmp_path / name for name in ("one", "other", "new"))
    files.append_line(one, {"step": 1})
    noted = files.sizes([one, other])
    assert noted == {"one": len(one.read_bytes()), "other": 0}
    files.append_line(one, {"step": 2})
    files.append_line(other, {"step": 2})
    files.append_line(new, {"step": 2})
    files.cut([one, other, new], noted)
    assert files.read_lines(one) == [{"step": 1}]
    assert files.read_lines(other) == files.read_lines(new) == []


@pytest.mark.parametrize("write", ["write_json", "write_lines"])
def test_a_file_is_whole_or_as_it_was(tmp_path, write):
    file = tmp_path / "config.json"
    value = {"a": 1}
    good, bad = (value, {"a": object()}) if write == "write_json" else ([value], None)
    getattr(files, write)(file, good)
    before = file.read_text()
    bad = bad or (row for row in [value, {"a": object()}])
    with pytest.raises(TypeError):
        getattr(files, write)(file, bad)
    assert file.read_text() == before
    assert json.loads(before) == value


def test_read_lines_of_no_file_is_empty(tmp_path):
    assert files.read_lines(tmp_path / "nothing.jsonl") == []
