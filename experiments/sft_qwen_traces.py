r"""The cold start of a released model: conversations with tools, or answers, by heart.

Claim     None of its own. It makes of a released model one that knows the words of a
          tool, or of an answer, before rewards go on from there: small policies in
          experiments/README.md. Trained is what the assistant says, with its ends, in
          every turn, calls of tools too; what the user or a tool says and shows between
          is read.
Command   python experiments/sft_qwen_traces.py \
          --model Qwen/Qwen2.5-VL-7B-Instruct \
          --train traces.jsonl --test vstar/test.parquet --prompts 96
          and with --program vrl_jax.recipes.deepeyes:look_closer --pictures 4 it is
          measured with tools; runs/sft_qwen_traces/policy is the --model to go on from
Hardware  what `vrl-jax plan --recipe grpo --group 1` says fits, with the sizes that
          this script tells: those that the rows need
Time      see the plan; not measured
"""

import functools
from pathlib import Path
from typing import Annotated, NamedTuple

from tyro.conf import OmitArgPrefixes

from vrl_jax.engine.desk import Limits
from vrl_jax.experiment import command_line
from vrl_jax.finetuning import Outcome, finetune
from vrl_jax.finetuning_flags import Sizes, Task, filled, paid, reward_of, rows_of
from vrl_jax.programs.dialogue import dialogue
from vrl_jax.programs.named import named_program
from vrl_jax.programs.recital import recited
from vrl_jax.recipes.sft import sft
from vrl_jax.training.choices import Choices


class Talk(NamedTuple):
    """Room of a conversation, and how the test rows are asked; the script's flags."""

    row_tokens: int = 4096
    """most tokens of all answers with what is said and shown between them; longer rows
    are left out and reported, and the longest of the others is what is used"""
    pictures: int = 0
    """of a --program: how many it may show besides the row's"""
    program: str | None = None
    """how test rows are asked, as in `vrl-jax eval`; by default in a single turn"""


SIZES = Sizes(learning_rate=1e-5, warmup_steps=6)
CHOICES = Choices()
TALK = Talk()


def main(
    *,
    task: Annotated[Task, OmitArgPrefixes],
    out: Path = Path("runs/sft_qwen_traces"),
    seed: int = 0,
    talk: Annotated[Talk, OmitArgPrefixes] = TALK,
    sizes: Annotated[Sizes, OmitArgPrefixes] = SIZES,
    choices: Annotated[Choices, OmitArgPrefixes] = CHOICES,
) -> Outcome:
    """Measure, train, measure, report and export.

    Args:
        task: the model, its rows and what is paid for an answer in the measurements.
            The rows to train on are messages that take turns, as `read_dialogues`
            reads them: `messages` or `conversations`, with `images` in their order,
            calls and what tools say among them, and perhaps `tools`.
        out: run folder; the same command again resumes there.
        seed: seed of the order of the rows.
        talk: room of a conversation, and how the test rows are asked.
        sizes: how large the run is.
        choices: what is chosen to fit the memory.
    """
    task = filled(task, reward="accuracy", instruction="")
    if talk.pictures and not talk.program:
        raise ValueError("--pictures is of a --program; rows bring their own.")
    limits = Limits(row_tokens=talk.row_tokens, pictures=talk.pictures)
    asked = named_program(talk.program)[0] if talk.program else None
    by_heart = functools.partial(recited, program=dialogue)
    with reward_of(task) as reward:
        return finetune(
            lambda anchor: sft(by_heart),
            name="SFT",
            claim=f"What {task.model} learns of {task.train}, measured on {task.test}.",
            settings=paid(task),
            model=task.model,
            rows=rows_of(task),
            reward=reward,
            out=out,
            seed=seed,
            sizes=sizes,
            choices=choices,
            program=asked,
            recital=dialogue,
            limits=limits,
        )


if __name__ == "__main__":
    command_line(main)
