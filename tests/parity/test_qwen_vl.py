"""Qwen2.5-VL against transformers on torch: pixels, tower, prompts, decode, folders."""

import io

import jax
import numpy as np
import pytest
from PIL import Image, ImageOps

torch = pytest.importorskip("torch")

from transformers import (  # noqa: E402
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (  # noqa: E402
    Qwen2VLImageProcessorPil,
)

from vrl_jax.models import hub  # noqa: E402
from vrl_jax.models.qwen_vl.images import (  # noqa: E402
    load_image,
    merged_grid,
    patchify,
    resize_image,
)
from vrl_jax.models.qwen_vl.spec import QWEN2_5_VL_3B  # noqa: E402

from ..models.cases import (  # noqa: E402
    SPECS,
    outputs,
    pack,
    picture,
    random_params,
    responses,
    row,
    small_spec,
    two_rows,
)
from .reference import (  # noqa: E402
    pixel_inputs,
    token_inputs,
    torch_features,
    torch_logits,
    torch_model,
    torch_response_logits,
)

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module", params=[*SPECS, "tied again"])
def exported(request, tmp_path_factory):
    """A random model, and the same one as transformers loads what we export."""
    spec = SPECS[request.param.split()[0]]
    seed = 10 + len(request.param)
    params = random_params(spec, seed)
    folder = tmp_path_factory.mktemp("model")
    hub.save(folder, spec, params, shard_bytes=300_000)
    return spec, params, torch_model(folder), seed


def test_tower_and_prompts(exported):
    spec, params, model, seed = exported
    rows = [*two_rows(spec, seed), row(spec, seed + 2, [(2, 7)])]
    got = outputs(spec, params, pack(spec, rows), responses(seed, (3, 1, 1)))
    for ours, theirs in zip(
        got.features, torch_features(model, spec, rows), strict=True
    ):
        assert theirs.std() > 0.1
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    for ours, theirs in zip(
        got.prompt_logits, torch_logits(model, spec, rows), strict=True
    ):
        assert theirs.std() > 0.1
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_responses_equal_full_forward_passes(exported):
    spec, params, model, seed = exported
    rows, tokens = two_rows(spec, seed), responses(seed, (2, 2, 3))
    got = outputs(spec, params, pack(spec, rows), tokens).response_logits
    theirs = torch_response_logits(model, spec, rows, tokens)
    np.testing.assert_allclose(got, theirs, atol=1e-4)


@torch.no_grad()
def test_responses_equal_cached_decoding(exported):
    """Their decode positions come from their rope delta, ours from next_position."""
    spec, params, model, seed = exported
    rows, tokens = [two_rows(spec, seed)[0]], responses(seed, (1, 1, 3))
    got = outputs(spec, params, pack(spec, rows), tokens).response_logits[0, 0]
    model.model.rope_deltas = None
    state = model(
        **token_inputs(spec, rows), **pixel_inputs(spec, rows), use_cache=True
    )
    for step in range(3):
        state = model(
            input_ids=torch.tensor(tokens[0, :, step : step + 1]),
            past_key_values=state.past_key_values,
            use_cache=True,
        )
        np.testing.assert_allclose(got[step], state.logits[0, 0].numpy(), atol=1e-4)


def test_positions_equal_theirs(exported):
    spec, _, model, seed = exported
    rows = two_rows(spec, seed)
    packed = pack(spec, rows)
    inputs = token_inputs(spec, rows)
    grid = pixel_inputs(spec, rows)["image_grid_thw"]
    theirs, delta = model.model.get_rope_index(**inputs, image_grid_thw=grid)
    theirs = np.moveaxis(theirs.numpy(), 0, -1)
    mask = packed.prompts.mask
    np.testing.assert_array_equal(packed.prompts.positions[mask], theirs[mask])
    np.testing.assert_array_equal(
        packed.next_position - mask.sum(-1), delta.numpy()[:, 0]
    )


@pytest.mark.parametrize("tied", [True, False])
def test_import_of_what_transformers_saves(tmp_path, tied):
    """Their nested config and their names, whatever they are in this version."""
    config = Qwen2_5_VLConfig(
        text_config={
            "hidden_size": 64,
            "intermediate_size": 80,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 128,
            "rms_norm_eps": 1e-6,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 2e4,
                "mrope_section": [2, 3, 3],
            },
        },
        vision_config={
            "depth": 2,
            "hidden_size": 64,
            "num_heads": 4,
            "intermediate_size": 72,
            "out_hidden_size": 64,
            "patch_size": 4,
            "window_size": 16,
            "fullatt_block_indexes": [1],
        },
        tie_word_embeddings=tied,
        image_token_id=120,
        video_token_id=121,
        vision_start_token_id=122,
        vision_end_token_id=123,
    )
    torch.manual_seed(int(tied))
    model = Qwen2_5_VLForConditionalGeneration(config).eval()
    with torch.no_grad():
        for weight in model.parameters():  # 0.02 would leave logits near 0
            weight.add_(torch.randn_like(weight) * weight.shape[-1] ** -0.5)
    model.save_pretrained(tmp_path)
    spec, params = hub.load(tmp_path)
    assert spec.tied == tied and spec.text.rope_theta == 2e4
    rows = two_rows(spec, 3)
    got = outputs(spec, params, pack(spec, rows), responses(0, (2, 1, 1)))
    theirs = torch_logits(model, spec, rows)
    for ours, expected in zip(got.prompt_logits, theirs, strict=True):
        assert expected.std() > 0.1
        np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_export_after_import_keeps_every_tensor(tmp_path, exported):
    spec, params, model, _ = exported
    model.save_pretrained(tmp_path / "theirs")
    read_spec, read = hub.load(tmp_path / "theirs")
    assert read_spec == spec
    jax.tree.map(np.testing.assert_array_equal, read, params)


def test_the_picture_changes_their_logits_too(exported):
    spec, _, model, seed = exported
    rows = two_rows(spec, seed)
    other = rows[0]._replace(pictures=row(spec, 99, [(3, 5), (4, 2)]).pictures)
    first = torch_logits(model, spec, rows)[0][-1]
    second = torch_logits(model, spec, [other, rows[1]])[0][-1]
    assert np.abs(first - second).max() > 0.1


def _encoded(shown: Image.Image, kind: str = "PNG", **settings) -> bytes:
    buffer = io.BytesIO()
    shown.save(buffer, kind, **settings)
    return buffer.getvalue()


def _pictures() -> dict[str, bytes]:
    exif = Image.Exif()
    exif[0x0112] = 6
    shown = picture(0, 101, 67)
    alpha = shown.copy()
    alpha.putalpha(picture(1, 101, 67).convert("L"))
    palette = shown.quantize(16)
    return {
        "odd": _encoded(shown),
        "jpeg": _encoded(shown, "JPEG"),
        "grey": _encoded(shown.convert("L")),
        "grey_alpha": _encoded(alpha.convert("LA")),
        "one_bit": _encoded(shown.convert("1")),
        "rgba": _encoded(alpha),
        "palette": _encoded(palette),
        "palette_transparent": _encoded(palette, transparency=3),
        "cmyk": _encoded(shown.convert("CMYK"), "JPEG"),
        "turned": _encoded(shown, "JPEG", exif=exif.tobytes()),
        "one_pixel_high": _encoded(picture(2, 1, 60)),
        "one_pixel": _encoded(picture(3, 1, 1)),
        "large": _encoded(picture(4, 300, 500)),
    }


@pytest.mark.parametrize("name", _pictures())
@pytest.mark.parametrize("spec", [small_spec(), QWEN2_5_VL_3B], ids=["small", "3B"])
def test_patches_equal_the_processor(name, spec):
    bounds = {"min_pixels": 56 * 56, "max_pixels": 200 * 200}
    data = _pictures()[name]
    ours = resize_image(load_image(data), spec, **bounds)
    processor = Qwen2VLImageProcessorPil(
        patch_size=spec.vision.patch, merge_size=spec.vision.merge, **bounds
    )
    loaded = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    theirs = processor(images=[loaded], return_tensors="np")
    grid = (
        1,
        *(side * spec.vision.merge for side in merged_grid(*ours.size[::-1], spec)),
    )
    assert tuple(theirs["image_grid_thw"][0]) == grid
    rows = patchify(ours, spec).reshape(-1, spec.vision.patch_values)
    np.testing.assert_allclose(rows, theirs["pixel_values"], atol=1e-5)
