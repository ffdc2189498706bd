r"""GRPO on a released Qwen-VL and rows of your own, such as Geometry3K.

Claim     None of its own yet: no released model was trained with it, what is tested is
          this script on small ones. To be expected, as users of EasyR1 report of its
          GRPO: on Geometry3K's 601 test rows, 0.9 accuracy + 0.1 format goes from 0.37
          to 0.48 for Qwen2.5-VL-7B and from 0.24 to 0.38 for 3B.
Command   python experiments/grpo_qwen_geometry3k.py \
          --model Qwen/Qwen2.5-VL-3B-Instruct \
          --train geometry3k/train.parquet --test geometry3k/test.parquet
          and for EasyR1's sizes --prompts 512 --minibatches 4 --min-pixels 262144 \
          --max-pixels 4194304 --kl-weight 0.01 --reference device;
          with --lora-rank 16 --learning-rate 1e-5 adapters alone are trained
Hardware  what `vrl-jax plan --recipe grpo --group 5` says fits, with the sizes that
          this script tells; its last line is flags of this
Time      see the plan; the demo's policy on a CPU: README.md, "Your own model and data"
"""

import functools
from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes

from vrl_jax.experiment import command_line
from vrl_jax.finetuning import Outcome, finetune
from vrl_jax.finetuning_flags import Sizes, Task, filled, paid, reward_of, rows_of
from vrl_jax.recipes.grpo import grpo
from vrl_jax.training.choices import Choices

SIZES = Sizes()
CHOICES = Choices()


def main(
    *,
    task: Annotated[Task, OmitArgPrefixes],
    out: Path = Path("runs/grpo_qwen_geometry3k"),
    group: int = 5,
    kl_weight: float = 0.0,
    seed: int = 0,
    sizes: Annotated[Sizes, OmitArgPrefixes] = SIZES,
    choices: Annotated[Choices, OmitArgPrefixes] = CHOICES,
) -> Outcome:
    """Measure, train, measure, report and export.

    Args:
        task: the model, its rows and what is paid.
        out: run folder; the same command again resumes there.
        group: responses to each prompt: TRL's num_generations.
        kl_weight: weight of the distance from the model as it was; EasyR1's is 0.01.
            Needs --reference device or host.
        seed: seed of the order of the rows and of every random draw.
        sizes: how large the run is.
        choices: what is chosen to fit the memory.
    """
    task = filled(task)
    with reward_of(task) as reward:
        return finetune(
            functools.partial(_method, group),
            name="GRPO",
            claim=f"What GRPO makes of {task.model} on {task.train}, measured on "
            f"{task.test}.",
            settings={**paid(task), "group": group},
            model=task.model,
            rows=rows_of(task),
            reward=reward,
            out=out,
            seed=seed,
            sizes=sizes,
            choices=choices,
            kl_weight=kl_weight,
        )


def _method(group, anchor):
    return grpo(group_size=group, anchor=anchor)


if __name__ == "__main__":
    command_line(main)
