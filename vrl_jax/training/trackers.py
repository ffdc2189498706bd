"""Where a run's numbers go besides its own files, as they come.

`loop.train` tells its `log` of each step. Any function of a step and its numbers will
do: log=lambda step, row: wandb.log(row, step=step).
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from vrl_jax.training import processes

Log = Callable[[int, Mapping[str, Any]], None]
"""log(steps taken in all stages, what was logged of the last of them)."""


def nowhere(step: int, row: Mapping[str, Any]) -> None:
    """The log that is thrown away."""


def tensorboard(folder: Path) -> Log:
    """Finite numbers as TensorBoard's scalars: tensorboard --logdir RUN/tensorboard.

    A step that a resumed run takes again replaces what was written of it. Of several
    processes the first one writes.
    """
    open_writers: list[SummaryWriter] = []

    def log(step: int, row: Mapping[str, Any]) -> None:
        if not processes.leads():
            return
        if not open_writers:
            open_writers.append(SummaryWriter(str(folder), purge_step=step))
        (writer,) = open_writers
        for name, value in row.items():
            if isinstance(value, int | float) and math.isfinite(value):
                writer.add_scalar(name, value, step)
        writer.flush()

    return log
