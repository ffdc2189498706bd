"""colab/quickstart.ipynb: short, clean, the library's VPPO, and it runs."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

from vrl_jax.models import hub
from vrl_jax.recipes.vppo import vppo
from vrl_jax.types import Likelihood, Rollout

COLAB = Path(__file__).parents[1] / "colab"


def read():
    return nbformat.read(COLAB / "quickstart.ipynb", as_version=4)


def code(notebook):
    return {cell.id: cell for cell in notebook.cells if cell.cell_type == "code"}


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The cells after a run with tiny sizes, and the folder where they ran."""
    folder = tmp_path_factory.mktemp("notebook")
    notebook = read()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VRL_JAX_SMOKE", "1")
        for home in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR"):
            patch.setenv(home, str(folder / home.lower()))
        NotebookClient(
            notebook, timeout=300, resources={"metadata": {"path": str(folder)}}
        ).execute()  # raises where a cell raises
    return code(notebook), folder


def printed(cell):
    streams = [o.text for o in cell.outputs if o.output_type == "stream"]
    return "".join(streams) + "".join(shown(cell, "text/plain"))


def shown(cell, kind):
    return [o.data[kind] for o in cell.outputs if kind in o.get("data", {})]


def test_notebook_has_fewer_than_90_lines_of_code():
    lines = [
        line.strip() for c in code(read()).values() for line in c.source.split("\n")
    ]
    assert len([line for line in lines if line and not line.startswith("#")]) < 90


def test_notebook_is_stored_clean():
    notebook = read()
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert all(not cell.metadata for cell in notebook.cells)
    for cell in code(notebook).values():
        assert cell.outputs == []
        assert cell.execution_count is None


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]])
def test_ruff_passes(command):
    ruff = [sys.executable, "-m", "ruff", *command, "--no-cache", str(COLAB)]
    done = subprocess.run(ruff, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_method_is_the_library_s_vppo(monkeypatch):
    monkeypatch.setenv("VRL_JAX_SMOKE", "1")
    cells, names = code(read()), {}
    exec(cells["setup"].source + "\n" + cells["method"].source, names)
    group, tokens = names["GROUP"], 7
    old, new, blackened = -jax.random.exponential(
        jax.random.key(0), (3, 2 * group, tokens)
    )
    rollout = Rollout(
        prompts=None,
        tokens=jnp.zeros((2 * group, tokens), jnp.int32),
        positions=None,
        mask=jnp.arange(tokens) < 1 + jnp.arange(2 * group)[:, None] % tokens,
        temperature=jnp.ones(2 * group),
        old_logprobs=old,
        extra_logprobs={"blackened": blackened},
        rewards=jnp.arange(2 * group) % 3.0,
        reward_parts={},
        group=jnp.repeat(jnp.arange(2), group),
    )
    losses = []
    for recipe in (names["method"], vppo(group_size=group)):
        batch, _ = recipe.credit(rollout)
        mean, _ = recipe.loss(lambda _: Likelihood(new, jnp.zeros_like(new)), batch)
        losses.append([batch.advantages, mean.total, mean.weight])
    jax.tree.map(np.testing.assert_array_equal, *losses)
    assert np.any(losses[0][0])


def test_shaded_escapes_the_text_of_a_token():
    function = ast.parse(code(read())["shade"].source).body[0]
    names = {}
    exec("import html\n" + ast.unparse(function), names)
    shade = names["shaded"]({"text": "<|im_end|>", "dependency": 2.5})
    # 0.50 is the root of 2.5 / 10: 10 is the largest score.
    assert re.fullmatch(r"<span [^<>]*,0\.50\)[^<>]*>&lt;\|im_end\|&gt;</span>", shade)


def test_notebook_shows_pictures_curve_and_accuracies(executed):
    cells, _ = executed
    assert len(shown(cells["data"], "image/png")) == 3
    assert len(shown(cells["train"], "image/png")) == 1
    assert re.search(r"held-out accuracy [01]\.\d\d", printed(cells["cold"]))
    for name in ("before", "val/accuracy", "val/accuracy_shuffled_images", "chance"):
        assert re.search(rf"'{name}': [01]\.\d", printed(cells["look"]))


def test_notebook_shades_tokens(executed):
    cells, _ = executed
    pages = shown(cells["shade"], "text/html")
    assert len(pages) == 6
    for page in pages:
        assert 'src="data:image/png;base64,' in page
        assert re.search(
            r'<span style="background: rgba\([\d,.]+\)">[^<]*</span>', page
        )


def test_notebook_exports_a_policy_that_loads(executed):
    _, folder = executed
    spec, _ = hub.load(folder / "runs" / "quickstart" / "policy")
    assert spec.vision.depth == 2
