"""The table of experiments/README.md: every digits experiment over several seeds.

Claim     Reinforcement learning lifts held-out accuracy by at least 15 points over the
          cold start on every seed; the cold start continued for the same time does not.
Command   python experiments/table_tiny_digits.py
Hardware  2 CPU cores, 4 GB of memory
Time      about 50 minutes; runs that have ended are read, not repeated
"""

import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax

from vrl_jax.experiment import command_line
from vrl_jax.training.files import read_lines
from vrl_jax.training.loop import run_files

SCRIPTS = Path(__file__).parent


class Row(NamedTuple):
    """One run: accuracies, the last with shuffled images, and seconds of stage two."""

    cold: float
    end: float
    shuffled: float
    seconds: float


def run(script: str, out: Path, seed: int, *flags: str) -> Row:
    """Runs an experiment in a process of its own, unless `out` has its result."""
    if not (out / "report.html").exists():
        command = [sys.executable, SCRIPTS / script, "--out", out, "--seed", str(seed)]
        subprocess.run([*command, *flags], check=True)
    cold, *_, end = read_lines(run_files(out).evaluations)
    return Row(
        cold["val/accuracy"],
        end["val/accuracy"],
        end["val/accuracy_shuffled_images"],
        sum(step_seconds(out, "rl")),
    )


def step_seconds(out: Path, phase: str) -> list[float]:
    """What each step of a stage took."""
    lines = read_lines(run_files(out).timings)
    return [line["timing_s/step"] for line in lines if line["phase"] == phase]


def main(
    *, out: Path = Path("runs/table"), seeds: tuple[int, ...] = (0, 1, 2)
) -> list[str]:
    """Print the table as Markdown.

    Args:
        out: folder of the runs.
        seeds: one column each.
    """
    reinforced = {
        name: [
            run(f"{name.lower()}_tiny_digits.py", out / f"{name}-{s}", s) for s in seeds
        ]
        for name in ("VPPO", "GRPO", "DAPO")
    }
    supervised: dict[str, list[Row]] = {}
    for count in (128, 4096):
        name = f"supervised, {count} demonstrations"
        for seed, row in zip(seeds, reinforced["VPPO"], strict=True):
            folder = out / f"VPPO-{seed}"
            steps = round(
                row.seconds / statistics.median(step_seconds(folder, "cold start"))
            )
            flags = ("--steps", str(steps), "--demonstrations", str(count))
            run_folder = out / f"SFT-{count}-{seed}"
            supervised.setdefault(name, []).append(
                run("sft_tiny_digits.py", run_folder, seed, *flags)
            )
    lines = table({**reinforced, **supervised}, seeds)
    print("\n".join(lines))
    return lines


def table(rows: dict[str, list[Row]], seeds: Sequence[int]) -> list[str]:
    """Markdown: one line a method, one column a seed."""
    head = ["after the cold start", *(f"seed {seed}" for seed in seeds)]
    head += ["mean gain", "least gain", "shuffled images", "seconds"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, runs in rows.items():
        gains = [run.end - run.cold for run in runs]
        cells = [name, *(f"{run.cold:.2f} → {run.end:.2f}" for run in runs)]
        cells += [f"{100 * statistics.mean(gains):+.0f}", f"{100 * min(gains):+.0f}"]
        cells.append(f"{statistics.mean(run.shuffled for run in runs):.2f}")
        cells.append(f"{statistics.mean(run.seconds for run in runs):.0f}")
        lines.append("| " + " | ".join(cells) + " |")
    versions = f"jax {jax.__version__}, Python {platform.python_version()}"
    return [*lines, "", f"{platform.machine()}, {versions}, CPU."]


if __name__ == "__main__":
    command_line(main)
