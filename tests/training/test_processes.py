"""What one process of several is told, and where it is not understood."""

import jax
import pytest

from vrl_jax.training import processes


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
