"""Pictures as PNG bytes; samples as files that other stacks read too.

Parquet, JSON lines with a folder of pictures, or a folder of TensorFlow Datasets, all
with EasyR1's columns, https://github.com/hiyouga/EasyR1#custom-dataset: `problem`,
`images`, `answer`, and `id`, `data_source` and `annotations`, one JSON object a row.
The same samples are the same bytes, and `training.data.read_samples` reads them back.
"""

import contextlib
import io
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from vrl_jax.training import tfds
from vrl_jax.types import ImageRef, Sample

_SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "data_source": pa.string(),
        "problem": pa.string(),
        "images": pa.list_(pa.struct({"bytes": pa.binary(), "path": pa.string()})),
        "answer": pa.string(),
        "annotations": pa.string(),
    }
)


def add_noise(
    picture: UInt8[np.ndarray, "H W 3"], noise: float, rng: np.random.Generator
) -> UInt8[np.ndarray, "H W 3"]:
    """Adds grey Gaussian noise; `noise` is its deviation as a share of full white."""
    grain = rng.normal(0, 255 * noise, (*picture.shape[:2], 1))
    return (picture + grain).round().clip(0, 255).astype(np.uint8)


def png_bytes(picture: UInt8[np.ndarray, "H W 3"]) -> bytes:
    """The picture as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    return buffer.getvalue()


def write_parquet(samples: Sequence[Sample], path: str | Path) -> Path:
    """Writes samples as one file, their pictures in it: lists of {bytes, path}.

    The file appears whole or not at all, in place of an earlier one. `ValueError` for
    annotations that JSON lacks.
    """
    path = Path(path)
    table = pa.Table.from_pylist(
        [_row(sample, _named_bytes(sample)) for sample in samples], schema=_SCHEMA
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        dir=path.parent, prefix=f".{path.name}."
    ) as beside:
        unfinished = Path(beside) / path.name  # in it a file is as open as any other
        pq.write_table(table, unfinished, row_group_size=1024)
        os.replace(unfinished, path)
    return path


def write_jsonl(samples: Sequence[Sample], folder: str | Path) -> Path:
    """Writes `rows.jsonl`, and under `images/` the pictures that it names.

    The folder appears whole or not at all. Raises `FileExistsError` where it holds
    something, `ValueError` for a picture that is none and for annotations that JSON
    lacks.
    """
    with _appearing(Path(folder)) as unfinished:
        (unfinished / "images").mkdir()
        with (unfinished / "rows.jsonl").open("w", encoding="utf-8") as lines:
            for number, sample in enumerate(samples):
                names = []
                for place, image in enumerate(map(_encoded, sample.images)):
                    kind = _kind(image, f"picture {place} of sample {sample.id}")
                    names.append(f"images/{number:06}-{place}.{kind}")
                    (unfinished / names[-1]).write_bytes(image)
                lines.write(json.dumps(_row(sample, names)) + "\n")
    return Path(folder)


def write_tfds(splits: Mapping[str, Sequence[Sample]], folder: str | Path) -> Path:
    """Writes a folder that `tfds.builder_from_directory` opens, an ArrayRecord a split.

    Texts are `Text`, the pictures a sequence of `Image`. The folder appears whole or
    not at all. Raises `FileExistsError` where it holds something, `ValueError` for a
    split without a plain name or samples, for annotations that JSON lacks, and without
    `vrl-jax[tfds]`.
    """
    for split, samples in splits.items():
        if not split.isidentifier() or split == "all" or not samples:
            raise ValueError(
                "a split has samples, and a name of letters, digits and _ that is not "
                f"`all`, such as train: got {split!r} with {len(samples)} samples."
            )
    library = tfds.library()
    kinds = library.features
    texts = {name: kinds.Text() for name in _SCHEMA.names if name != "images"}
    with _appearing(Path(folder)) as unfinished:
        info = library.core.DatasetInfo(
            builder=library.core.DatasetIdentity(
                name="samples", version="1.0.0", data_dir=unfinished, module_name=""
            ),
            features=kinds.FeaturesDict(
                {**texts, "images": kinds.Sequence(kinds.Image())}
            ),
            disable_shuffling=True,  # they keep their order
        )
        info.set_file_format(library.core.FileFormat.ARRAY_RECORD)
        written = [
            _write_split(library, info, split, samples)
            for split, samples in splits.items()
        ]
        info.set_splits(library.core.SplitDict(written))
        info.write_to_directory(unfinished)
    return Path(folder)


def _write_split(
    library: ModuleType, info: Any, split: str, samples: Sequence[Sample]
) -> Any:
    """Writes the records of a split, and gives its `SplitInfo`."""
    from tensorflow_datasets.core.file_adapters import ADAPTER_FOR_FORMAT

    serializer = library.core.ExampleSerializer(info.features.get_serialized_info())
    sizes: list[int] = []

    def records() -> Iterator[tuple[int, bytes]]:
        for number, sample in enumerate(samples):
            row = _row(sample, [_encoded(image) for image in sample.images])
            example = serializer.get_tf_example(info.features.encode_example(row))
            # Otherwise the order of the features is another in each process.
            record = example.SerializeToString(deterministic=True)
            sizes.append(len(record))
            yield number, record

    template = library.core.ShardedFileTemplate(
        data_dir=info.data_dir,
        dataset_name=info.name,
        split=split,
        filetype_suffix=info.file_format.file_suffix,
    )
    file = template.sharded_filepath(shard_index=0, num_shards=1)
    ADAPTER_FOR_FORMAT[info.file_format].write_examples(file, records())
    return library.core.SplitInfo(
        name=split,
        shard_lengths=[len(sizes)],
        num_bytes=sum(sizes),
        filename_template=template,
    )


@contextlib.contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """A folder to write to; it becomes `folder` when all is written."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise FileExistsError(
            f"{folder} holds something already, and is not replaced: choose another "
            "folder, or delete it."
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        dir=folder.parent, prefix=f".{folder.name}."
    ) as beside:
        unfinished = Path(beside) / folder.name  # not itself: that is ours alone
        unfinished.mkdir()
        yield unfinished
        unfinished.rename(folder)


def _row(sample: Sample, images: Sequence[object]) -> dict[str, object]:
    return {
        "id": sample.id,
        "data_source": sample.source,
        "problem": sample.question,
        "images": images,
        "answer": sample.answer,
        "annotations": _annotations(sample),
    }


def _annotations(sample: Sample) -> str:
    try:
        return json.dumps(dict(sample.annotations), sort_keys=True)
    except (TypeError, ValueError) as error:
        wrong = [name for name, one in sample.annotations.items() if not _is_json(one)]
        raise ValueError(
            f"{sample.id} has annotations that JSON lacks, in the columns "
            f"{wrong or [*sample.annotations]} ({error}): make them numbers, texts, "
            "lists or dicts, named by texts."
        ) from error


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, sort_keys=True)
    except (TypeError, ValueError):
        return False
    return True


def _named_bytes(sample: Sample) -> list[dict[str, object]]:
    return [
        {"bytes": _encoded(image), "path": f"{sample.id}-{place}.png"}
        for place, image in enumerate(sample.images)
    ]


def _encoded(image: ImageRef) -> bytes:
    return image if isinstance(image, bytes) else Path(image).read_bytes()


def _kind(image: bytes, what: str) -> str:
    """The picture's format, as its file's name ends."""
    try:
        with Image.open(io.BytesIO(image)) as opened:
            return (opened.format or "").lower()
    except UnidentifiedImageError as error:
        raise ValueError(
            f"{what} is no picture that Pillow knows: {image[:16]!r}."
        ) from error
