"""What a compiled program sends between devices, read from its text.

https://openxla.org/xla/operation_semantics says what the operations mean. A loop's body
counts as often as it runs; the longest branch of a choice counts.
"""

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
Traffic = Mapping[tuple[str, int], float]
"""Bytes that a device sends, and as many that come in, by kind and group size."""

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.-]+)"
)
_SHAPE = re.compile(r"\b(pred|[sufbc]\w*?(\d+)\w*)\[([\d,]*)\]")
_OPERATION = re.compile(r" ([a-z][\w-]*)\(")


class _Lines(NamedTuple):
    entry: str
    bodies: dict[str, list[str]]


def traffic(text: str, *, devices: int, steps: int = 1) -> Traffic:
    """What each device sends while the program of this text runs once.

    A loop without a constant bound, such as that over a response's tokens, runs `steps`
    times.
    """
    lines = _computations(text)
    known: dict[str, dict[tuple[str, int], float]] = {}

    def of(name: str) -> dict[tuple[str, int], float]:
        if name not in known:
            known[name] = _sum(_instruction(line) for line in lines.bodies[name])
        return known[name]

    def _instruction(line: str) -> Traffic:
        operation = _OPERATION.search(line)
        kind = operation[1].removesuffix("-start") if operation else ""
        if kind in KINDS:
            return dict([_sent(line, operation, kind, devices)])
        if kind == "while":
            return _times(
                of(_named(line, "body")),
                _trips(
                    lines.bodies[_named(line, "condition")],
                    lines.bodies[_named(line, "body")],
                )
                or steps,
            )
        branches = re.search(r"branch_computations=\{([^}]*)\}", line)
        if branches:
            each = [of(name.strip(" %")) for name in branches[1].split(",")]
            return max(each, key=lambda found: sum(found.values()))
        called = _CALLED.findall(line) if kind in _CALLERS else []
        if kind == "fusion" and called and "all-reduce-scatter" in called[0]:
            # The compiler's own name for a reduction of which each keeps a part.
            return {
                ("reduce-scatter", group): sent / 2
                for (_, group), sent in of(called[0]).items()
            }
        return _sum(of(name) for name in called)

    return of(lines.entry)


_CALLERS = ("fusion", "call", "async-start", "custom-call", "conditional")


def _computations(text: str) -> _Lines:
    entry, bodies, current = "", {}, []
    for line in text.splitlines():
        header = _COMPUTATION.match(line)
        if header:
            current = bodies.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif line.startswith("  "):
            current.append(line)
    if not entry:
        raise ValueError("this is no text of a compiled program: it has no ENTRY.")
    return _Lines(entry, bodies)


def _named(line: str, part: str) -> str:
    return re.search(rf"{part}=%?([\w.-]+)", line)[1]


def _trips(condition: list[str], body: list[str]) -> int | None:
    """How often a loop runs that counts from 0 up to a constant, if it does."""
    root = next(line for line in condition if line.lstrip().startswith("ROOT"))
    constants = _constants(condition)
    limits = [n for name, n in constants.items() if f"%{name}" in _operands(root)]
    if not limits and "calls=" in root:  # the comparison is in a fusion of its own
        limits = list(constants.values())
    if len(limits) != 1:
        return None
    counters = [
        int(found[2])
        for line in condition
        if (found := _ELEMENT.search(line)) and f"%{found[1]}" in _operands(root)
    ]
    stride = _stride(body, counters[0]) if len(counters) == 1 else 1
    return -(-limits[0] // stride)


_NUMBER = re.compile(r"%?([\w.-]+) = [su]32\[\]\S* constant\((\d+)\)")
_ELEMENT = re.compile(
    r"%?([\w.-]+) = [su]32\[\]\S* get-tuple-element\(.*\), index=(\d+)"
)


def _constants(lines: list[str]) -> dict[str, int]:
    found = (_NUMBER.search(line) for line in lines)
    return {one[1]: int(one[2]) for one in found if one}


def _operands(line: str) -> list[str]:
    """Their names, %a, of an instruction."""
    operation = _OPERATION.search(line)
    inside = line[operation.end() :].split(")")[0] if operation else ""
    return re.findall(r"%[\w.-]+", inside)


def _stride(body: list[str], number: int) -> int:
    """What a round adds to element `number` of what the loop carries."""
    root = next(line for line in body if line.lstrip().startswith("ROOT"))
    carried = _operands(root)
    constants = _constants(body)
    for line in body:
        if carried[number : number + 1] == [line.split(" = ")[0].split()[-1]]:
            added = [constants[x[1:]] for x in _operands(line) if x[1:] in constants]
            return added[0] if " add(" in line and added else 1
    return 1


def _sent(
    line: str, operation: re.Match, kind: str, devices: int
) -> tuple[tuple[str, int], float]:
    sizes = [
        (4 if bits is None else int(bits) / 8)
        * math.prod(map(int, filter(None, sides.split(","))))
        for dtype, bits, sides in _SHAPE.findall(line[: operation.start()])
        for bits in [bits or (8 if dtype == "pred" else None)]
    ]
    group = _group(line, devices)
    if operation[1].endswith("-start"):
        # A tuple of what goes in and what comes out, and some counters.
        half = len(sizes) // 2
        sizes = sizes[1:2] if kind == "collective-permute" else sizes[half:] or sizes
    size, others = sum(sizes), (group - 1) / group
    sent = {
        "all-gather": size * others,
        "all-reduce": 2 * size * others,
        "reduce-scatter": size * (group - 1),
        "all-to-all": size * others,
        "collective-permute": size,
    }
    return (kind, group), sent[kind]


def _group(line: str, devices: int) -> int:
    """How many devices take part together."""
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(found[1])
    if found := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
        return len(found[1].split(","))
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line):
        axes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        return math.prod(int(axes[name]) for name in re.findall(r"'(\w+)'", found[2]))
    return 2 if "source_target_pairs" in line else devices


def _times(found: Traffic, count: int) -> Traffic:
    return {key: count * sent for key, sent in found.items()}


def _sum(each) -> dict[tuple[str, int], float]:
    total: dict[tuple[str, int], float] = {}
    for found in each:
        for key, sent in found.items():
            total[key] = total.get(key, 0) + sent
    return total
