import numpy as np
import pytest

from vrl_jax.training.data import read_samples
from vrl_jax.worlds import digits, shapes, writing


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


def test_add_noise_has_the_asked_deviation():
    grey = np.full((100, 100, 3), 128, np.uint8)
    noisy = writing.add_noise(grey, 0.05, np.random.default_rng(0))
    assert noisy.std() == pytest.approx(0.05 * 255, rel=0.05)
    assert (noisy[..., 0] == noisy[..., 1]).all()
