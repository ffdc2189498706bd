"""Several processes that run one program: who writes, and what they tell each other.

Every process runs the same script on the same data, and every call that touches the
mesh is made by all of them in the same order. What one alone knows (a signal, its share
of the rewards) is shared here before anyone acts on it.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

HEARTBEAT_SECONDS = 45
"""How long a process may be silent before the others take it for dead."""

VARIABLE = "VRL_JAX_PROCESSES"


def start() -> None:
    """Joins the other processes of the run, if the environment names any.

    `VRL_JAX_PROCESSES=auto` on a cluster that jax knows: a TPU pod, Slurm, Kubernetes
    JobSets, Open MPI. Elsewhere `1/4@host:port` is process 1 of 0 to 3, which all meet
    at that address of process 0. To be called before anything touches a device.
    """
    given = os.environ.get(VARIABLE, "")
    if not given:
        return
    # What CPUs need to talk; accelerators have their own.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    patience = {
        "heartbeat_timeout_seconds": HEARTBEAT_SECONDS,
        "shutdown_timeout_seconds": HEARTBEAT_SECONDS,
    }
    if given == "auto":
        jax.distributed.initialize(**patience)
        return
    place, _, address = given.partition("@")
    number, _, count = place.partition("/")
    if not (number.isdecimal() and count.isdecimal() and ":" in address):
        raise ValueError(
            f"{VARIABLE} is `auto`, or says which process this is, of how many, and "
            f"where they meet: 1/4@host:port. Got {given!r}."
        )
    jax.distributed.initialize(address, int(count), int(number), **patience)


def leads() -> bool:
    """Whether this process writes the run's files and talks: one does."""
    return jax.process_index() == 0


def gathered(value: Any) -> list[Any]:
    """What JSON can say, of every process in order, told to all."""
    if jax.process_count() == 1:
        return [value]
    said = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(len(said)))
    padded = np.zeros(lengths.max(), np.uint8)
    padded[: len(said)] = said
    rows = multihost_utils.process_allgather(padded)
    return [
        json.loads(row[:length].tobytes())
        for row, length in zip(rows, lengths, strict=True)
    ]


def any_of(flag: bool) -> bool:
    """Whether it is so in any process. All wait for all."""
    return any(gathered(bool(flag)))


def wait() -> None:
    """Until all processes are here."""
    any_of(False)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Within, a process computes on devices of its own, which the others need not."""
    if jax.process_count() == 1:
        yield
    else:
        with jax.set_mesh(None):
            yield
