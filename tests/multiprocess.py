"""One training on 1, 2 and 4 processes: `python -m tests.multiprocess`.

GRPO on a small policy, 20 steps with sampling, rewards, updates and checkpoints, on
one device, and on meshes of 4 devices that 2 or 4 processes bring together over gloo:
the losses must be the same to 1e-5. Then the 2 processes again, one of them killed in
the middle: the other must stop by itself within a minute, and the same command again
must end with the same losses.
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
CASES = {
    "1 process, 1 device": (1, ""),
    "2 processes": (2, "fsdp=2,tensor=2"),
    "4 processes": (4, "data=2,fsdp=2"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", type=Path, help="one run, in this folder")
    parser.add_argument("--mesh", default="")
    given = parser.parse_args()
    if given.train:
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
    """Prints the table; returns how many lines of it are wrong."""
    wrong, expected = 0, None
    print(f"{'':24}{'mesh':20}{'seconds':>8}  largest difference of a loss", flush=True)
    for number, (name, (count, axes)) in enumerate(CASES.items()):
        start = time.monotonic()
        run = start_run(folder / str(number), count, axes)
        for process in run:
            if process.wait():
                print(log(folder / str(number), run.index(process)).read_text())
                raise RuntimeError(f"{name} failed")
        found = losses(folder / str(number))
        expected = expected or found
        gap = difference(expected, found)
        wrong += gap > 1e-5
        seconds = time.monotonic() - start
        print(f"{name:24}{axes:20}{seconds:8.0f}  {gap:.1e}", flush=True)
    return wrong + broken(folder / "killed", expected)


def broken(folder: Path, expected: list[list[float]]) -> int:
    """One of two processes is killed in the middle; then the same command again."""
    count, axes = CASES["2 processes"]
    run = start_run(folder, count, axes)
    while len(losses(folder)) < STEPS // 2:
        if any(process.poll() is not None for process in run):
            raise RuntimeError(log(folder, 0).read_text())
        time.sleep(0.01)
    run[1].kill()
    start = time.monotonic()
    run[0].wait()
    seconds = time.monotonic() - start
    code, steps = run[0].returncode, len(losses(folder))
    print(
        f"killed with {steps} steps logged: the other stopped after {seconds:.0f} s, "
        f"exit code {code}, saying\n  {log(folder, 0).read_text().splitlines()[-1]}",
        flush=True,
    )
    for process in start_run(folder, count, axes):
        if process.wait():
            print(log(folder, 0).read_text())
            raise RuntimeError("the restarted run failed")
    gap = difference(expected, losses(folder))
    print(f"started again: {gap:.1e}")
    return (gap > 1e-5) + (seconds > LONGEST_STOP) + (code == 0) + (steps == STEPS)


def start_run(folder: Path, count: int, axes: str) -> list[subprocess.Popen]:
    """The processes of a run, `DEVICES` among them."""
    folder.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    devices = DEVICES // count if axes else 1
    command = [sys.executable, "-m", "tests.multiprocess", "--train", str(folder)]
    flags = "--xla_backend_optimization_level=1 "
    flags += f"--xla_force_host_platform_device_count={devices}"
    run = []
    for number in range(count):
        place = f"{number}/{count}@localhost:{port}" if count > 1 else ""
        # Devices outnumber the cores: their threads must not, see tests/conftest.py.
        env = {"XLA_FLAGS": flags, "PJRT_NPROC": "32", "VRL_JAX_PROCESSES": place}
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


def difference(expected: list[list[float]], found: list[list[float]]) -> float:
    steps = zip(expected, found, strict=True)
    return max(abs(a - b) for pair in steps for a, b in zip(*pair, strict=True))


if __name__ == "__main__":
    main()
