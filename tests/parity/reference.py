"""What transformers computes on torch, for the same folder, pictures and prompts."""

import numpy as np
import torch
import transformers

from vrl_jax.models.families import Spec, family_of
from vrl_jax.models.gemma3.spec import Gemma3Spec
from vrl_jax.models.qwen_vl.images import patchify
from vrl_jax.models.qwen_vl.spec import QwenSpec

from ..models.cases import Row, grids


def torch_model(folder: str, spec: Spec):
    return (
        getattr(transformers, *family_of(spec).config_from_spec(spec)["architectures"])
        .from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
        .eval()
    )


def pixel_inputs(spec: Spec, rows: list[Row]) -> dict[str, torch.Tensor]:
    pictures = [p for given in rows for p in given.pictures]
    if not pictures:
        return {}
    if isinstance(spec, Gemma3Spec):
        pixels = np.stack(pictures).astype(np.float32).transpose(0, 3, 1, 2)
        return {"pixel_values": torch.tensor((pixels / 255 - 0.5) / 0.5)}
    return _qwen_pixels(spec, rows, pictures)


def _qwen_pixels(spec: QwenSpec, rows: list[Row], pictures: list) -> dict:
    merge = spec.vision.merge
    sizes = [(1, h * merge, w * merge) for given in rows for h, w in grids(spec, given)]
    patches = np.concatenate(
        [patchify(p, spec).reshape(-1, spec.vision.patch_values) for p in pictures]
    )
    return {
        "pixel_values": torch.tensor(patches),
        "image_grid_thw": torch.tensor(sizes),
    }


def token_inputs(spec: Spec, rows: list[Row]) -> dict[str, torch.Tensor]:
    """Right-padded ids, mask and token types."""
    length = max(len(given.tokens) for given in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, given in enumerate(rows):
        ids[i, : len(given.tokens)] = torch.tensor(given.tokens)
        mask[i, : len(given.tokens)] = 1
    name = "token_type_ids" if isinstance(spec, Gemma3Spec) else "mm_token_type_ids"
    types = (ids == spec.image_token).int()
    return {"input_ids": ids, "attention_mask": mask, name: types}


def forward(model, spec: Spec, rows: list[Row], **settings):
    model.model.rope_deltas = None
    return model(**token_inputs(spec, rows), **pixel_inputs(spec, rows), **settings)


@torch.no_grad()
def torch_features(model, spec: Spec, rows: list[Row]) -> list[np.ndarray]:
    """Of each picture [1 + levels, merged tokens, H]: main features, then deepstack."""
    given = model.get_image_features(**pixel_inputs(spec, rows))
    levels = [given.pooler_output, *(getattr(given, "deepstack_features", None) or [])]
    return [torch.stack(picture).numpy() for picture in zip(*levels, strict=True)]


@torch.no_grad()
def torch_logits(model, spec: Spec, rows: list[Row]) -> list[np.ndarray]:
    return [
        row[: len(given.tokens)].numpy()
        for row, given in zip(forward(model, spec, rows).logits, rows, strict=True)
    ]


def continued(rows: list[Row], tokens: np.ndarray, member: int) -> list[Row]:
    """The rows with one response of each group behind them."""
    return [
        given._replace(tokens=given.tokens + tokens[i, member].tolist())
        for i, given in enumerate(rows)
    ]


def torch_response_logits(
    model, spec: Spec, rows: list[Row], tokens: np.ndarray
) -> np.ndarray:
    """Full forward passes over prompt and response, one group member at a time."""
    groups = []
    for member in range(tokens.shape[1]):
        logits = torch_logits(model, spec, continued(rows, tokens, member))
        groups.append([row[-tokens.shape[2] :] for row in logits])
    return np.swapaxes(np.array(groups), 0, 1)


def torch_weighted_logprobs(
    model, spec: Spec, rows: list[Row], tokens: np.ndarray, weights: np.ndarray
) -> torch.Tensor:
    """sum_t w_t log pi(y_t | prompt, y_<t), with its graph."""
    total = torch.zeros(())
    for member in range(tokens.shape[1]):
        whole = continued(rows, tokens, member)
        logprobs = forward(model, spec, whole).logits.log_softmax(-1)
        for i, given in enumerate(rows):
            start = len(given.tokens) - 1
            here = logprobs[i, start : start + tokens.shape[2]]
            chosen = here.gather(1, torch.tensor(tokens[i, member])[:, None])[:, 0]
            total = total + (chosen * torch.tensor(weights[i, member])).sum()
    return total


@torch.no_grad()
def torch_decoded_logits(
    model, spec: Spec, row: Row, response: np.ndarray
) -> np.ndarray:
    """Token by token from its cache; its positions come from its own rope delta."""
    state = forward(model, spec, [row], use_cache=True)
    logits = []
    for token in response:
        state = model(
            input_ids=torch.tensor([[token]]),
            past_key_values=state.past_key_values,
            use_cache=True,
        )
        logits.append(state.logits[0, 0].numpy())
    return np.array(logits)
