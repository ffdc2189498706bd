"""Folders that TensorFlow Datasets wrote, as rows, without TensorFlow.

A folder holds one version of a data set: `dataset_info.json`, `features.json` and the
records of its splits; https://www.tensorflow.org/datasets. Its package is asked what
the records mean; it is optional, `vrl-jax[tfds]`.
"""

import contextlib
import importlib.util
import struct
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

METADATA = ("dataset_info.json", "features.json")


def located(path: Path) -> tuple[Path, str] | None:
    """The folder and the split that FOLDER or FOLDER@SPLIT names, if it is such a one.

    The split is "" where none is named.
    """
    before, at, after = str(path).rpartition("@")
    for folder, split in [(path, ""), (Path(before), after)][: 2 if at else 1]:
        if all((folder / name).is_file() for name in METADATA):
            return folder, split
    return None


def library() -> ModuleType:
    """`tensorflow_datasets`. Raises `ValueError` where it is not installed."""
    if importlib.util.find_spec("tensorflow_datasets") is None:
        raise ValueError(
            "folders of TensorFlow Datasets need its package, without TensorFlow: "
            "pip install 'vrl-jax[tfds]'."
        )
    import tensorflow_datasets

    return tensorflow_datasets


def read_rows(folder: Path, split: str) -> tuple[str, list[dict[str, Any]]]:
    """DATASET-SPLIT, and the split's rows as `training.data` reads them.

    Pictures are the bytes that were stored, classes are their names, a sequence of
    dicts is a list of dicts. Checksums of TFRecord files are not compared. Raises
    `ValueError` where "" names none of several splits, or what is there cannot be read:
    Riegeli files and features of videos cannot, without TensorFlow.
    """
    tfds = library()
    from tensorflow_datasets.core.example_parser import ExampleParserNp

    with _readable(folder):
        builder = tfds.builder_from_directory(folder)
    split = _one_of(list(builder.info.splits), split, folder)
    with _readable(folder):
        features = builder.info.features
        # Not as_data_source's own decoding: it cannot leave a sequence of pictures
        # as it is stored.
        parser = ExampleParserNp(features.get_serialized_info())
        rows = [
            _plain(tfds.features, features, parser.parse_example(record))
            for record in _records(tfds, builder, split)
        ]
        noted = builder.info.splits[split].num_examples
        if len(rows) != noted:
            raise ValueError(f"{split} has {len(rows)} records of {noted}")
    return f"{builder.name}-{split}", rows


@contextlib.contextmanager
def _readable(folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of JSON, protobuf, records: each has its own
        reason = str(error).partition("\n")[0][:300]
        raise ValueError(
            f"{folder} cannot be read as a folder of TensorFlow Datasets "
            f"({type(error).__name__}: {reason}); write or copy it again."
        ) from error


def _one_of(splits: list[str], split: str, folder: Path) -> str:
    if not split and len(splits) == 1:
        return splits[0]
    if split not in splits:
        raise ValueError(
            f"{folder} holds the splits {', '.join(splits)}"
            f"{f', and not {split}' if split else ''}: name one of them, "
            f"{folder}@{splits[0] if splits else 'train'}."
        )
    return split


def _records(tfds: ModuleType, builder: Any, split: str) -> Iterator[bytes]:
    """What is stored of each row, in order."""
    if builder.info.file_format is tfds.core.FileFormat.TFRECORD:
        for file in builder.info.splits[split].filepaths:
            yield from _tfrecords(file)
        return
    stored = tfds.decode.DeserializeMethod.RAW_BYTES
    yield from builder.as_data_source(split, deserialize_method=stored)


def _tfrecords(file: Path) -> Iterator[bytes]:
    """Each record stands between its length and its checksum: 8 + 4, n, 4 bytes.

    https://www.tensorflow.org/tutorials/load_data/tfrecord
    """
    with file.open("rb") as content:
        while header := content.read(12):
            (length,) = struct.unpack("<Q", header[:8])
            record = content.read(length)
            if len(record) + len(content.read(4)) != length + 4:
                raise ValueError(f"{file.name} ends within a record")
            yield record


def _plain(kinds: ModuleType, feature: Any, value: Any) -> Any:
    """The value of a feature in the types that parquet and JSON have."""
    if value is None:
        return None
    if isinstance(feature, kinds.FeaturesDict):
        names = sorted(feature)  # they have another order in each process
        return {name: _plain(kinds, feature[name], value[name]) for name in names}
    if isinstance(feature, kinds.Sequence):
        return [_plain(kinds, feature.feature, one) for one in _unstacked(value)]
    if isinstance(feature, kinds.Image):
        return bytes(value)
    if isinstance(feature, kinds.ClassLabel):
        return feature.int2str(value) if value >= 0 else None  # -1 is no label
    return _python(feature.decode_example_np(value))


def _unstacked(value: Any) -> list[Any]:
    """A dict of lists as a list of dicts; a list as it is."""
    if not isinstance(value, dict):
        return list(value)
    columns = {name: _unstacked(column) for name, column in value.items()}
    rows = zip(*columns.values(), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def _python(value: Any) -> Any:
    if isinstance(value, bytes):
        with contextlib.suppress(UnicodeDecodeError):  # then it is no text
            return value.decode()
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    return [_python(one) for one in value] if isinstance(value, list) else value
