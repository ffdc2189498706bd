"""How an update scales from 8 to 512 chips, read from compiled programs.

    python benchmarks/scaling_on_paper.py --json scaling.json --plot scaling.png

VPPO's update on v5p, compiled by libtpu without a TPU: a prompt of 2048 tokens (a
picture of 4096 patches in it) with 8 responses of 2048 tokens at a time on each chip,
parameters spread over at most 32 chips. Strong: 512 prompts whatever the number of
chips. Weak: one prompt a chip. Nothing is timed: times are what the chip's specified
rates allow, see `vrl_jax.planning.plan`. What is in the file already is kept.
"""

import argparse
import json
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt

from vrl_jax.models.qwen_vl.released import RELEASED
from vrl_jax.planning.chips import CHIPS, topology
from vrl_jax.planning.compiling import Request, compiled_for_tpu
from vrl_jax.planning.plan import as_json, plan
from vrl_jax.planning.search import usual
from vrl_jax.planning.shapes import Sizes
from vrl_jax.recipes.vppo import vppo
from vrl_jax.training.iteration import Recipe

MODELS = ("qwen2.5-vl-7b", "qwen2.5-vl-72b")
SLICES = {
    8: "2x2x2",
    32: "2x4x4",
    128: "4x4x8",
    512: "8x8x8",
}
PROMPTS = 512


def method(reference: None) -> Recipe:
    """VPPO, which has no reference."""
    del reference
    return vppo()


def planned(model: str, chips: int, prompts: int) -> dict:
    """The update alone."""
    where = topology(f"v5p:{SLICES[chips]}")
    sizes = Sizes(prompts=prompts)
    request = Request(RELEASED[model], method, sizes, usual(where, sizes), where)
    return as_json(plan(request, compile=compiled_for_tpu, only=("update",)))


def figures(found: dict) -> dict[str, float]:
    """Of one chip, what the table and the plot show."""
    update, sent = (
        found["programs"]["update"],
        found["programs"]["update"]["sent_bytes"],
    )
    return {
        "work": update["flops"] / 1e12,
        "peak": found["peak_bytes"] / 2**30,
        "held": sum(found["held_bytes"].values()) / 2**30,
        "sent": sum(sent.values()) / 1e9,
        "compute": update["compute_seconds"],
        "network": update["network_seconds"],
    }


def table(known: dict[str, dict]) -> str:
    """A row a model, a way of scaling, and a number of chips."""
    lines = [
        "| model | prompts | chips | work, TFLOP | held, GiB | peak, GiB | sent, GB | "
        "compute, s | network, s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for key, found in known.items():
        model, way, chips = key.split()
        one = figures(found)
        prompts = found["sizes"]["prompts"]
        over = "" if found["fits"] else " (does not fit)"
        lines.append(
            f"| {model} | {prompts}, {way} | {chips} | {one['work']:.0f} | "
            f"{one['held']:.1f} | {one['peak']:.1f}{over} | {one['sent']:.0f} | "
            f"{one['compute']:.2f} | {one['network']:.2f} |"
        )
    return "\n".join(lines)


def plot(known: dict[str, dict], file: Path) -> None:
    """Work, memory and traffic of a chip against the number of chips."""
    panels = {
        "work": "work, TFLOP",
        "peak": "peak memory, GiB",
        "sent": "sent, GB",
    }
    figure, axes = plt.subplots(2, 3, figsize=(10, 5.2), sharex=True)
    for row, model in zip(axes, MODELS, strict=True):
        for axis, (name, label) in zip(row, panels.items(), strict=True):
            for way, style in (("strong", "o-"), ("weak", "s--")):
                points = {
                    int(key.split()[2]): figures(found)[name]
                    for key, found in known.items()
                    if key.startswith(f"{model} {way} ")
                }
                axis.plot(points.keys(), points.values(), style, label=way, ms=4)
            if name == "peak":
                top = CHIPS["v5p"].hbm / 2**30
                axis.axhline(top, color="grey", lw=1, label="HBM of a chip")
            axis.set_xscale("log", base=2)
            axis.set_yscale("log")
            axis.set_ylabel(label)
            axis.set_xticks(list(SLICES), [str(chips) for chips in SLICES])
        row[1].set_title(f"{model}, an update on v5p, of one chip")
    for axis in axes[1]:
        axis.set_xlabel("chips")
    axes[0, 1].legend()
    figure.tight_layout()
    figure.savefig(file, dpi=90)


def main() -> None:
    """Compiles what the file has not, prints the table, draws the plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=Path("scaling.json"))
    parser.add_argument("--plot", type=Path, default=Path("scaling.png"))
    given = parser.parse_args()
    matplotlib.use("agg")
    known = json.loads(given.json.read_text()) if given.json.exists() else {}
    for model in MODELS:
        for way in ("strong", "weak"):
            for chips in SLICES:
                key = f"{model} {way} {chips}"
                prompts = PROMPTS if way == "strong" else chips
                if key not in known:
                    same = known.get(f"{model} strong {chips}", {"sizes": {}})
                    if same["sizes"].get("prompts") != prompts:
                        same = planned(model, chips, prompts)
                    known[key] = same
                    given.json.write_text(json.dumps(known, indent=1))
    print(table(known))
    plot(known, given.plot)


if __name__ == "__main__":
    main()
