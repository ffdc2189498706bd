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
from vrl_jax.finetuning import Outcome, Rows, Sizes, finetune
from vrl_jax.recipes.grpo import grpo
from vrl_jax.rewards.named import named_reward
from vrl_jax.training.choices import Choices

INSTRUCTION = (
    r"Think step by step between <think> and </think>. Then give the final answer in "
    r"\boxed{}."
)


SIZES = Sizes()
CHOICES = Choices()


def main(
    *,
    model: str,
    train: Path,
    test: Path,
    out: Path = Path("runs/grpo_qwen_geometry3k"),
    reward: str = "math",
    style: str | None = None,
    frame: str | None = None,
    gold_frame: str = "original",
    instruction: str = INSTRUCTION,
    images: Path | None = None,
    group: int = 5,
    kl_weight: float = 0.0,
    seed: int = 0,
    sizes: Annotated[Sizes, OmitArgPrefixes] = SIZES,
    choices: Annotated[Choices, OmitArgPrefixes] = CHOICES,
) -> Outcome:
    """Measure, train, measure, report and export.

    Args:
        model: a Hugging Face folder, or owner/name of the hub.
        train: parquet or JSONL with the columns of EasyR1, TRL, R1-V or verl, or
            FOLDER@SPLIT of TensorFlow Datasets with these.
        test: rows to measure on, in the same form.
        out: run folder; the same command again resumes there.
        reward: a name that `vrl-jax data check` knows, or path.py:function.
        style: whose signature a function of your own has, as in `vrl-jax data check`.
        frame: unit of boxes in responses, for iou, detection and click: original or
            resized (pixels), norm1000 or norm1.
        gold_frame: unit of boxes in the rows' answers.
        instruction: words under each question; "" for none.
        images: folder at which relative picture paths start; by default the file's.
        group: responses to each prompt: TRL's num_generations.
        kl_weight: weight of the distance from the model as it was; EasyR1's is 0.01.
            Needs --reference device or host.
        seed: seed of the order of the rows and of every random draw.
    """
    frames = {"frame": frame, "gold_frame": gold_frame}
    with named_reward(reward, style=style, **frames) as paid:
        return finetune(
            functools.partial(_method, group),
            name="GRPO",
            claim=f"What GRPO makes of {model} on {train}, measured on {test}.",
            settings={"reward": reward, "style": style, "group": group, **frames},
            model=model,
            rows=Rows(train, test, instruction, images),
            reward=paid,
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
