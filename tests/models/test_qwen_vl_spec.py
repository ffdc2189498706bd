"""Configurations and the parameter table."""

import copy
import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vrl_jax.engine.slots import unstack
from vrl_jax.models.parameters import (
    abstract_params,
    from_checkpoint,
    init_params,
    logical_axes,
    to_checkpoint,
)
from vrl_jax.models.qwen_vl import released
from vrl_jax.models.qwen_vl.config import config_from_spec, spec_from_config
from vrl_jax.models.qwen_vl.families import (
    QWEN2_5_VL,
    QWEN2_VL,
    QWEN3_VL,
    QWEN3_VL_MOE,
)
from vrl_jax.models.qwen_vl.parameters import parameter_table
from vrl_jax.models.qwen_vl.policy import policy

from .cases import MIXTURE, SPECS, random_params, small_spec

EVERY = SPECS | MIXTURE


@pytest.mark.parametrize(
    ("name", "billions"),
    # Counted on torch's meta device with transformers 4.57.6 and the hub's configs.
    [
        ("QWEN2_VL_2B", 2.209),
        ("QWEN2_VL_7B", 8.291),
        ("QWEN2_5_VL_3B", 3.755),
        ("QWEN2_5_VL_7B", 8.292),
        ("QWEN2_5_VL_32B", 33.45),
        ("QWEN2_5_VL_72B", 73.41),
        ("QWEN3_VL_2B", 2.128),
        ("QWEN3_VL_4B", 4.438),
        ("QWEN3_VL_8B", 8.767),
        ("QWEN3_VL_32B", 33.36),
        # With transformers 5.24; the hub's cards say 31 B and 236 B.
        ("QWEN3_VL_30B_A3B", 31.07),
        ("QWEN3_VL_235B_A22B", 235.67),
    ],
)
def test_released_specs_have_the_released_sizes(name, billions):
    shapes = abstract_params(parameter_table(getattr(released, name)))
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    assert count / 1e9 == pytest.approx(billions, rel=3e-4)


@pytest.mark.parametrize("name", [*EVERY, "QWEN2_VL_7B", "QWEN3_VL_30B_A3B"])
def test_config_round_trip_in_both_layouts(name):
    spec = EVERY.get(name) or getattr(released, name)
    hub_layout = config_from_spec(spec)
    assert spec_from_config(hub_layout) == spec
    assert spec_from_config(_nested(hub_layout)) == spec


def _nested(config):
    """The layout of transformers 5."""
    tokens = ("image", "video", "vision_start", "vision_end")
    outer = ["vision_config", "model_type", "architectures", "tie_word_embeddings"]
    outer += [f"{token}_token_id" for token in tokens]
    flat = copy.deepcopy(config.get("text_config", config))
    text = {key: value for key, value in flat.items() if key not in outer}
    text["rope_parameters"] = {
        **text.pop("rope_scaling"),
        "rope_type": "default",
        "rope_theta": text.pop("rope_theta"),
    }
    vision = dict(config["vision_config"])
    vision.pop("in_chans")
    nested = {key: config[key] for key in outer} | {"text_config": text}
    return nested | {"vision_config": vision}


def test_missing_section_falls_back_to_the_released_one():
    config = _nested(config_from_spec(released.QWEN2_5_VL_7B))
    del config["text_config"]["rope_parameters"]["mrope_section"]
    assert spec_from_config(config) == released.QWEN2_5_VL_7B


# What says nothing about the arithmetic, or is checked where it is given.
OPTIONAL = {
    "architectures",
    "attention_bias",
    "hidden_act",
    "in_channels",
    "in_chans",
    "model_type",
    "mrope_interleaved",
    "rope_type",
    "spatial_patch_size",
    "type",
    "use_sliding_window",
}
ROUTED = {"decoder_sparse_step", "intermediate_size", "mlp_only_layers"}
ROUTED |= {"norm_topk_prob"}


def _leaves(config, path=()):
    for key, value in config.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from _leaves(value, (*path, key))


@pytest.mark.parametrize("layout", [dict, _nested])
@pytest.mark.parametrize("name", ["tied", "qwen2", "qwen3", "qwen3_moe"])
def test_every_missing_key_is_named(name, layout):
    whole = layout(config_from_spec(EVERY[name]))
    groups = {"rope_scaling", "rope_parameters", "text_config"}
    fallback = set() if name.startswith("qwen3") else {"mrope_section"}
    routed = ROUTED if name in MIXTURE else set()
    for *folders, last in _leaves(whole):
        if last in OPTIONAL | groups | fallback:
            continue
        if folders == ["text_config"] and last in routed:
            continue
        config = copy.deepcopy(whole)
        part = config
        for folder in folders:
            part = part[folder]
        del part[last]
        with pytest.raises(ValueError, match=f"lacks '{last}'"):
            spec_from_config(config)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "qwen4_vl"}, "model_type = 'qwen4_vl'"),
        ({"model_type": "qwen2_vl"}, "vision hidden_act = 'silu'"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"use_sliding_window": True}, "use_sliding_window = True"),
        ({"rope_scaling": {"type": "yarn", "factor": 4}}, "rope type = 'yarn'"),
        ({"num_attention_heads": 5}, "text width must be heads times"),
    ],
)
def test_what_is_not_supported_is_named(change, said):
    with pytest.raises(ValueError, match=said):
        spec_from_config(config_from_spec(small_spec()) | change)


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        ("vision_config", {"num_position_embeddings": 24}, "embeddings = 24"),
        ("vision_config", {"deepstack_visual_indexes": [9]}, "blocks must exist"),
        ("vision_config", {"hidden_act": "gelu"}, "vision hidden_act = 'gelu'"),
        ("text_config", {"attention_bias": True}, "attention_bias = True"),
        ("text_config", {"num_hidden_layers": 1}, "a decoder layer for each level"),
        (
            "text_config",
            {"rope_scaling": {"mrope_section": [2, 3, 3]}},
            "mRoPE sections must",  # width would own frequency 8 of 0 to 7
        ),
        (
            "text_config",
            {"rope_scaling": {"mrope_interleaved": False}},
            "mrope_interleaved = False",
        ),
    ],
)
def test_what_qwen3_does_not_support_is_named(part, change, said):
    config = config_from_spec(SPECS["qwen3"])
    config[part] |= change
    with pytest.raises(ValueError, match=said):
        spec_from_config(config)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"decoder_sparse_step": 2}, "decoder_sparse_step = 2"),
        ({"mlp_only_layers": [0]}, r"mlp_only_layers = \[0\]"),
        ({"norm_topk_prob": False}, "norm_topk_prob = False"),
        ({"num_experts_per_tok": 6}, "some of the experts that there are"),
        ({"moe_intermediate_size": 48}, "must not be the width nor half of it"),
        ({"moe_intermediate_size": 24}, "must not be the width nor half of it"),
    ],
)
def test_what_experts_do_not_support_is_named(change, said):
    config = config_from_spec(MIXTURE["qwen3_moe"])
    config["text_config"] |= change
    with pytest.raises(ValueError, match=said):
        spec_from_config(config)


def test_experts_under_the_name_of_transformers_5():
    config = config_from_spec(MIXTURE["qwen3_moe"])
    text = config["text_config"]
    text["num_local_experts"] = text.pop("num_experts")
    del text["norm_topk_prob"]
    assert spec_from_config(config) == MIXTURE["qwen3_moe"]


def test_a_family_has_its_own_parts_alone():
    with pytest.raises(ValueError, match="qwen3_vl_moe has experts"):
        dataclasses.replace(SPECS["qwen3"], family=QWEN3_VL_MOE)
    with pytest.raises(ValueError, match="qwen3_vl has no experts"):
        dataclasses.replace(MIXTURE["qwen3_moe"], family=QWEN3_VL)
    with pytest.raises(ValueError, match="qwen2_vl has no window"):
        dataclasses.replace(small_spec(), family=QWEN2_VL)
    with pytest.raises(ValueError, match="qwen2_5_vl needs window"):
        dataclasses.replace(SPECS["qwen2"], family=QWEN2_5_VL)


@pytest.mark.parametrize("name", ["tied", "qwen2", "qwen3", "qwen3_moe"])
def test_views_of_the_table_agree(name):
    spec = EVERY[name]
    table = parameter_table(spec)
    abstract, axes = abstract_params(table), logical_axes(table)
    params = jax.jit(lambda key: init_params(key, table, jnp.bfloat16))(
        jax.random.key(0)
    )
    jax.tree.map(
        lambda a, p: np.testing.assert_equal(a.shape, p.shape), abstract, params
    )
    is_axes = lambda node: isinstance(node, tuple)
    lengths = jax.tree.map(len, axes, is_leaf=is_axes)
    assert lengths == jax.tree.map(lambda a: len(a.shape), abstract)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}
    assert ("head" in params["text"]) == (not spec.tied)
    assert "head" in abstract_params(parameter_table(SPECS["untied"]))["text"]


@pytest.mark.parametrize("name", ["untied", "qwen3"])
def test_what_is_written_from_holds_every_weight_of_the_text_once(name):
    spec = SPECS[name]
    assert not spec.tied
    params = abstract_params(parameter_table(spec))
    weights = jax.eval_shape(functools.partial(unstack, policy(spec)), params)
    sizes = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
    assert sizes(weights) == sizes(params["text"])


@pytest.fixture
def checkpoint():
    spec = SPECS["untied"]
    return spec, dict(to_checkpoint(random_params(spec, 0), parameter_table(spec)))


@pytest.mark.parametrize("name", ["untied", "qwen2", "qwen3"])
def test_checkpoint_round_trip_under_both_namings(name):
    spec = SPECS[name]
    tensors = dict(to_checkpoint(random_params(spec, 0), parameter_table(spec)))
    short = {
        n.replace("model.visual.", "visual.").replace(
            "model.language_model.", "model."
        ): t
        for n, t in tensors.items()
    }
    long = {
        "model." + n
        if n.startswith("visual.")
        else n.replace("model.", "model.language_model.", 1): t
        for n, t in short.items()
    }
    assert "model.language_model.layers.1.self_attn.q_proj.weight" in long
    for named in (tensors, short, long):
        jax.tree.map(
            np.testing.assert_array_equal,
            from_checkpoint(named, parameter_table(spec)),
            random_params(spec, 0),
        )


@pytest.mark.parametrize("turned", [(), ("gate_up_proj", "down_proj")])
def test_experts_are_read_whichever_way_round_they_are_stored(turned):
    """[experts, in, out] on the hub; transformers 5 saves [experts, out, in]."""
    spec = MIXTURE["qwen3_moe"]
    table, params = parameter_table(spec), random_params(spec, 0)
    tensors = dict(to_checkpoint(params, table))
    name = "model.language_model.layers.1.mlp.experts."
    assert tensors[name + "gate_up_proj"].shape == (5, 48, 80)
    assert tensors[name + "down_proj"].shape == (5, 40, 48)
    gate, up = (params["text"]["layers"]["experts"][n][1] for n in ("gate", "up"))
    both = np.concatenate([gate, up], axis=-1)
    np.testing.assert_array_equal(tensors[name + "gate_up_proj"], both)
    stored = {
        key: np.swapaxes(tensor, 1, 2) if key.endswith(turned) and turned else tensor
        for key, tensor in tensors.items()
    }
    read = from_checkpoint(stored, table)
    jax.tree.map(np.testing.assert_array_equal, read, params)
    stored[name + "down_proj"] = np.ones((5, 48, 41))
    with pytest.raises(ValueError, match=r"down_proj \(5, 48, 41\), not \(5, 40, 48"):
        from_checkpoint(stored, table)


def test_checkpoint_problems_are_named(checkpoint):
    spec, tensors = checkpoint
    key = "model.layers.1.mlp.up_proj.weight"
    spoiled = {name: tensor for name, tensor in tensors.items() if name != key}
    spoiled["model.layers.9.mlp.up_proj.weight"] = tensors[key]
    spoiled["model.norm.weight"] = np.ones(7)
    with pytest.raises(ValueError, match="does not fit its config") as error:
        from_checkpoint(spoiled, parameter_table(spec))
    assert f"missing: {key}" in str(error.value)
    assert "unknown: model.layers.9.mlp.up_proj.weight" in str(error.value)
    assert "another shape: model.norm.weight (7,), not (96,)" in str(error.value)


def test_a_tied_head_may_be_repeated_but_not_differ():
    spec = small_spec()
    tensors = dict(to_checkpoint(random_params(spec, 0), parameter_table(spec)))
    embedding = tensors["model.embed_tokens.weight"]
    table = parameter_table(spec)
    from_checkpoint(tensors | {"lm_head.weight": embedding}, table)
    with pytest.raises(ValueError, match=r"lm_head.weight .the config ties it"):
        from_checkpoint(tensors | {"lm_head.weight": embedding + 1}, table)
