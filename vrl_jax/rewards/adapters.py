"""Reward functions that users wrote for other projects, named `path.py:function`.

The file is run as Python because its owner asks for it, by name, on the command line
or in code; no path is ever taken from data. Each adapter calls the function as that
project's documentation says and gives a `Reward`. Signatures:

    EasyR1    f(reward_inputs: list of dict) -> list of dict with `overall`
              or one dict at a time, where the file says REWARD_TYPE = "sequential";
              before dicts f(predicts, ground_truths) or f(predict, ground_truth)
    verl      f(data_source, solution_str, ground_truth, extra_info=None)
              -> float, or dict with `score`; of its batch manager
              f(data_sources, solution_strs, ground_truths, extra_infos) -> list of them
    TRL       f(prompts, completions, ..., **columns) -> list of float or None
    VLM-R1    f(completions, solution, **columns) -> list of float
    ms-swift  a class with __call__(completions, **columns) -> list of float, or one
              registered by name in a dict `orms`
    OpenRLHF  f(queries, prompts, labels) -> tensor or list, or dict with `rewards`
"""

import asyncio
import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from vrl_jax.rewards.combine import Reward, Score
from vrl_jax.types import Episode

_NUMBER = Real | np.bool_
"""NumPy's scalars are of these too."""


def load(reference: str) -> Callable[..., Any]:
    """The function of "path.py:function"; the file is run, so it must be yours."""
    name = reference.rpartition(":")[2]
    return _attribute(_module(reference), name, reference)


def easyr1(reference: str) -> Reward:
    """`reward_function` of EasyR1, https://github.com/hiyouga/EasyR1.

    Each dict has `response`, `response_length` and `ground_truth`, as there, and the
    row's other columns besides. `overall` is the reward, the rest is logged. Functions
    written before EasyR1 had dicts take texts, `predicts` or one `predict`.
    """
    module, function = _module(reference), load(reference)
    taken = inspect.signature(function).parameters
    if "predict" in taken or "predicts" in taken:
        return _easyr1_of_texts(function, reference, one_at_a_time="predict" in taken)
    one_at_a_time = getattr(module, "REWARD_TYPE", "batch") == "sequential"

    def reward(episodes: Sequence[Episode]) -> list[Score]:
        given = [
            {
                **e.sample.annotations,
                "response": e.text,
                "response_length": _length(e),
                "ground_truth": e.sample.answer,
            }
            for e in episodes
        ]
        found = [function(x) for x in given] if one_at_a_time else function(given)
        return _as_scores(found, "overall", reference)

    return reward


def _easyr1_of_texts(
    function: Callable[..., Any], reference: str, *, one_at_a_time: bool
) -> Reward:
    def reward(episodes: Sequence[Episode]) -> list[Score]:
        texts = [e.text for e in episodes]
        truths = [e.sample.answer for e in episodes]
        if not one_at_a_time:
            found = function(predicts=texts, ground_truths=truths)
        else:
            found = [
                function(predict=text, ground_truth=truth)
                for text, truth in zip(texts, truths, strict=True)
            ]
        return _as_scores(found, "overall", reference)

    return reward


def verl(reference: str) -> Reward:
    """`custom_reward_function` of verl, https://github.com/volcengine/verl.

    `extra_info` is the row's column of that name, or all of its columns. `score` of a
    dict is the reward, the rest is logged. A function of `solution_strs` is given
    lists, as by `reward_manager: batch`.
    """
    function = load(reference)
    all_at_once = "solution_strs" in inspect.signature(function).parameters

    def reward(episodes: Sequence[Episode]) -> list[Score]:
        given = [
            {
                "data_source": e.sample.source,
                "solution_str": e.text,
                "ground_truth": e.sample.answer,
                "extra_info": _extra_info(e),
            }
            for e in episodes
        ]
        if all_at_once:
            names = given[0]
            found = function(**{f"{name}s": [x[name] for x in given] for name in names})
        else:
            found = [function(**x) for x in given]
        return _as_scores(found, "score", reference)

    return reward


def trl(reference: str, *, conversational: bool = False) -> Reward:
    """A `reward_funcs` entry of TRL, https://github.com/huggingface/trl; async or not.

    `conversational` passes prompts and completions as lists of messages. It gets
    `completion_ids`, `trainer_state` with `global_step` and `max_steps`, `log_metric`
    and `log_extra` if it takes them. None means that it does not apply to the row.
    """
    function = load(reference)

    def reward(episodes: Sequence[Episode]) -> list[Score]:
        logged: list[dict[str, float]] = [{} for _ in episodes]

        def log_metric(name: str, value: float) -> None:
            for parts in logged:
                parts[name] = float(value)

        arguments = {
            **_columns(episodes),
            "prompts": [_prompt(e, conversational) for e in episodes],
            "completions": [_completion(e, conversational) for e in episodes],
            "completion_ids": [_ids(e) for e in episodes],
            "trainer_state": TrainerState(episodes[0].step, episodes[0].total_steps),
            "log_metric": log_metric,
            "log_extra": lambda column, values: None,  # rollouts keep the row anyway
        }
        found = _as_scores(_called(function, arguments), "overall", reference)
        return [
            None if score is None else {**parts, "overall": score}
            for score, parts in zip(found, logged, strict=True)
        ]

    return reward


def vlm_r1(reference: str) -> Reward:
    """A reward of VLM-R1, R1-V or Visual-RFT: `f(completions, solution, **kwargs)`.

    Completions are lists of one message; `solution` is the row's column or, without
    one, the answer in answer tags. https://github.com/om-ai-lab/VLM-R1
    """
    function = load(reference)

    def reward(episodes: Sequence[Episode]) -> list[Score]:
        columns = _columns(episodes)
        tagged = [f"<answer> {e.sample.answer} </answer>" for e in episodes]
        arguments = {
            **columns,
            "prompts": [_prompt(e, True) for e in episodes],
            "completions": [_completion(e, True) for e in episodes],
            "solution": columns.get("solution", tagged),
        }
        return _as_scores(_called(function, arguments), "overall", reference)

    return reward


def ms_swift(reference: str) -> Reward:
    """A reward of an external plugin of ms-swift, https://github.com/modelscope/ms-swift.

    "plugin.py:name" names a class, a function, or a key of the plugin's `orms`, which
    it fills after `from swift.plugin import orms`; where ms-swift is not installed,
    write `orms = {}` there. Completions are texts; `solution` is as for VLM-R1.
    """
    module, name = _module(reference), reference.rpartition(":")[2]
    found = getattr(module, "orms", {}).get(name) or load(reference)
    function = found() if inspect.isclass(found) else found

    def reward(episodes: Sequence[Episode]) -> list[Score]:
        columns = _columns(episodes)
        arguments = {
            **columns,
            "completions": [e.text for e in episodes],
            "solution": columns.get("solution", [e.sample.answer for e in episodes]),
        }
        return _as_scores(_called(function, arguments), "overall", reference)

    return reward


def openrlhf(reference: str) -> Reward:
    """`reward_func` of OpenRLHF and OpenRLHF-M, https://github.com/OpenRLHF/OpenRLHF-M.

    A query is prompt and response as one text, a label the row's answer. Of a dict
    `rewards` is the reward; `scores`, and what `extra_logs` names, are logged.
    """
    function = load(reference)

    def reward(episodes: Sequence[Episode]) -> list[Score]:
        found = function(
            [e.prompt + e.text for e in episodes],
            [e.prompt for e in episodes],
            [e.sample.answer for e in episodes],
        )
        if not isinstance(found, Mapping):
            return _as_scores(found, "overall", reference)
        if "rewards" not in found:
            raise ValueError(
                f"{reference} must give dicts with 'rewards', got {sorted(found)}."
            )
        columns = {**found.get("extra_logs", {}), "overall": found["rewards"]}
        if "scores" in found:
            columns["score"] = found["scores"]
        return [
            dict(zip(columns, map(float, row), strict=True))
            for row in zip(*columns.values(), strict=True)
        ]

    return reward


class TrainerState:
    """What TRL's functions read of the trainer's state."""

    def __init__(self, global_step: int, max_steps: int):
        self.global_step = global_step
        self.max_steps = max_steps


def _module(reference: str) -> ModuleType:
    path, colon, name = reference.rpartition(":")
    if not colon or not path.endswith(".py") or not name.isidentifier():
        raise ValueError(
            f"a reward of your own is named path.py:function, got {reference!r}."
        )
    file = Path(path).resolve()
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file} to load {name} from.")
    # One module a file and its content: what it holds at module level is made once.
    digest = hashlib.sha256(str(file).encode() + file.read_bytes())
    key = f"vrl_jax_user_{digest.hexdigest()[:12]}"
    if key in sys.modules:
        return sys.modules[key]
    spec = importlib.util.spec_from_file_location(key, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[key] = module  # dataclasses and pickling look it up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[key]
        raise
    return module


def _attribute(module: ModuleType, name: str, reference: str) -> Callable[..., Any]:
    found = getattr(module, name, None)
    if not callable(found):
        public = [n for n, v in vars(module).items() if callable(v) and n[0] != "_"]
        raise ValueError(
            f"{reference}: the file has no function {name}; it has "
            f"{', '.join(sorted(public)) or 'none'}."
        )
    return found


def _called(function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    """The call with what its signature takes; an async one is awaited."""
    taken = inspect.signature(function).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in taken.values()):
        arguments = {name: arguments[name] for name in taken if name in arguments}
    found = function(**arguments)
    if not inspect.iscoroutine(found):
        return found

    async def wait() -> Any:
        return await found

    # Its own thread: the caller may already run an event loop, as notebooks do.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, wait()).result()


def _as_scores(found: Any, overall: str, reference: str) -> list[Score]:
    """Numbers and dicts as scores; of a dict what is no number is left out."""
    scores: list[Score] = []
    for score in found:
        if not isinstance(score, Mapping):
            scores.append(None if score is None else float(score))
            continue
        if overall not in score:
            raise ValueError(
                f"{reference} must give dicts with {overall!r}, got {sorted(score)}."
            )
        parts = {k: float(v) for k, v in score.items() if isinstance(v, _NUMBER)}
        scores.append({**parts, "overall": score[overall]})
    return scores


def _columns(episodes: Sequence[Episode]) -> dict[str, list[Any]]:
    """Every column of the row, once a response."""
    sample = episodes[0].sample
    row = {
        "id": sample.id,
        "answer": sample.answer,
        "ground_truth": sample.answer,
        "data_source": sample.source,
        "problem": sample.question,
        "images": list(sample.images),
        **sample.annotations,
    }
    row["image_sizes"] = [tuple(size) for size in episodes[0].image_sizes]
    return {name: [value] * len(episodes) for name, value in row.items()}


def _extra_info(episode: Episode) -> Any:
    columns = dict(episode.sample.annotations)
    return columns.get("extra_info", columns)


def _prompt(episode: Episode, conversational: bool) -> Any:
    if not conversational:
        return episode.prompt
    return [{"role": "user", "content": episode.sample.question}]


def _completion(episode: Episode, conversational: bool) -> Any:
    if not conversational:
        return episode.text
    return [{"role": "assistant", "content": episode.text}]


def _ids(episode: Episode) -> list[int]:
    return [token for turn in episode.turns if turn.chosen for token in turn.tokens]


def _length(episode: Episode) -> int:
    return len(_ids(episode))
