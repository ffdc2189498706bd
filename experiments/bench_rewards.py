"""How fast rewards are: math answers, box sets, texts; and a slow verifier overlapped.

Claim     4096 math answers in under 10 s and 4096 box sets in under 1 s. Times exclude
          compilation and the start of the workers, which are given apart; the answers
          differ, so that none is answered from another.
Command   python experiments/bench_rewards.py --json
Hardware  2 CPU cores
Time      about half a minute
"""

import itertools
import os
import platform
import resource
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from json import dumps

import jax
import numpy as np

from vrl_jax.experiment import command_line
from vrl_jax.rewards import boxes, text
from vrl_jax.rewards.boxed import boxed_math
from vrl_jax.rewards.math_verifier import MathVerifier
from vrl_jax.rewards.mathruler import mathruler
from vrl_jax.rewards.parse import last_boxed
from vrl_jax.rewards.parse_boxes import as_boxes, detections
from vrl_jax.types import Episode, Sample, Turn

GOLD_BOXES = 8


def main(
    *,
    count: int = 4096,
    workers: int = 2,
    smoke: bool = False,
    json: bool = False,
) -> dict[str, float | int | str]:
    """Seconds for `count` answers of each kind.

    Args:
        count: of answers, box sets and captions; a multiple of 8.
        workers: processes that compare mathematics.
        smoke: 64 of each.
        json: print one JSON object and nothing else.
    """
    count = 64 if smoke else count
    figures: dict[str, float | int | str] = {
        "count": count,
        "workers": workers,
        "cores": os.cpu_count() or 1,
        "machine": platform.machine(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "load": os.getloadavg()[0],  # above the cores: others were at work
    }
    for measure in (math_figures, ruler_figures, overlap_figures):
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        with MathVerifier(workers=workers) as verifier:
            start = time.perf_counter()
            verifier.check([(str(i), "7") for i in range(4 * workers)])
            figures["workers_start_s"] = time.perf_counter() - start
            figures |= measure(verifier, count)
        used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
        # Divided by the cores: the time on a machine that has nothing else to do.
        figures[f"{measure.__name__.removesuffix('_figures')}_cpu_s"] = used
    figures |= box_figures(count)
    figures |= text_figures(count)
    if json:
        print(dumps(figures))
    else:
        for name, value in figures.items():
            shown = f"{value:.3f}" if isinstance(value, float) else value
            print(f"{name:28} {shown}")
    return figures


def seconds(call: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def groups_of_answers(count: int) -> list[list[Episode]]:
    """Groups of 8 different answers: golds are integers (half), fractions, formulas."""
    groups = []
    for number in range(count // 8):
        a, b = 3 * number + 1, number + 7
        fraction = rf"\frac{{{a}}}{{{b}}}"
        integers = (
            str(a),
            [str(a), f"{a}.0", str(b), str(a + 9), f"{a}+1", rf"{a}\%", f"x={a}", ""],
        )
        fractions = (
            fraction,
            [
                fraction,
                rf"\frac{{{2 * a}}}{{{2 * b}}}",
                f"{a / b:.7f}",
                rf"\frac{{{a + 1}}}{{{b}}}",
                f"{a}/{b}",
                f"{number}",
                rf"{a}+\sqrt{{{b}}}",
                "",
            ],
        )
        formulas = (
            rf"{a}\sqrt{{{b}}}",
            [
                rf"{a}\sqrt{{{b}}}",
                rf"\sqrt{{{a * a * b}}}",
                f"{a * b**0.5:.7f}",
                rf"{a}+\sqrt{{{b}}}",
                f"x^{{2}}-{a}x",
                f"({a}, {b})",
                f"{number}",
                "",
            ],
        )
        gold, given = (integers, integers, fractions, formulas)[number % 4]
        sample = Sample(str(number), "bench", "?", (), gold)
        groups.append(
            [
                Episode(
                    sample, "?", (Turn(rf"so \boxed{{{box}}}", (1,)),), finished=True
                )
                for box in given
            ]
        )
    return groups


def math_figures(verifier: MathVerifier, count: int) -> dict[str, float]:
    """The math reward by math-verify, from responses to scores."""
    everything = [e for group in groups_of_answers(count) for e in group]
    reward = boxed_math(verifier)
    return {"math_s": seconds(lambda: reward(everything))}


def ruler_figures(verifier: MathVerifier, count: int) -> dict[str, float]:
    """The same answers by mathruler's rule."""
    everything = [e for group in groups_of_answers(count) for e in group]
    pairs = [(last_boxed(e.text) or "", e.sample.answer) for e in everything]
    return {"ruler_s": seconds(lambda: mathruler(verifier, pairs))}


def overlap_figures(verifier: MathVerifier, count: int) -> dict[str, float]:
    """A verifier that works in other processes while this one samples.

    Sampling is a jitted loop that takes about as long as the verifier does.
    """
    everything = [e for group in groups_of_answers(max(count // 8, 8)) for e in group]
    reward = boxed_math(verifier)
    scored = seconds(lambda: reward(everything))
    step = jax.jit(lambda x: jax.numpy.tanh(x @ x))
    x = jax.block_until_ready(step(np.eye(512, dtype=np.float32)))

    def sample() -> None:
        end = time.perf_counter() + scored
        while time.perf_counter() < end:
            jax.block_until_ready(step(x))

    def both() -> None:
        with ThreadPoolExecutor(1) as thread:
            waiting = thread.submit(reward, everything)
            sample()
            waiting.result()

    return {"verify_s": scored, "sample_s": scored, "overlapped_s": seconds(both)}


def box_figures(count: int) -> dict[str, float]:
    """Sets of up to 8 boxes against 8: reading the JSON, and three rules, jitted."""
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 900, (count, GOLD_BOXES, 2))
    gold = np.concatenate([corners, corners + rng.uniform(20, 100, corners.shape)], -1)
    moved = gold + rng.normal(0, 8, gold.shape)
    responses = [
        dumps([{"bbox_2d": box, "label": "a"} for box in row.round(1).tolist()])
        for row in moved
    ]
    read: list = []

    def parse() -> None:
        found = [
            as_boxes(detections(response), size=GOLD_BOXES, labels=["a"])
            for response in responses
        ]
        read.append(jax.tree.map(lambda *x: np.stack(x), *found))

    figures = {"boxes_parse_s": seconds(parse)}
    full = np.ones((count, GOLD_BOXES))
    truth = boxes.Boxes(
        gold.astype(np.float32), full.astype(bool), np.zeros_like(full, int), full
    )
    for rule in (boxes.hungarian_f1, boxes.label_first_score, boxes.union_iou):
        compiled = jax.jit(jax.vmap(rule))
        jax.block_until_ready(compiled(read[0], truth))
        name = f"boxes_{rule.__name__}_s"
        figures[name] = seconds(
            lambda c=compiled: jax.block_until_ready(c(read[0], truth))
        )
    figures["boxes_s"] = figures["boxes_parse_s"] + figures["boxes_hungarian_f1_s"]
    return figures


def text_figures(count: int) -> dict[str, float]:
    """Captions of 30 words against each other."""
    rng = np.random.default_rng(1)
    words = [f"w{i}" for i in range(200)]
    captions = [" ".join(rng.choice(words, 30)) for _ in range(count + 1)]
    pairs = list(itertools.pairwise(captions))
    rules = (text.token_f1, text.bleu4, text.rouge_l, text.edit_similarity)
    return {
        f"text_{rule.__name__}_s": seconds(lambda r=rule: [r(a, b) for a, b in pairs])
        for rule in rules
    }


if __name__ == "__main__":
    command_line(main)
