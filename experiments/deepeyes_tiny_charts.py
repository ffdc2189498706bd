"""From a folder that knows nothing to a policy that calls its tool, by DeepEyes.

Claim     What the scripts for released models do, small enough for a laptop: a model's
          folder and files of rows are all that they are given. 64 conversations with a
          tool, and their turns one by one, teach an untrained tiny Qwen2.5-VL to cut a
          number out of a chart in which it is too small to be read. DeepEyes, on 2048
          questions with their answers alone, then lifts the held-out accuracy by more
          than 10 points.
Command   python experiments/deepeyes_tiny_charts.py
Hardware  2 CPU cores, 10 GB of memory
Time      about 20 minutes beside other work
"""

import base64
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vrl_jax.engine.desk import Limits
from vrl_jax.engine.tools import run
from vrl_jax.experiment import command_line, tiny_actor
from vrl_jax.finetuning import Outcome, finetune
from vrl_jax.finetuning_flags import Rows
from vrl_jax.finetuning_flags import Sizes as RunSizes
from vrl_jax.models import hub
from vrl_jax.programs.dialogue import dialogue
from vrl_jax.programs.recital import demonstrated, recited
from vrl_jax.recipes.deepeyes import (
    CALLS,
    ZOOM_TOOLS,
    deepeyes,
    deepeyes_reward,
    last_call,
    look_closer,
)
from vrl_jax.recipes.sft import sft
from vrl_jax.rewards.answers import exact
from vrl_jax.rewards.combine import per_response
from vrl_jax.rewards.parse import answer_tag
from vrl_jax.training import processes
from vrl_jax.training.choices import Choices
from vrl_jax.types import Episode, Sample
from vrl_jax.worlds import charts, tasks
from vrl_jax.worlds.writing import write_parquet

MAX_PIXELS = 84 * 84
"""What the policy is shown of a picture: 9 tokens."""

LIMITS = Limits(row_tokens=160, pictures=1)
TURNS = 2
PROGRAM = functools.partial(look_closer, turns=TURNS)
CHOICES = Choices(precision="float32", micro_batches=4)


class Sizes(NamedTuple):
    """How large a run is: rows, then steps of each part."""

    train: int = 2048
    test: int = 256
    demonstrations: int = 64
    cold_start: int = 90
    rl: int = 40
    prompts: int = 32
    examples: int = 32


SMOKE = Sizes(32, 8, 8, 1, 6, 8, 4)


def main(
    *,
    out: Path = Path("runs/deepeyes_tiny_charts"),
    seed: int = 0,
    steps: int = 40,
    smoke: bool = False,
) -> tuple[Outcome, Outcome]:
    """Write a folder and rows; learn conversations by heart, then by rewards.

    Args:
        out: folder of the model, the rows and both runs; the same command resumes.
        seed: seed of the data, the first parameters and every random draw.
        steps: steps of reinforcement learning.
        smoke: a few tiny steps, to see that everything runs.
    """
    out = out / "smoke" if smoke else out
    sizes = SMOKE if smoke else Sizes(rl=steps)
    train, test = (
        [tasks.number_in_part(sample) for sample in samples]
        for samples in (
            charts.numbered(sizes.train, split="train", seed=seed),
            charts.numbered(sizes.test, split="test", seed=seed),
        )
    )
    shown = train[: sizes.demonstrations]
    model, traces = out / "model", out / "traces.jsonl"
    files = (out / "train.parquet", out / "test.parquet")
    if processes.leads():
        for samples, file in zip((train, test), files, strict=True):
            write_parquet(samples, file)
        traces.write_text("\n".join(map(json.dumps, conversations(shown))))
        untrained(model, shown, seed=seed)
    processes.wait()
    run = {
        "reward": deepeyes_reward(per_response(right)),
        "seed": seed,
        "program": PROGRAM,
        "limits": LIMITS,
    }
    cold = finetune(
        lambda anchor: sft(functools.partial(recited, program=dialogue)),
        name="SFT",
        claim=__doc__,
        settings={},
        model=str(model),
        rows=Rows(traces, files[1]),
        out=out / "cold_start",
        recital=dialogue,
        sizes=_sizes(sizes, steps=sizes.cold_start, learning_rate=1e-3)._replace(
            prompts=min(64, 3 * sizes.demonstrations), examples=0
        ),
        choices=CHOICES,
        **run,
    )
    last = finetune(
        lambda anchor: deepeyes(
            group_size=8, turns=TURNS, limits=LIMITS, anchor=anchor
        ),
        name="DeepEyes",
        claim=__doc__,
        settings={"group": 8},
        model=str(cold.policy),
        rows=Rows(*files),
        out=out / "rl",
        sizes=_sizes(sizes, steps=sizes.rl, learning_rate=1e-4, warmup_steps=5),
        choices=CHOICES._replace(minibatches=2),
        **run,
    )
    return cold, last


def _sizes(sizes: Sizes, **own: Any) -> RunSizes:
    return RunSizes(
        prompts=sizes.prompts,
        response_tokens=96,
        max_pixels=MAX_PIXELS,
        min_pixels=28 * 28,
        evaluate_every=20,
        test_rows=None,
        examples=sizes.examples,
        **own,
    )


def right(episode: Episode) -> float:
    """Whether the answer is. A digit needs no verifier of mathematics."""
    return float(exact(answer_tag(episode.text) or "", episode.sample.answer))


def conversations(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """Rows of messages: each turn by itself, of what it shows, and both together."""
    rows = []
    for sample in samples:
        first, last = demonstrated(sample)
        (call,) = last_call(first)
        seen = run(call, ZOOM_TOOLS, sample.images)
        chart, part = (_uri(images) for images in (sample.images, seen.images))
        asked, told = sample.question, CALLS.told(call, seen.text)
        for name, texts, images in (
            ("calls", (asked, first), [chart]),
            ("answers", (asked, last), [part]),
            ("both", (asked, first, told, last), [chart, part]),
        ):
            said = zip(("user", "assistant") * 2, texts, strict=False)
            rows.append(
                {
                    "id": f"{sample.id}-{name}",
                    "messages": [{"role": r, "content": text} for r, text in said],
                    "images": images,
                    "answer": sample.answer,
                }
            )
    return rows


def _uri(images: Sequence[bytes]) -> str:
    (image,) = images
    return f"data:image/png;base64,{base64.b64encode(image).decode()}"


def untrained(folder: Path, samples: Sequence[Sample], *, seed: int) -> None:
    """A tiny model as a Hugging Face folder, its tokenizer made for the samples."""
    (call,) = last_call(demonstrated(samples[0])[0])
    actor = tiny_actor(
        samples,
        per_response(right),
        seed=seed,
        texts=[CALLS.told(call, "")],
        max_pixels=MAX_PIXELS,
    )
    front_end = actor.processor.front_end
    hub.save(
        folder,
        front_end.spec,
        actor.params,
        tokenizer=actor.processor.tokenizer,
        pixel_bounds=front_end.pixel_bounds,
    )


if __name__ == "__main__":
    command_line(main)
