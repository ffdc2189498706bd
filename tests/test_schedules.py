"""Schedules by hand; that of the noise is in test_cases.py."""

import numpy as np
import pytest

from vrl_jax import schedules


def test_linear_ends_at_the_last_step_and_stays():
    # PAD's temperature over five steps.
    found = [schedules.linear(t, start=1.0, end=0.3, total=5) for t in (0, 2, 4, 9)]
    assert found == pytest.approx([1, 0.65, 0.3, 0.3])
    assert schedules.linear(0, start=1.0, end=0.3, total=1) == 1


def test_late_decay_waits_then_falls():
    found = [schedules.late_decay(t) for t in (0, 19, 20, 21, 22)]
    assert found == pytest.approx([0, 0, 0.02, 0.02 * 0.985, 0.02 * 0.985**2])


def test_adaptive_coefficient_follows_the_target_in_small_steps():
    # verl's controller: the error is clipped to 20 %, 512 of 10000 steps.
    step = 512 / 10_000
    for kl, factor in ((0.11, 0.1), (1.0, 0.2), (0.1, 0.0), (0.0, -0.2)):
        got = schedules.adaptive_coefficient(0.05, kl, 512)
        assert got == pytest.approx(0.05 * (1 + factor * step))


def test_fades_start_whole_and_end_at_nothing():
    power = [schedules.power_fade(t, start=500, power=3, total=60) for t in (0, 30, 60)]
    assert power == pytest.approx([500, 500 * (1 - 1 / 8), 0])
    # DUPL's max(0, 1 - s / s_total), by hand.
    branch = [schedules.power_fade(t, start=1, power=1, total=10) for t in (0, 5, 15)]
    assert branch == [1, 0.5, 0]
    fades = [
        schedules.exponential_fade(t, start=500, base=0.5, total=4) for t in (0, 3, 4)
    ]
    assert fades == pytest.approx([500 * 15 / 16, 250, 0])


def test_adaptive_entropy_weight_acts_only_below_its_target():
    found = [schedules.adaptive_entropy_weight(0.01, h) for h in (0.1, 0.2, 0.3)]
    assert np.ravel(found) == pytest.approx([0.015, 0.015, 0.015, 0.015, 0.005, 0])
    assert schedules.adaptive_entropy_weight(1.0, 0.0) == (1.0, 1.0)
    assert schedules.adaptive_entropy_weight(0.002, 1.0) == (0.0, 0.0)
