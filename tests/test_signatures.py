"""Every public function says what it takes and what it gives."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(
    path
    for folder in ("kernels", "vrl_jax", "experiments")
    for path in (ROOT / folder).rglob("*.py")
)


def public_functions(body, prefix=""):
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield from public_functions(node.body, f"{node.name}.")
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            if any(
                isinstance(d, ast.Name) and d.id == "overload"
                for d in node.decorator_list
            ):
                continue  # the implementation is what is documented
            yield prefix + node.name, node


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_public_functions_are_annotated_and_documented(path):
    for name, node in public_functions(ast.parse(path.read_text()).body):
        given = node.args
        arguments = [*given.posonlyargs, *given.args, *given.kwonlyargs]
        bare = [a.arg for a in arguments if a.annotation is None and a.arg != "self"]
        assert not bare, f"{name}: {bare} have no annotation"
        assert node.returns is not None, f"{name} does not say what it returns"
        assert ast.get_docstring(node), f"{name} has no docstring"
