"""Mathematical equality through math-verify, in worker processes with a time limit.

Symbolic comparison can hang or take all memory, and math-verify's own time-outs are
alarm signals, which fail outside the main thread. So each comparison runs in a
process of its own kind: a hanging or crashing one costs one answer.
"""

import contextlib
import json
import queue
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

MAX_LENGTH = 20_000
"""Characters of a text that is read at all; the parser is slower than linear."""

_SCRIPT = Path(__file__).with_name("math_worker.py")


class Verdict(NamedTuple):
    """Whether two answers are equal; `problem` says why that is not known, if so."""

    equal: bool
    problem: str = ""


class MathVerifier:
    """A pool of math-verify processes; use it in a `with` statement.

    The processes start when the first answers come. They are programs of their own,
    not forks: they hold neither jax nor its threads.
    """

    def __init__(
        self, *, workers: int = 2, seconds: float = 5.0, megabytes: int = 2048
    ):
        if workers < 1 or seconds <= 0 or megabytes < 512:
            raise ValueError(
                "MathVerifier needs at least 1 worker, a positive time limit and 512 "
                f"megabytes of address space for each, got workers={workers}, "
                f"seconds={seconds}, megabytes={megabytes}."
            )
        self._limits = seconds, megabytes << 20
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="math-verify")
        self._idle: queue.SimpleQueue[subprocess.Popen | None] = queue.SimpleQueue()
        for _ in range(workers):
            self._idle.put(None)  # a place for a process that is not running yet
        self._workers = workers

    def __enter__(self) -> "MathVerifier":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the processes, after the comparisons that are under way."""
        self._threads.shutdown(cancel_futures=True)
        for _ in range(self._workers):
            _end(self._idle.get())

    def check(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        """A verdict for each (prediction, gold); equal pairs are compared once.

        Both are read as whole texts, so put an answer that is LaTeX in a box or in
        dollars; a word is read as a product of letters (`answers.is_words`).
        """
        return self._all("math_verify", pairs)

    def differences_are_zero(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        """Whether sympy finds prediction - gold to be 0, for each pair of formulas."""
        return self._all("difference", pairs)

    def _all(self, operation: str, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        verdicts = {
            pair: self._threads.submit(self._one, operation, pair)
            for pair in dict.fromkeys(pairs)
        }
        return [verdicts[pair].result() for pair in pairs]

    def _one(self, operation: str, pair: tuple[str, str]) -> Verdict:
        if max(map(len, pair)) > MAX_LENGTH:
            return Verdict(False, f"longer than {MAX_LENGTH} characters")
        worker = self._idle.get()
        try:
            worker = worker or _start(*self._limits)
            reply = _ask(worker, json.dumps([operation, *pair]))
            if reply:
                return Verdict(*json.loads(reply))
            code = worker.wait()
            _end(worker)
            worker = None
            return Verdict(
                False, "time-out" if code == -signal.SIGALRM else f"crash ({code})"
            )
        finally:
            self._idle.put(worker)


def _start(seconds: float, memory: int) -> subprocess.Popen:
    # -P: the folder of this file would shadow modules called parse, format, answers.
    worker = subprocess.Popen(
        [sys.executable, "-P", str(_SCRIPT), str(seconds), str(memory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    if worker.stdout.readline() != "ready\n":
        _end(worker)
        raise RuntimeError(
            "the math-verify process did not start; its message is above. Check "
            f"`{sys.executable} -c 'import math_verify'`."
        )
    return worker


def _ask(worker: subprocess.Popen, request: str) -> str:
    """One line back; empty where the process died instead."""
    try:
        worker.stdin.write(request + "\n")
        worker.stdin.flush()
    except BrokenPipeError:
        return ""
    return worker.stdout.readline()


def _end(worker: subprocess.Popen | None) -> None:
    if worker is not None:
        worker.kill()
        worker.wait()
        worker.stdout.close()
        with contextlib.suppress(BrokenPipeError):  # of what it never read
            worker.stdin.close()
