"""What TensorBoard would read, from the bytes that were written."""

import struct

import pytest
from tensorboardX.proto import event_pb2

from vrl_jax.training.trackers import tensorboard


def events(folder):
    """All records of the files: length, its checksum, an event, its checksum."""
    found = []
    for file in folder.iterdir():
        content = file.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            found.append(event_pb2.Event.FromString(content[12 : 12 + length]))
            content = content[16 + length :]
    return found


def scalars(folder):
    return {
        (event.step, value.tag): value.simple_value
        for event in events(folder)
        for value in event.summary.value
    }


def test_numbers_are_scalars_and_the_rest_is_left_out(tmp_path):
    log = tensorboard(tmp_path)
    log(1, {"phase": "rl", "loss": 0.5, "gap": float("nan"), "count": 3})
    log(2, {"phase": "rl", "loss": 0.25})
    assert scalars(tmp_path) == {(1, "loss"): 0.5, (1, "count"): 3, (2, "loss"): 0.25}


def test_a_resumed_run_purges_what_it_takes_again(tmp_path):
    """TensorBoard drops, from a session's start on, what earlier files have."""
    tensorboard(tmp_path)(7, {"loss": 1.0})
    (start,) = (
        event.step
        for event in events(tmp_path)
        if event.session_log.status == event_pb2.SessionLog.START
    )
    assert start == 7


def test_nothing_is_made_before_the_first_step(tmp_path):
    tensorboard(tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        tensorboard(tmp_path / "file")(1, {"loss": 1.0})
