"""What a plan changes where it does not fit, over programs that were made up."""

import pytest

from tests.fixtures import small
from tests.fixtures.plans import HERE, fake, request
from vrl_jax.planning.chips import topology
from vrl_jax.planning.command import _verdict
from vrl_jax.planning.plan import plan
from vrl_jax.planning.search import moves, search, usual
from vrl_jax.planning.shapes import Sizes
from vrl_jax.training import choices as chosen


def test_search_changes_what_does_not_fit_until_it_does():
    asked = request(micro_batches=1)
    found = list(search(asked, fake))
    assert not found[0].fits and found[-1].fits
    changes = [one.request.choices for one in found]
    assert changes[0] == asked.choices
    assert (changes[-1].micro_batches, changes[-1].remat) == (2, "split")
    # What no choice of updates changes was not compiled again: see `TOUCHES`.
    assert len(set(changes)) == len(changes)


def test_moves_help_every_program_that_does_not_fit():
    asked = request(data=2, fsdp=4, tensor=1, micro_batches=1)
    found = plan(asked, compile=fake)
    over = [peak for peak in found.peaks.values() if peak > HERE.chip.hbm]
    assert len(over) > 1
    first, *others = moves(found)
    assert (first.data, first.fsdp) == (1, 8)
    shared = next(one for one in others if one.tensor == 2)
    assert (shared.fsdp, shared.micro_batches) == (2, 2)  # as many rows a device
    # Slots would be halved for nothing else: each round gathers the parameters again.
    decode = plan(asked, compile=fake, only=("decode",))
    assert next(moves(decode)) == shared
    # Two key-value heads on four devices would be whole on each, with their caches.
    assert small.spec().text.kv_heads == 2
    found = plan(request(fsdp=4, tensor=2), compile=fake)
    assert all(one.tensor == 2 for one in moves(found))


def test_moves_leave_the_precision_of_adapters():
    last = {"moments": "bfloat16", "precision": "bfloat16_stochastic"}
    last["tower"] = "frozen"

    def moved(**choices):
        asked = request(**choices)
        return {
            name: value
            for one in moves(plan(asked, compile=fake))
            for name, value in one._asdict().items()
            if name in last and value != getattr(asked.choices, name)
        }

    assert moved() == last and moved(lora_rank=2) == {}


def test_usual_choices_use_every_device():
    sizes = Sizes(prompts=128)
    assert usual(topology("v5p:4x4x4"), sizes)[:3] == (2, 32, 1)
    assert usual(topology("v5p:8x8x8"), sizes)[:3] == (4, 32, 4)
    assert usual(topology("v5p:2x2x2"), sizes)[:3] == (1, 8, 1)
    asked = usual(topology("v5e:4x4"), sizes, axes={"fsdp": 8, "tensor": 2})
    assert asked[:3] == (1, 8, 2)
    with pytest.raises(ValueError, match="is not the 8 devices"):
        plan(request(fsdp=3))


def test_a_plan_ends_with_flags_of_a_script():
    *_, best = search(request(micro_batches=1), fake)
    assert best.fits
    *_, last = _verdict([best]).splitlines()
    assert last == f"As flags of a script: {chosen.flags(best.request.choices)}"
    assert "--micro-batches 2" in last and "--remat split" in last
