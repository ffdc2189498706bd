"""Mathematical equality through math-verify, in worker processes with a time limit.

Symbolic comparison can hang or take all memory, and math-verify's own time-outs are
alarm signals, which fail outside the main thread. So each comparison runs in a
process of its own kind: a hanging or crashing one costs one answer.
"""

import contextlib
import functools
import itertools
import json
import queue
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

MAX_LENGTH = 20_000
"""Characters of a text that is read at all; the parser is slower than linear."""

MAX_PIECE = 16
"""Pairs that go to a process at a time: fewer waits for each other."""

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
        distinct = list(dict.fromkeys(pairs))
        size = min(MAX_PIECE, max(-(-len(distinct) // self._workers), 1))
        pieces = [distinct[i : i + size] for i in range(0, len(distinct), size)]
        compare = functools.partial(self._piece, operation)
        verdicts = itertools.chain.from_iterable(self._threads.map(compare, pieces))
        found = dict(zip(distinct, verdicts, strict=True))
        return [found[pair] for pair in pairs]

    def _piece(self, operation: str, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        """The verdicts of some pairs by one process, or by as many as it takes."""
        worker = self._idle.get()
        verdicts = [
            Verdict(False, f"longer than {MAX_LENGTH} characters")
            if max(map(len, pair)) > MAX_LENGTH
            else None
            for pair in pairs
        ]
        left = [place for place, verdict in enumerate(verdicts) if verdict is None]
        try:
            while left:
                worker = worker or _start(*self._limits)
                asked = [json.dumps([operation, *pairs[place]]) for place in left]
                for reply in _ask(worker, asked):
                    verdicts[left.pop(0)] = Verdict(*json.loads(reply))
                if left:  # it died of the next one, which costs that answer alone
                    code = worker.wait()
                    _end(worker)
                    worker = None
                    why = "time-out" if code == -signal.SIGALRM else f"crash ({code})"
                    verdicts[left.pop(0)] = Verdict(False, why)
        finally:
            self._idle.put(worker)
        return verdicts


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


def _ask(worker: subprocess.Popen, requests: Sequence[str]) -> Iterator[str]:
    """A line back for each request, fewer where the process died of one.

    All are written at once: a reply is short, so that the process can always write it
    and goes on reading.
    """
    with contextlib.suppress(BrokenPipeError):
        worker.stdin.write("".join(request + "\n" for request in requests))
        worker.stdin.flush()
    for _ in requests:
        reply = worker.stdout.readline()
        if not reply.endswith("\n"):
            return
        yield reply


def _end(worker: subprocess.Popen | None) -> None:
    if worker is not None:
        worker.kill()
        worker.wait()
        worker.stdout.close()
        with contextlib.suppress(BrokenPipeError):  # of what it never read
            worker.stdin.close()
