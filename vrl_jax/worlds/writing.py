"""Pictures as PNG bytes, samples as a parquet file that other stacks read too."""

import io
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import UInt8
from PIL import Image

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
    """Writes samples under EasyR1's column names; the same samples, the same bytes.

    Columns: `problem`, `images` (list of {bytes, path}), `answer`, `id`,
    `data_source`, and `annotations`, one JSON object a row. The file appears whole
    or not at all. https://github.com/hiyouga/EasyR1#custom-dataset
    """
    path = Path(path)
    table = pa.Table.from_pylist([_row(sample) for sample in samples], schema=_SCHEMA)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, unfinished = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        pq.write_table(table, unfinished, row_group_size=1024)
        os.replace(unfinished, path)
    finally:
        Path(unfinished).unlink(missing_ok=True)
    return path


def _row(sample: Sample) -> dict[str, object]:
    return {
        "id": sample.id,
        "data_source": sample.source,
        "problem": sample.question,
        "images": [
            {"bytes": _encoded(image), "path": f"{sample.id}-{place}.png"}
            for place, image in enumerate(sample.images)
        ],
        "answer": sample.answer,
        "annotations": json.dumps(dict(sample.annotations), sort_keys=True),
    }


def _encoded(image: ImageRef) -> bytes:
    return image if isinstance(image, bytes) else Path(image).read_bytes()
