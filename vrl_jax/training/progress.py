"""A bar with the time left and the headline numbers; lines where there is no screen."""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from vrl_jax.training import processes

Show = Callable[[int, str], None]
"""show(steps done, headline): redraws the bar."""

SECONDS_BETWEEN_LINES = 15.0


@contextlib.contextmanager
def progress_bar(name: str, total: int, done: int = 0) -> Iterator[Show]:
    """A bar for `total` steps, of which `done` were taken before.

    Of several processes the first one shows it.
    """
    if not processes.leads():
        yield lambda step, headline: None
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines(console, name, total, done)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[headline]}"),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(name, total=total, completed=done, headline="")
        yield lambda step, headline: progress.update(
            task, completed=step, headline=headline
        )


def _lines(console: Console, name: str, total: int, done: int) -> Show:
    start = time.monotonic()
    last = start

    def show(step: int, headline: str) -> None:
        nonlocal last
        now = time.monotonic()
        if step < total and now - last < SECONDS_BETWEEN_LINES:
            return
        last = now
        left = (now - start) / max(step - done, 1) * (total - step)
        line = f"{name} {step}/{total}, {left:.0f} s left, {headline}"
        console.print(line, highlight=False, soft_wrap=True)

    return show
