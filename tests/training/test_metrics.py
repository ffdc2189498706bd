import math

import jax.numpy as jnp

from vrl_jax.training.metrics import as_floats, mean_known, rewards_by_source
from vrl_jax.types import Episode, Sample, Turn


def test_rewards_by_source_leaves_out_the_unscored():
    def group(source, *scores):
        sample = Sample("1", source, "?", (), "3")
        episode = Episode(sample, "?", (Turn("3", (1,)),), finished=True)
        return [episode] * len(scores), [{"overall": score} for score in scores]

    played = [group("a", 1.0, math.nan), group("a", 0.5), group("b", math.nan)]
    assert rewards_by_source(played) == {"reward/overall/a": 0.75}


def test_mean_known_leaves_out_the_unscored():
    known = mean_known(jnp.array([1.0, jnp.nan, 3.0]))
    nothing = mean_known(jnp.array([jnp.nan]))
    numbers = as_floats({"known": known, "nothing": nothing})
    assert numbers["known"] == 2.0 and math.isnan(numbers["nothing"])
