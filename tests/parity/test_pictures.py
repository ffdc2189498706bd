"""Patches equal those of the released processors, with the settings that we export."""

import pytest

pytest.importorskip("torch")

from vrl_jax.models import hub
from vrl_jax.models.gemma3.released import GEMMA3_4B
from vrl_jax.models.qwen_vl import released

from .draws import NAMES, draw
from .pictures import odd_pictures, patch_error, pixel_bounds, their_processor

pytestmark = pytest.mark.parity

BOUND = 1e-5
RELEASED = {
    "qwen2_vl": released.QWEN2_VL_2B,
    "qwen2_5_vl": released.QWEN2_5_VL_3B,
    "qwen3_vl": released.QWEN3_VL_2B,
    "qwen3_vl_moe": released.QWEN3_VL_30B_A3B,
    "gemma3": GEMMA3_4B,
}


@pytest.fixture(scope="module", params=NAMES)
def family(request, tmp_path_factory):
    """Their processor as it reads our folder, for small and for released patches."""
    name, folder = request.param, tmp_path_factory.mktemp("model")
    given = draw(name, 0)
    bounds = pixel_bounds(given.spec)
    hub.save(folder, given.spec, given.params, pixel_bounds=bounds)
    small = their_processor(str(folder), given.spec)
    real = their_processor(str(folder), given.spec)
    if name == "gemma3":
        size = RELEASED[name].vision.image
        real.size = {"height": size, "width": size}
    else:
        real.patch_size = RELEASED[name].vision.patch
    return name, [(given.spec, small), (RELEASED[name], real)]


@pytest.mark.parametrize("kind", odd_pictures(0))
def test_patches_equal_the_processor(family, kind, record_error):
    name, pairs = family
    data = odd_pictures(0)[kind]
    error = max(patch_error(data, spec, processor) for spec, processor in pairs)
    record_error(name, "pictures", error, BOUND)
    assert error <= BOUND
