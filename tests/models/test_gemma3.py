"""Gemma 3: configurations, names, masks and the host's side."""

import copy
import dataclasses
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vrl_jax.models import lora
from vrl_jax.models.gemma3 import released
from vrl_jax.models.gemma3.config import (
    config_from_spec,
    processor_settings,
    spec_from_config,
)
from vrl_jax.models.gemma3.front_end import front_end
from vrl_jax.models.gemma3.images import patchify, resize_image
from vrl_jax.models.gemma3.parameters import parameter_table
from vrl_jax.models.gemma3.text import prompt_masks
from vrl_jax.models.parameters import current_name, from_checkpoint, to_checkpoint
from vrl_jax.models.trained import language, projector, tower

from .cases import (
    EVERY,
    GEMMA3,
    outputs,
    pack,
    picture,
    random_params,
    responses,
    two_rows,
)

GOLDEN = Path(__file__).parents[1] / "golden"

SPEC = GEMMA3["gemma3"]
VISION = {
    "hidden_size": 1152,
    "image_size": 896,
    "intermediate_size": 4304,
    "model_type": "siglip_vision_model",
    "num_attention_heads": 16,
    "num_hidden_layers": 27,
    "patch_size": 14,
    "vision_use_head": False,
}
SCALING = {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}}


@pytest.mark.parametrize(
    ("name", "count"),
    # As the hub counts the tensors of google/gemma-3-{4b,12b,27b}-it.
    [
        ("GEMMA3_4B", 4_300_079_472),
        ("GEMMA3_12B", 12_187_325_040),
        ("GEMMA3_27B", 27_432_406_640),
    ],
)
def test_released_specs_have_the_released_sizes(name, count):
    table = parameter_table(getattr(released, name))
    assert sum(math.prod(row.stacked_shape) for row in table) == count


def _published(**text):
    """config.json of google/gemma-3-*-it, without the keys of no arithmetic."""
    common = {"model_type": "gemma3_text", "sliding_window": 1024, **SCALING}
    return {
        "boi_token_index": 255_999,
        "eoi_token_index": 256_000,
        "image_token_index": 262_144,
        "mm_tokens_per_image": 256,
        "model_type": "gemma3",
        "text_config": common | text,
        "vision_config": VISION,
    }


FOUR = {"hidden_size": 2560, "intermediate_size": 10_240, "num_hidden_layers": 34}
TWENTY_SEVEN = {
    "head_dim": 128,
    "hidden_size": 5376,
    "intermediate_size": 21_504,
    "num_attention_heads": 32,
    "num_hidden_layers": 62,
    "num_key_value_heads": 16,
    "query_pre_attn_scalar": 168,
}


def test_the_published_files_are_read():
    """They leave out what is that of the model of their sizes, and of no other."""
    assert spec_from_config(_published(**FOUR)) == released.GEMMA3_4B
    assert spec_from_config(_published(**TWENTY_SEVEN)) == released.GEMMA3_27B
    other = _published(**FOUR | {"num_hidden_layers": 33})
    other["vision_config"] = VISION | {"layer_norm_eps": 1e-6}
    with pytest.raises(ValueError, match="lacks 'num_attention_heads' in text_config"):
        spec_from_config(other)
    unscaled = _published(**FOUR)
    del unscaled["text_config"]["rope_scaling"]
    with pytest.raises(ValueError, match="lacks 'rope_scaling'"):
        spec_from_config(unscaled)


def _nested(config):
    """The spelling of transformers 5."""
    config = copy.deepcopy(config)
    text = config["text_config"]
    whole = text.pop("rope_scaling") or {"rope_type": "default"}
    text["rope_parameters"] = {
        "full_attention": {**whole, "rope_theta": text.pop("rope_theta")},
        "sliding_attention": {
            "rope_type": "default",
            "rope_theta": text.pop("rope_local_base_freq"),
        },
    }
    text["_sliding_window_pattern"] = text.pop("sliding_window_pattern", 6)
    return config


@pytest.mark.parametrize("spec", [SPEC, released.GEMMA3_12B], ids=["small", "12b"])
def test_config_round_trip_in_both_spellings(spec):
    config = config_from_spec(spec)
    assert spec_from_config(config) == spec
    assert spec_from_config(_nested(config)) == spec
    # Readers of before `layer_types` count in sixes.
    older = copy.deepcopy(config_from_spec(released.GEMMA3_12B))
    del older["text_config"]["layer_types"]
    assert spec_from_config(older) == released.GEMMA3_12B


# What says nothing about the arithmetic, or is checked where it is given.
OPTIONAL = {
    "architectures",
    "attention_bias",
    "hidden_activation",
    "hidden_act",
    "num_channels",
    "tie_word_embeddings",
    "sliding_window_pattern",
    "_sliding_window_pattern",
}


def _leaves(config, path=()):
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key)


@pytest.mark.parametrize("layout", [dict, _nested])
def test_every_missing_key_is_named(layout):
    whole = layout(config_from_spec(SPEC))
    removed = 0
    for *folders, last in _leaves(whole):
        if last in OPTIONAL:
            continue
        config = copy.deepcopy(whole)
        part = config
        for folder in folders:
            part = part[folder]
        del part[last]
        # Without its types, layers are counted; nothing stands for another key.
        named = "sliding_window_pattern" if last == "layer_types" else last
        config["text_config"].pop("sliding_window_pattern", None)
        with pytest.raises(ValueError, match=named):
            spec_from_config(config)
        removed += 1
    assert removed > 20


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        ("text_config", {"hidden_activation": "silu"}, "hidden_activation = 'silu'"),
        ("text_config", {"attention_bias": True}, "attention_bias = True"),
        ("text_config", {"final_logit_softcapping": 30.0}, "softcapping = 30.0"),
        ("text_config", {"use_bidirectional_attention": True}, "attention = True"),
        ("text_config", {"layer_types": ["full_attention"]}, "layer_types = 1"),
        ("text_config", {"layer_types": ["chunked_attention"] * 3}, "'chunked_atten"),
        ("text_config", {"rope_scaling": {"rope_type": "yarn"}}, "layers = 'yarn'"),
        ("text_config", {"num_key_value_heads": 3}, "whole groups of key-value"),
        ("vision_config", {"vision_use_head": True}, "vision_use_head = True"),
        ("vision_config", {"image_size": 34}, "a picture must hold whole patches"),
        ("vision_config", {"image_size": 24}, "a token must be a square of whole"),
        (None, {"mm_tokens_per_image": 15}, "tokens of a picture must be a square"),
        (None, {"tie_word_embeddings": False}, "tie_word_embeddings = False"),
    ],
)
def test_what_is_not_supported_is_named(part, change, said):
    config = config_from_spec(SPEC)
    (config[part] if part else config).update(change)
    with pytest.raises(ValueError, match=said):
        spec_from_config(config)


NAMINGS = {
    "of the hub": {},
    "of transformers 4.52": {
        "vision_tower.": "model.vision_tower.",
        "multi_modal_projector.": "model.multi_modal_projector.",
        "language_model.model.": "model.language_model.",
    },
    "of transformers 5": {
        "vision_tower.vision_model.": "model.vision_tower.",
        "multi_modal_projector.": "model.multi_modal_projector.",
        "language_model.model.": "model.language_model.",
    },
    "that transformers 5 saves": {"vision_tower.vision_model.": "vision_tower."},
}


@pytest.mark.parametrize("naming", NAMINGS)
def test_every_naming_is_read(naming):
    table, params = parameter_table(SPEC), random_params(SPEC, 0)

    def renamed(name):
        for old, new in NAMINGS[naming].items():
            if name.startswith(old):
                return new + name.removeprefix(old)
        return name

    tensors = {renamed(name): a for name, a in to_checkpoint(params, table)}
    assert len({*map(current_name, tensors)}) == len(tensors)
    read = from_checkpoint(tensors, table)
    jax.tree.map(np.testing.assert_array_equal, read, params)
    # A head that is written though it is the embedding; another one is refused.
    embedding = np.asarray(params["text"]["embedding"])
    from_checkpoint(tensors | {"language_model.lm_head.weight": embedding}, table)
    with pytest.raises(ValueError, match=r"lm_head.weight \(the config ties it"):
        from_checkpoint(tensors | {"lm_head.weight": embedding + 1}, table)


def test_each_parameter_is_of_one_part():
    table = parameter_table(SPEC)
    for row in table:
        assert sum(rule(row.path) for rule in (tower, projector, language)) == 1
    assert sum(projector(row.path) for row in table) == 2


def test_adapters_have_the_names_of_their_modules(tmp_path):
    """The projector is no linear module; the others are those of transformers 5."""
    table = parameter_table(SPEC)
    fresh = lora.init(jax.random.key(0), table, rank=2, targets=lambda path: True)
    lora.save(tmp_path, lora.Lora(fresh, jnp.float32(1.0)), table)
    again = lora.load(tmp_path, table)
    jax.tree.map(np.testing.assert_array_equal, again.adapters, fresh)
    saved = (tmp_path / lora.CONFIG).read_text()
    assert "vision_tower" in saved and "vision_model" not in saved
    assert "multi_modal_projector" not in saved


def test_prompt_masks_by_hand():
    """A word, a picture of two tokens, a word, padding; local layers see two back."""
    pictured = jnp.array([[False, True, True, False, False]])
    mask = jnp.array([[True, True, True, True, False]])
    everywhere, nearby = prompt_masks(pictured, mask, 2)
    wanted = [[1, 0, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0]]
    np.testing.assert_array_equal(everywhere[0, 0, :4], wanted)
    wanted = [[1, 0, 0, 0, 0], [1, 1, 1, 0, 0], [0, 1, 1, 0, 0], [0, 0, 1, 1, 0]]
    np.testing.assert_array_equal(nearby[0, 0, :4], wanted)


def test_pictures_do_not_see_later_ones():
    """Two pictures with a word between them, and a third: runs, not all that is one."""
    pictured = jnp.array([[True, True, False, True, True]])
    everywhere, _ = prompt_masks(pictured, jnp.ones((1, 5), bool), 99)
    wanted = np.tril(np.ones((5, 5), bool))
    wanted[0, 1] = wanted[3, 4] = True
    np.testing.assert_array_equal(everywhere[0, 0], wanted)


@pytest.mark.parametrize(
    "change",
    [
        {"window": 99},
        {"global_layers": (0,)},
        {"global_factor": 1.0},
        {"local_theta": 1e6},
        {"query_scalar": 24},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_fact_shows_in_the_recorded_logits(change):
    """Else equality with the recorded numbers would not say that it is heeded."""
    other = dataclasses.replace(SPEC, text=dataclasses.replace(SPEC.text, **change))
    seed = list(EVERY).index("gemma3")
    packed, tokens = pack(other, two_rows(SPEC, seed)), responses(seed, (2, 2, 3))
    got = outputs(other, random_params(SPEC, seed), packed, tokens)
    golden = np.load(GOLDEN / "gemma3.npz")["response_logits"]
    assert np.abs(got.response_logits - golden).max() > 1e-2


def test_patches_of_a_token_lie_together():
    shown = resize_image(picture(0, 45, 20), SPEC)
    pixels = (np.asarray(shown, np.float32) / 255 - 0.5) / 0.5
    patches = patchify(shown, SPEC)
    # By hand: token (1, 2) of 4 x 4, its patch (0, 1) of 2 x 2: rows 8-11 and
    # columns 20-23.
    wanted = pixels[8:12, 20:24].transpose(2, 0, 1).ravel()
    np.testing.assert_allclose(patches[6, 1], wanted, atol=1e-6)
    laid_out = front_end(SPEC).lay_out(shown)
    np.testing.assert_array_equal(laid_out.coordinates[6 * 4 + 1], [2, 5])
    with pytest.raises(ValueError, match=r"32 x 32 pixels, got 45 x 20"):
        patchify(picture(0, 45, 20), SPEC)


def test_a_picture_is_written_between_blank_lines():
    spelled = {122: "<start>", 120: "<soft>", 123: "<end>"}.__getitem__
    text = front_end(SPEC).written(3, spelled)
    assert text == "\n\n<start><soft><soft><soft><end>\n\n"


def test_the_processor_has_one_size():
    settings = processor_settings(SPEC, (32 * 32, 32 * 32))
    assert settings["preprocessor_config.json"]["size"] == {"height": 32, "width": 32}
    assert settings["processor_config.json"]["image_seq_length"] == 16
    with pytest.raises(ValueError, match=r"32 x 32 pixels, got bounds .*\(1, 2\)"):
        processor_settings(SPEC, (1, 2))
