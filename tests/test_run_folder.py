"""A run's folder: whose settings it holds, and what a person is shown meanwhile."""

import json
import shlex
import sys

import pytest

from vrl_jax.experiment import open_run
from vrl_jax.training.loop import headline


def held(folder):
    return json.loads((folder / "config.json").read_text())


def test_settings_of_a_run_that_saved_nothing_are_written_over(tmp_path):
    open_run(tmp_path, {"group": 1}, "a claim")
    open_run(tmp_path, {"group": 4}, "a claim")
    assert held(tmp_path)["group"] == 4


def test_a_run_that_saved_a_step_keeps_its_settings(tmp_path):
    open_run(tmp_path, {"group": 4}, "a claim")
    (tmp_path / "checkpoints" / "global_step_1").mkdir(parents=True)
    open_run(tmp_path, {"group": 4}, "a claim")
    with pytest.raises(ValueError, match="group was 4 and is 8"):
        open_run(tmp_path, {"group": 8}, "a claim")
    assert held(tmp_path)["group"] == 4


def test_the_command_can_be_given_again(tmp_path, monkeypatch):
    given = ["run.py", "--instruction", "", "--system", "Look at it."]
    monkeypatch.setattr(sys, "argv", given)
    open_run(tmp_path, {}, "a claim")
    assert shlex.split(held(tmp_path)["command"]) == ["python", *given]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"reward/accuracy": 0.5, "critic/score/mean": 0.7}, "sampled accuracy 0.50"),
        ({"critic/score/mean": 0.7, "val/accuracy": 1}, "sampled reward 0.70 · held"),
        ({"sft/loss": 2.0, "critic/score/mean": 0.0}, "loss 2.00"),
        ({}, ""),
    ],
)
def test_the_headline_has_a_number_of_every_stage(row, said):
    assert headline(row).startswith(said)
    assert headline(row).count("sampled") <= 1
