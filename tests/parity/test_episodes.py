"""Episodes of several turns: transformers says the same of the same token ids."""

import jax
import numpy as np
import pytest

pytest.importorskip("torch")

from vrl_jax.engine.desk import Limits
from vrl_jax.engine.play import play
from vrl_jax.engine.rows import as_rollout
from vrl_jax.models import hub

from ..fixtures import small
from ..fixtures.actors import OTHERS, of_family
from ..fixtures.talks import SHOWN, look_again
from ..models.cases import Row
from . import reference

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("family", ["qwen2_5_vl", *OTHERS])
def test_log_probs_of_an_episode_with_a_picture_between_turns(
    family, tmp_path, record_error
):
    actor = small.actor() if family == "qwen2_5_vl" else of_family(family)
    samples = small.samples()
    front_end = actor.processor.front_end
    limits = Limits(row_tokens=64, pictures=1)
    groups = play(actor, look_again, samples, jax.random.key(7), limits=limits)
    blank = [{"overall": 0.0}] * len(samples)
    rollout = as_rollout(actor, groups, blank, limits=limits)
    hub.save(tmp_path, front_end.spec, actor.params)
    model = reference.torch_model(tmp_path, front_end.spec)
    worst = 0.0
    for number, ((one,), sample) in enumerate(zip(groups, samples, strict=True)):
        row = one.rows[0]
        refs = (*sample.images, SHOWN)
        pictures = [front_end.resize(front_end.load(ref)) for ref in refs]
        given = Row(row.whole.tokens.tolist(), pictures)
        (logits,) = reference.torch_logits(model, front_end.spec, [given])
        logits = np.where(actor.allowed, logits / actor.temperature, -1e30)
        table = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        where = np.flatnonzero(rollout.mask[number])
        start = len(row.prompt.tokens)
        theirs = table[start - 1 + where, row.whole.tokens[start + where]]
        ours = np.asarray(rollout.old_logprobs)[number, where]
        assert len(where) >= 3  # of three answers
        worst = max(worst, float(np.abs(ours - theirs).max()))
    record_error(family, "episode", worst, 1e-4)
    assert worst < 1e-4
