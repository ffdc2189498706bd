"""What is kept for people to read takes whatever a program noted."""

import jax.numpy as jnp
import numpy as np

from vrl_jax.training.files import read_lines
from vrl_jax.training.rollouts import write_rollouts
from vrl_jax.types import Episode, Message, Turn

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


def test_what_was_said_between_the_turns_is_written_with_its_pictures(tmp_path):
    """Also where the program gave the rewards the policy's turns alone."""
    seen = Message("closer: <image>", (b"a picture",))
    first = Turn("look", (1,), number=0)
    line = written(tmp_path, first, Turn("4", (2,), number=1, told=(seen,)))
    turns = [(turn["text"], turn["chosen"]) for turn in line["turns"]]
    assert turns == [("look", True), ("closer: <image>", False), ("4", True)]
    (kept,) = line["turns"][1]["images"]
    assert (tmp_path / "rollouts" / kept).read_bytes() == b"a picture"
    assert line["response"] == "4" and line["response_length"] == 2


def test_a_program_that_tells_what_was_said_is_not_told_again(tmp_path):
    said = Turn("4", (2,), number=1, told=(Message("seen"),))
    own = Turn("seen, in its own words", (), chosen=False)
    line = written(tmp_path, Turn("look", (1,), number=0), own, said)
    assert [turn["text"] for turn in line["turns"]] == ["look", own.text, "4"]


def test_facts_of_an_episode_of_several_turns_are_written_if_known(tmp_path):
    turns = Turn("one", (1,)), Turn("two", (2,))
    facts = {"calls/refused": np.int64(2), "share": float("nan")}
    episode = Episode(small.samples()[2], "?", turns, finished=True, facts=facts)
    alone = Episode(small.samples()[2], "?", turns[:1], finished=True, facts=facts)
    groups = [([episode, alone], [{"overall": 1.0}] * 2)]
    line, other = read_lines(write_rollouts(tmp_path, "rl", 1, groups))
    assert line["facts"] == {"calls/refused": 2}
    assert "facts" not in other and "turns" not in other
