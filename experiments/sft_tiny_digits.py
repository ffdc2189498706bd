"""The control: the cold start of the digits experiments, continued.

Claim     With the same 128 demonstrations, more supervised steps gain little: what the
          reinforcement learning of the other scripts adds is not training time. With
          --demonstrations 4096 it shows what labels for every picture would give.
Command   python experiments/sft_tiny_digits.py
Hardware  2 CPU cores, 4 GB of memory
Time      about 3 minutes; --smoke: under a minute
"""

from pathlib import Path

from vrl_jax.experiment import SMOKE, Outcome, Sizes, command_line, tiny_digits
from vrl_jax.recipes.sft import sft


def main(
    *,
    out: Path = Path("runs/sft_tiny_digits"),
    seed: int = 0,
    steps: int = 400,
    demonstrations: int = 128,
    smoke: bool = False,
    mesh: str = "",
) -> Outcome:
    """Train, measure, report and export.

    Args:
        out: run folder; the same command again resumes there.
        seed: seed of the data, the first parameters and every random draw.
        steps: supervised steps after the cold start.
        demonstrations: that the steps after the cold start see.
        smoke: a few tiny steps, to see that everything runs.
        mesh: devices along each axis, data=2,fsdp=2,tensor=2; all must be used.
    """
    full = Sizes(rl_steps=steps, questions=demonstrations, evaluate_every=steps)
    return tiny_digits(
        sft(),
        name="SFT",
        claim=__doc__,
        out=out / "smoke" if smoke else out,
        seed=seed,
        sizes=SMOKE if smoke else full,
        mesh=mesh,
    )


if __name__ == "__main__":
    command_line(main)
