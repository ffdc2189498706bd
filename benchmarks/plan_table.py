"""Which released models fit which TPUs: the table of the README, one plan a row.

    python benchmarks/plan_table.py

VPPO with 128 prompts of 2048 tokens (a picture of 4096 patches in each) and 8 responses
of 2048 tokens, bfloat16 with float32 master weights. Update, gathering and decode are
compiled by libtpu, without a TPU; where they do not fit, the choices of `vrl-jax plan`
are tried. What is in benchmarks/plans.json is kept: remove it where programs change.
"""

import argparse
import json
from pathlib import Path

from vrl_jax.models.qwen_vl.released import RELEASED
from vrl_jax.planning.chips import topology
from vrl_jax.planning.compiling import Request, compiled_for_tpu
from vrl_jax.planning.plan import as_json
from vrl_jax.planning.search import search, usual
from vrl_jax.planning.shapes import Sizes
from vrl_jax.recipes.vppo import vppo
from vrl_jax.training.iteration import Recipe

SMALL = ("v5e:4x4", "v5p:2x2x4", "v6e:4x4", "v7x:2x2x2")
MIDDLE = ("v5e:8x8", "v5p:4x4x4", "v6e:4x8", "v7x:2x2x4")
LARGE = ("v5e:16x16", "v5p:4x4x8", "v6e:8x16", "v7x:4x4x4")
PRESETS = {
    "qwen2.5-vl-3b": SMALL,
    "qwen2.5-vl-7b": MIDDLE,
    "qwen3-vl-8b": MIDDLE,
    "qwen2.5-vl-32b": LARGE,
    "qwen3-vl-32b": LARGE,
    "qwen2.5-vl-72b": ("v5e:16x16", "v5p:4x8x8", "v6e:16x16", "v7x:4x4x8"),
}
"""Model -> a slice of each generation."""


def method(reference: None) -> Recipe:
    """VPPO, which has no reference."""
    del reference
    return vppo()


def planned(model: str, chips: str, *, tries: int) -> list[dict]:
    """The plans that were tried, the last one fits or nothing did."""
    where, sizes = topology(chips), Sizes()
    request = Request(RELEASED[model], method, sizes, usual(where, sizes), where)
    found = []
    try:
        only = ("update", "gather", "decode")
        for one in search(request, compiled_for_tpu, tries=tries, only=only):
            found.append(as_json(one))
    except TimeoutError:
        print(f"{model} {chips}: libtpu took too long after {len(found)} plans")
    return found


def row(model: str, chips: str, plans: list[dict]) -> str:
    """Of the plan that fits and takes the least time, or of the last."""
    if not plans:
        return f"| {model} | {chips} | not compiled in 15 minutes |" + " |" * 8
    fitting = [one for one in plans if one["fits"]]
    last = min(fitting, key=lambda one: one["step_bound_seconds"], default=plans[-1])
    gib = 2**30
    choices, programs = last["choices"], last["programs"]
    mesh = " x ".join(str(choices[axis]) for axis in ("data", "fsdp", "tensor"))
    shown = [programs["update"], programs["decode"]]
    update, decode = (
        f"{one['runs'] * one['bound_seconds']:.1f} s, {one['binds']}" for one in shown
    )
    held = sum(last["held_bytes"].values()) / gib
    peaks = " / ".join(f"{one['peak_bytes'] / gib:.1f}" for one in shown)
    sampling = f"{choices['sampling']}, {choices['slots']}"
    verdict = f"{last['hbm_bytes'] / gib:.1f}" + (
        "" if last["fits"] else ", does not fit"
    )
    return (
        f"| {model} | {chips} | {mesh} | {choices['micro_batches']} | "
        f"{choices['precision'].removeprefix('bfloat16_')} | {sampling} | {held:.1f} | "
        f"{peaks} | {verdict} | {update} | {decode} |"
    )


HEADER = (
    "| model | chips | data x fsdp x tensor | micro-batches | precision | "
    "sampling, slots | held, GiB | peak of update / decode, GiB | HBM, GiB | "
    "update at least | decode at least |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|"
)


def main() -> None:
    """Plans what the file has not, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kept = Path(__file__).with_name("plans.json")
    parser.add_argument("--json", type=Path, default=kept)
    parser.add_argument("--tries", type=int, default=8)
    given = parser.parse_args()
    known = json.loads(given.json.read_text()) if given.json.exists() else {}
    print(HEADER)
    for model, slices in PRESETS.items():
        for chips in slices:
            key = f"{model} {chips}"
            if key not in known:
                known[key] = planned(model, chips, tries=given.tries)
                lines = (f'"{name}": {json.dumps(it)}' for name, it in known.items())
                given.json.write_text("{\n" + ",\n".join(lines) + "\n}\n")
            print(row(model, chips, known[key]), flush=True)


if __name__ == "__main__":
    main()
