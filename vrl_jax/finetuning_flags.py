"""What the scripts for released models are given: a task, sizes, the course of a rate.

As flags, and as what `finetuning.finetune` makes of them.
"""

import itertools
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import optax

from vrl_jax.engine.desk import Limits
from vrl_jax.engine.packing import Room
from vrl_jax.engine.pretrained import Read, load_processor
from vrl_jax.engine.processing import (
    Fitting,
    Measure,
    Processor,
    prepare,
    prompt_size,
)
from vrl_jax.experiment import say
from vrl_jax.rewards.combine import Reward
from vrl_jax.rewards.named import named_reward
from vrl_jax.training import processes
from vrl_jax.training.choices import Choices
from vrl_jax.training.data import DataReport, asked, evenly, read_samples
from vrl_jax.training.files import write_json
from vrl_jax.types import Sample

INSTRUCTION = (
    r"Think step by step between <think> and </think>. Then give the final answer in "
    r"\boxed{}."
)


class Task(NamedTuple):
    """A model, rows for it and what is paid; the scripts' flags. None: see `filled`."""

    model: str
    """a Hugging Face folder, or owner/name of the hub"""
    train: Path
    """parquet or JSONL with the columns of EasyR1, TRL, R1-V or verl, or FOLDER@SPLIT
    of TensorFlow Datasets with these"""
    test: Path
    """rows to measure on, in the same form"""
    reward: str | None = None
    """a name that `vrl-jax data check` knows, or path.py:function; by default math, or
    what the script says"""
    style: str | None = None
    """whose signature a function of your own has, as in `vrl-jax data check`"""
    frame: str | None = None
    """unit of boxes in responses, for iou, detection and click: original or resized
    (pixels), norm1000 or norm1"""
    gold_frame: str = "original"
    """unit of boxes in the rows' answers"""
    instruction: str | None = None
    """words under each question, "" for none; by default the script's"""
    system: str | None = None
    """system message of rows that have none, "" for the template's own; by default the
    script's"""
    images: Path | None = None
    """folder at which relative picture paths start; by default the file's"""


class Rows(NamedTuple):
    """Rows to train on, rows to measure on, and what is said with each question."""

    train: Path
    test: Path
    instruction: str = ""
    images: Path | None = None
    system: str = ""


def reward_of(task: Task) -> AbstractContextManager[Reward]:
    """What is paid; its processes end with the block."""
    frames = {"frame": task.frame, "gold_frame": task.gold_frame}
    return named_reward(task.reward, style=task.style, **frames)


def filled(
    task: Task,
    *,
    reward: str = "math",
    instruction: str = INSTRUCTION,
    system: str = "",
) -> Task:
    """The task with these where it says nothing."""
    given = {"reward": reward, "instruction": instruction, "system": system}
    missing = {name: x for name, x in given.items() if getattr(task, name) is None}
    return task._replace(**missing)


def rows_of(task: Task) -> Rows:
    """Its rows, as a run takes them."""
    return Rows(task.train, task.test, task.instruction, task.images, task.system)


def paid(task: Task) -> dict[str, str | None]:
    """What is paid, as a setting that a run must keep when it resumes."""
    names = ("reward", "style", "frame", "gold_frame")
    return {name: getattr(task, name) for name in names}


class Sizes(NamedTuple):
    """How large the run is; the scripts' flags."""

    steps: int = 60
    """training steps; with more of them a run that has ended goes on, unless its rate
    decays over them"""
    prompts: int = 128
    """prompts a step, no more than there are rows and different ones, save where a pass
    over all of them ends: EasyR1's rollout_batch_size"""
    prompts_per_pack: int = 1
    """prompts whose pictures share one table: more, where pictures differ in size"""
    longest_prompt: int = 8192
    """tokens of a prompt, pictures included; longer rows are left out and reported"""
    response_tokens: int = 2048
    """most tokens of a response"""
    temperature: float = 1.0
    """temperature of the responses that are trained on"""
    min_pixels: int | None = None
    """smallest area of a picture, smaller ones are enlarged; by default the model's"""
    max_pixels: int | None = None
    """largest area of a picture, larger ones are shrunk; by default the model's"""
    learning_rate: float = 1e-6
    """AdamW's learning rate"""
    warmup_steps: int = 0
    """steps over which the learning rate rises from 0"""
    decay: str = "constant"
    """its course after them: constant, or linear or cosine to 0 after the last step"""
    weight_decay: float = 0.01
    """AdamW's weight decay"""
    evaluate_every: int = 10
    """steps between measurements on the test rows; 0: before and after alone"""
    test_rows: int | None = 512
    """rows of the test file that are measured, evenly spread; None: all"""
    checkpoint_every: int = 20
    """steps between checkpoints"""
    examples: int = 16
    """responses that the report shows with every token shaded"""


PACE = ("steps", "evaluate_every", "checkpoint_every", "examples", "frozen_slots")
"""Sizes that may differ when a run goes on."""

Rate = float | optax.Schedule

DECAYS: Mapping[str, Callable[[float, int], optax.Schedule]] = {
    "constant": lambda full, updates: optax.constant_schedule(full),
    "linear": lambda full, updates: optax.linear_schedule(full, 0.0, updates),
    "cosine": optax.cosine_decay_schedule,
}
"""Of the full rate and so many updates: f(0) is full, f(updates) is 0 or full."""


def check(sizes: Sizes, choices: Choices, kl_weight: float) -> None:
    """Raises `ValueError` for sizes that cannot be, by the name of the flag."""
    pieces = choices.minibatches * choices.micro_batches
    packs = sizes.prompts // math.gcd(sizes.prompts, sizes.prompts_per_pack)
    if packs % pieces:
        raise ValueError(
            f"{sizes.prompts} prompts in {packs} packs do not make "
            f"{choices.minibatches} minibatches of {choices.micro_batches} equal "
            "pieces: choose --prompts, --prompts-per-pack, --minibatches and "
            "--micro-batches that divide."
        )
    if not sizes.temperature > 0 or sizes.warmup_steps < 0:
        raise ValueError(
            "--temperature must be above 0 and --warmup-steps at least 0, got "
            f"{sizes.temperature} and {sizes.warmup_steps}."
        )
    if sizes.steps < 1:
        raise ValueError(f"a run takes at least 1 step, got --steps {sizes.steps}.")
    if sizes.decay not in DECAYS:
        raise ValueError(
            f"there is no --decay {sizes.decay!r}; there are {', '.join(DECAYS)}."
        )
    if sizes.decay != "constant" and sizes.warmup_steps >= sizes.steps:
        raise ValueError(
            f"--warmup-steps {sizes.warmup_steps} of --steps {sizes.steps} leave none "
            f"for --decay {sizes.decay}."
        )
    if kl_weight and choices.reference == "none":
        raise ValueError(
            f"--kl-weight {kl_weight} is of the distance from a reference, and there "
            "is none: give --reference device or host, or leave it out."
        )


def learning_rate(sizes: Sizes, choices: Choices) -> Rate:
    """Of each update, of which a step has `minibatches`; neither first nor last is 0.

    rate (u + 1) / W over the W updates of the warm-up, then, over the other D, rate
    times 1, 1 - u / D or (1 + cos(pi u / D)) / 2, u = 0..D - 1.
    """
    updates = sizes.warmup_steps * choices.minibatches
    full = sizes.learning_rate
    if sizes.decay == "constant" and not updates:
        return full
    rest = sizes.steps * choices.minibatches - updates
    after = DECAYS[sizes.decay](full, rest)
    if not updates:
        return after
    warm = optax.linear_schedule(full / updates, full, updates - 1)
    return optax.join_schedules([warm, after], [updates])


def read_rows(
    folder: Path,
    rows: Rows,
    sizes: Sizes,
    *,
    parts: bool = False,
    reader: Callable = read_samples,
    measure: Measure = prompt_size,
    by_heart: Callable[[Processor], Measure] | None = None,
) -> tuple[Read, tuple[DataReport, DataReport]]:
    """Samples of both files, with the instruction, and a processor that holds them.

    And `parts` of their pictures, if these will be shown. `reader` reads the rows to
    train on, and `measure` says how large rows are; `by_heart` makes of the processor
    how large those to train on are, if they are recited. `ValueError` where the
    processes have not read the same.
    """
    training, of_training = reader(rows.train, image_root=rows.images)
    test, of_test = read_samples(rows.test, image_root=rows.images)
    test = evenly(test, sizes.test_rows)
    read = load_processor(
        folder,
        *(asked(both, rows.instruction, rows.system) for both in (training, test)),
        prompts_per_step=sizes.prompts,
        prompts_per_pack=sizes.prompts_per_pack,
        longest_prompt=sizes.longest_prompt,
        min_pixels=sizes.min_pixels,
        max_pixels=sizes.max_pixels,
        parts=parts,
        measures=[by_heart or (lambda _: measure), lambda _: measure],
    )
    for fit in read.fits:
        _check_alike(fit)
    return read, (of_training, of_test)


def _check_alike(fit: Fitting) -> None:
    """Raises where a process has other rows: each reads and drops them by itself."""
    rows = [
        f"{sample.id} ({tokens} tokens, pictures of {patches} patches; behind them "
        f"{more} tokens, pictures of {shown} patches)"
        for sample, tokens, patches, more, shown in zip(
            fit.samples,
            fit.tokens,
            fit.pictures,
            fit.row_tokens,
            map(list, fit.shown),
            strict=True,
        )
    ]
    first, *others = processes.gathered([zlib.crc32(row.encode()) for row in rows])
    for number, other in enumerate(others, start=1):
        if other == first:
            continue
        pairs = enumerate(itertools.zip_longest(first, other))
        place = next(place for place, (one, two) in pairs if one != two)
        said = processes.gathered(rows[place] if place < len(rows) else "no row")
        raise ValueError(
            f"process {number} has other rows than process 0: the first that differs, "
            f"row {place}, is {said[number]} and not {said[0]}. Give every machine the "
            "same files, pictures too."
        )


def tell(
    out: Path,
    read: Read,
    reports: Sequence[DataReport],
    behind: Limits | None = None,
) -> None:
    """Says, and writes, what of the rows is used, and why others are not.

    Of rows that are recited, `behind` is the room for what follows their prompts.
    """
    for report in reports:
        say(report.summary())
    used = {}
    reasons = ("cannot be recited" if behind else "not used", "not used")
    names = ("train", "test")
    for which, reason, report, fit in zip(
        names, reasons, reports, read.fits, strict=True
    ):
        used[which] = {
            "used": len(fit.samples),
            "dropped": {**report.dropped, reason: fit.dropped},
        }
        say(_left_out(which, fit))
    say(read.budgets.summary())
    say(f"sizes for a plan: {plan_sizes(read.budgets.room, behind)}")
    write_json(out / "data_report.json", used)


def plan_sizes(room: Room, behind: Limits | None = None) -> str:
    """The flags of `vrl-jax plan` for prompts of this room, and what follows them.

    A plan's picture between turns is as large as all of a prompt's.
    """
    patches = room.block * room.blocks[-1] // room.prompts_per_pack
    shown = room.block * behind.pictures if behind else 0
    patches = patches or min(shown, room.block)  # of those between turns alone
    flags = f"--prompt-tokens {room.prompt_tokens[-1]} --patches {patches}"
    if not behind:
        return flags
    between = f" --pictures {-(-shown // patches)}" if shown else ""
    return f"{flags} --response-tokens {behind.row_tokens}{between}"


def _left_out(which: str, fit: Fitting) -> str:
    count = len(fit.dropped)
    lines = [f"{which}: {len(fit.samples)} rows, {count} cannot be used"]
    if count:
        lines += ["(--longest-prompt and --max-pixels bound what is too large)"]
    return "\n  ".join([*lines, *fit.dropped[:3]])


def enough(samples: Sequence[Sample], prompts: int) -> None:
    """Raises `ValueError` where a step would hold a row twice, with equal draws."""
    if len(samples) < prompts:
        raise ValueError(
            f"a step takes --prompts {prompts} different rows, and {len(samples)} of "
            "those to train on can be used: the same row twice in a step is drawn "
            f"alike and counts double. Give --prompts {len(samples)} or fewer (and "
            "--minibatches and --micro-batches that divide them), or more rows."
        )


def first_rows(processor: Processor, fit: Fitting, count: int = 3) -> str:
    """What the first rows come to: sizes of pictures, tokens of prompts and behind."""
    lines = []
    for sample, tokens, more in zip(
        fit.samples[:count], fit.tokens, fit.row_tokens, strict=False
    ):
        sizes = [prepare(processor, image).size for image in sample.images]
        pictures = ", ".join(
            f"{s.original_width} x {s.original_height} -> {s.width} x {s.height}"
            for s in sizes
        )
        behind = f", and {more} behind" if more else ""
        lines.append(
            f"  {sample.id}: {tokens} tokens{behind}; {pictures or 'no picture'}"
        )
    return "\n".join(["the first rows, and their pictures in pixels:", *lines])
