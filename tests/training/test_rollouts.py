"""What is kept for people to read takes whatever a program noted."""

import jax.numpy as jnp
import numpy as np

from vrl_jax.training.files import read_lines
from vrl_jax.training.rollouts import write_rollouts
from vrl_jax.types import Episode, Turn

from ..fixtures import small


def written(folder, *turns):
    episode = Episode(small.samples()[2], "prompt", turns, finished=True)
    file = write_rollouts(folder, "rl", 1, [([episode], [{"overall": 1.0}])])
    (line,) = read_lines(file)
    return line


def test_facts_that_json_lacks_are_written_all_the_same(tmp_path):
    facts = {
        "score": np.float32(0.5),
        "count": np.int64(3),
        "box": np.array([1, 2]),
        "kept": jnp.array(True),
        "seen": {7},
    }
    line = written(tmp_path, Turn("one", (1,), facts=facts), Turn("two", (2,)))
    assert line["turns"][0]["facts"] == {
        "score": 0.5,
        "count": 3,
        "box": [1, 2],
        "kept": True,
        "seen": "{7}",
    }


def test_an_episode_in_which_only_another_model_spoke_has_no_response(tmp_path):
    hint = Turn("a hint", (1,), chosen=False, facts={"model": "captioner"})
    line = written(tmp_path, hint)
    assert line["response"] == "" and line["response_length"] == 0
