"""Chips as their maker specifies them: what a plan's bounds divide by.

Cloud TPU documentation, https://cloud.google.com/tpu/docs, pages v5e, v5p, v6e and
tpu7x; https://www.nvidia.com/en-us/data-center/, pages a100 (SXM, 80 GB), h100 (SXM)
and h200, dense bfloat16. A chip of TPU7x is two devices to a program, each with half of
everything.
"""

import math
import re
from typing import NamedTuple

GB = 1e9


class Chip(NamedTuple):
    """What one device has: operations and bytes a second, and bytes.

    `hbm` is what a program may use: what the compiler says is available, which is less
    than is built in. `network` is to its neighbours, both directions, all `axes` of the
    torus together. `devices` of a program make one chip.
    """

    name: str
    topology: str
    flops: float
    hbm: float
    bandwidth: float
    network: float
    axes: int
    devices: int = 1


CHIPS = {
    "v5e": Chip("v5e", "v5e", 197e12, 15.75 * 2**30, 819 * GB, 400 * GB, 2),
    "v5p": Chip("v5p", "v5p", 459e12, 95.73 * 2**30, 2765 * GB, 1200 * GB, 3),
    "v6e": Chip("v6e", "v6e", 918e12, 31.24 * 2**30, 1638 * GB, 800 * GB, 2),
    "v7x": Chip("v7x", "tpu7x", 1153e12, 94.74 * 2**30, 3690 * GB, 600 * GB, 3, 2),
    "a100": Chip("a100", "", 312e12, 80 * GB, 2039 * GB, 600 * GB, 1),
    "h100": Chip("h100", "", 989e12, 80 * GB, 3350 * GB, 900 * GB, 1),
    "h200": Chip("h200", "", 989e12, 141 * GB, 4800 * GB, 900 * GB, 1),
}


class Topology(NamedTuple):
    """Some chips: `shape` is their torus, or their number."""

    chip: Chip
    shape: tuple[int, ...]

    @property
    def devices(self) -> int:
        """What a program sees."""
        return math.prod(self.shape) * self.chip.devices

    @property
    def name(self) -> str:
        """As libtpu calls it, on a plane or in space as the chip wants it."""
        sides = self.shape + (1,) * (self.chip.axes - len(self.shape))
        return f"{self.chip.topology}:{'x'.join(map(str, sides))}"


def topology(text: str) -> Topology:
    """v5p:4x4x4, v5e:4x4, v7x:2x2x1, h200:8."""
    found = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", text)
    chip = CHIPS.get(found[1]) if found else None
    shape = tuple(map(int, found[2].split("x"))) if found else ()
    if chip is None or len(shape) > chip.axes or 0 in shape:
        raise ValueError(
            f"a topology is a chip ({', '.join(CHIPS)}) and a shape, such as v5p:4x4x4,"
            f" v5e:4x4 or h200:8, got {text!r}."
        )
    return Topology(chip, shape)


def rate(topology: Topology, group: int) -> float:
    """Bytes a second at which a collective over `group` devices moves data in a device.

    A ring in both directions on as many axes of the torus as the group must span,
    longest first. It is the best that the wires allow.
    """
    chip, reach, axes = topology.chip, topology.chip.devices, 0
    for side in sorted(topology.shape, reverse=True):
        if reach < group or not axes:
            reach, axes = reach * side, axes + 1
    # The specified rate counts what is sent and what comes in.
    return chip.network / 2 * min(axes, chip.axes) / chip.axes
