r"""PPO, with a critic, on a released Qwen-VL or Gemma and rows of your own.

Claim     None of its own: no released model was trained with it, what is tested are its
          parts on small ones. On the digits PPO gains about what GRPO does, and its
          critic foresees little: experiments/README.md, "A critic or a group".
Command   python experiments/ppo_qwen_geometry3k.py \
          --model Qwen/Qwen2.5-VL-3B-Instruct \
          --train geometry3k/train.parquet --test geometry3k/test.parquet
          and for sizes of verl's examples --prompts 1024 --minibatches 4 \
          --kl-weight 0.001 --reference device;
          with --lora-rank 16 --learning-rate 1e-5 adapters and the critic are trained
Hardware  what `vrl-jax plan --recipe ppo --group 1` says fits, with the sizes that
          this script tells; its last line is flags of this
Time      see the plan; not measured
"""

import functools
from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes

from vrl_jax import divergences
from vrl_jax.engine.reference import measured_by
from vrl_jax.experiment import command_line
from vrl_jax.finetuning import Outcome, finetune
from vrl_jax.finetuning_flags import Sizes, Task, filled, paid, reward_of, rows_of
from vrl_jax.models.critic import linear
from vrl_jax.recipes.ppo import ppo
from vrl_jax.training.choices import Choices

SIZES = Sizes()
CHOICES = Choices()


def main(
    *,
    task: Annotated[Task, OmitArgPrefixes],
    out: Path = Path("runs/ppo_qwen_geometry3k"),
    group: int = 1,
    kl_weight: float = 0.0,
    critic_learning_rate: float = 1e-5,
    seed: int = 0,
    sizes: Annotated[Sizes, OmitArgPrefixes] = SIZES,
    choices: Annotated[Choices, OmitArgPrefixes] = CHOICES,
) -> Outcome:
    """Measure, train, measure, report and export.

    Args:
        task: the model, its rows and what is paid.
        out: run folder; the same command again resumes there.
        group: responses to each prompt: verl's rollout.n.
        kl_weight: what a token pays of its reward for its distance, k1, from the model
            as it was; verl's kl_coef. Needs --reference device or host.
        critic_learning_rate: the critic's; its course is that of the policy's.
        seed: seed of the order of the rows and of every random draw.
        sizes: how large the run is.
        choices: what is chosen to fit the memory.
    """
    task = filled(task)
    with reward_of(task) as reward:
        return finetune(
            functools.partial(_method, group),
            name="PPO",
            claim=f"What PPO makes of {task.model} on {task.train}, measured on "
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
            critics={"value": linear},
            critic_learning_rate=critic_learning_rate,
        )


def _method(group, anchor):
    return ppo(group_size=group, anchor=measured_by(divergences.k1, anchor))


if __name__ == "__main__":
    command_line(main)
