"""Where a run's numbers go besides its own files, as they come.

`loop.train` tells its `log` of each step. Any function of a step and its numbers will
do: log=lambda step, row: wandb.log(row, step=step).
"""

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from vrl_jax.training import processes

Log = Callable[[int, Mapping[str, Any]], None]
"""log(steps taken in all stages, what was logged of the last of them)."""


def nowhere(step: int, row: Mapping[str, Any]) -> None:
    """The log that is thrown away."""


def both(*logs: Log) -> Log:
    """Every one of them is told."""

    def log(step: int, row: Mapping[str, Any]) -> None:
        for one in logs:
            one(step, row)

    return log


def tensorboard(folder: Path) -> Log:
    """Finite numbers as TensorBoard's scalars: tensorboard --logdir RUN/tensorboard.

    A step that a resumed run takes again replaces what was written of it. Of several
    processes the first one writes.
    """
    opened: list[EventsWriter] = []

    def log(step: int, row: Mapping[str, Any]) -> None:
        if not processes.leads():
            return
        if not opened:
            opened.append(_open(folder, step))
        values = [
            Summary.Value(tag=name, simple_value=value)
            for name, value in row.items()
            if isinstance(value, int | float) and math.isfinite(value)
        ]
        event = Event(wall_time=time.time(), step=step, summary=Summary(value=values))
        # Not SummaryWriter: its thread may end with the process before it has written.
        opened[0].write_event(event)
        opened[0].flush()

    return log


def _open(folder: Path, step: int) -> EventsWriter:
    """A new file; TensorBoard drops what older ones say of this step and later."""
    folder.mkdir(parents=True, exist_ok=True)
    writer = EventsWriter(str(folder / "events"))
    start = SessionLog(status=SessionLog.START)
    writer.write_event(Event(wall_time=time.time(), step=step, session_log=start))
    return writer
