"""The command `vrl-jax`: what can be asked without writing a script.

    vrl-jax data check FILE --reward NAME     does the reward pay right answers?
    vrl-jax report RUN                        the page of a run folder, written again
    vrl-jax plan --model M --topology T       does a step fit, how long at least?

Exit codes: 0, 1 where a check found something suspicious or no plan fits, 2 for an
error of the user.
"""

import contextlib
import functools
import inspect
import json as json_text
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro

from vrl_jax.evals.reward_check import check_reward
from vrl_jax.planning.command import plan
from vrl_jax.report.page import write_report
from vrl_jax.rewards import adapters, answers, boxes, text
from vrl_jax.rewards.boxed import boxed_exact, boxed_math, math_style
from vrl_jax.rewards.combine import Reward
from vrl_jax.rewards.final_answer import (
    anls,
    answer_reward,
    count,
    mathruler_boxed,
    multiple_choice,
    r1v_style,
)
from vrl_jax.rewards.grounding import (
    box_reward,
    click_reward,
    original,
    thousandths,
    unit,
)
from vrl_jax.rewards.math_verifier import MathVerifier
from vrl_jax.training.data import read_samples

FRAMES = {"original": original, "norm1000": thousandths, "norm1": unit}
LIBRARY: Mapping[str, Reward] = {
    "exact": boxed_exact,
    "mcq": multiple_choice,
    "yes_no": answer_reward(answers.yes_no),
    "numeric": answer_reward(answers.relaxed_numeric),
    "count": count,
    "ocr_edit": answer_reward(text.edit_similarity),
    "anls": anls,
    "token_f1": answer_reward(text.token_f1),
}
OF_MATHEMATICS: Mapping[str, Callable[[MathVerifier], Reward]] = {
    "math": math_style,
    "math_verify": boxed_math,
    "mathruler": mathruler_boxed,
    "r1v": r1v_style,
}
OF_BOXES: Mapping[str, Callable[..., Reward]] = {
    "iou": functools.partial(box_reward, boxes.first_iou),
    "detection": functools.partial(box_reward, boxes.hungarian_f1),
    "click": click_reward,
}
STYLES: Mapping[str, Callable[[str], Reward]] = {
    "native": adapters.load,
    "easyr1": adapters.easyr1,
    "verl": adapters.verl,
    "trl": adapters.trl,
    "trl_chat": functools.partial(adapters.trl, conversational=True),
    "vlm_r1": adapters.vlm_r1,
    "ms_swift": adapters.ms_swift,
}


def data_check(
    file: tyro.conf.Positional[Path],
    /,
    *,
    reward: str,
    response: str | None = None,
    style: str | None = None,
    frame: str = "original",
    full: float | None = None,
    rows: int | None = None,
    images: Path | None = None,
    json: bool = False,
) -> int:
    """Runs a reward on each row's own answer, on another row's, and on nothing.

    Suspicious, with exit code 1: an own answer without full marks, another row's
    answer or an empty response with them.

    Args:
        file: parquet or JSONL with the columns of EasyR1, TRL, R1-V or verl, or a
            folder of such files.
        reward: a name of the library, or path.py:function of your own.
        response: what the policy is asked to write, with {answer} in it, such as
            "\\boxed{{answer}}"; by default the common ones are tried.
        style: whose signature your function has: native (episodes), easyr1, verl, trl,
            trl_chat, vlm_r1 or ms_swift; by default its arguments tell.
        frame: of the boxes in the file: original (pixels), norm1000 or norm1.
        full: the score that counts as full marks; by default the highest of any row's
            own answer.
        rows: how many to use, evenly spread; by default all.
        images: folder at which relative picture paths start; by default the file's.
        json: print one JSON object.
    """
    samples, report = read_samples(file, image_root=images)
    if rows is not None:
        if rows < 1:
            raise ValueError(f"at least one row is needed, got --rows {rows}.")
        samples = samples[:: max(len(samples) // rows, 1)][:rows]
    with named_reward(reward, style=style, frame=frame) as function:
        found = check_reward(function, samples, template=response, full=full)
    if json:
        dropped = {reason: list(rows) for reason, rows in report.dropped.items()}
        read = {"path": report.path, "used": report.used, "dropped": dropped}
        print(json_text.dumps({"data": read, "reward": reward, **found.as_json()}))
    else:
        print(report.summary())
        print(f"reward     {reward}")
        print(found.summary())
    return int(found.suspicious)


@contextlib.contextmanager
def named_reward(
    name: str, *, style: str | None = None, frame: str = "original"
) -> Iterator[Reward]:
    """The reward of a name or of path.py:function; its processes end with the block."""
    if ":" in name:
        yield _own_reward(name, style)
        return
    if style is not None:
        raise ValueError(f"--style is for path.py:function, not for {name!r}.")
    if name in LIBRARY:
        yield LIBRARY[name]
    elif name in OF_BOXES:
        if frame not in FRAMES:
            raise ValueError(f"frames are {', '.join(FRAMES)}, got {frame!r}.")
        # Right answers are those of the file, in whatever frame it has.
        yield OF_BOXES[name](frame=FRAMES[frame], gold_frame=FRAMES[frame])
    elif name in OF_MATHEMATICS:
        with MathVerifier() as verifier:
            yield OF_MATHEMATICS[name](verifier)
    else:
        known = sorted([*LIBRARY, *OF_BOXES, *OF_MATHEMATICS])
        raise ValueError(
            f"there is no reward {name!r}: the library's are {', '.join(known)}; your "
            "own is path.py:function."
        )


def _own_reward(reference: str, style: str | None) -> Reward:
    try:
        style = style or _style(reference)
        if style in STYLES:
            return STYLES[style](reference)
    except (ValueError, OSError):
        raise
    except Exception as error:  # of the user's file, at import
        raise ValueError(f"{reference}: {type(error).__name__}: {error}") from error
    raise ValueError(f"styles are {', '.join(STYLES)}, got {style!r}.")


def _style(reference: str) -> str:
    """Whose signature the function has, by the names of its arguments."""
    function = adapters.load(reference)
    if inspect.isclass(function):
        return "ms_swift"
    names = list(inspect.signature(function).parameters)
    for name, style in (
        ("reward_inputs", "easyr1"),
        ("reward_input", "easyr1"),
        ("solution_str", "verl"),
        ("episodes", "native"),
    ):
        if name in names:
            return style
    if "completions" in names:
        # They look alike: the functions of VLM-R1 read messages, those of TRL may.
        return "vlm_r1" if "solution" in names else "trl"
    raise ValueError(
        f"{reference} takes {', '.join(names)}, which is no signature that is known: "
        f"name it with --style, one of {', '.join(STYLES)}."
    )


def report(run: tyro.conf.Positional[Path], /) -> int:
    """Writes report.html of a run folder again.

    Args:
        run: the folder that a training run wrote.
    """
    print(write_report(run))
    return 0


COMMANDS: Mapping[str, Any] = {
    "data": {"check": data_check},
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
