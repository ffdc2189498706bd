"""SIGTERM asks a run to end: schedulers send it some seconds before they kill."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType


class Preempted(Exception):
    """The run ended early, as asked; its checkpoint is written."""


@contextlib.contextmanager
def sigterm() -> Iterator[Callable[[], bool]]:
    """Within, the first SIGTERM only answers `asked()`; a second one kills as ever.

    Outside the main thread, where Python allows no handler, SIGTERM kills as ever.
    """
    came = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield came.is_set
        return
    before = signal.getsignal(signal.SIGTERM)

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        came.set()
        signal.signal(number, before)

    signal.signal(signal.SIGTERM, note)
    try:
        yield came.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
