"""The command `vrl-jax`: what can be asked without writing a script.

    vrl-jax data check FILE --reward NAME     does the reward pay right answers?
    vrl-jax eval --model M --data FILE ...    how many answers of a model are right?
    vrl-jax export RUN --out FOLDER           a checkpoint as a Hugging Face folder
    vrl-jax report RUN                        the page of a run folder, written again
    vrl-jax plan --model M --topology T       does a step fit, how long at least?

Exit codes: 0, 1 where a check found something suspicious or no plan fits, 2 for an
error of the user.
"""

import json as json_text
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro

from vrl_jax.evals.command import evaluate
from vrl_jax.evals.reward_check import check_reward
from vrl_jax.exporting import export
from vrl_jax.planning.command import plan
from vrl_jax.report.page import write_report
from vrl_jax.rewards.named import named_reward, style_of
from vrl_jax.training.data import evenly, read_samples


def data_check(
    file: tyro.conf.Positional[Path],
    /,
    *,
    reward: str,
    response: str | None = None,
    style: str | None = None,
    gold_frame: str = "original",
    full: float | None = None,
    rows: int | None = None,
    images: Path | None = None,
    json: bool = False,
) -> int:
    """Runs a reward on each row's own answer, on another row's, and on nothing.

    Suspicious, with exit code 1: an own answer without full marks, another row's
    answer or an empty response with them.

    Args:
        file: parquet, JSONL, JSON or CSV with the columns of EasyR1, TRL, R1-V or
            verl, a folder of such files, or FOLDER@SPLIT of TensorFlow Datasets.
        reward: a name of the library, or path.py:function of your own.
        response: what the policy is asked to write, with {answer} in it, such as
            "\\boxed{{answer}}"; by default the common ones are tried.
        style: whose signature your function has: native (episodes), easyr1, verl, trl,
            trl_chat, vlm_r1, ms_swift or openrlhf; by default its arguments tell.
        gold_frame: unit of the boxes in the file: original (pixels), norm1000 or norm1;
            what is scored here are boxes of the file.
        full: the score that counts as full marks; by default the highest of any row's
            own answer.
        rows: how many to use, evenly spread; by default all.
        images: folder at which relative picture paths start; by default the file's.
        json: print one JSON object.
    """
    samples, report = read_samples(file, image_root=images)
    samples = evenly(samples, rows)
    frames = {"frame": gold_frame, "gold_frame": gold_frame}
    with named_reward(reward, style=style, **frames) as function:
        found = check_reward(function, samples, template=response, full=full)
    if json:
        dropped = {reason: list(rows) for reason, rows in report.dropped.items()}
        read = {"path": report.path, "used": report.used, "dropped": dropped}
        print(json_text.dumps({"data": read, "reward": reward, **found.as_json()}))
    else:
        print(report.summary())
        print(f"reward     {reward}{_called_as(reward, style)}")
        print(found.summary())
    return int(found.suspicious)


def _called_as(reward: str, style: str | None) -> str:
    """Of a function of the user's own: whose signature it is taken for."""
    if ":" not in reward:
        return ""
    return f", called as {style or style_of(reward)}'s (--style)"


def report(run: tyro.conf.Positional[Path], /) -> int:
    """Writes report.html of a run folder again.

    Args:
        run: the folder that a training run wrote.
    """
    print(write_report(run))
    return 0


COMMANDS: Mapping[str, Any] = {
    "data": {"check": data_check},
    "eval": evaluate,
    "export": export,
    "report": report,
    "plan": plan,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command that the arguments name; a user's error is one line."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    commands, words = COMMANDS, ["vrl-jax"]
    while given and isinstance(commands.get(given[0]), Mapping):
        words.append(given.pop(0))
        commands = commands[words[-1]]
    try:
        code = tyro.extras.subcommand_cli_from_dict(
            {name: _entry(command) for name, command in commands.items()},
            prog=" ".join(words),
            description=(__doc__ or "").partition("\n")[0],
            args=given,
        )
    except (ValueError, OSError, RuntimeError) as error:
        if os.environ.get("VRL_JAX_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(code)


def _entry(command: Any) -> Callable[..., int]:
    """A command as it is; a group of commands as its names, for the help."""
    if not isinstance(command, Mapping):
        return command

    def group() -> int:
        raise AssertionError("a group is entered before its arguments are read")

    group.__doc__ = f"Commands: {', '.join(command)}."
    return group


if __name__ == "__main__":
    main()
