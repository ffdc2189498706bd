"""The comparison of sampling speed runs, on responses of a few tokens."""

import importlib.util
import json
from pathlib import Path

import pytest

pytest.importorskip("torch")

pytestmark = pytest.mark.parity

FILE = Path(__file__).parents[2] / "experiments" / "bench_sampling.py"


def test_bench_sampling_prints_a_row_a_model(capsys):
    spec = importlib.util.spec_from_file_location("bench_sampling", FILE)
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    (row,) = bench.main(smoke=True, json=True)
    assert json.loads(capsys.readouterr().out) == row
    assert {"model", "parameters", "ours", "transformers", "ratio"} <= set(row)
    assert row["ratio"] == pytest.approx(row["ours"] / row["transformers"])
    assert row["tokens"] == 768  # 64 lengths from 8 to 16, 12 in the mean
    assert row["time_to_first_token_s"] > 0
