"""What to change where a plan does not fit: one named choice at a time."""

import math
from collections.abc import Callable, Collection, Iterator, Mapping

from vrl_jax.planning.chips import Topology
from vrl_jax.planning.compiling import Found, Request
from vrl_jax.planning.plan import Plan, bound, plan
from vrl_jax.planning.shapes import Sizes
from vrl_jax.training.choices import Choices

TOUCHES: Mapping[str, tuple[str, ...]] = {
    "sampling": ("gather", "decode"),
    "micro_batches": ("update",),
    "per_pass": ("scoring", "prefill"),
    "slots": ("decode",),
    "remat": ("update", "scoring", "prefill"),
}
"""Programs that a choice changes; others change all of them."""


GROUP = 32
"""Devices over which parameters are spread to begin with: among 64 of v5p libtpu 0.0.52
gathers by adding up arrays of zeros but for a part, with twice the bytes."""


def usual(
    topology: Topology, sizes: Sizes, *, axes: Mapping[str, int] | None = None
) -> Choices:
    """Choices to begin with: a prompt with its group at a time on each part of a mesh.

    Without `axes`, rows are spread over as many devices as there are whole prompts for,
    the rest of the devices share heads and widths, and parameters are spread over at
    most `GROUP`.
    """
    devices = topology.devices
    if axes is None:
        splits = [n for n in range(1, devices + 1) if devices % n == 0]
        tensor = next(n for n in splits if sizes.prompts % (devices // n) == 0)
        rows = devices // tensor
        fsdp = math.gcd(rows, GROUP)
        axes = {"data": rows // fsdp, "fsdp": fsdp, "tensor": tensor}
    begun = Choices()._replace(**axes)
    rows = begun.data * begun.fsdp
    return begun._replace(
        micro_batches=max(sizes.prompts // rows, 1),
        per_pass=min(rows * sizes.group, sizes.prompts),
        slots=sizes.prompts * sizes.group,
    )


def search(
    request: Request,
    compile: Callable[[Request, str], Found] | None = None,
    *,
    tries: int = 8,
    only: Collection[str] = (),
) -> Iterator[Plan]:
    """The plan as asked, then others, each with one choice more; ends where one fits.

    Or where no choice is left, or after `tries`. Where one fits whose tokens wait for
    the network, weights gathered for sampling are tried too. Nothing here changes what
    is computed, but for `moments`, `precision` and `tower`, which come last and help
    no adapters, whose optimiser is small. Of `only` these programs, if any are named.
    """
    known: dict[tuple, Found] = {}

    def cached(request: Request, name: str) -> Found:
        choices = request.choices._asdict()
        for choice, touched in TOUCHES.items():
            if name not in touched:
                choices.pop(choice)
        key = (name, *choices.items())
        if key not in known:
            known[key] = compile(request, name)
        return known[key]

    seen = set()
    for _ in range(tries):
        found = plan(request, compile=cached if compile else None, only=only)
        seen.add(request.choices)
        yield found
        if found.fits:
            if sampling_waits(found):
                choices = request.choices._replace(sampling="gathered")
                yield plan(
                    request._replace(choices=choices),
                    compile=cached if compile else None,
                    only=only,
                )
            return
        left = (choices for choices in moves(found) if choices not in seen)
        choices = next(left, None)
        if choices is None:
            return
        request = request._replace(choices=choices)


def sampling_waits(found: Plan) -> bool:
    """Whether each token waits for weights that could be gathered once."""
    topology = found.request.topology
    decode = [one for one in found.found if one.name == "decode"]
    return found.request.choices.sampling == "spread" and any(
        bound(one, topology).binds == "network" for one in decode
    )


def moves(found: Plan) -> Iterator[Choices]:
    """What may help the program that needs most, the cheapest in time first."""
    choices, sizes = found.request.choices, found.request.sizes
    worst = max(found.peaks, key=found.peaks.get)
    hbm = found.request.topology.chip.hbm
    rows = choices.data * choices.fsdp
    spread = choices._replace(data=choices.data // 2, fsdp=2 * choices.fsdp)
    if choices.data % 2 == 0 and sum(peak > hbm for peak in found.peaks.values()) > 1:
        yield spread  # helps all of them
    held = sum(found.held.values())
    hopeless = held > 0.9 * hbm
    if not hopeless and worst == "update":
        if choices.remat not in ("nothing", "split"):
            yield choices._replace(remat="nothing")
        elif choices.remat == "nothing" and choices.tensor > 1:
            yield choices._replace(remat="split")
        micro = 2 * choices.micro_batches
        some = sizes.prompts // choices.minibatches
        if some % (micro * rows) == 0:
            yield choices._replace(micro_batches=micro)
    if not hopeless and worst in ("scoring", "prefill") and choices.per_pass > rows:
        yield choices._replace(per_pass=choices.per_pass // 2)
    if worst in ("gather", "prefill", "decode") and choices.sampling == "gathered":
        yield choices._replace(sampling="spread")
    # Half as many rows at a time, each spread over twice the devices. Heads that do not
    # divide would lie whole on each, with their caches.
    text = found.request.spec.text
    heads = math.gcd(text.heads, text.kv_heads)
    shared = choices._replace(
        fsdp=choices.fsdp // 2,
        tensor=2 * choices.tensor,
        micro_batches=2 * choices.micro_batches,
    )
    may_share = choices.fsdp % 2 == 0 and heads % shared.tensor == 0 and not hopeless
    if not hopeless and worst == "decode":
        # Each round of half as many slots gathers all parameters again; shared, less.
        if may_share and choices.sampling == "spread":
            yield shared
        if choices.slots > rows:
            yield choices._replace(slots=max(choices.slots // 2, rows))
    if choices.data % 2 == 0:
        yield spread
    if may_share:
        yield shared
    if choices.reference == "device":
        yield choices._replace(reference="host")
    if choices.lora_rank:
        return
    if choices.moments == "float32":
        yield choices._replace(moments="bfloat16")
    if choices.precision == "bfloat16_master":
        yield choices._replace(precision="bfloat16_stochastic")
    if choices.tower == "trained":
        yield choices._replace(tower="frozen")
