"""What is chosen to fit the memory: as flags, and as what a run is given."""

from typing import Annotated

import numpy as np
import tyro

from vrl_jax.training import choices as chosen
from vrl_jax.training.choices import Choices

from ..fixtures import small


def test_choices_as_flags_and_back():
    asked = Choices(fsdp=4, micro_batches=2, per_pass=8, remat="split")
    written = chosen.flags(asked)
    assert written == "--fsdp 4 --micro-batches 2 --per-pass 8 --remat split"
    assert chosen.flags(Choices()) == ""

    def main(*, choices: Annotated[Choices, tyro.conf.OmitArgPrefixes] = Choices()):  # noqa: B008
        return choices

    assert tyro.cli(main, args=written.split()) == asked


def test_a_reference_lies_where_it_was_chosen():
    rollout = small.rollout()
    params = small.params(1)
    away = Choices(reference="host"), Choices(reference="device")
    seen = [
        chosen.anchor(choices, params, weight=0.5).score(small.actor(), rollout)
        for choices in away
    ]
    for scored in seen:
        wanted = small.actor(params=params).likelihood(rollout).logprobs
        np.testing.assert_array_equal(scored.extra_logprobs["reference"], wanted)
    nobody = chosen.anchor(Choices(), params, weight=0.5)
    assert nobody.weight == 0 and nobody.score(None, rollout) is rollout
