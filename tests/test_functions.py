"""The index of functions is what the code says."""

from tests import functions
from tests.test_imports import LAYERS, MATHEMATICS, VOCABULARY


def test_the_index_is_what_the_docstrings_say():
    written = functions.PAGE.read_text()
    assert written == functions.page(), "make functions writes it anew"
    assert "`clipped_surrogate(logprobs, old_logprobs, advantages)`" in written
    assert "[arXiv 1707.06347](https://arxiv.org/abs/1707.06347)" in written


def test_no_module_of_the_mathematics_is_missing():
    assert (LAYERS[VOCABULARY] | LAYERS[MATHEMATICS]) - {"types"} <= {*functions.ORDER}


def test_tags_and_bars_are_shown_as_they_are():
    tree = functions.ast.parse('def f(x, *, y):\n    """<a> of `<b>` | |x|."""')
    (row,) = functions.rows_of(tree)
    assert row == "| `f(x)` | \\<a> of `<b>` \\| \\|x\\|. |  |"
