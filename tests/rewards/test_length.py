import json
from pathlib import Path

import numpy as np
import pytest

from vrl_jax.rewards.length import soft_overlong

GOLDEN = Path(__file__).parents[1] / "golden/objectives_cases.json"


def test_soft_overlong_golden():
    case = json.loads(GOLDEN.read_text())["dapo_rewards"]
    got = soft_overlong(np.array(case["lengths"]), max_length=20, buffer=8)
    np.testing.assert_array_equal(got, case["dapo_trl_easyr1"])


def test_soft_overlong_of_the_paper():
    # By hand: half of the 4096 tokens of buffer used.
    assert soft_overlong(np.array(18432), max_length=20480, buffer=4096) == -0.5
    assert soft_overlong(np.array(4), max_length=4, buffer=4) == -1.0


@pytest.mark.parametrize("buffer", [0, -1, 21])
def test_soft_overlong_bad_buffer_raises(buffer):
    with pytest.raises(ValueError, match=f"got buffer={buffer} and max_length=20"):
        soft_overlong(np.array(3), max_length=20, buffer=buffer)
