"""Writes tests/golden/*.npz: `python -m tests.parity.write_golden [names]`."""

import sys
import tempfile
from pathlib import Path

import numpy as np

from vrl_jax.models import hub

from ..models.cases import EVERY, golden_name, random_params, responses, two_rows
from .reference import torch_features, torch_logits, torch_model, torch_response_logits

GOLDEN = Path(__file__).parents[1] / "golden"


def main() -> None:
    for seed, (name, spec) in enumerate(EVERY.items()):
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        with tempfile.TemporaryDirectory() as folder:
            hub.save(folder, spec, random_params(spec, seed))
            model = torch_model(folder, spec)
        rows, tokens = two_rows(spec, seed), responses(seed, (2, 2, 3))
        features = torch_features(model, spec, rows)
        logits = torch_logits(model, spec, rows)
        path = GOLDEN / f"{golden_name(name)}.npz"
        np.savez_compressed(
            path,
            features=np.concatenate(features, axis=1),
            prompt_logits=np.concatenate(logits),
            response_logits=torch_response_logits(model, spec, rows, tokens),
        )
        print(path, path.stat().st_size)


if __name__ == "__main__":
    main()
