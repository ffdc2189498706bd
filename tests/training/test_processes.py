"""What one process of several is told, and where it is not understood."""

import jax
import pytest

from vrl_jax.programs.acting import scored
from vrl_jax.training import files, processes
from vrl_jax.types import Episode, Turn

from ..fixtures import small


@pytest.mark.parametrize("given", ["2", "1/2", "1/2@host", "one/2@host:1"])
def test_start_names_what_it_cannot_read(monkeypatch, given):
    monkeypatch.setenv(processes.VARIABLE, given)
    with pytest.raises(ValueError, match="1/4@host:port"):
        processes.start()


def test_one_process_is_all_there_is(monkeypatch):
    monkeypatch.delenv(processes.VARIABLE, raising=False)
    processes.start()
    assert processes.leads()
    assert processes.gathered({"a": [1, None]}) == [{"a": [1, None]}]
    assert (processes.any_of(True), processes.any_of(False)) == (True, False)
    mesh = jax.make_mesh((8,), ("data",))
    with jax.set_mesh(mesh), processes.alone():
        assert jax.sharding.get_mesh() == mesh


def groups():
    """Four groups of two; the reward of a response is its group's number."""
    sample = small.samples()[0]
    return [
        [Episode(sample, "", (Turn(str(number), (number,)),), True)] * 2
        for number in range(4)
    ]


@pytest.mark.parametrize(
    ("everywhere", "asked"), [(False, [1, 3]), (True, [0, 1, 2, 3])]
)
def test_of_two_processes_each_scores_its_share(monkeypatch, everywhere, asked):
    scores, told = [], []

    def reward(episodes):
        number = int(episodes[0].text)
        scores.append(number)
        return [{"overall": float(number)}] * 2

    def gathered(mine):
        """What the process before this one, with the other groups, would add."""
        other = [(n, [{"overall": float(n)}] * 2) for n in range(4) if n not in scores]
        return [other, mine]

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(processes, "gathered", gathered)
    actor = small.actor(
        reward=reward,
        rewards_everywhere=everywhere,
        observe=lambda episodes, found: told.append((episodes[0].text, found)),
    )
    found = scored(actor, groups())
    assert scores == asked
    assert [score["overall"] for score in found] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [text for text, _ in told] == ["0", "1", "2", "3"]


def test_rewards_on_the_mesh_are_not_computed_in_threads():
    with pytest.raises(ValueError, match="leave reward_threads=2 out"):
        small.actor(rewards_everywhere=True, reward_threads=2)


def test_only_the_first_process_writes(monkeypatch, tmp_path):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    files.append_line(tmp_path / "lines", {"a": 1})
    files.write_json(tmp_path / "whole", {"a": 1})
    files.write_lines(tmp_path / "rows", [{"a": 1}])
    assert not list(tmp_path.iterdir())
