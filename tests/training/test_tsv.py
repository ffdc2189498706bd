"""VLMEvalKit's tables: read, and given back with what was said."""

import base64
import csv

import pytest

from vrl_jax.training import tsv
from vrl_jax.training.data import read_samples

from ..fixtures.small import png

ONE, TWO = png(0, 28, 56), png(1, 56, 28)
CODED = [base64.b64encode(picture).decode() for picture in (ONE, TWO)]
COLUMNS = ("index", "image", "question", "hint", "A", "B", "C", "answer", "category")


def write(file, *rows, columns=COLUMNS):
    """As pandas writes it: quotes where needed, empty cells for what is not there."""
    with file.open("w", encoding="utf-8", newline="") as lines:
        writer = csv.DictWriter(lines, columns, delimiter="\t", restval="")
        writer.writeheader()
        writer.writerows(rows)
    return file


ROW = {
    "index": 7,
    "image": CODED[0],
    "question": 'What is "it",\nand where?',
    "A": "a box",
    "B": "3",
    "answer": "B",
    "category": "what",
}


def test_a_choice_is_asked_with_its_options(tmp_path):
    hinted = {**ROW, "index": 8, "hint": "Look.", "C": "none"}
    samples, report = read_samples(write(tmp_path / "MMStar.tsv", ROW, hinted))
    assert report.used == 2 and not report.dropped
    first, second = samples
    assert (first.id, first.source, first.answer) == ("7", "MMStar", "B")
    assert first.images == (ONE,)
    assert first.question == (
        '<image>Question: What is "it",\nand where?\nOptions:\nA. a box\nB. 3\n'
        + tsv.SELECT
    )
    assert first.annotations["options"] == ["a box", "3"]
    assert first.annotations["category"] == "what"
    assert second.question.startswith("<image>Hint: Look.\nQuestion: What")
    assert second.question.endswith(f"B. 3\nC. none\n{tsv.SELECT}")


def test_an_option_keeps_its_letter_s_place(tmp_path):
    row = {**ROW, "B": "", "C": "none", "answer": "C"}
    [sample], _ = read_samples(write(tmp_path / "holes.tsv", row))
    assert sample.question.endswith(f"A. a box\nC. none\n{tsv.SELECT}")
    assert sample.annotations["options"] == ["a box", "", "none"]


def test_an_open_question_has_no_options(tmp_path):
    row = {"index": "a", "image": CODED[0], "question": "How many?", "answer": "12"}
    [sample], _ = read_samples(write(tmp_path / "open.tsv", row))
    assert sample.question == "<image>How many?"
    assert (sample.answer, sample.annotations["options"]) == ("12", [])


def test_several_pictures_stand_where_they_are_mentioned(tmp_path):
    both = {**ROW, "image": repr(CODED), "question": "Is <image 2> in <image_1>?"}
    rest = {**ROW, "index": 8, "image": repr(CODED), "question": "Is it <image 2>?"}
    wrong = {**ROW, "index": 9, "question": "Is it <image 4>?"}
    samples, _ = read_samples(write(tmp_path / "rows.tsv", both, rest, wrong))
    assert samples[0].images == (TWO, ONE)
    assert samples[0].question.startswith("Question: Is <image> in <image>?")
    assert samples[1].images == (ONE, TWO)
    assert samples[1].question.startswith("<image>Question: Is it <image>?")
    assert samples[2].question.startswith("<image>Question: Is it <image 4>?")


def test_a_picture_may_be_another_row_s_or_a_path(tmp_path):
    (tmp_path / "two.png").write_bytes(TWO)
    same = {**ROW, "index": 8, "image": "7"}
    path = {"index": 9, "image_path": "two.png", "question": "?", "answer": "A"}
    file = write(
        tmp_path / "rows.tsv", ROW, same, path, columns=(*COLUMNS, "image_path")
    )
    samples, _ = read_samples(file)
    assert [sample.images[0] for sample in samples] == [
        *(ONE, ONE),
        str(tmp_path / "two.png"),
    ]


def test_rows_that_cannot_be_used_are_counted(tmp_path):
    silent = {**ROW, "index": 8, "answer": ""}
    torn = {**ROW, "index": 9, "image": CODED[0][:80]}
    run = {**ROW, "index": 10, "image": "[__import__('os')]"}
    samples, report = read_samples(write(tmp_path / "rows.tsv", ROW, silent, torn, run))
    assert [sample.id for sample in samples] == ["7"]
    assert sorted(map(len, report.dropped.values())) == [1, 1, 1]


def test_a_table_that_is_none_is_named(tmp_path):
    (tmp_path / "rows.tsv").write_text("index\tquestion\n1\t2\t3\n")
    with pytest.raises(ValueError, match=r"rows\.tsv cannot be read as a table"):
        read_samples(tmp_path / "rows.tsv")


@pytest.mark.parametrize("index", [7, ""])
def test_rows_that_could_not_be_found_again_are_refused(tmp_path, index):
    file = write(tmp_path / "rows.tsv", ROW, {**ROW, "index": index})
    with pytest.raises(ValueError, match="a column `index` with another number"):
        read_samples(file)


def test_predictions_go_back_in_the_same_form(tmp_path):
    source = write(tmp_path / "MMStar.tsv", ROW, {**ROW, "index": 8})
    said = [
        {"id": "8", "response": 'It is\t"B"\nsurely'},
        {"id": "8", "response": "A"},
        {"id": "7", "response": "B"},
    ]
    tsv.write_predictions(tmp_path / "out.tsv", source, said)
    with (tmp_path / "out.tsv").open(encoding="utf-8", newline="") as lines:
        first, second = csv.DictReader(lines, delimiter="\t")
    assert (first["index"], first["prediction"]) == ("7", "B")
    assert (second["index"], second["prediction"]) == ("8", 'It is\t"B"\nsurely')
    assert first["question"] == ROW["question"] and "image" not in first
    assert (first["A"], first["answer"], first["category"]) == ("a box", "B", "what")
