"""Other seeds: `python -m tests.parity.sweep --seeds 20 --first 1000`.

Draws a model and pictures of every family from each seed, prints the worst error of
each check, and exits with 1 if one is past its bound.
"""

import argparse
import sys
import tempfile

from vrl_jax.models import hub

from .checks import Setting, checks_of
from .conftest import table
from .draws import NAMES
from .pictures import odd_pictures, patch_error, pixel_bounds, their_processor
from .test_pictures import BOUND


def pictures(setting: Setting) -> float:
    """Patches of odd pictures, whose sizes the seed draws."""
    with tempfile.TemporaryDirectory() as folder:
        bounds = pixel_bounds(setting.spec)
        hub.save(folder, setting.spec, setting.params, pixel_bounds=bounds)
        processor = their_processor(folder, setting.spec)
    files = odd_pictures(setting.draw.seed).values()
    return max(patch_error(data, setting.spec, processor) for data in files)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first", type=int, default=1000)
    given = parser.parse_args()
    errors: dict[tuple[str, str], tuple[float, float]] = {}
    for seed in range(given.first, given.first + given.seeds):
        for family in NAMES:
            setting = Setting(family, seed)
            for check, bound in {**checks_of(family), pictures: BOUND}.items():
                name, error = check.__name__, check(setting)
                worst, _ = errors.get((family, name), (0.0, bound))
                errors[family, name] = max(worst, error), bound
                if not error <= bound:
                    print(f"seed {seed}, {family}, {name}: {error:.2e} > {bound:.0e}")
        print(f"seed {seed} done", file=sys.stderr, flush=True)
    print("\n".join(table(errors)))
    return int(any(not worst <= bound for worst, bound in errors.values()))


if __name__ == "__main__":
    sys.exit(main())
