"""One function of each project, written as its documentation shows."""

import math

import pytest

from vrl_jax.rewards import adapters
from vrl_jax.rewards.combine import call_safely, weighted
from vrl_jax.types import Episode, ImageSize, Sample, Turn

EASYR1 = """
import re
from typing import Any

REWARD_NAME = "math"
REWARD_TYPE = "batch"


def compute_score(reward_inputs: list[dict[str, Any]], format_weight: float = 0.1):
    scores = []
    for reward_input in reward_inputs:
        right = float(reward_input["response"].strip() == reward_input["ground_truth"])
        scores.append({"overall": right, "accuracy": right, "note": "text",
                       "length": reward_input["response_length"]})
    return scores
"""
SEQUENTIAL = """
REWARD_TYPE = "sequential"


def compute_score(reward_input, **kwargs):
    return {"overall": float(reward_input["response"] == reward_input["ground_truth"])}
"""
OLDER = """
def compute_score(predicts, ground_truths, format_weight=0.1):
    return [{"overall": float(p == t), "accuracy": float(p == t)}
            for p, t in zip(predicts, ground_truths)]


def of_one(predict, ground_truth):
    return {"overall": 2.0 * (predict == ground_truth)}
"""
VERL = """
def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    if data_source != "digits":
        raise NotImplementedError(data_source)
    right = float(solution_str == ground_truth)
    return {"score": right, "acc": right, "level": extra_info["level"]}


def plain(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    return 1 if solution_str == ground_truth else 0
"""
BATCHED = """
def batch(data_sources, solution_strs, ground_truths, extra_infos):
    assert data_sources == ["digits"] * len(solution_strs)
    assert [info["level"] for info in extra_infos] == [2] * len(solution_strs)
    return [float(s == t) for s, t in zip(solution_strs, ground_truths)]


def batch_of_dicts(solution_strs, ground_truths, **kwargs):
    return [{"score": float(s == t), "n": len(solution_strs)}
            for s, t in zip(solution_strs, ground_truths)]
"""
TRL = """
def accuracy(completions, ground_truth, **kwargs):
    return [1.0 if c == gt else 0.0 for c, gt in zip(completions, ground_truth)]


def by_length(completion_ids, **kwargs):
    return [float(len(ids)) for ids in completion_ids]


def named(prompts, completions, trainer_state, log_metric):
    log_metric("progress", trainer_state.global_step / trainer_state.max_steps)
    return [float(c[0]["content"] == "3") for c in completions]


def some_rows(completions, task, **kwargs):
    return [None if t == "coding" else 1.0 for t in task]


async def later(prompts, completions, **kwargs):
    import asyncio

    await asyncio.sleep(0)
    return [float("?" in p) for p in prompts]
"""
VLM_R1 = """
import re


def accuracy_reward(completions, solution, **kwargs):
    contents = [completion[0]["content"] for completion in completions]
    rewards = []
    for content, sol in zip(contents, solution):
        truth = re.search(r"<answer>(.*?)</answer>", sol).group(1).strip()
        rewards.append(1.0 if content.strip() == truth else 0.0)
    return rewards
"""
SWIFT = """
class ORM:
    def __call__(self, **kwargs):
        raise NotImplementedError


orms = {}


class MathAccuracy(ORM):
    def __call__(self, completions, solution, **kwargs):
        return [float(c == s) for c, s in zip(completions, solution)]


orms["external_math_acc"] = MathAccuracy
"""


@pytest.fixture
def group():
    columns = {"level": 2, "task": "counting"}
    sample = Sample("7", "digits", "How many?", (b"png",), "3", columns)
    size = ImageSize(30, 40, 28, 56)
    return [
        Episode(
            sample,
            "<user>How many?",
            (Turn(text, (1,) * len(text)),),
            finished=True,
            image_sizes=(size,),
            step=5,
            total_steps=10,
        )
        for text in ("3", "44")
    ]


@pytest.fixture
def written(tmp_path):
    def write(text, name):
        file = tmp_path / "my_rewards.py"
        file.write_text(text)
        return f"{file}:{name}"

    return write


def test_easyr1(written, group):
    reward = adapters.easyr1(written(EASYR1, "compute_score"))
    assert reward(group) == [
        {"overall": 1.0, "accuracy": 1.0, "length": 1},
        {"overall": 0.0, "accuracy": 0.0, "length": 2},
    ]


def test_easyr1_sequential(written, group):
    reward = adapters.easyr1(written(SEQUENTIAL, "compute_score"))
    assert reward(group) == [{"overall": 1.0}, {"overall": 0.0}]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("compute_score", [{"overall": x, "accuracy": x} for x in (1.0, 0.0)]),
        ("of_one", [{"overall": 2.0}, {"overall": 0.0}]),
    ],
)
def test_easyr1_of_texts(written, group, name, found):
    assert adapters.easyr1(written(OLDER, name))(group) == found


def test_verl(written, group):
    reward = adapters.verl(written(VERL, "compute_score"))
    first = {"overall": 1.0, "score": 1.0, "acc": 1.0, "level": 2}
    assert reward(group)[0] == first


def test_verl_with_plain_numbers(written, group):
    assert adapters.verl(written(VERL, "plain"))(group) == [1.0, 0.0]


def test_verl_of_batches(written, group):
    assert adapters.verl(written(BATCHED, "batch"))(group) == [1.0, 0.0]
    dicts = adapters.verl(written(BATCHED, "batch_of_dicts"))(group)
    assert dicts[0] == {"overall": 1.0, "score": 1.0, "n": 2}


@pytest.mark.parametrize(
    ("name", "expected"),
    [("accuracy", [1, 0]), ("by_length", [1, 2]), ("later", [1, 1])],
)
def test_trl(written, group, name, expected):
    reward = adapters.trl(written(TRL, name))
    assert [score["overall"] for score in reward(group)] == expected


def test_trl_conversational_with_trainer_state(written, group):
    reward = adapters.trl(written(TRL, "named"), conversational=True)
    assert reward(group) == [
        {"overall": 1.0, "progress": 0.5},
        {"overall": 0.0, "progress": 0.5},
    ]


def test_trl_none_does_not_apply(written, group):
    reference = written(TRL, "some_rows")
    assert adapters.trl(reference)(group)[0] == {"overall": 1.0}
    group[0].sample.annotations["task"] = "coding"
    assert adapters.trl(reference)(group) == [None, None]
    mixed = weighted(
        {"a": (adapters.trl(reference), 1.0), "b": (lambda g: [1.0, 2.0], 0.5)}
    )
    assert [score["overall"] for score in call_safely(mixed, group)] == [0.5, 1.0]
    alone = call_safely(adapters.trl(reference), group)
    assert all(math.isnan(s["overall"]) and not s["errors"] for s in alone)


def test_vlm_r1(written, group):
    reward = adapters.vlm_r1(written(VLM_R1, "accuracy_reward"))
    assert reward(group) == [1.0, 0.0]
    group[0].sample.annotations["solution"] = "<think>x</think><answer>44</answer>"
    assert reward(group) == [0.0, 1.0]


@pytest.mark.parametrize("name", ["MathAccuracy", "external_math_acc"])
def test_ms_swift(written, group, name):
    assert adapters.ms_swift(written(SWIFT, name))(group) == [1.0, 0.0]


OPENRLHF = """
import numpy as np


def reward_func(queries, prompts, labels):
    right = [float(q[len(p):] == l) for q, p, l in zip(queries, prompts, labels)]
    return np.array(right, np.float32)


def logged(queries, prompts, labels):
    right = reward_func(queries, prompts, labels)
    return {"rewards": right - 0.5, "scores": right, "extra_logs": {"acc": right}}


def wrong(queries, prompts, labels):
    return {"scores": [0.0] * len(queries)}
"""


def test_openrlhf(written, group):
    assert adapters.openrlhf(written(OPENRLHF, "reward_func"))(group) == [1.0, 0.0]
    assert adapters.openrlhf(written(OPENRLHF, "logged"))(group) == [
        {"overall": 0.5, "score": 1.0, "acc": 1.0},
        {"overall": -0.5, "score": 0.0, "acc": 0.0},
    ]
    with pytest.raises(ValueError, match="dicts with 'rewards', got"):
        adapters.openrlhf(written(OPENRLHF, "wrong"))(group)


def test_a_function_that_raises_costs_its_group(written, group):
    other = [Episode(Sample("8", "other", "?", (), "3"), "?", group[0].turns, True)]
    scores = call_safely(adapters.verl(written(VERL, "compute_score")), other)
    assert scores[0]["errors"] == 1.0


def test_numbers_of_numpy_are_kept(written, group):
    text = """
import numpy as np
def f(reward_inputs):
    return [{"overall": np.float32(1), "accuracy": np.float32(1), "n": np.int64(3),
             "f": np.float64(0.5), "flag": True, "ok": np.bool_(False), "note": "text"}
            for _ in reward_inputs]
"""
    expected = {"accuracy": 1.0, "n": 3.0, "f": 0.5, "flag": 1.0, "ok": 0.0}
    found = adapters.easyr1(written(text, "f"))(group)
    assert found == [{**expected, "overall": 1.0}] * 2
    assert all(type(found[0][name]) is float for name in expected)


def test_a_file_is_run_once(tmp_path, group):
    file = tmp_path / "counting.py"
    file.write_text("calls = []\ndef f(completions, **kw):\n    calls.append(1)\n")
    assert adapters.load(f"{file}:f") is adapters.load(f"{file}:f")


@pytest.mark.parametrize(
    ("reference", "error", "message"),
    [
        ("rewards.py", ValueError, "path.py:function"),
        ("rewards:f", ValueError, "path.py:function"),
        ("nowhere.py:f", FileNotFoundError, r"no file .*nowhere\.py"),
    ],
)
def test_load_says_what_is_wrong(reference, error, message):
    with pytest.raises(error, match=message):
        adapters.load(reference)


def test_load_names_what_there_is(written):
    with pytest.raises(ValueError, match="has no function score; it has compute_score"):
        adapters.load(written(VERL, "score"))


def test_a_dict_needs_its_overall(written, group):
    text = "def f(data_source, solution_str, ground_truth, extra_info):\n"
    reference = written(text + "    return {'acc': 1}\n", "f")
    with pytest.raises(ValueError, match="dicts with 'score', got"):
        adapters.verl(reference)(group)
