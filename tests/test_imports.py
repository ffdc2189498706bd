"""Imports run one way: the layers of the design, from left to right."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
KERNELS, VOCABULARY, MATHEMATICS, RECIPES = 0, 1, 2, 5
LAYERS = (
    {"vrl_kernels"},
    {"types", "masked", "geometry", "views", "augmentations", "schedules"},
    {
        "advantages",
        "objectives",
        "mismatch",
        "divergences",
        "reductions",
        "preference",
        "perception",
        "contrast",
        "token_weights",
        "filters",
        "denoising",
        "rewards",
    },
    {"models", "engine", "worlds", "training"},
    {"programs", "evals"},
    {"recipes"},
    {"report", "planning"},
    {"experiment"},
    {"finetuning_flags", "finetuning", "exporting"},
    {"cli"},
    {"experiments"},
)
PLAIN = {"jax", "numpy", "jaxtyping"}
FILES = sorted(
    path
    for folder in ("kernels", "vrl_jax", "experiments")
    for path in (ROOT / folder).rglob("*.py")
)


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[0] == "kernels":
        parts = ("vrl_kernels", *parts[1:])
    return parts[:-1] if parts[-1] == "__init__" else parts


def imports_of(path, tree):
    """Everything imported anywhere in the file, as tuples of names."""
    package = module_of(path)
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = tuple(node.module.split(".")) if node.module else ()
            if node.level:
                base = package[: len(package) - node.level + 1] + base
            yield from ((*base, alias.name) for alias in node.names)


def layer_of(module):
    name = module[1] if module[0] == "vrl_jax" else module[0]
    for number, layer in enumerate(LAYERS):
        if name in layer:
            return number
    raise AssertionError(f"{'.'.join(module)} has no place in LAYERS: give it one.")


def is_ours(module):
    return module[0] in {"vrl_jax", "vrl_kernels", "experiments", "tests"}


def broken_rules(path, source):
    """What the file imports and must not."""
    module = module_of(path)
    imports = list(imports_of(path, ast.parse(source)))
    if module == ("vrl_jax",):
        return [f"{'.'.join(name)}: nothing is re-exported" for name in imports]
    layer = layer_of(module)
    broken = []
    for imported in imports:
        name = ".".join(imported)
        if imported[0] == "torch" and path.name.startswith("bench_"):
            continue
        if imported[0] in {"torch", "tests", "__main__"}:
            broken.append(f"{name}: only tests and benchmarks may")
        elif is_ours(imported):
            if layer_of(imported) > layer:
                broken.append(f"{name}: lies to the right")
            elif layer == RECIPES and imported[:2] == ("vrl_jax", "recipes"):
                broken.append(f"{name}: a recipe never imports a recipe")
        elif imported[0] not in sys.stdlib_module_names | allowed(module, layer):
            broken.append(f"{name}: not a library of this layer")
    return broken


def allowed(module, layer):
    """Third-party packages that this module may import."""
    if layer == KERNELS:
        return {"jax", "jaxtyping"}
    if module[:2] == ("vrl_jax", "geometry"):
        return PLAIN | {"optax"}
    if module[:2] == ("vrl_jax", "rewards"):
        return PLAIN | declared() - {"flax", "orbax", "transformers", "optax", "grain"}
    return PLAIN if layer in (VOCABULARY, MATHEMATICS) else PLAIN | declared()


def declared():
    """Import names of the dependencies in pyproject.toml, and of optional ones."""
    names = {"Pillow": "PIL", "scikit-learn": "sklearn", "orbax-checkpoint": "orbax"}
    project = PYPROJECT["project"]
    lines = project["dependencies"] + project["optional-dependencies"]["tfds"]
    found = {re.match(r"[\w-]+", line).group() for line in lines}
    return {names.get(name, name.replace("-", "_")) for name in found}


@pytest.mark.parametrize(
    "path", FILES, ids=[str(path.relative_to(ROOT)) for path in FILES]
)
def test_imports_run_one_way(path):
    assert not broken_rules(path, path.read_text())


@pytest.mark.parametrize(
    ("path", "source", "rule"),
    [
        ("kernels/op/xla.py", "from vrl_jax import masked", "right"),
        ("kernels/op/xla.py", "import numpy", "library of this layer"),
        ("kernels/op/xla.py", "from . import reference\nimport jaxtyping, math", None),
        ("vrl_jax/perception.py", "import vrl_jax.engine.actor", "right"),
        ("vrl_jax/perception.py", "def f():\n    import optax", "library"),
        ("vrl_jax/perception.py", "from vrl_jax import advantages, masked", None),
        ("vrl_jax/geometry.py", "import optax", None),
        ("vrl_jax/rewards/grade.py", "import math_verify", None),
        ("vrl_jax/rewards/grade.py", "from transformers import AutoModel", "library"),
        ("vrl_jax/models/hub.py", "import torch.nn", "only tests"),
        ("experiments/bench_head.py", "def f():\n    import torch", None),
        ("vrl_jax/models/hub.py", "from ..training import loop", None),
        ("vrl_jax/models/hub.py", "from ..programs import play", "right"),
        ("vrl_jax/recipes/dapo.py", "from vrl_jax.recipes import grpo", "never"),
        ("vrl_jax/recipes/dapo.py", "from .grpo import loss", "never"),
        ("vrl_jax/cli.py", "from experiments import vppo_tiny_digits", "right"),
        ("vrl_jax/cli.py", "import tests.conftest", "only tests"),
    ],
)
def test_the_rules_themselves(path, source, rule):
    broken = broken_rules(ROOT / path, source)
    assert (rule is None and not broken) or rule in broken[0]


def test_packages_are_the_folders():
    listed = PYPROJECT["tool"]["setuptools"]["packages"]
    folders = {
        ".".join(module_of(path))
        for path in FILES
        if path.name == "__init__.py" and "experiments" not in path.parts
    }
    assert set(listed) == folders
    loose = {p for p in FILES if not (p.parent / "__init__.py").exists()}
    assert all(p.relative_to(ROOT).parts[0] == "experiments" for p in loose)
