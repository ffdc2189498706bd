"""LoRA: the formula, what is refused, and folders read back."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

from vrl_jax.models import lora
from vrl_jax.models.lora import Adapter, Lora
from vrl_jax.models.qwen_vl.parameters import parameter_table

from .cases import MIXTURE, random_params, small_spec

SPEC = small_spec()
TABLE = parameter_table(SPEC)
PARAMS = random_params(SPEC, 1)


def random_lora(targets=lora.text_linear, *, rank=3, scale=0.5):
    """Adapters whose B is not 0."""
    fresh = lora.init(jax.random.key(0), TABLE, rank=rank, targets=targets)
    random = np.random.RandomState(0)
    filled = jax.tree.map(
        lambda f: jnp.asarray(0.2 * random.randn(*f.shape), jnp.float32), fresh
    )
    return Lora(filled, jnp.float32(scale))


def everywhere(path):
    return True


def same(got, wanted):
    jax.tree.map(np.testing.assert_array_equal, got, wanted)


def test_by_hand():
    """[[1, 0], [0, 1]] + 0.5 [[1], [2]] [[4, 6]] = [[3, 3], [4, 7]]."""
    adapter = Adapter(jnp.array([[1.0], [2.0]]), jnp.array([[4.0, 6.0]]))
    merged = lora.merge({"w": jnp.eye(2)}, Lora({"w": adapter}, jnp.float32(0.5)))
    np.testing.assert_array_equal(merged["w"], [[3, 3], [4, 7]])


def test_layers_have_adapters_of_their_own():
    given = random_lora(everywhere)
    merged = flatten_dict(lora.merge(PARAMS, given), sep="/")
    flat, adapters = (flatten_dict(t, sep="/") for t in (PARAMS, given.adapters))
    for path in flat:
        if path not in adapters:
            assert merged[path] is flat[path]
            continue
        a, b = adapters[path]
        matrices = zip(merged[path], flat[path], a, b, strict=True)
        one = [(merged[path], flat[path], a, b)]
        for new, old, a_one, b_one in matrices if a.ndim == 3 else one:
            change = np.tensordot(a_one, b_one, 1)
            np.testing.assert_allclose(new, old + 0.5 * change, rtol=1e-5, atol=1e-5)


def test_bfloat16_matrices_stay_bfloat16():
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    merged = lora.merge(params, random_lora())
    assert {p.dtype for p in jax.tree.leaves(merged)} == {jnp.dtype(jnp.bfloat16)}


def test_targets():
    text = flatten_dict(lora.init(jax.random.key(0), TABLE, rank=2), sep="/")
    parts = {"query", "key", "value", "out", "gate", "up", "down"}
    assert set(text) == {f"text/layers/{part}/kernel" for part in parts}
    whole = flatten_dict(random_lora(everywhere).adapters, sep="/")
    assert "vision/blocks/qkv/kernel" in whole and "vision/merger/up/kernel" in whole
    assert not {"text/embedding", "vision/patch_embed/kernel"} & set(whole)
    for rank, targets in [(0, lora.text_linear), (2, lambda path: "norm" in path)]:
        with pytest.raises(ValueError, match="rank of at least 1"):
            lora.init(jax.random.key(0), TABLE, rank=rank, targets=targets)


@pytest.mark.parametrize("targets", [lora.text_linear, everywhere])
def test_experts_have_no_adapters(targets):
    """Stacks of matrices are no linear modules in transformers; the router is none."""
    table = parameter_table(MIXTURE["qwen3_moe"])
    found = flatten_dict(lora.init(jax.random.key(0), table, rank=2, targets=targets))
    text = {path[2] for path in found if path[0] == "text"}
    assert text == {"query", "key", "value", "out"}


@pytest.mark.parametrize("targets", [lora.text_linear, everywhere])
def test_saved_and_loaded(tmp_path, targets):
    given = random_lora(targets)
    lora.save(tmp_path, given, TABLE, base="someone/model")
    same(lora.load(tmp_path, TABLE), given)
    trained, fixed, join = lora.continued(lora.load(tmp_path, TABLE))(PARAMS)
    same(join(trained, fixed), lora.merge(PARAMS, given))


def test_names_of_older_transformers_are_read(tmp_path):
    """Before 4.52 the decoder was `model` and the tower `visual`."""
    given = random_lora(everywhere)
    lora.save(tmp_path, given, TABLE)
    older = {}
    for name, tensor in load_file(tmp_path / lora.WEIGHTS).items():
        old = name.replace("model.language_model.layers.", "model.layers.")
        older[old.replace("model.model.visual.", "model.visual.")] = tensor
    assert any("base_model.model.model.layers.0" in name for name in older)
    assert any("base_model.model.visual." in name for name in older)
    save_file(older, tmp_path / lora.WEIGHTS)
    same(lora.load(tmp_path, TABLE), given)


def test_folders_that_do_not_fit(tmp_path):
    with pytest.raises(ValueError, match=r"has no adapter_config\.json"):
        lora.load(tmp_path, TABLE)
    lora.save(tmp_path, random_lora(), TABLE)
    fewer = [row for row in TABLE if "query" not in row.path]
    with pytest.raises(ValueError, match=r"of another model.*unknown base_model"):
        lora.load(tmp_path, fewer)
    more = [
        row._replace(layers=row.layers + 1) if "query" in row.path else row
        for row in TABLE
    ]
    with pytest.raises(ValueError, match=r"missing base_model.*layers\.2"):
        lora.load(tmp_path, more)
    wider = [row._replace(stored=(row.stored[0] + 1, *row.stored[1:])) for row in TABLE]
    with pytest.raises(ValueError, match="another shape"):
        lora.load(tmp_path, wider)
    config = tmp_path / lora.CONFIG
    config.write_text(json.dumps({**json.loads(config.read_text()), "use_dora": True}))
    with pytest.raises(ValueError, match="use_dora is True"):
        lora.load(tmp_path, TABLE)
