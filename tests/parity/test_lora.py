"""Adapters that PEFT loads onto the transformers model, and those that it writes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

from vrl_jax.models import hub, lora  # noqa: E402
from vrl_jax.models.families import family_of  # noqa: E402
from vrl_jax.models.lora import Lora  # noqa: E402

from ..models.cases import (  # noqa: E402
    EVERY,
    outputs,
    pack,
    random_params,
    responses,
    two_rows,
)
from .reference import torch_logits, torch_model  # noqa: E402

pytestmark = pytest.mark.parity

TARGETS = {"text": lora.text_linear, "all": lambda path: True}


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("name", ["tied", "untied", "gemma3", "qwen3_moe"])
def test_peft_computes_the_merged_policy(tmp_path, name, targets):
    spec, seed = EVERY[name], 5
    table = family_of(spec).parameter_table(spec)
    params = random_params(spec, seed)
    hub.save(tmp_path / "base", spec, params)
    random = np.random.RandomState(seed)
    fresh = lora.init(jax.random.key(0), table, rank=3, targets=TARGETS[targets])
    filled = jax.tree.map(
        lambda f: jnp.asarray(0.1 * random.randn(*f.shape), jnp.float32), fresh
    )
    given = Lora(filled, jnp.float32(1.5))
    lora.save(tmp_path / "adapters", given, table)

    rows = two_rows(spec, seed)

    def ours(params):
        return outputs(spec, params, pack(spec, rows), responses(0, (2, 1, 1)))

    model = torch_model(tmp_path / "base", spec)
    before = torch_logits(model, spec, rows)
    adapted = peft.PeftModel.from_pretrained(model, tmp_path / "adapters").eval()
    adapted.save_pretrained(tmp_path / "theirs")
    theirs = torch_logits(model, spec, rows)
    merged = ours(lora.merge(params, given)).prompt_logits
    for wanted, got, base in zip(theirs, merged, before, strict=True):
        assert np.abs(wanted - base).max() > 0.1
        np.testing.assert_allclose(got, wanted, atol=1e-4)

    again = lora.load(tmp_path / "theirs", table)
    jax.tree.map(np.testing.assert_array_equal, again, given)
