r"""RACRO on a released Qwen-VL, a frozen reasoner, and rows such as ViRL39K's.

Claim     None of its own yet: no released model was trained with it, and it has run on
          generated checkpoints alone, a tiny Qwen2.5-VL with a tiny Gemma 3 as its
          reasoner. To be expected, as the authors report: what a reasoner of 7B makes
          of captions by Qwen2.5-VL-7B and of the question is right in 46.9 % of seven
          benchmarks' questions, where Qwen2.5-VL-7B alone is in 42.0 %.
Command   python experiments/racro_qwen_virl39k.py \
          --model Qwen/Qwen2.5-VL-3B-Instruct --reasoner google/gemma-3-12b-it \
          --train virl39k/train.parquet --test virl39k/test.parquet
          and for the code's sizes --prompts 256 --minibatches 2 --response-tokens 8192
          --weight-decay 0.01 --kl-weight 0.001 --reference device. The authors'
          reasoner, DeepSeek-R1-Distill-Qwen-7B, has no tower, and is of no family that
          is read here: a reasoner is a Qwen2-VL, Qwen2.5-VL, Qwen3-VL or Gemma 3, and
          sees no picture. What it pays is measured by vrl-jax eval
          --program vrl_jax.recipes.racro:captioned --frozen reasoner=FOLDER
          --reward vrl_jax/recipes/racro.py:solved, which compares texts
Hardware  what `vrl-jax plan --recipe grpo --group 4 --frozen MODEL` says fits, with the
          sizes that this script tells; captions and answers are written side by side,
          and the reasoner's memory of what it reads is not in that plan
Time      not measured
"""

import functools
from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes

from vrl_jax import divergences
from vrl_jax.engine.actor import Actor
from vrl_jax.engine.desk import Limits
from vrl_jax.engine.frozen import ASKING, Asking
from vrl_jax.engine.reference import Anchor, measured_by
from vrl_jax.experiment import command_line
from vrl_jax.finetuning import Outcome, finetune
from vrl_jax.finetuning_flags import Sizes, Task, filled, paid, reward_of, rows_of
from vrl_jax.recipes.racro import captioned, racro, reasoned
from vrl_jax.training.choices import Choices
from vrl_jax.training.iteration import Recipe

SIZES = Sizes()
CHOICES = Choices()
LIMITS = Limits()
"""Caption and answer are conversations of different models: each has its own."""


def main(
    *,
    task: Annotated[Task, OmitArgPrefixes],
    reasoner: str,
    out: Path = Path("runs/racro_qwen_virl39k"),
    group: int = 4,
    kl_weight: float = 0.0,
    seed: int = 0,
    asking: Annotated[Asking, OmitArgPrefixes] = ASKING,
    sizes: Annotated[Sizes, OmitArgPrefixes] = SIZES,
    choices: Annotated[Choices, OmitArgPrefixes] = CHOICES,
) -> Outcome:
    """Measure, train, measure, report and export.

    Args:
        task: the model that writes captions, its rows, and what is paid for the
            reasoner's answer; by default mathruler, as in the code.
        reasoner: who answers from a caption and is not trained: a folder or owner/name
            of the hub, of any family; the --model itself too.
        out: run folder; the same command again resumes there.
        group: captions of each prompt, each answered from once.
        kl_weight: weight of the distance from the model as it was; the code's is 0.001.
            Needs --reference device or host.
        seed: seed of the order of the rows and of every random draw.
        asking: how the reasoner is asked.
        sizes: how large the run is.
        choices: what is chosen to fit the memory.
    """
    task = filled(task, reward="mathruler", instruction="")
    with reward_of(task) as reward:
        return finetune(
            functools.partial(_method, group),
            name="RACRO",
            claim=f"What RACRO makes of {task.model} on {task.train}, measured on "
            f"{task.test} by what {reasoner} answers from its captions.",
            settings={**paid(task), "group": group},
            model=task.model,
            rows=rows_of(task),
            reward=reasoned(reward),
            out=out,
            seed=seed,
            sizes=sizes,
            choices=choices,
            kl_weight=kl_weight,
            program=captioned,
            limits=LIMITS,
            frozen={"reasoner": reasoner},
            asking=asking,
        )


def _method(group: int, anchor: Anchor, *, reasoner: Actor) -> Recipe:
    near = measured_by(divergences.low_var_kl, anchor)
    return racro(reasoner=reasoner, group_size=group, anchor=near, limits=LIMITS)


if __name__ == "__main__":
    command_line(main)
