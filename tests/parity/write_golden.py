"""Writes tests/golden/qwen_vl_*.npz: `python -m tests.parity.write_golden`."""

import tempfile
from pathlib import Path

import numpy as np

from vrl_jax.models import hub

from ..models.cases import SPECS, random_params, responses, two_rows
from .reference import torch_features, torch_logits, torch_model, torch_response_logits

GOLDEN = Path(__file__).parents[1] / "golden"


def main() -> None:
    for seed, (name, spec) in enumerate(SPECS.items()):
        with tempfile.TemporaryDirectory() as folder:
            hub.save(folder, spec, random_params(spec, seed))
            model = torch_model(folder)
        rows, tokens = two_rows(spec, seed), responses(seed, (2, 2, 3))
        features = torch_features(model, spec, rows)
        logits = torch_logits(model, spec, rows)
        path = GOLDEN / f"qwen_vl_{name}.npz"
        np.savez_compressed(
            path,
            features=np.concatenate(features),
            prompt_logits=np.concatenate(logits),
            response_logits=torch_response_logits(model, spec, rows, tokens),
        )
        print(path, path.stat().st_size)


if __name__ == "__main__":
    main()
