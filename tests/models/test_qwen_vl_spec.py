"""Configurations and the parameter table."""

import copy
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vrl_jax.models.qwen_vl import spec as released
from vrl_jax.models.qwen_vl.parameters import (
    abstract_params,
    from_checkpoint,
    init_params,
    logical_axes,
    to_checkpoint,
)
from vrl_jax.models.qwen_vl.spec import config_from_spec, spec_from_config

from .cases import SPECS, random_params, small_spec


@pytest.mark.parametrize(
    ("name", "billions"),
    # Counted on torch's meta device with transformers 4.57.6 and the hub's configs.
    [("3B", 3.755), ("7B", 8.292), ("32B", 33.45), ("72B", 73.41)],
)
def test_released_specs_have_the_released_sizes(name, billions):
    shapes = abstract_params(getattr(released, f"QWEN2_5_VL_{name}"))
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    assert count / 1e9 == pytest.approx(billions, rel=2e-4)


@pytest.mark.parametrize("name", SPECS)
def test_config_round_trip_in_both_layouts(name):
    spec = SPECS[name]
    flat = config_from_spec(spec)
    assert spec_from_config(flat) == spec
    assert spec_from_config(_nested(flat)) == spec


def _nested(flat):
    """The layout of transformers 5."""
    tokens = ("image", "video", "vision_start", "vision_end")
    outer = ["vision_config", "model_type", "architectures", "tie_word_embeddings"]
    outer += [f"{token}_token_id" for token in tokens]
    text = {key: value for key, value in flat.items() if key not in outer}
    rope = text.pop("rope_scaling")
    text["rope_parameters"] = {
        "rope_type": "default",
        "rope_theta": text.pop("rope_theta"),
        "mrope_section": rope["mrope_section"],
    }
    vision = dict(flat["vision_config"])
    vision.pop("in_chans")
    nested = {key: flat[key] for key in outer} | {"text_config": text}
    return nested | {"vision_config": vision}


def test_missing_section_falls_back_to_the_released_one():
    config = _nested(config_from_spec(released.QWEN2_5_VL_7B))
    del config["text_config"]["rope_parameters"]["mrope_section"]
    assert spec_from_config(config) == released.QWEN2_5_VL_7B


@pytest.mark.parametrize("layout", [dict, _nested])
@pytest.mark.parametrize(
    "key",
    [
        "rms_norm_eps",
        "rope_theta",
        "num_key_value_heads",
        "tie_word_embeddings",
        "image_token_id",
        "vision_config",
        "vision_config.window_size",
        "vision_config.fullatt_block_indexes",
        "vision_config.tokens_per_second",
    ],
)
def test_a_missing_key_is_named(layout, key):
    config = copy.deepcopy(layout(config_from_spec(small_spec())))
    *folder, last = key.split(".")
    for part in [config, config.get("text_config"), config.get("vision_config")]:
        if part is not None and (not folder or part is config["vision_config"]):
            part.pop(last, None)
            part.get("rope_parameters", {}).pop(last, None)
    with pytest.raises(ValueError, match=f"lacks '{last}'"):
        spec_from_config(config)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "qwen2_vl"}, "model_type = 'qwen2_vl'"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"use_sliding_window": True}, "use_sliding_window = True"),
        ({"rope_scaling": {"type": "yarn", "factor": 4}}, "rope type = 'yarn'"),
        ({"num_attention_heads": 5}, "text width must be heads times"),
    ],
)
def test_what_is_not_supported_is_named(change, said):
    with pytest.raises(ValueError, match=said):
        spec_from_config(config_from_spec(small_spec()) | change)


def test_views_of_the_table_agree():
    spec = small_spec()
    abstract, axes = abstract_params(spec), logical_axes(spec)
    params = jax.jit(lambda key: init_params(key, spec, jnp.bfloat16))(
        jax.random.key(0)
    )
    jax.tree.map(
        lambda a, p: np.testing.assert_equal(a.shape, p.shape), abstract, params
    )
    is_axes = lambda node: isinstance(node, tuple)
    lengths = jax.tree.map(len, axes, is_leaf=is_axes)
    assert lengths == jax.tree.map(lambda a: len(a.shape), abstract)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}
    assert "head" not in params["text"]
    assert "head" in abstract_params(SPECS["untied"])["text"]


@pytest.fixture
def checkpoint():
    spec = SPECS["untied"]
    return spec, dict(to_checkpoint(random_params(spec, 0), spec))


def test_checkpoint_round_trip_under_both_namings(checkpoint):
    spec, tensors = checkpoint
    modern = {
        "model." + name
        if name.startswith("visual.")
        else name.replace("model.", "model.language_model.", 1): tensor
        for name, tensor in tensors.items()
    }
    assert "model.language_model.layers.2.self_attn.q_proj.bias" in modern
    for named in (tensors, modern):
        jax.tree.map(
            np.testing.assert_array_equal,
            from_checkpoint(named, spec),
            random_params(spec, 0),
        )


def test_checkpoint_problems_are_named(checkpoint):
    spec, tensors = checkpoint
    key = "model.layers.1.mlp.up_proj.weight"
    spoiled = {name: tensor for name, tensor in tensors.items() if name != key}
    spoiled["model.layers.9.mlp.up_proj.weight"] = tensors[key]
    spoiled["model.norm.weight"] = np.ones(7)
    with pytest.raises(ValueError, match="does not fit its config") as error:
        from_checkpoint(spoiled, spec)
    assert f"missing: {key}" in str(error.value)
    assert "unknown: model.layers.9.mlp.up_proj.weight" in str(error.value)
    assert "another shape: model.norm.weight (7,), not (96,)" in str(error.value)


def test_a_tied_head_may_be_repeated_but_not_differ():
    spec = small_spec()
    tensors = dict(to_checkpoint(random_params(spec, 0), spec))
    embedding = tensors["model.embed_tokens.weight"]
    from_checkpoint(tensors | {"lm_head.weight": embedding}, spec)
    with pytest.raises(ValueError, match=r"lm_head.weight .the config ties it"):
        from_checkpoint(tensors | {"lm_head.weight": embedding + 1}, spec)
