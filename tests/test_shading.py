"""Shades behind the words of a response."""

import math
import re

import pytest

from vrl_jax.report.shading import shaded


def opacities(page):
    return [float(x) for x in re.findall(r"rgba\(242,140,40,([\d.]+)\)", page)]


def test_the_shade_is_the_root_of_the_share():
    page = shaded(["a", "b", "c", "d"], [2.5, 10, 40, 0], largest=10)
    assert opacities(page) == [0.5, 1, 1, 0]
    assert re.findall(r'title="([^"]*)"', page) == ["2.5", "10", "40", "0"]


def test_what_has_no_score_has_no_shade():
    assert opacities(shaded(["a", "b"], [math.nan, -3], largest=1)) == [0, 0]


def test_text_is_escaped():
    page = shaded(["<|im_end|>", '"&'], [1, 1], largest=1)
    assert "&lt;|im_end|&gt;" in page and "&quot;&amp;" in page


@pytest.mark.parametrize(("scores", "largest"), [([1], 1), ([1, 2], 0)])
def test_what_cannot_be_shaded_is_told(scores, largest):
    with pytest.raises(ValueError, match="every text needs a score"):
        shaded(["a", "b"], scores, largest=largest)
