"""OpenThinkIMG teaches a tiny Qwen2.5-VL to read what a tool shows of a chart.

Claim     Of a large chart the policy is shown 9 tokens, in which the coloured bar can
          be made out and the small number under it cannot. As JSON with a thought, it
          cuts out a part, is shown that closely, and answers. After 64 demonstrations
          OpenThinkIMG, on 2048 questions with their answers alone, lifts the held-out
          accuracy by more than 10 points. Where the tool gives the chart back as it
          was, the same policy is at chance, a tenth; --tools unchanged trains so.
Command   python experiments/openthinkimg_tiny_charts.py
Hardware  2 CPU cores, 7 GB of memory
Time      about 10 minutes
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
from PIL import Image

from vrl_jax.engine.actor import Actor
from vrl_jax.engine.desk import Limits
from vrl_jax.engine.tools import Tool, run
from vrl_jax.evals import dependency, held_out
from vrl_jax.experiment import (
    Outcome,
    before_and_after,
    command_line,
    export_and_report,
    flat,
    look,
    measured,
    open_run,
    say,
    supervised,
    tiny_actor,
    world_data,
)
from vrl_jax.programs.acting import act
from vrl_jax.programs.recital import demonstrated, recited
from vrl_jax.programs.tool_turns import tool_turns
from vrl_jax.recipes.openthinkimg import (
    ACTIONS,
    DRAWING_TOOLS,
    OBSERVATION,
    first_action,
    in_json,
    openthinkimg,
    terminated,
)
from vrl_jax.recipes.sft import sft
from vrl_jax.rewards.answers import exact
from vrl_jax.rewards.combine import per_response, weighted
from vrl_jax.training.files import read_lines
from vrl_jax.training.learner import adamw
from vrl_jax.training.loop import Stage, run_files, train
from vrl_jax.training.trackers import tensorboard
from vrl_jax.types import Episode, Sample
from vrl_jax.worlds import charts, tasks

MAX_PIXELS = 84 * 84
"""What the policy is shown of a picture: 9 tokens."""

LIMITS = Limits(row_tokens=144, pictures=1)
AT_MOST = {"turns": 2, "images": 1}


def main(
    *,
    out: Path = Path("runs/openthinkimg_tiny_charts"),
    seed: int = 0,
    steps: int = 30,
    tools: Literal["drawing", "unchanged"] = "drawing",
    smoke: bool = False,
) -> Outcome:
    """Demonstrations, then answers alone; measure with the tool and without; export.

    Args:
        out: run folder; the same command again resumes there.
        seed: seed of the data, the first parameters and every random draw.
        steps: steps of reinforcement learning.
        tools: what reinforcement learning has: the recipe's, or the control.
        smoke: a few tiny steps, to see that everything runs.
    """
    out = out / "smoke" if smoke else out
    sizes = SMOKE if smoke else Sizes(rl=steps)
    settings = {"recipe": "OpenThinkIMG", "seed": seed, "tools": tools}
    open_run(out, {**settings, **sizes._asdict()}, __doc__)
    say("1/3 data: charts with numbers in small print, as parquet and read back")
    samples, test = world_data(
        out / "data", train=sizes.train, test=sizes.test, seed=seed, make=numbered
    )
    told = OBSERVATION.format(name="Crop", text="")
    actor = tiny_actor(samples, REWARD, seed=seed, texts=[told], max_pixels=MAX_PIXELS)

    say("2/3 the policy: demonstrations of each turn, of both, then OpenThinkIMG")
    shown = samples[: sizes.demonstrations]
    alone = train(
        [supervised("turns", sft(), each_turn(shown), sizes.turns)],
        dataclasses.replace(actor, reward=per_response(as_demonstrated)),
        folder=out / "turns",
        seed=seed,
        evaluate=functools.partial(measured, samples=each_turn(test), seed=seed),
    )
    actor = dataclasses.replace(actor, params=alone.params)
    recital = functools.partial(recited, program=program(DRAWING_TOOLS), limits=LIMITS)
    stages = [
        supervised("cold start", sft(recital), shown, sizes.cold_start),
        Stage(
            name="rl",
            recipe=openthinkimg(available=TOOLS[tools], limits=LIMITS, **AT_MOST),
            samples=samples,
            steps=sizes.rl,
            prompts_per_step=sizes.prompts,
            optimizer=flat(adamw(2e-4)),
            minibatches=2,
            micro_batches=4,
            evaluate_every=20,
        ),
    ]
    actor = train(
        stages,
        actor,
        folder=out,
        seed=seed,
        evaluate=functools.partial(
            with_tools_and_denied, samples=test, seed=seed, tools=TOOLS[tools]
        ),
        log=tensorboard(out / "tensorboard"),
    )
    say("3/3 which tokens look at the pictures, export and report")
    looked = look(
        actor,
        test[: sizes.examples],
        out,
        dependency.unmarked,
        seed=seed,
        act=playing(TOOLS[tools]),
    )
    report, policy = export_and_report(actor, out)
    evaluations = read_lines(run_files(out).evaluations)
    outcome = Outcome(actor, evaluations, looked, report, policy)
    say(before_and_after(outcome, SHOWN))
    return outcome


SHOWN = {
    "val/accuracy": "held-out accuracy",
    "val/accuracy_tool_denied": "the tool gives the chart back",
    "val/accuracy_shuffled_images": "with shuffled images",
    "val/found_reward": "the number asked for is cut out",
}
"""Of the measurements, before and after the rewards."""


class Sizes(NamedTuple):
    """How large a run is: rows, then steps of each stage."""

    train: int = 2048
    test: int = 256
    demonstrations: int = 64
    turns: int = 80
    cold_start: int = 40
    rl: int = 30
    prompts: int = 32
    examples: int = 32


SMOKE = Sizes(
    train=64,
    test=16,
    demonstrations=16,
    turns=2,
    cold_start=2,
    rl=2,
    prompts=8,
    examples=4,
)


def unchanged(pictures: Sequence[Image.Image], **arguments: Any) -> Image.Image:
    """The control: whatever is asked for, the newest picture as it was."""
    del arguments
    return pictures[-1]


TOOLS: Mapping[str, Mapping[str, Tool]] = {
    "drawing": DRAWING_TOOLS,
    "unchanged": dict.fromkeys(DRAWING_TOOLS, unchanged),
}


def program(available: Mapping[str, Tool]) -> functools.partial:
    """A turn with a tool, then the answer."""
    return functools.partial(tool_turns, available=available, syntax=ACTIONS, **AT_MOST)


def playing(available: Mapping[str, Tool]) -> functools.partial:
    """How questions are answered."""
    return functools.partial(act, program=program(available), limits=LIMITS)


def numbered(count: int, **which: str | int) -> list[Sample]:
    """Charts with a number under each bar, and what is done to read one."""
    return [tasks.number_closely(sample) for sample in charts.numbered(count, **which)]


def each_turn(samples: Sequence[Sample]) -> list[Sample]:
    """The two turns of each demonstration as questions of their own.

    The second is asked about what the tool shows, as if it were the chart.
    """
    alone = []
    for sample in samples:
        first, last = sample.annotations["demonstration"]
        seen = run(first_action(first), DRAWING_TOOLS, sample.images)
        pictures = {first: sample.images, last: seen.images}
        alone += [
            dataclasses.replace(
                sample,
                id=f"{sample.id}-{number}",
                source=f"{sample.source}/{number}",
                images=pictures[said],
                annotations={"demonstration": said},
            )
            for number, said in enumerate((first, last), start=1)
        ]
    return alone


def right(episode: Episode) -> float:
    """Whether the answer is. A digit needs no verifier of mathematics."""
    return float(exact(terminated(episode.text), episode.sample.answer))


def as_demonstrated(episode: Episode) -> float:
    """Whether the first turn does the same."""
    first, *_ = demonstrated(episode.sample)
    return float(first_action(episode.turns[0].text) == first_action(first))


REWARD = weighted(
    {
        "accuracy": (per_response(right), 1.0),
        "format": (in_json, 0.0),
        "found": (per_response(as_demonstrated), 0.0),
    }
)
"""The recipe's, which pays the answer alone; where it looked is only logged."""


def with_tools_and_denied(
    actor: Actor, samples: Sequence[Sample], seed: int, tools: Mapping[str, Tool]
) -> dict[str, float]:
    """Held-out means, also with shuffled pictures, and where the tool shows nothing."""
    key = jax.random.key(seed)
    denied = held_out.answers(actor, samples, key, act=playing(TOOLS["unchanged"]))
    return {
        **held_out.look_and_shuffle(actor, samples, key, act=playing(tools)),
        "val/accuracy_tool_denied": held_out.measurements(denied)["val/accuracy"],
    }


if __name__ == "__main__":
    command_line(main)
