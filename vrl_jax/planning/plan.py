"""What a training step needs of each chip, before one is rented.

`plan` compiles the real programs of a step for a topology (`compiling`), counts
their work (`work`), reads what they send (`hlo`), and adds up memory:

    peak of a program   what is held + what it allocates beyond that
    held                parameters, optimiser, a sampling copy, a reference
    bound of a program  max(work / peak rate, bytes moved in memory / bandwidth,
                            bytes sent / rate of the wires)
    bound of a step     sum of runs times the programs' bounds

A bound is the least time that the hardware allows: all three overlap perfectly, the
matrix unit never waits, every byte that a program allocates moves once (temporaries
twice). Rewards, host work and idle slots of the sampler come on top.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from jax.sharding import AbstractMesh, AxisType

from vrl_jax.planning.chips import Topology, rate
from vrl_jax.planning.compiling import (
    Found,
    Request,
    counted,
    plan_of,
)

ANALYTIC = "analytic: nothing was compiled, so no temporaries and no network"


class Bound(NamedTuple):
    """Least seconds of one run, each for itself."""

    compute: float
    memory: float
    network: float

    @property
    def seconds(self) -> float:
        """If all three overlap."""
        return max(self)

    @property
    def binds(self) -> str:
        """Which of them takes longest."""
        return max(self._fields, key=lambda name: getattr(self, name))


class Plan(NamedTuple):
    """Of one device. All in bytes but `found` and the request.

    `source` says what compiled it, or `ANALYTIC`.
    """

    request: Request
    source: str
    held: Mapping[str, int]
    caches: Mapping[str, int]
    found: tuple[Found, ...]

    @property
    def peaks(self) -> Mapping[str, int]:
        """The most that lies on the device while each program runs."""
        return {one.name: self._peak(one) for one in self.found}

    @property
    def peak(self) -> int:
        """Of the whole step."""
        return max(self.peaks.values())

    @property
    def fits(self) -> bool:
        """Whether that is no more than a program may use."""
        return self.peak <= self.request.topology.chip.hbm

    def _peak(self, one: Found) -> int:
        new = max(one.total, one.arguments) - one.shared
        return sum(self.held.values()) + self._beside(one) + new

    def _beside(self, one: Found) -> int:
        """What lies there besides: prompts are read while others are being written."""
        if one.name == "decode":
            return self.caches["prompts"]
        if one.name == "gather":
            return sum(self.caches[x] for x in ("prompts", "layers", "spread layers"))
        if one.name == "prefill" and one.runs > 1:
            return self.caches["slots"] + self.caches["layers"]
        if one.name == "between turns":
            return sum(self.caches[x] for x in ("prompts", "slots", "layers"))
        return 0


def plan(
    request: Request,
    *,
    compile: Callable[[Request, str], Found] | None = None,
    only: Collection[str] = (),
) -> Plan:
    """Of a request; `compile` is `compiled_for_tpu` or None, to count alone.

    Of all programs, or of `only` these; for GPUs, `compile` is `compiled_for_gpu`.
    """
    mesh = abstract_mesh(request)
    planned = plan_of(request, mesh)
    names = [name for name in planned.programs if not only or name in only]
    if compile is None:
        found = [counted(name, planned, mesh)[0] for name in names]
    else:
        found = [compile(request, name) for name in names]
    by = "libtpu" if request.topology.chip.topology else "XLA for CUDA"
    source = ANALYTIC if compile is None else f"compiled by {by}"
    return Plan(request, source, planned.held, planned.caches, tuple(found))


def abstract_mesh(request: Request) -> AbstractMesh:
    """The axes of the choices, over no devices."""
    choices, topology = request.choices, request.topology
    sizes = (choices.data, choices.fsdp, choices.tensor)
    if choices.data * choices.fsdp * choices.tensor != topology.devices:
        raise ValueError(
            f"a mesh of data {sizes[0]} x fsdp {sizes[1]} x tensor {sizes[2]} is not "
            f"the {topology.devices} devices of {topology.name or topology.chip.name}."
        )
    return AbstractMesh(sizes, ("data", "fsdp", "tensor"), (AxisType.Auto,) * 3)


def bound(one: Found, topology: Topology) -> Bound:
    """Of one run of a program."""
    chip = topology.chip
    # Arguments are read, results written, temporaries written and read; in a loop over
    # tokens the arguments, weights and memories, are read once a token.
    temporaries = max(one.total - one.arguments, 0)
    moved = one.steps * one.arguments + 2 * temporaries
    sent = (one.traffic or {}).items()
    return Bound(
        one.flops / chip.flops,
        moved / chip.bandwidth,
        sum(amount / rate(topology, group) for (_, group), amount in sent),
    )


def as_json(found: Plan) -> dict[str, Any]:
    """The same numbers as the page, as plain values."""
    request = found.request
    topology = request.topology
    programs = {}
    for one in found.found:
        limits = bound(one, topology)
        programs[one.name] = {
            "runs": one.runs,
            "flops": one.flops,
            "arguments_bytes": one.arguments,
            "total_bytes": one.total,
            "peak_bytes": found.peaks[one.name],
            "sent_bytes": _by_kind(one),
            "compute_seconds": limits.compute,
            "memory_seconds": limits.memory,
            "network_seconds": limits.network,
            "bound_seconds": limits.seconds,
            "binds": limits.binds,
        }
    return {
        "topology": f"{topology.chip.name}:{'x'.join(map(str, topology.shape))}",
        "devices": topology.devices,
        "sizes": request.sizes._asdict(),
        "choices": request.choices._asdict(),
        "source": found.source,
        "held_bytes": dict(found.held),
        "caches_bytes": dict(found.caches),
        "peak_bytes": found.peak,
        "hbm_bytes": topology.chip.hbm,
        "fits": found.fits,
        "programs": programs,
        "step_bound_seconds": step_seconds(found),
    }


def step_seconds(found: Plan) -> float:
    """The least time of a step."""
    topology = found.request.topology
    return sum(one.runs * bound(one, topology).seconds for one in found.found)


def _by_kind(one: Found) -> dict[str, float] | None:
    if one.traffic is None:
        return None
    kinds: dict[str, float] = {}
    for (kind, _), sent in one.traffic.items():
        kinds[kind] = kinds.get(kind, 0) + sent
    return kinds


def page(found: Plan) -> str:
    """The plan as text, for one chip."""
    values = as_json(found)
    topology = found.request.topology
    gib = 2**30
    what = "device (half a chip)" if topology.chip.devices > 1 else "chip"
    choices = " ".join(f"{k}={v}" for k, v in values["choices"].items())
    lines = [
        f"{values['topology']}: {topology.devices} devices, per {what}; "
        f"{values['source']}",
        f"sizes      {' '.join(f'{k}={v}' for k, v in values['sizes'].items())}",
        f"choices    {choices}",
        "",
        "memory                       GiB",
    ]
    rows = {
        **found.held,
        "caches of the slots": found.caches["slots"],
        "caches of the prompts": found.caches["prompts"],
        "weights while writing": found.caches["layers"],
        **{f"peak in {name}": peak for name, peak in found.peaks.items()},
    }
    for one in found.found:
        if one.name == "update" and one.total:
            rows["activations"] = max(one.total - one.arguments, 0)
    lines += [f"{name:24} {size / gib:7.2f}" for name, size in rows.items()]
    lines += [
        f"{'HBM for a program':24} {topology.chip.hbm / gib:7.2f}   "
        + ("fits" if found.fits else "DOES NOT FIT"),
        "",
        "program      runs   TFLOP  sent GB   compute s  memory s  network s   binds",
    ]
    for one in found.found:
        limits = bound(one, topology)
        sent = sum(one.traffic.values()) / 1e9 if one.traffic is not None else 0.0
        network = f"{limits.network:9.3f}" if one.traffic is not None else "        -"
        lines.append(
            f"{one.name:11} {one.runs:5} {one.flops / 1e12:7.1f} {sent:8.2f} "
            f"{limits.compute:11.3f} {limits.memory:9.3f}  {network}   {limits.binds}"
        )
    lines += [
        "",
        f"a step takes at least {values['step_bound_seconds']:.1f} s: perfect overlap, "
        "a matrix unit that never waits,",
        "no rewards, no idle slots; work is that of the products of matrices.",
    ]
    return "\n".join(lines)
