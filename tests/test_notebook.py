"""The notebooks are short and clean, and run; the quickstart's method is VPPO."""

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


every_notebook = pytest.mark.parametrize(
    "name", sorted(file.name for file in COLAB.glob("*.ipynb"))
)


def read(name="quickstart.ipynb"):
    return nbformat.read(COLAB / name, as_version=4)


def code(notebook):
    return {cell.id: cell for cell in notebook.cells if cell.cell_type == "code"}


def run(notebook, folder):
    """The cells after a run with tiny sizes in the folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VRL_JAX_SMOKE", "1")
        for home in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR"):
            patch.setenv(home, str(folder / home.lower()))
        NotebookClient(
            notebook, timeout=300, resources={"metadata": {"path": str(folder)}}
        ).execute()  # raises where a cell raises
    return code(notebook)


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The quickstart's cells after a run, and the folder where they ran."""
    folder = tmp_path_factory.mktemp("notebook")
    return run(read(), folder), folder


def printed(cell):
    streams = [o.text for o in cell.outputs if o.output_type == "stream"]
    return "".join(streams) + "".join(shown(cell, "text/plain"))


def shown(cell, kind):
    return [o.data[kind] for o in cell.outputs if kind in o.get("data", {})]


@every_notebook
def test_notebook_has_fewer_than_90_lines_of_code(name):
    cells = code(read(name)).values()
    lines = [line.strip() for cell in cells for line in cell.source.split("\n")]
    assert len([line for line in lines if line and not line.startswith("#")]) < 90


@every_notebook
def test_notebook_is_stored_clean(name):
    notebook = read(name)
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


@pytest.mark.proof
def test_notebook_shows_pictures_curve_and_accuracies(executed):
    cells, _ = executed
    assert len(shown(cells["data"], "image/png")) == 3
    assert len(shown(cells["train"], "image/png")) == 1
    assert re.search(r"held-out accuracy [01]\.\d\d", printed(cells["cold"]))
    for name in ("before", "val/accuracy", "val/accuracy_shuffled_images", "chance"):
        assert re.search(rf"'{name}': [01]\.\d", printed(cells["look"]))


@pytest.mark.proof
def test_notebook_shades_tokens(executed):
    cells, _ = executed
    pages = shown(cells["shade"], "text/html")
    assert len(pages) == 6
    for page in pages:
        assert 'src="data:image/png;base64,' in page
        assert re.search(
            r'<span style="background: rgba\([\d,.]+\)" title="[^"]*">[^<]*</span>',
            page,
        )


@pytest.mark.proof
def test_notebook_exports_a_policy_that_loads(executed):
    _, folder = executed
    spec, _ = hub.load(folder / "runs" / "quickstart" / "policy")
    assert spec.vision.depth == 2


@pytest.mark.proof
def test_five_measures_are_taken_of_any_folder(tmp_path):
    """The second notebook: it makes a model where there is none, and loads it."""
    cells = run(read("which_tokens_look.ipynb"), tmp_path)
    assert (tmp_path / "runs/which_tokens_look/policy/model.safetensors").exists()
    assert "of them right" in printed(cells["load"])
    pages = shown(cells["shade"], "text/html")
    assert len(pages) == 4 * 5
    names = ["k3", "kl", "js", "blind", "entropy"]
    for name, page in zip(4 * names, pages, strict=True):
        assert page.startswith(f"<code>{name:>8} </code><span")
    assert len(shown(cells["agree"], "image/png")) == 1
    table = {
        line[:16].strip(): [float(x) for x in line[16:].split()]
        for line in printed(cells["agree"]).splitlines()[1:7]
    }
    assert list(table) == [*names, "in k3's top 40 %"]
    for place, name in enumerate(names):
        assert table[name][place] == 1
        assert table[name][0] == table["k3"][place]
    assert table["in k3's top 40 %"][0] == 1
