"""Folders of TensorFlow Datasets, as their own package writes them."""

import json
import sys

import numpy as np
import pytest
import tensorflow_datasets as library
from tensorboardX.record_writer import RecordWriter
from tensorflow_datasets.core.file_adapters import ADAPTER_FOR_FORMAT

from vrl_jax.training import tfds
from vrl_jax.training.data import files_of, read_dialogues, read_samples
from vrl_jax.types import Sample

from ..fixtures import small

KINDS = library.features
FORMATS = ("array_record", "parquet", "tfrecord")
PNG = small.png(0, 28, 28)
CHOICE = {
    "question": KINDS.Text(),
    "image": KINDS.Image(),
    "answer": KINDS.ClassLabel(names=["cat", "dog"]),
}
DOG = {"question": "Is é a pet?", "image": PNG, "answer": "dog"}


def write(folder, features, kind="array_record", **splits):
    """A folder as `download_and_prepare` leaves it, a record file a split."""
    core = library.core
    folder.mkdir()
    features = KINDS.FeaturesDict(features)
    identity = core.DatasetIdentity("pets", "1.0.0", folder, module_name="")
    info = core.DatasetInfo(builder=identity, features=features)
    info.set_file_format(kind)
    found = []
    for split, rows in splits.items():
        template = core.ShardedFileTemplate(
            folder, dataset_name="pets", split=split, filetype_suffix=kind
        )
        file = template.sharded_filepath(shard_index=0, num_shards=1)
        records = [features.serialize_example(row) for row in rows]
        if kind == "tfrecord":  # the package itself needs TensorFlow for these
            writer = RecordWriter(str(file))
            for record in records:
                writer.write(record)
            writer.close()
        else:
            ADAPTER_FOR_FORMAT[info.file_format].write_examples(
                file, enumerate(records)
            )
        found.append(
            core.SplitInfo(
                name=split,
                shard_lengths=[len(rows)],
                num_bytes=1,
                filename_template=template,
            )
        )
    info.set_splits(core.SplitDict(found))
    info.write_to_directory(folder)
    return folder


def shard(folder, split="train"):
    [file] = folder.glob(f"pets-{split}.*")
    return file


@pytest.mark.parametrize("kind", FORMATS)
def test_read_samples_reads_every_kind_of_record(tmp_path, kind):
    cat = {**DOG, "answer": "cat"}
    folder = write(tmp_path / "pets", CHOICE, kind, train=[DOG, cat], test=[cat])
    samples, report = read_samples(f"{folder}@train")
    asked = "<image>Is é a pet?"
    assert samples == [
        Sample("pets-train:0", "pets-train", asked, (PNG,), "dog"),
        Sample("pets-train:1", "pets-train", asked, (PNG,), "cat"),
    ]
    assert report.used == report.prepended == 2
    [only], _ = read_samples(folder.parent / "pets@test")
    assert only.source == "pets-test" and only.answer == "cat"
    assert {*files_of(tmp_path / "pets@test")} == {*folder.iterdir()}
    assert "tensorflow" not in sys.modules


def test_read_samples_keeps_other_features_as_plain_values(tmp_path):
    features = {
        **CHOICE,
        "answer": np.int64,
        "unknown": KINDS.ClassLabel(num_classes=2),
        "boxes": KINDS.Sequence(
            {
                "box": KINDS.BBoxFeature(),
                "label": KINDS.ClassLabel(names=["l", "r"]),
                "at": {"row": np.int32},
            }
        ),
        "words": KINDS.Sequence(KINDS.Text()),
        "grid": KINDS.Tensor(shape=(1, 2), dtype=np.float32, encoding="zlib"),
        "kept": {"right": np.bool_},
        "noted": KINDS.Text(optional=True),
        "raw": KINDS.Tensor(shape=(), dtype=np.object_),
    }
    box = {"box": KINDS.BBox(0.0, 0.25, 0.5, 1.0), "label": "r", "at": {"row": 3}}
    row = {
        **DOG,
        "answer": 4,
        "unknown": -1,
        "boxes": [box],
        "words": ["a", "é"],
        "grid": np.array([[0.5, 2]], np.float32),
        "kept": {"right": True},
        "noted": None,
        "raw": b"\xff",
    }
    empty = {**row, "boxes": [], "words": []}
    folder = write(tmp_path / "pets", features, train=[row, empty])
    (first, second), _ = read_samples(folder)
    assert first.answer == "4"
    assert first.annotations == {
        "unknown": None,
        "boxes": [{"box": [0.0, 0.25, 0.5, 1.0], "label": "r", "at": {"row": 3}}],
        "words": ["a", "é"],
        "grid": [[0.5, 2.0]],
        "kept": {"right": True},
        "noted": None,
        "raw": b"\xff",
    }
    assert second.annotations == {**first.annotations, "boxes": [], "words": []}


def test_read_dialogues_reads_messages_of_a_split(tmp_path):
    turn = {"role": KINDS.Text(), "content": KINDS.Text()}
    said = [("user", "<image>a?"), ("assistant", "b"), ("user", "c?"), ("gpt", "d")]
    row = {
        "messages": [{"role": role, "content": text} for role, text in said],
        "images": [PNG],
    }
    features = {
        "messages": KINDS.Sequence(turn),
        "images": KINDS.Sequence(KINDS.Image()),
    }
    [sample], _ = read_dialogues(write(tmp_path / "pets", features, train=[row]))
    assert sample.annotations["asks"] == ["<image>a?", "c?"]
    assert sample.annotations["demonstration"] == ["b", "d"]
    assert sample.images == (PNG,)


def test_read_samples_counts_unusable_rows_of_a_split(tmp_path):
    torn = {**DOG, "image": PNG[:-20]}
    folder = write(tmp_path / "pets", CHOICE, train=[DOG, torn])
    samples, report = read_samples(folder)
    assert len(samples) == 1
    [message] = report.dropped["a picture does not decode"]
    assert message.startswith("pets-train row 1: ")


def test_read_samples_wants_one_of_several_splits(tmp_path):
    folder = write(tmp_path / "pets", CHOICE, train=[DOG], test=[DOG])
    message = r"pets holds the splits train, test: name one of them, \S+pets@train\."
    with pytest.raises(ValueError, match=message):
        read_samples(folder)
    with pytest.raises(ValueError, match="train, test, and not dev: name one"):
        read_samples(f"{folder}@dev")


def test_read_samples_names_the_columns_of_a_folder_of_another_shape(tmp_path):
    features = {"image": KINDS.Image(), "label": KINDS.ClassLabel(names=["cat"])}
    folder = write(tmp_path / "pets", features, train=[{"image": PNG, "label": 0}])
    message = "pets-train has no column for a question: .* columns are image, label"
    with pytest.raises(ValueError, match=message):
        read_samples(folder)


def cut(file):
    file.write_bytes(file.read_bytes()[:-7])


def one_row_less(folder):
    metadata = folder / "dataset_info.json"
    noted = json.loads(metadata.read_text())
    noted["splits"][0]["shardLengths"] = ["3"]
    metadata.write_text(json.dumps(noted))


DAMAGE = {
    "no such file": lambda folder: shard(folder).unlink(),
    "ends within a record": lambda folder: cut(shard(folder)),
    "train has 2 records of 3": one_row_less,
    "Failed to load JSON": lambda folder: cut(folder / "dataset_info.json"),
    "FeatureConnector": lambda folder: (folder / "features.json").write_text(
        '{"pythonClassName": "mine.Text"}'
    ),
}


@pytest.mark.parametrize("reason", DAMAGE)
def test_read_samples_tells_a_damaged_folder(tmp_path, reason):
    folder = write(tmp_path / "pets", CHOICE, "tfrecord", train=[DOG, DOG])
    DAMAGE[reason](folder)
    message = rf"(?i)pets cannot be read as a folder .*{reason}.*; write or copy it"
    with pytest.raises(ValueError, match=message):
        read_samples(folder)


def test_what_is_missing_is_told_with_the_extra_that_brings_it(tmp_path, monkeypatch):
    folder = write(tmp_path / "pets", CHOICE, train=[DOG])
    monkeypatch.setattr(tfds.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'vrl-jax\[tfds\]'"):
        read_samples(folder)


def test_only_a_folder_with_its_metadata_is_one(tmp_path):
    folder = write(tmp_path / "pe@ts", CHOICE, train=[DOG])
    assert tfds.located(folder) == (folder, "")
    assert tfds.located(tmp_path / "pe@ts@train") == (folder, "train")
    assert tfds.located(folder / "features.json") is None
    (folder / "features.json").unlink()
    assert tfds.located(folder) is None
    with pytest.raises(FileNotFoundError, match=r"TensorFlow Datasets \(dataset_info"):
        read_samples(folder)
