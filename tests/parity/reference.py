"""What transformers computes on torch, for the same folder, pictures and prompts."""

import numpy as np
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from vrl_jax.models.qwen_vl.images import patchify
from vrl_jax.models.qwen_vl.spec import QwenSpec

from ..models.cases import Row, grids


def torch_model(folder: str) -> Qwen2_5_VLForConditionalGeneration:
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def pixel_inputs(spec: QwenSpec, rows: list[Row]) -> dict[str, torch.Tensor]:
    pictures = [p for given in rows for p in given.pictures]
    if not pictures:
        return {}
    merge = spec.vision.merge
    sizes = [(1, h * merge, w * merge) for given in rows for h, w in grids(spec, given)]
    patches = np.concatenate(
        [patchify(p, spec).reshape(-1, spec.vision.patch_values) for p in pictures]
    )
    return {
        "pixel_values": torch.tensor(patches),
        "image_grid_thw": torch.tensor(sizes),
    }


def token_inputs(spec: QwenSpec, rows: list[Row]) -> dict[str, torch.Tensor]:
    """Right-padded ids, mask and token types."""
    length = max(len(given.tokens) for given in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, given in enumerate(rows):
        ids[i, : len(given.tokens)] = torch.tensor(given.tokens)
        mask[i, : len(given.tokens)] = 1
    types = (ids == spec.image_token).int()
    return {"input_ids": ids, "attention_mask": mask, "mm_token_type_ids": types}


@torch.no_grad()
def torch_features(model, spec: QwenSpec, rows: list[Row]) -> list[np.ndarray]:
    inputs = pixel_inputs(spec, rows)
    return [f.numpy() for f in model.get_image_features(**inputs).pooler_output]


@torch.no_grad()
def torch_logits(model, spec: QwenSpec, rows: list[Row]) -> list[np.ndarray]:
    model.model.rope_deltas = None
    logits = model(**token_inputs(spec, rows), **pixel_inputs(spec, rows)).logits
    return [
        row[: len(given.tokens)].numpy()
        for row, given in zip(logits, rows, strict=True)
    ]


def torch_response_logits(
    model, spec: QwenSpec, rows: list[Row], tokens: np.ndarray
) -> np.ndarray:
    """Full forward passes over prompt and response, one group member at a time."""
    groups = []
    for member in range(tokens.shape[1]):
        whole = [
            given._replace(tokens=given.tokens + tokens[i, member].tolist())
            for i, given in enumerate(rows)
        ]
        logits = torch_logits(model, spec, whole)
        groups.append([row[-tokens.shape[2] :] for row in logits])
    return np.swapaxes(np.array(groups), 0, 1)
