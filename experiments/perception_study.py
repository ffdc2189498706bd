"""VPPO beside its parts, its controls and its baselines: does looking pay?

Claim     None: this measures. Ten methods start from one cold start a seed and take
          the same number of updates from the same questions; held-out accuracy against
          steps and against sampled tokens, and what VPPO's second look costs a step.
          What came out is in experiments/README.md.
Command   python experiments/perception_study.py
Hardware  2 CPU cores, 4 GB of memory
Time      about two hours; runs that have ended are read, not repeated; --smoke: a
          minute
"""

import dataclasses
import json
import shutil
import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from vrl_jax import perception
from vrl_jax.engine.actor import Actor
from vrl_jax.evals import benchmark, held_out
from vrl_jax.experiment import (
    SMOKE,
    Sizes,
    command_line,
    open_run,
    say,
    tiny_actor,
    tiny_stages,
    world_data,
)
from vrl_jax.programs.dynamic_sampling import (
    Keep,
    TooFewGroups,
    every_group,
    mixed_accuracy,
)
from vrl_jax.recipes.dapo import dapo
from vrl_jax.recipes.grpo import grpo
from vrl_jax.recipes.papo import papo
from vrl_jax.recipes.sft import sft
from vrl_jax.recipes.vppo import at_random, blackened_once, entropy, vppo
from vrl_jax.rewards.boxed import boxed_exact
from vrl_jax.rewards.combine import weighted
from vrl_jax.training.files import read_lines, write_json
from vrl_jax.training.iteration import Recipe
from vrl_jax.training.learner import Learner, make_learner, split, update
from vrl_jax.training.loop import Stage, run_files, train
from vrl_jax.types import Sample

SIZES = Sizes(
    cold_start_steps=60,
    rl_steps=60,
    prompts_per_step=32,
    micro_batches=1,
    evaluate_every=15,
)
BASELINE = "dapo + entropy term"
"""DAPO as the paper of VPPO runs it: VPPO's own loss, every token, equal weights."""

TIMED = ("dapo", "vppo", "vppo, one draw a prompt")
"""Whose steps are timed in turn; the first is what the others are compared with."""


def methods(keep: Keep) -> dict[str, Recipe]:
    """What is compared; `keep` says which groups the dynamic sampling of most keeps."""
    sampling = {"group_size": 8, "keep": keep}
    every = {"select": perception.every_token}
    equal = {"shape": perception.equal_weights}
    return {
        "grpo": grpo(group_size=8),
        "dapo": dapo(**sampling),
        # Drawing at random is a score that costs nothing, and nothing reads it here.
        BASELINE: vppo(scoring=at_random, **every, **equal, **sampling),
        "papo": papo(**sampling),
        "vppo": vppo(**sampling),
        "vppo, TGF alone": vppo(**equal, **sampling),
        "vppo, TAS alone": vppo(**every, **sampling),
        "random 40 %": vppo(scoring=at_random, **equal, **sampling),
        "entropy 40 %": vppo(scoring=entropy, **equal, **sampling),
        "vppo, one draw a prompt": vppo(scoring=blackened_once, **sampling),
    }


class World(NamedTuple):
    """What the methods share on one seed: questions, and a policy that has begun."""

    seed: int
    samples: list[Sample]
    test: list[Sample]
    actor: Actor


def make_world(folder: Path, cold: Stage, *, seed: int, sizes: Sizes) -> World:
    """The cold start of a seed: made once, read back afterwards."""
    samples, test = world_data(
        folder / "data", train=sizes.train, test=sizes.test, seed=seed
    )
    actor = tiny_actor(samples, weighted({"accuracy": (boxed_exact, 1.0)}), seed=seed)
    cold = dataclasses.replace(cold, samples=samples[: sizes.demonstrations])
    actor = train(
        [cold], actor, folder=folder, seed=seed, evaluate=evaluation(test, seed)
    )
    return World(seed, samples, test, actor)


def evaluation(
    test: Sequence[Sample], seed: int
) -> Callable[[Actor], Mapping[str, float]]:
    """Held-out accuracy, greedy."""
    key = jax.random.key(seed)
    return lambda actor: {"val/accuracy": held_out.accuracy(actor, test, key)}


def run(world: World, stage: Stage, folder: Path) -> None:
    """One method on one seed. Its checkpoints go when it has ended.

    A policy that has become too sure of itself finds no more mixed groups: that ends a
    run too, and is written down.
    """
    try:
        train(
            [dataclasses.replace(stage, samples=world.samples)],
            world.actor,
            folder=folder,
            seed=world.seed,
            evaluate=evaluation(world.test, world.seed),
        )
        outcome = {"error": None}
    except TooFewGroups as error:
        outcome = {"error": str(error)}
    write_json(folder / "ended.json", outcome)
    shutil.rmtree(folder / "checkpoints")


def ended(folder: Path) -> bool:
    """Whether there is nothing left to do."""
    return (folder / "ended.json").exists()


class Curve(NamedTuple):
    """Held-out accuracies of a run, the cold start's first, and what they had cost."""

    steps: Float[np.ndarray, " E"]
    tokens: Float[np.ndarray, " E"]
    accuracy: Float[np.ndarray, " E"]


def read_curve(cold: Path, folder: Path) -> Curve:
    """From the files of a run."""
    first = read_lines(run_files(cold).evaluations)[-1]["val/accuracy"]
    rows = read_lines(run_files(folder).evaluations)
    sampled = [
        row["data/tokens_played"] for row in read_lines(run_files(folder).metrics)
    ]
    total = np.cumsum([0, *sampled])
    steps = np.array([0, *(row["step"] for row in rows)])
    accuracy = np.array([first, *(row["val/accuracy"] for row in rows)])
    return Curve(steps, total[steps], accuracy)


def interval(
    values: Float[np.ndarray, " S"], *, draws: int = 10_000
) -> tuple[float, float, float]:
    """Mean over the seeds and its 95 % interval by the bootstrap: percentiles.

    Of five seeds it is too narrow: a t interval would be 1.6 times as wide.
    """
    return float(values.mean()), *benchmark.interval(values, draws=draws)


def table(curves: Mapping[str, Mapping[int, Curve]]) -> list[str]:
    """Markdown: a line a method; differences are taken seed by seed."""

    def percent(values: Sequence[float], sign: str) -> str:
        mean, low, high = (100 * x for x in interval(np.array(values)))
        return f"{mean:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"

    lines = [
        f"| method | held-out accuracy, % | over the run, % | minus {BASELINE} "
        "| seeds | tokens sampled |",
        "|---|---|---|---|---|---|",
    ]
    for name, runs in curves.items():
        shared = runs.keys() & curves.get(BASELINE, {}).keys()
        gains = [
            runs[seed].accuracy[-1] - curves[BASELINE][seed].accuracy[-1]
            for seed in sorted(shared)
        ]
        cells = [
            name,
            percent([run.accuracy[-1] for run in runs.values()], ""),
            percent([run.accuracy[1:].mean() for run in runs.values()], ""),
            percent(gains, "+") if gains and name != BASELINE else "",
            str(len(runs)),
            f"{statistics.mean(run.tokens[-1] for run in runs.values()) / 1000:.0f} k",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def draw(curves: Mapping[str, Mapping[int, Curve]], file: Path) -> None:
    """Accuracy against steps and against sampled tokens, means over the seeds."""
    with matplotlib.rc_context({"svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        for number, (name, by_seed) in enumerate(curves.items()):
            runs = list(by_seed.values())
            accuracy = np.stack([curve.accuracy for curve in runs])
            tokens = np.mean([curve.tokens for curve in runs], axis=0)
            bounds = np.array([interval(column)[1:] for column in accuracy.T])
            dashes = "-" if number < 5 else "--"
            for axes, x in ((left, runs[0].steps), (right, tokens / 1000)):
                (line,) = axes.plot(x, accuracy.mean(axis=0), dashes, label=name)
                axes.fill_between(x, *bounds.T, color=line.get_color(), alpha=0.08)
        left.set(xlabel="step", ylabel="held-out accuracy")
        right.set(xlabel="thousand sampled tokens")
        figure.legend(*left.get_legend_handles_labels(), loc="outside right center")
        figure.savefig(file, metadata={"Date": None})


def clocked(function: Callable[[], Any]) -> tuple[Any, float]:
    """What it gives, and the milliseconds until that is there."""
    start = time.perf_counter()
    result = jax.block_until_ready(function())
    return result, 1000 * (time.perf_counter() - start)


def step_parts(
    stage: Stage, world: World, learner: Learner, number: int
) -> tuple[Learner, dict[str, float]]:
    """An iteration, part by part. The policy that plays is always the cold start's."""
    recipe, prompts = stage.recipe, stage.prompts_per_step
    first = number * prompts
    order = np.arange(first, first + len(world.samples)) % len(world.samples)
    batches = iter(
        [world.samples[i] for i in order[start : start + prompts]]
        for start in range(0, len(order), prompts)
    )
    act_key, score_key = jax.random.split(jax.random.key(number))
    actor, spent = world.actor, {}
    rollout, spent["act"] = clocked(lambda: recipe.act(actor, batches, act_key))
    rollout, spent["score"] = clocked(lambda: recipe.score(actor, rollout, score_key))
    (batch, _), spent["credit"] = clocked(lambda: jax.jit(recipe.credit)(rollout))
    start = time.perf_counter()
    for minibatch in split(batch, learner.minibatches):
        learner, _ = update(recipe.loss, learner, minibatch)
    jax.block_until_ready(learner.trained)
    spent["loss"] = 1000 * (time.perf_counter() - start)
    return learner, spent


def cost(
    world: World, stages: Mapping[str, Stage], *, steps: int
) -> dict[str, dict[str, float]]:
    """Median milliseconds of each part of a step; the methods take turns.

    Each plays the same questions with the same keys and the same policy, so that what
    differs is what a method adds; each is as often the first of a round.
    """
    learners, spent, order = {}, {name: [] for name in stages}, deque(stages)
    for name, stage in stages.items():
        learners[name] = make_learner(
            world.actor.policy,
            world.actor.params,
            stage.optimizer,
            world.actor.allowed,
            minibatches=stage.minibatches,
            micro_batches=stage.micro_batches,
        )
    for number in range(steps + 1):
        order.rotate(1)
        for name in order:
            learner = learners[name]
            learners[name], parts = step_parts(stages[name], world, learner, number)
            spent[name].append({**parts, "step": sum(parts.values())})
    return {
        # The first step compiles.
        name: {
            part: statistics.median(row[part] for row in rows[1:]) for part in rows[0]
        }
        for name, rows in spent.items()
    }


def main(
    *,
    out: Path = Path("runs/perception_study"),
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4),
    only: tuple[str, ...] = (),
    cost_steps: int = 20,
    smoke: bool = False,
) -> list[str]:
    """Run what is missing, then print and write the tables and the plot.

    Args:
        out: folder of the runs; the same command again continues there.
        seeds: of the data, the cold start and every draw; each method runs on all.
        only: these methods, by the names of the table; all of them by default.
        cost_steps: how many steps of DAPO and of VPPO are timed in turn.
        smoke: a few tiny steps of every method, to see that everything runs.
    """
    sizes, keep = SIZES, mixed_accuracy
    if smoke:
        out, sizes, keep = out / "smoke", SMOKE, every_group
        seeds, cost_steps = seeds[:2], 2
    open_run(out, sizes._asdict(), __doc__)
    # Made once: jit finds what it compiled on the seed before.
    cold, _ = tiny_stages(sft(), (), sizes)
    stages = {
        name: tiny_stages(recipe, (), sizes)[1]
        for name, recipe in methods(keep).items()
        if not only or name in only
    }
    folders = {
        (seed, name): out / f"seed-{seed}" / slug(name)
        for seed in seeds
        for name in stages
    }
    for seed in seeds:
        missing = [name for name in stages if not ended(folders[seed, name])]
        if missing:
            world = make_world(out / f"seed-{seed}", cold, seed=seed, sizes=sizes)
        for name in missing:
            say(f"seed {seed}: {name}")
            run(world, stages[name], folders[seed, name])
    timed = {name: stages[name] for name in TIMED if name in stages}
    if len(timed) > 1 and not (out / "cost.json").exists():
        world = make_world(out / f"seed-{seeds[0]}", cold, seed=seeds[0], sizes=sizes)
        write_json(out / "cost.json", cost(world, timed, steps=cost_steps))
    return report(out, folders)


def report(out: Path, folders: Mapping[tuple[int, str], Path]) -> list[str]:
    """Tables and plot of the runs that have ended, and which ended early."""
    curves: dict[str, dict[int, Curve]] = {}
    lines = []
    for (seed, name), folder in folders.items():
        if not ended(folder):
            continue
        if error := json.loads((folder / "ended.json").read_text())["error"]:
            lines.append(f"{name}, seed {seed}, ended early: {error}")
        else:
            curve = read_curve(out / f"seed-{seed}", folder)
            curves.setdefault(name, {})[seed] = curve
    draw(curves, out / "curves.svg")
    lines = [*table(curves), "", *lines, ""]
    if (out / "cost.json").exists():
        lines += cost_table(json.loads((out / "cost.json").read_text()))
    (out / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    say("\n".join(lines))
    return lines


def cost_table(spent: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Markdown: milliseconds of each part; in brackets what it adds to a first step."""
    lines = [
        "| ms, median | " + " | ".join(spent) + " |",
        "|---" * (len(spent) + 1) + "|",
    ]
    first = next(iter(spent.values()))
    whole = first["step"] / 100
    for part in first:
        cells = [
            f"{one[part]:.0f} ({(one[part] - first[part]) / whole:+.1f} %)"
            for one in spent.values()
        ]
        lines.append(f"| {part} | " + " | ".join(cells) + " |")
    return lines


def slug(name: str) -> str:
    """A folder's name."""
    return "_".join("".join(c if c.isalnum() else " " for c in name).split())


if __name__ == "__main__":
    command_line(main)
