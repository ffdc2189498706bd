"""Every family against transformers on torch, on random models and pictures."""

import functools

import pytest

pytest.importorskip("torch")

from .checks import CHECKS, Setting, checks_of
from .draws import NAMES
from .reference import torch_logits

pytestmark = pytest.mark.parity

setting = functools.lru_cache(Setting)


@pytest.mark.parametrize(
    ("family", "seed", "check"),
    [
        pytest.param(name, seed, check, id=f"{name}-{seed}-{check.__name__}")
        for name in NAMES
        for seed in (0, 1)  # a tied head, an untied one
        for check in checks_of(name)
    ],
)
def test_equals_transformers(family, seed, check, record_error):
    error = check(setting(family, seed))
    record_error(family, check.__name__, error, CHECKS[check])
    assert error <= CHECKS[check]


@pytest.mark.parametrize("family", NAMES)
def test_the_picture_changes_their_logits_too(family):
    """A comparison of models that ignore their pictures would show nothing."""
    given = setting(family, 0)
    blank = [p.point(lambda _: 90) for p in given.rows[2].pictures]
    rows = [*given.rows[:2], given.rows[2]._replace(pictures=blank)]
    before, after = (
        given.torch_logits,
        torch_logits(given.torch_model, given.spec, rows),
    )
    assert abs(before[2][-1] - after[2][-1]).max() > 0.1
    assert abs(before[1] - after[1]).max() == 0
