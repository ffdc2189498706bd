r"""DeepEyes on a released Qwen-VL and rows of your own, such as V*'s.

Claim     None of its own yet: no released model was trained with it, what is tested is
          this script on small ones. To be expected, as the authors report of theirs:
          without any label of places, the parts that are asked for come to lie where
          the answer is, and the tool is called more sparingly.
Command   python experiments/deepeyes_qwen_vstar.py \
          --model Qwen/Qwen2.5-VL-7B-Instruct \
          --train vstar/train.parquet --test vstar/test.parquet --frame resized
          and for the released rows, which tell of the tool themselves and whose answers
          are sentences, --instruction "" --system "" --reward my_judge.py:f; for the
          paper's sizes --prompts 256 --group 16 --response-tokens 10240
          --row-tokens 20480. It is measured by vrl-jax eval --pictures 4 with the
          --instruction and --system that config.json has and --program
          vrl_jax.recipes.deepeyes:look_closer or, with --frame, my_look.py:look:
          tools = zoom_tools(load_front_end("runs/deepeyes_qwen_vstar/policy"), resized)
          look = functools.partial(look_closer, available=tools)
Hardware  what `vrl-jax plan --recipe grpo --pictures 4` says fits, with the sizes that
          this script tells and --response-tokens for its --row-tokens
Time      not measured; small policies on a CPU: experiments/README.md
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, NamedTuple

from tyro.conf import OmitArgPrefixes

from vrl_jax.engine.desk import Limits
from vrl_jax.engine.pretrained import load_front_end
from vrl_jax.engine.reference import Anchor
from vrl_jax.engine.tools import Tool
from vrl_jax.experiment import command_line
from vrl_jax.finetuning import Outcome, finetune
from vrl_jax.finetuning_flags import Sizes, Task, filled, paid, reward_of, rows_of
from vrl_jax.models import hub
from vrl_jax.recipes.deepeyes import (
    INSTRUCTION,
    deepeyes,
    deepeyes_reward,
    look_closer,
    tools_message,
    zoom_tools,
)
from vrl_jax.rewards.named import FRAMES
from vrl_jax.training.choices import Choices
from vrl_jax.training.iteration import Recipe

UNITS: Mapping[str, str] = {
    "original": "pixels of its file",
    "resized": "pixels",
    "norm1000": "thousandths of its width and height",
    "norm1": "parts of its width and height, from 0 to 1",
}
"""What the model is told of boxes, by --frame."""


class Talk(NamedTuple):
    """What an episode may come to; the script's flags."""

    turns: int = 5
    """most answers in an episode; the last one calls no more"""
    pictures: int = 4
    """parts of pictures for which there is room, each as large as a whole one"""
    row_tokens: int = 8192
    """most tokens of all answers with what is said and shown between them"""


SIZES = Sizes()
CHOICES = Choices()
TALK = Talk()


def main(
    *,
    task: Annotated[Task, OmitArgPrefixes],
    out: Path = Path("runs/deepeyes_qwen_vstar"),
    group: int = 8,
    kl_weight: float = 0.0,
    seed: int = 0,
    talk: Annotated[Talk, OmitArgPrefixes] = TALK,
    sizes: Annotated[Sizes, OmitArgPrefixes] = SIZES,
    choices: Annotated[Choices, OmitArgPrefixes] = CHOICES,
) -> Outcome:
    """Measure, train, measure, report and export.

    Args:
        task: the model, its rows and what is paid for the answer: as `accuracy`, which
            the method's other rewards are added to.
        out: run folder; the same command again resumes there.
        group: episodes of each prompt; the paper's 16.
        kl_weight: weight of the distance from the model as it was; the paper has none.
            Needs --reference device or host.
        seed: seed of the order of the rows and of every random draw.
        talk: what an episode may come to.
        sizes: how large the run is.
        choices: what is chosen to fit the memory.
    """
    frame = task.frame or "original"
    if frame not in UNITS:
        raise ValueError(f"--frame is one of {', '.join(UNITS)}, got {frame!r}.")
    if talk.turns < 1 or group < 2:
        raise ValueError(
            "--turns is at least 1 and --group, of which rewards are compared, at "
            f"least 2, got {talk.turns} and {group}."
        )
    system = tools_message(UNITS[frame])
    task = filled(task, reward="accuracy", instruction=INSTRUCTION, system=system)
    bounds = {"min_pixels": sizes.min_pixels, "max_pixels": sizes.max_pixels}
    front_end = load_front_end(hub.local(task.model), **bounds)
    tools = zoom_tools(front_end, FRAMES[frame])
    limits = Limits(row_tokens=talk.row_tokens, pictures=talk.pictures)
    with reward_of(task) as accuracy:
        return finetune(
            functools.partial(_method, group, talk.turns, tools, limits),
            name="DeepEyes",
            claim=f"What DeepEyes makes of {task.model} on {task.train}, measured on "
            f"{task.test}.",
            settings={**paid(task), "group": group, "turns": talk.turns},
            model=task.model,
            rows=rows_of(task),
            reward=deepeyes_reward(accuracy),
            out=out,
            seed=seed,
            sizes=sizes,
            choices=choices,
            kl_weight=kl_weight,
            program=functools.partial(look_closer, available=tools, turns=talk.turns),
            limits=limits,
        )


def _method(
    group: int, turns: int, tools: Mapping[str, Tool], limits: Limits, anchor: Anchor
) -> Recipe:
    return deepeyes(
        group_size=group, available=tools, turns=turns, limits=limits, anchor=anchor
    )


if __name__ == "__main__":
    command_line(main)
