"""FUNCTIONS.md, from the docstrings: which function computes what, and whose it is.

`make functions` writes it, and a test holds that it is what the code says.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "FUNCTIONS.md"
HEAD = """# Functions

What one may import by itself: arrays in, arrays out, or text in, numbers out. What a
function is, is the first paragraph of its docstring, which also has shapes, units,
errors and the equation's number; the source is the first that it names. Arguments after
a `*` are left out. Written by `make functions`.
"""
ORDER = (
    "advantages",
    "objectives",
    "reductions",
    "divergences",
    "preference",
    "mismatch",
    "perception",
    "token_weights",
    "contrast",
    "filters",
    "denoising",
    "views",
    "augmentations",
    "schedules",
    "geometry",
    "masked",
    "rewards",
    "programs",
)
"""As a loss is put together, and then what runs on the host."""


def page() -> str:
    """The whole file."""
    sections = (section(file) for name in ORDER for file in files(name))
    return "\n".join([HEAD, *filter(None, sections)])


def files(name: str) -> list[Path]:
    """The module, or those of the package."""
    single = ROOT / "vrl_jax" / f"{name}.py"
    return [single] if single.is_file() else sorted(single.with_suffix("").glob("*.py"))


def section(file: Path) -> str:
    """A module: what it is for, and its functions; nothing where it has none."""
    tree, path = ast.parse(file.read_text()), file.relative_to(ROOT)
    if not (rows := [*rows_of(tree)]):
        return ""
    title = f"## [{'.'.join(path.with_suffix('').parts)}]({path})"
    table = "\n".join(["| function | what it is | source |", "|---|---|---|", *rows])
    return f"{title}\n\n{first_words(tree)}\n\n{table}\n"


def rows_of(tree: ast.Module) -> Iterator[str]:
    """A line for each public function."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            given = node.args.posonlyargs + node.args.args
            call = f"`{node.name}({', '.join(arg.arg for arg in given)})`"
            whose = source(ast.get_docstring(node) or "")
            said = first_words(node).replace("|", "\\|")
            yield f"| {call} | {said} | {whose} |"


def first_words(node: ast.FunctionDef | ast.Module) -> str:
    """The first paragraph of a docstring on one line, its tags shown as they are."""
    paragraph = (ast.get_docstring(node) or "").split("\n\n")[0]
    outside = re.split(r"(`[^`]*`)", " ".join(paragraph.split()))
    outside[::2] = [text.replace("<", "\\<") for text in outside[::2]]
    return "".join(outside)


def source(docstring: str) -> str:
    """The first address of a docstring, by a short name."""
    found = re.search(r"https?://[^\s,;)]+", docstring)
    if not found:
        return ""
    address = found[0].rstrip(".:")
    paper = re.search(r"arxiv\.org/abs/([\d.]+)", address)
    code = re.search(r"github\.com/[^/]+/([^/]+)", address)
    name = f"arXiv {paper[1]}" if paper else code[1] if code else address.split("/")[2]
    return f"[{name}]({address})"


if __name__ == "__main__":
    PAGE.write_text(page())
