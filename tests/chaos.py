"""Kills a run again and again: `python -m tests.chaos --kills 25 --seed 0`.

A small run on the digits, cold start and GRPO, saves every step. First it runs
unbroken; then the same command runs in other folders and is killed with SIGKILL at
random moments, every third time while a checkpoint is being written, and started again,
until it ends. Whatever was killed, the parameters and the metrics file must end with
the bits of the unbroken run.
"""

import argparse
import functools
import hashlib
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TMP = "*.orbax-checkpoint-tmp*"
FILES = ("metrics.jsonl", "evaluations.jsonl", "params.sha256")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", type=Path, help="one run, in this folder")
    given = parser.parse_args()
    if given.train:
        train_small(given.train)
        return
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(chaos(Path(folder), given.kills, random.Random(given.seed)))


def train_small(folder: Path) -> None:
    """The process that is killed."""
    import jax
    import numpy as np

    from vrl_jax.evals import held_out
    from vrl_jax.experiment import SMOKE, tiny_actor, tiny_stages, world_data
    from vrl_jax.recipes.grpo import grpo
    from vrl_jax.rewards.boxed import boxed_exact
    from vrl_jax.rewards.combine import weighted
    from vrl_jax.training.loop import train

    sizes = SMOKE._replace(cold_start_steps=6, rl_steps=12, evaluate_every=4)
    samples, test = world_data(
        folder / "data", train=sizes.train, test=sizes.test, seed=0
    )
    actor = tiny_actor(samples, weighted({"accuracy": (boxed_exact, 1.0)}), seed=0)
    measure = functools.partial(held_out.accuracy, samples=test, key=jax.random.key(0))
    actor = train(
        tiny_stages(grpo(group_size=4), samples, sizes),
        actor,
        folder=folder,
        seed=0,
        evaluate=lambda actor: {"val/accuracy": measure(actor)},
        checkpoint_every=1,
    )
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(actor.params):
        digest.update(np.asarray(leaf).tobytes())
    (folder / "params.sha256").write_text(digest.hexdigest())


def chaos(folder: Path, kills: int, draw: random.Random) -> int:
    """Prints a line a kill and a round; returns the number of rounds that differ."""
    start = time.monotonic()
    whole = folder / "whole"
    if start_run(whole).wait():
        raise RuntimeError(log(whole).read_text())
    seconds = time.monotonic() - start
    print(f"unbroken run: {seconds:.0f} s", flush=True)
    done = wrong = rounds = while_saving = 0
    while done < kills:
        rounds += 1
        broken = folder / f"round_{rounds}"
        while (process := start_run(broken)) is not None:
            start = time.monotonic()
            wait = draw.uniform(0, seconds) if done < kills else float("inf")
            saving = done % 3 == 2
            if not killed(process, broken, wait, saving, draw.uniform(0, 0.02)):
                # The first run compiled; those after it are shorter.
                seconds = min(seconds, time.monotonic() - start)
                break
            done += 1
            caught = bool(list(broken.glob(f"checkpoints/{TMP}")))
            while_saving += caught
            steps = lines(broken / "metrics.jsonl")
            print(
                f"kill {done} in round {rounds}: {steps} steps logged"
                f"{', a save under way' if caught else ''}",
                flush=True,
            )
        if process.returncode:
            print(log(broken).read_text())
            raise RuntimeError(f"round {rounds} failed with {process.returncode}")
        differ = [
            name
            for name in FILES
            if (whole / name).read_bytes() != (broken / name).read_bytes()
        ]
        wrong += bool(differ)
        found = f"{', '.join(differ)} differ" if differ else "same bits"
        print(f"round {rounds}: {found}", flush=True)
        shutil.rmtree(broken)
    print(
        f"{done} kills, {while_saving} of them during a save, {rounds} runs: "
        f"{wrong} ended with other bits"
    )
    return wrong


def start_run(folder: Path) -> subprocess.Popen:
    """The same command every time."""
    folder.mkdir(exist_ok=True)
    with log(folder).open("a") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.chaos", "--train", str(folder)],
            stdout=output,
            stderr=output,
        )


def killed(
    process: subprocess.Popen, folder: Path, wait: float, saving: bool, delay: float
) -> bool:
    """Kills after `wait` seconds, or `delay` into the next save; False if it ended."""
    end = time.monotonic() + wait
    while process.poll() is None:
        late = time.monotonic() > end
        if late and (not saving or any(folder.glob(f"checkpoints/{TMP}"))):
            time.sleep(delay if saving else 0)
            process.kill()
            return process.wait() != 0
        time.sleep(0.001 if late else 0.01)
    return False


def log(folder: Path) -> Path:
    return folder / "log.txt"


def lines(file: Path) -> int:
    return len(file.read_bytes().splitlines()) if file.exists() else 0


if __name__ == "__main__":
    main()
