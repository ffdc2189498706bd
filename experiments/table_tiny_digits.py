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
    *,
    out: Path = Path("runs/table"),
    seeds: tuple[int, ...] = (0, 1, 2),
    methods: tuple[str, ...] = ("vppo", "grpo", "dapo"),
    demonstrations: tuple[int, ...] = (128, 4096),
) -> list[str]:
    """Print the table as Markdown.

    Args:
        out: folder of the runs.
        seeds: one column each.
        methods: of reinforcement learning; the first one's time is the controls' time.
        demonstrations: how many the controls see, one row each.
    """
    rows = {
        method: [
            run(f"{method}_tiny_digits.py", out / f"{method}-{seed}", seed)
            for seed in seeds
        ]
        for method in methods
    }
    for count in demonstrations:
        controls = []
        for seed, first in zip(seeds, rows[methods[0]], strict=True):
            pace = step_seconds(out / f"{methods[0]}-{seed}", "cold start")
            steps = round(first.seconds / statistics.median(pace))
            flags = ("--steps", str(steps), "--demonstrations", str(count))
            folder = out / f"sft-{count}-{seed}"
            controls.append(run("sft_tiny_digits.py", folder, seed, *flags))
        rows[f"supervised on {count} demonstrations"] = controls
    lines = table(rows, seeds)
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
