"""One training on 1, 2 and 4 processes: `python -m tests.multiprocess`.

GRPO on a small policy, 20 steps with sampling, rewards, updates and checkpoints, on
one device, and on meshes of 4 devices that 2 or 4 processes bring together over gloo:
losses must be the same to 1e-5, and entropies to 1e-5 of the largest there can be. Of
the 2 processes one is killed in the middle: the other must stop by itself within a
minute, and the same command again goes on.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STEPS = 20
LONGEST_STOP = 60.0
DEVICES = 4
CASES = {2: "fsdp=2,tensor=2", 4: "data=2,fsdp=2"}
"""Number of processes -> mesh."""
KILLED = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", type=Path, help="one run, in this folder")
    parser.add_argument("--mesh", default="")
    given = parser.parse_args()
    if given.train:
        # Imported before the processes meet: from then on they wait for each other.
        from tests.fixtures import meshed  # noqa: F401
        from vrl_jax.experiment import command_line

        sys.argv = sys.argv[:1]
        command_line(lambda: train_small(given.train, given.mesh))
        return
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(compare(Path(folder)))


def train_small(folder: Path, axes: str) -> None:
    """What every process runs."""
    import jax

    from tests.fixtures import meshed
    from vrl_jax.models import sharding
    from vrl_jax.training.loop import Stage, train

    with jax.set_mesh(sharding.parse_mesh(axes)):
        stage = Stage(
            name="rl",
            recipe=meshed.RECIPE,
            samples=meshed.samples(),
            steps=STEPS,
            prompts_per_step=meshed.PROMPTS,
            optimizer=meshed.OPTIMIZER,
            minibatches=2,
        )
        train(
            [stage],
            meshed.actor(),
            folder=folder,
            seed=0,
            evaluate=lambda actor: {},
            checkpoint_every=5,
        )


def compare(folder: Path) -> int:
    """Prints the table; returns how many numbers of it are wrong."""
    from tests.fixtures.meshed import gaps, too_far

    alone, wrong = folder / "alone", 0
    finish(alone, start_run(alone, 1, ""))
    print(
        f"1 process, 1 device: {STEPS} steps, loss and entropy\n  {losses(alone)[-1]}"
    )
    for count, axes in CASES.items():
        place, start = folder / str(count), time.monotonic()
        run = start_run(place, count, axes)
        if count == KILLED:
            wrong += killed(place, run)
            run = start_run(place, count, axes)
        finish(place, run)
        seconds, found = time.monotonic() - start, gaps(losses(place), losses(alone))
        wrong += len(too_far(found))
        shown = ", ".join(f"{name} {gap:.1e}" for name, gap in found.items())
        print(f"{count} processes, {axes}: {seconds:.0f} s, gaps {shown}", flush=True)
    return wrong


def finish(folder: Path, run: list[subprocess.Popen]) -> None:
    """Waits for the end. Raises `RuntimeError` with what a process said that failed."""
    for number, process in enumerate(run):
        if process.wait():
            raise RuntimeError(log(folder, number).read_text())


def killed(folder: Path, run: list[subprocess.Popen]) -> int:
    """The last process is killed in the middle; returns how much is wrong then."""
    while len(losses(folder)) < STEPS // 2:
        if any(process.poll() is not None for process in run):
            raise RuntimeError(log(folder, 0).read_text())
        time.sleep(0.01)
    run[-1].kill()
    start = time.monotonic()
    codes = [process.wait() for process in run]
    seconds, steps = time.monotonic() - start, len(losses(folder))
    said = [x for x in log(folder, 0).read_text().splitlines() if x.startswith("error")]
    print(
        f"one of {len(run)} processes killed after step {steps}: the others stopped "
        f"within {seconds:.0f} s, saying\n  {' '.join(said)}",
        flush=True,
    )
    return (seconds > LONGEST_STOP) + (0 in codes) + (steps == STEPS)


def start_run(folder: Path, count: int, axes: str) -> list[subprocess.Popen]:
    """The processes of a run, `DEVICES` among them."""
    folder.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    devices = DEVICES // count if axes else 1
    command = [sys.executable, "-m", "tests.multiprocess", "--train", str(folder)]
    flags = (
        "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
        f"--xla_force_host_platform_device_count={devices}"
    )
    run = []
    for number in range(count):
        place = f"{number}/{count}@localhost:{port}" if count > 1 else ""
        # Devices outnumber the cores: their threads must not, see tests/conftest.py.
        env = {
            "XLA_FLAGS": flags,
            "PJRT_NPROC": "32",
            "VRL_JAX_PROCESSES": place,
        }
        with log(folder, number).open("a") as output:
            run.append(
                subprocess.Popen(
                    [*command, "--mesh", axes],
                    stdout=output,
                    stderr=output,
                    env={**os.environ, **env},
                )
            )
    return run


def log(folder: Path, number: int) -> Path:
    return folder / f"log_{number}.txt"


def losses(folder: Path) -> list[list[float]]:
    """Loss, entropy and distance from the sampler, of each step."""
    from tests.fixtures.meshed import COMPARED

    file = folder / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return [[json.loads(line)[name] for name in COMPARED] for line in lines]


if __name__ == "__main__":
    main()
