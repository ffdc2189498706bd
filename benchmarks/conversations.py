"""Seconds that conversations with pictures take, read on from their slots or anew.

    python benchmarks/conversations.py

8 pictures of 64 tokens, each talked about 4 times: a question, then behind every
answer of 32 tokens one of the picture's quarters, until there are so many answers. A
tiny policy and one of 25 M parameters play it in turns with themselves: reading on, and
reading every context from its beginning, as a model without `resume` does. Medians. The
tokens are the same in both.
"""

import dataclasses
import functools
import io
import time

import jax
import numpy as np
from PIL import Image

from vrl_jax.engine.actor import Actor
from vrl_jax.engine.conversation import Ask, user
from vrl_jax.engine.desk import Limits
from vrl_jax.engine.episode import Played, Steps
from vrl_jax.engine.packing import Room
from vrl_jax.engine.play import play
from vrl_jax.engine.processing import question
from vrl_jax.experiment import tiny_actor
from vrl_jax.models.parameters import init_params
from vrl_jax.models.qwen_vl.parameters import parameter_table
from vrl_jax.models.qwen_vl.policy import policy
from vrl_jax.types import Sample
from vrl_jax.worlds import digits, scenes
from vrl_jax.worlds.writing import png_bytes

PROMPTS, GROUP, ANSWER, ROUNDS = 8, 4, 32, 3
ANSWERS = (1, 2, 4)
LIMITS = Limits(row_tokens=256, pictures=1)


def quarters(picture: bytes) -> list[bytes]:
    """Four pictures of 16 tokens."""
    pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))
    halves = np.split(pixels, 2)
    return [png_bytes(part) for half in halves for part in np.split(half, 2, axis=1)]


def talk(parts: dict[str, list[bytes]], answers: int, sample: Sample) -> Steps:
    """A quarter behind every answer but the last."""
    context = question(sample)
    said = yield Ask(context)
    for part in parts[sample.id][: answers - 1]:
        context = (*context, said, user("<image>And now?", [part]))
        said = yield Ask(context)
    return said


def policies(samples: list[Sample]) -> dict[str, Actor]:
    """Neither ever stops by itself."""
    words = ["And now?", *(sample.question for sample in samples)]
    seen = digits.sums(1, split="test", seed=0)
    tiny = tiny_actor(seen, lambda episodes: [], seed=0, texts=words)
    room = Room(prompt_tokens=(128,), block=256)
    tiny = dataclasses.replace(
        tiny,
        processor=dataclasses.replace(tiny.processor, room=room),
        max_new_tokens=ANSWER,
        slots=PROMPTS * GROUP,
        allowed=tiny.allowed.at[tiny.stop_ids].set(False),
    )
    spec = tiny.processor.front_end.spec
    text = dataclasses.replace(
        spec.text, layers=8, width=512, mlp=1536, heads=8, rope_sections=(8, 12, 12)
    )
    spec = dataclasses.replace(spec, text=text)
    wide = dataclasses.replace(
        tiny,
        policy=policy(spec),
        params=init_params(jax.random.key(0), parameter_table(spec)),
        processor=dataclasses.replace(
            tiny.processor, front_end=tiny.processor.front_end._replace(spec=spec)
        ),
    )
    return {"tiny": tiny, "25 M": wide}


def tokens(groups: list[list[Played]]) -> list[tuple[int, ...]]:
    """What was written."""
    return [t.tokens for group in groups for one in group for t in one.episode.turns]


def main() -> None:
    """Prints a row of BENCHMARKS.md for each policy and number of answers."""
    samples = scenes.signs(PROMPTS, split="test", seed=0, cells=4, cell_pixels=56)
    parts = {sample.id: quarters(sample.images[0]) for sample in samples}
    for name, actor in policies(samples).items():
        anew = actor.policy._replace(resume=None)
        ways = {"on": actor, "anew": dataclasses.replace(actor, policy=anew)}
        for answers in ANSWERS:
            program = functools.partial(talk, parts, answers)

            def run(one: Actor, program=program) -> list[tuple[int, ...]]:
                key = jax.random.key(0)
                return tokens(
                    play(one, program, samples, key, group_size=GROUP, limits=LIMITS)
                )

            said = {way: run(one) for way, one in ways.items()}  # compiles
            alike = np.mean([a == b for a, b in zip(*said.values(), strict=True)])
            seconds = {way: [] for way in ways}
            for _ in range(ROUNDS):
                for way, taken in seconds.items():
                    start = time.perf_counter()
                    run(ways[way])
                    taken.append(time.perf_counter() - start)
            on, again = (np.median(seconds[way]) for way in ("on", "anew"))
            print(
                f"| {name} | {answers} | {again:.2f} s | {on:.2f} s | "
                f"{again / on:.2f} | {alike:.1%} |",
                flush=True,
            )
    print(f"jax {jax.__version__}")


if __name__ == "__main__":
    main()
