"""ERGO teaches a tiny Qwen2.5-VL, which looks closely, to read what it then sees.

Claim     Of a large picture the policy is shown 9 tokens, in which a sign can be made
          out and the digit on it cannot. It names a region, is shown that one closely,
          and answers. After 512 demonstrations ERGO, on 2048 questions with their
          answers alone, lifts the held-out accuracy by more than 10 points; with the
          pictures shuffled it is at chance, a tenth. The frozen reader of the paper is
          here as tiny, taught by supervised steps on crops of 2048 other pictures.
Command   python experiments/ergo_tiny_scenes.py
Hardware  2 CPU cores, 4 GB of memory
Time      about 10 minutes; --smoke: a minute and a half
"""

import dataclasses
import functools
from pathlib import Path
from typing import NamedTuple

import jax

from vrl_jax.engine.desk import Limits
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
from vrl_jax.programs.recital import recited
from vrl_jax.recipes.ergo import (
    asked_closely,
    closer,
    coarse_to_fine,
    ergo,
    ergo_reward,
    right_answer,
    shrunk,
    zoom_box,
)
from vrl_jax.recipes.sft import sft
from vrl_jax.rewards.combine import per_response
from vrl_jax.training.files import read_lines
from vrl_jax.training.learner import adamw
from vrl_jax.training.loop import Stage, run_files, train
from vrl_jax.training.trackers import tensorboard
from vrl_jax.types import Episode, Sample
from vrl_jax.worlds import scenes, tasks

SEEN = {"tokens": 9, "side": 28}
"""What the policy is shown of a picture, and of a region."""

WORDS = {
    "find": "{question} Think where, then zoom.",
    "zoomed": "<image>Closer. {question} Answer.",
}
LIMITS = Limits(row_tokens=80, pictures=1)
PROGRAM = functools.partial(coarse_to_fine, **SEEN, **WORDS)


def main(
    *,
    out: Path = Path("runs/ergo_tiny_scenes"),
    seed: int = 0,
    steps: int = 30,
    smoke: bool = False,
) -> Outcome:
    """Train a reader, then the policy by demonstrations and by ERGO; report, export.

    Args:
        out: run folder; the same command again resumes there.
        seed: seed of the data, the first parameters and every random draw.
        steps: steps of reinforcement learning.
        smoke: a few tiny steps, to see that everything runs.
    """
    out = out / "smoke" if smoke else out
    sizes = SMOKE if smoke else Sizes(rl=steps)
    open_run(out, {"recipe": "ERGO", "seed": seed, **sizes._asdict()}, __doc__)
    say("1/4 data: pictures of land with a sign somewhere, as parquet and read back")
    samples, test = world_data(
        out / "data", train=sizes.train, test=sizes.test, seed=seed, make=signs
    )
    # The tokenizer and the budgets are of what is shown, not of the large pictures.
    coarse = [opening(sample) for sample in samples]
    others = signs(sizes.train, split="train", seed=seed + 1)
    crops = [crop(sample) for sample in others]
    words = [crops[0].question, *map(str, crops[0].annotations.values())]
    actor = tiny_actor(coarse, ergo_reward(), seed=seed, texts=words)

    learn = functools.partial(train, seed=seed)
    say("2/4 a reader of crops, by supervised steps, frozen from then on")
    reader = learn(
        [supervised("reader", sft(), crops, sizes.reading)],
        dataclasses.replace(actor, reward=per_response(right)),
        folder=out / "reader",
        evaluate=functools.partial(
            measured, samples=[crop(sample) for sample in test], seed=seed
        ),
    )
    reader = dataclasses.replace(reader, top_k=1)

    say("3/4 the policy: demonstrations of where, then of both turns, then ERGO")
    pointing = learn(
        [supervised("where", sft(), coarse[: sizes.demonstrations], sizes.pointing)],
        dataclasses.replace(actor, reward=per_response(as_demonstrated)),
        folder=out / "where",
        evaluate=functools.partial(
            measured, samples=[opening(sample) for sample in test], seed=seed
        ),
    )
    actor = dataclasses.replace(actor, params=pointing.params)
    told = {"program": PROGRAM, "models": ["reader"], "limits": LIMITS}
    stages = [
        supervised(
            "cold start",
            sft(functools.partial(recited, **told)),
            samples[: sizes.demonstrations],
            sizes.cold_start,
        ),
        Stage(
            name="rl",
            recipe=ergo(reader=reader, limits=LIMITS, **SEEN, **WORDS),
            samples=samples,
            steps=sizes.rl,
            prompts_per_step=sizes.prompts,
            optimizer=flat(adamw(3e-4)),
            minibatches=2,
            micro_batches=4,
            evaluate_every=20,
        ),
    ]
    played = {"program": PROGRAM, "models": {"reader": reader}, "limits": LIMITS}
    looking = functools.partial(act, **played)
    actor = learn(
        stages,
        actor,
        folder=out,
        evaluate=functools.partial(
            held_out.look_and_shuffle,
            samples=test,
            key=jax.random.key(seed),
            act=looking,
        ),
        log=tensorboard(out / "tensorboard"),
    )
    say("4/4 which tokens look at the pictures, export and report")
    looked = look(
        actor,
        test[: sizes.examples],
        out,
        dependency.unmarked,
        seed=seed,
        act=looking,
    )
    report, policy = export_and_report(actor, out)
    evaluations = read_lines(run_files(out).evaluations)
    outcome = Outcome(actor, evaluations, looked, report, policy)
    say(before_and_after(outcome, SHOWN))
    return outcome


SHOWN = {
    "val/accuracy": "held-out accuracy",
    "val/accuracy_shuffled_images": "with shuffled images",
    "val/region_reward": "the reader is right from the crop",
}
"""Of the measurements, before and after the rewards."""


class Sizes(NamedTuple):
    """How large a run is: rows, then steps of each stage."""

    train: int = 2048
    test: int = 256
    demonstrations: int = 512
    reading: int = 100
    pointing: int = 80
    cold_start: int = 40
    rl: int = 30
    prompts: int = 32
    examples: int = 32


SMOKE = Sizes(
    train=64,
    test=16,
    demonstrations=16,
    reading=2,
    pointing=2,
    cold_start=2,
    rl=2,
    prompts=8,
    examples=4,
)


def signs(count: int, **which: str | int) -> list[Sample]:
    """Large pictures with a digit on a sign, and what is said of them."""
    drawn = scenes.signs(count, **which)
    return [tasks.sign_in_region(sample) for sample in drawn]


def opening(sample: Sample) -> Sample:
    """The first turn alone: the picture as it is shown, and where the sign is."""
    pointed, *_ = sample.annotations["demonstration"]
    return dataclasses.replace(
        sample,
        question=WORDS["find"].format(question=sample.question),
        images=(shrunk(sample.images[0], **SEEN),),
        annotations={"demonstration": pointed},
    )


def crop(sample: Sample) -> Sample:
    """What the reader is asked: the region of the demonstration, and the question."""
    pointed, answer, _ = sample.annotations["demonstration"]
    look = closer(sample.images[0], pointed, **SEEN)
    asked = asked_closely(sample, look, WORDS["zoomed"])
    return dataclasses.replace(
        sample,
        question=asked.text,
        images=asked.images,
        annotations={"demonstration": answer},
    )


def as_demonstrated(episode: Episode) -> dict[str, float]:
    """Whether the same region is named."""
    shown = episode.sample.annotations["demonstration"]
    return {"overall": float(zoom_box(episode.text) == zoom_box(shown))}


def right(episode: Episode) -> dict[str, float]:
    """Whether the last answer is."""
    return {"overall": float(right_answer(episode.sample, episode.turns[-1]))}


if __name__ == "__main__":
    command_line(main)
