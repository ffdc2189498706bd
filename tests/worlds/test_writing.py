import dataclasses
import datetime
import decimal
import io
import os
import stat
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets
from PIL import Image

from vrl_jax.training.data import read_samples
from vrl_jax.types import Sample
from vrl_jax.worlds import digits, shapes, writing

AWKWARD = Sample(
    id="../up/and away",
    source="é",
    question="<image>\u2028\\<image> or<image>?",
    images=(digits.sums(1, split="test", seed=0)[0].images[0],) * 2,
    answer='"3"\n',
    annotations={"nested": {"box": [0, 0.5], "none": None}, "text": "<image>"},
)


def mixed():
    """With one picture, with several, and with none."""
    none = dataclasses.replace(AWKWARD, id="none", question="1 + 1?", images=())
    return [*digits.sums(3, split="train", seed=0), AWKWARD, none]


def write_one_split(samples, folder):
    return writing.write_tfds({"train": samples}, folder)


FOLDERS = pytest.mark.parametrize("write", [writing.write_jsonl, write_one_split])


def with_bytes(sample):
    loaded = tuple(
        image if isinstance(image, bytes) else Path(image).read_bytes()
        for image in sample.images
    )
    return dataclasses.replace(sample, images=loaded)


def contents(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_write_parquet_is_read_back_as_it_was(tmp_path):
    samples = [
        *digits.sums(5, split="train", seed=0),
        *digits.largest(5, split="train", seed=0),
        *shapes.position(5, split="test", seed=0),
    ]
    path = writing.write_parquet(samples, tmp_path / "new" / "world.parquet")
    again, report = read_samples(path)
    assert again == samples
    assert (report.used, report.dropped, report.prepended) == (15, {}, 0)


def test_write_parquet_gives_the_same_bytes_and_replaces_at_once(tmp_path):
    samples = digits.sums(5, split="train", seed=0)
    path = writing.write_parquet(samples, tmp_path / "world.parquet")
    before = path.read_bytes()
    writing.write_parquet(digits.sums(5, split="train", seed=0), path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["world.parquet"]


def test_write_parquet_leaves_the_mode_to_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        path = writing.write_parquet(mixed(), tmp_path / "world.parquet")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.parametrize(
    "value", [b"seen", datetime.date(2025, 1, 1), [decimal.Decimal(1)], {1: 0, "a": 0}]
)
def test_annotations_that_json_lacks_are_named(tmp_path, value):
    bad = dataclasses.replace(AWKWARD, annotations={"good": 1, "made": value})
    for write in (writing.write_parquet, writing.write_jsonl, write_one_split):
        with pytest.raises(ValueError, match=r"up/and away has .* columns \['made'\]"):
            write([bad], tmp_path / "world")
    assert not [*tmp_path.iterdir()]


def test_write_parquet_leaves_the_old_file_when_writing_fails(tmp_path, monkeypatch):
    samples = digits.sums(2, split="train", seed=0)
    path = writing.write_parquet(samples, tmp_path / "world.parquet")
    before = path.read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing.pq, "write_table", full)
    with pytest.raises(OSError, match="No space left"):
        writing.write_parquet(samples[:1], path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["world.parquet"]


@FOLDERS
def test_a_folder_is_read_back_as_it_was(tmp_path, write):
    samples = mixed()
    folder = write(samples, tmp_path / "new" / "world")
    again, report = read_samples(folder)
    assert [with_bytes(sample) for sample in again] == samples
    assert (report.used, report.dropped, report.prepended) == (5, {}, 0)
    assert [entry.name for entry in folder.parent.iterdir()] == ["world"]


@FOLDERS
def test_the_same_samples_are_the_same_folder(tmp_path, write):
    once = contents(write(mixed(), tmp_path / "once"))
    assert contents(write(mixed(), tmp_path / "again")) == once


@FOLDERS
def test_a_folder_that_holds_something_is_not_replaced(tmp_path, write):
    (tmp_path / "empty").mkdir()
    before = contents(write(mixed(), tmp_path / "empty"))
    with pytest.raises(FileExistsError, match="empty holds something already"):
        write(mixed()[:1], tmp_path / "empty")
    assert contents(tmp_path / "empty") == before
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="file holds something already"):
        write(mixed(), tmp_path / "file")


@FOLDERS
def test_a_folder_appears_whole_or_not_at_all(tmp_path, write):
    lost = dataclasses.replace(AWKWARD, images=("lost.png",) * 2)
    with pytest.raises(FileNotFoundError, match=r"lost\.png"):
        write([*mixed(), lost], tmp_path / "world")
    assert not [*tmp_path.iterdir()]


def test_write_jsonl_names_pictures_by_place_and_format(tmp_path):
    as_jpeg = io.BytesIO()
    Image.open(io.BytesIO(AWKWARD.images[0])).save(as_jpeg, format="JPEG")
    files = (AWKWARD.images[0], as_jpeg.getvalue())
    sample = dataclasses.replace(AWKWARD, images=files)
    found = contents(writing.write_jsonl([*mixed()[:1], sample], tmp_path / "world"))
    assert [*found] == [
        "images/000000-0.png",
        "images/000001-0.png",
        "images/000001-1.jpeg",
        "rows.jsonl",
    ]
    torn = dataclasses.replace(AWKWARD, images=(b"no picture",) * 2)
    with pytest.raises(ValueError, match=r"picture 0 of sample \.\./up/and away is no"):
        writing.write_jsonl([torn], tmp_path / "torn")


def test_write_tfds_is_opened_by_its_own_package(tmp_path):
    train, test = mixed(), digits.sums(2, split="test", seed=0)
    folder = writing.write_tfds({"train": train, "test": test}, tmp_path / "world")
    builder = tensorflow_datasets.builder_from_directory(folder)
    sizes = {name: split.num_examples for name, split in builder.info.splits.items()}
    assert sizes == {"train": 5, "test": 2}
    for split, samples in (("train", train), ("test", test)):
        rows = builder.as_data_source(split)
        for row, sample in zip(rows, samples, strict=True):
            assert row["problem"].decode() == sample.question
            assert row["answer"].decode() == sample.answer
            for image, encoded in zip(row["images"], sample.images, strict=True):
                shown = np.asarray(Image.open(io.BytesIO(encoded)))
                np.testing.assert_array_equal(image, shown)
        assert read_samples(f"{folder}@{split}")[0] == samples
    assert "tensorflow" not in sys.modules


def test_write_tfds_orders_features_alike_in_every_process(tmp_path):
    builder = tensorflow_datasets.builder_from_directory(
        write_one_split(mixed(), tmp_path / "world")
    )
    stored = tensorflow_datasets.decode.DeserializeMethod.RAW_BYTES
    record = builder.as_data_source("train", deserialize_method=stored)[0]
    names = sorted(name.encode() for name in builder.info.features)
    places = [record.index(b"\n%c%s" % (len(name), name)) for name in names]
    assert len(names) == 6 and places == sorted(places)


@pytest.mark.parametrize("splits", [{"a/b": mixed()}, {"all": mixed()}, {"dev": []}])
def test_write_tfds_refuses_splits_that_could_not_be_read(tmp_path, splits):
    with pytest.raises(ValueError, match="a split has samples, and a name"):
        writing.write_tfds(splits, tmp_path / "world")


def test_add_noise_has_the_asked_deviation():
    grey = np.full((100, 100, 3), 128, np.uint8)
    noisy = writing.add_noise(grey, 0.05, np.random.default_rng(0))
    assert noisy.std() == pytest.approx(0.05 * 255, rel=0.05)
    assert (noisy[..., 0] == noisy[..., 1]).all()
