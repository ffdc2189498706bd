"""Stages of training in a run folder, resumable at any moment."""

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax
from jaxtyping import Array, Key

from vrl_jax.engine.actor import Actor
from vrl_jax.models.policy import Params
from vrl_jax.models.trained import Trains, everything
from vrl_jax.training import checkpoint, files, processes
from vrl_jax.training.ahead import Ahead, Upcoming
from vrl_jax.training.data import sample_stream
from vrl_jax.training.identity import method_of
from vrl_jax.training.iteration import Recipe, iteration
from vrl_jax.training.learner import Learner, make_learner
from vrl_jax.training.metrics import as_floats, by_source
from vrl_jax.training.preemption import Preempted, sigterm
from vrl_jax.training.progress import progress_bar
from vrl_jax.training.rollouts import Group, write_rollouts
from vrl_jax.training.trackers import Log, nowhere
from vrl_jax.types import Sample

Evaluate = Callable[[Actor], Mapping[str, float]]

MAX_SKIPPED_IN_A_ROW = 5
PREPARED = 64
"""Samples whose pictures are decoded ahead: a large one takes tens of MB."""

ROLLOUT_GROUPS = 4
"""How many groups of a step are written down for people to read."""


def newest_params(learner: Learner) -> Params:
    """The policy as the last update left it."""
    return learner.params


def ignore(stage: "Stage", learner: Learner) -> None:
    """The observer that looks away."""


def held_out_accuracy(measured: Mapping[str, float]) -> float | None:
    """What the best checkpoint is best at; None where nothing was measured."""
    return measured.get("val/accuracy")


@dataclasses.dataclass(frozen=True)
class Stage:
    """One recipe on one data set for some steps.

    The optimiser starts afresh; the parameters are those of the stage before, and
    `trains` says what of them is trained. The policy is evaluated after the stage,
    every `evaluate_every` steps if not 0, and before the first with `evaluate_first`.
    `result` is what is evaluated and handed on: the newest parameters, or
    `average_params`.
    """

    name: str
    recipe: Recipe
    samples: Sequence[Sample]
    steps: int
    prompts_per_step: int
    optimizer: optax.GradientTransformation
    minibatches: int = 1
    micro_batches: int = 1
    evaluate_every: int = 0
    evaluate_first: bool = False
    trains: Trains = everything
    result: Callable[[Learner], Params] = newest_params


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """The line files of a run folder."""

    metrics: Path
    timings: Path
    evaluations: Path


def run_files(folder: Path) -> RunFiles:
    """Their names."""
    return RunFiles(
        folder / "metrics.jsonl", folder / "timings.jsonl", folder / "evaluations.jsonl"
    )


def train(
    stages: Sequence[Stage],
    actor: Actor,
    *,
    folder: Path,
    seed: int,
    evaluate: Evaluate,
    checkpoint_every: int = 50,
    best: Callable[[Mapping[str, float]], float | None] = held_out_accuracy,
    ended: Callable[[Stage, Learner], None] = ignore,
    log: Log = nowhere,
) -> Actor:
    """Runs the stages in order and returns the actor with the trained parameters.

    Writes `metrics.jsonl`, `timings.jsonl`, `evaluations.jsonl`, `checkpoints/` and, of
    the steps that are evaluated, some `rollouts/` in `folder`. Called again with the
    same arguments it continues after the newest checkpoint, and ends with the same
    parameters and metrics as an unbroken run. The newest three checkpoints are kept,
    and the one whose measurements `best` scores highest; a damaged one is set aside.
    SIGTERM saves and raises `Preempted`.
    `ended` is told of each stage's learner, for what the actor does not keep: adapters
    alone, say; `log` of each step's numbers, counted over the stages.
    """
    lines = dataclasses.astuple(run_files(folder))

    def start(number: int) -> Learner:
        stage = stages[number]
        return make_learner(
            actor.policy,
            actor.params,
            stage.optimizer,
            actor.allowed,
            trains=stage.trains,
            minibatches=stage.minibatches,
            micro_batches=stage.micro_batches,
        )

    total_steps = sum(stage.steps for stage in stages)
    methods = [[stage.name, *method_of(stage.recipe)] for stage in stages]
    with (
        checkpoint.open_manager(folder) as manager,
        sigterm() as asked,
        contextlib.ExitStack() as held,
    ):
        resumed = checkpoint.resume(manager, folder, start)
        saved: dict[str, Any] = {"stage": 0, "step": 0, "files": {}, "suspects": []}
        if resumed:
            saved = resumed.host
            _check_methods(folder, saved.get("methods", methods), methods)
            if processes.leads():
                print(f"resuming {folder} after step {resumed.step}", flush=True)
        files.cut(lines, saved["files"])
        for number, stage in enumerate(stages[saved["stage"] :], start=saved["stage"]):
            ahead = Ahead(
                sample_stream(stage.samples, seed=seed),
                actor.processor,
                min(stage.prompts_per_step, PREPARED),
                kept=stage.prompts_per_step,
            )
            stream = held.enter_context(contextlib.closing(ahead))
            done, before = 0, sum(earlier.steps for earlier in stages[:number])
            suspects: list[list[str]] = []
            if resumed and number == saved["stage"]:
                learner, done, resumed = resumed.learner, saved["step"], None
                stream.set_state(saved["stream"])
                suspects = saved["suspects"]
            else:
                learner = start(number)
                checkpoint.save_fixed(folder, number, learner)
            # The learner has its own: what it began with need not lie there too.
            actor = dataclasses.replace(actor, params=None)
            plays = dataclasses.replace(actor, processor=stream.processor)
            key = jax.random.fold_in(jax.random.key(seed), number)
            steps = run_stage(
                stage,
                plays,
                learner,
                stream,
                key,
                done,
                suspects,
                folder,
                evaluate,
                lambda step, row, before=before: log(before + step, row),
            )
            for step, learner, measured, suspects, place in steps:
                leaving = processes.any_of(asked()) and before + step < total_steps
                if leaving or step == stage.steps or step % checkpoint_every == 0:
                    state = {
                        "stage": number,
                        "step": step,
                        "stream": place,
                        "suspects": suspects,
                        "files": files.sizes(lines),
                        "methods": methods,
                    }
                    checkpoint.save(
                        manager, before + step, learner, state, score=best(measured)
                    )
                if leaving:
                    checkpoint.finish(manager)
                    raise Preempted(
                        f"stopped by SIGTERM after step {before + step}, which is "
                        f"saved in {folder}; the same command goes on from there"
                    )
            ended(stage, learner)
            actor = dataclasses.replace(actor, params=stage.result(learner))
            del learner, steps  # the next stage begins with the params alone
    return actor


def _check_methods(
    folder: Path, before: Sequence[Sequence[str]], now: Sequence[Sequence[str]]
) -> None:
    if [*map(list, before)] == [*map(list, now)]:
        return
    pairs = itertools.zip_longest(before, now, fillvalue=["no stage"])
    was, becomes = next((was, new) for was, new in pairs if [*was] != [*new])
    at = next((i for i, (w, b) in enumerate(zip(was, becomes)) if w != b), 0)  # noqa: B905
    raise ValueError(
        f"{folder} holds a run of another method: stage {was[0]!r} had {was[at]} and "
        f"has {becomes[at]}. Choose another run folder, or delete it to start over."
    )


class Taken(NamedTuple):
    """A step that was taken and logged: what a checkpoint holds of it.

    `measured` is empty where the policy was not evaluated; `suspects` are the samples
    of the last steps in a row whose gradient was not finite; `stream` is the state of
    the stream before the next step's samples.
    """

    step: int
    learner: Learner
    measured: Mapping[str, float]
    suspects: list[list[str]]
    stream: Any


def run_stage(
    stage: Stage,
    actor: Actor,
    learner: Learner,
    stream: Iterator[Sample],
    key: Key[Array, ""],
    done: int,
    suspects: list[list[str]],
    folder: Path,
    evaluate: Evaluate,
    log: Log = nowhere,
) -> Iterator[Taken]:
    """Yields what was taken after each step from `done` on, once it is logged.

    The key of a step is fold_in(key, step), so a resumed stage draws what an unbroken
    one would have drawn. Raises `FloatingPointError` after five steps in a row whose
    gradient is not finite, and names their samples.
    """
    written = run_files(folder)
    played: list[Group] = []
    tokens: list[int] = []
    several = len({sample.source for sample in stage.samples}) > 1

    def observe(*group: Any) -> None:
        actor.observe(*group)
        turns = itertools.chain.from_iterable(episode.turns for episode in group[0])
        tokens.append(sum(len(turn.tokens) for turn in turns if turn.chosen))
        if several or len(played) < ROLLOUT_GROUPS:
            played.append(group)

    def measure(step: int, learner: Learner) -> Mapping[str, float]:
        now = dataclasses.replace(actor, params=stage.result(learner))
        measured = evaluate(now)
        line = {"name": stage.name, "phase": stage.name, "step": step}
        files.append_line(written.evaluations, {**line, **measured})
        return measured

    watched = dataclasses.replace(actor, observe=observe)
    batches = Upcoming(stream, stage.prompts_per_step)
    shown: dict[str, float] = {}
    if stage.evaluate_first and not done:
        shown |= measure(0, learner)
        log(0, dict(shown))
    with progress_bar(stage.name, stage.steps, done) as show:
        for step in range(done, stage.steps):
            seconds: dict[str, float] = {}
            start = time.perf_counter()
            learner, metrics = iteration(
                timed(stage.recipe, seconds),
                dataclasses.replace(watched, step=step, total_steps=stage.steps),
                learner,
                batches,
                jax.random.fold_in(key, step),
            )
            row = {"phase": stage.name, "step": step + 1, **as_floats(metrics)}
            if several:
                row |= by_source(played)
            seconds["timing_s/step"] = time.perf_counter() - start
            row["data/prompts_played"] = len(batches.drawn)
            different = len({sample.id for sample in batches.drawn})
            row["data/prompts_repeated"] = len(batches.drawn) - different
            row["data/tokens_played"] = sum(tokens)
            files.append_line(written.metrics, row)
            files.append_line(
                written.timings, {"phase": stage.name, "step": step + 1, **seconds}
            )
            ids = [sample.id for sample in batches.drawn]
            suspects = [*suspects, ids] if row["training/skipped"] else []
            if len(suspects) == MAX_SKIPPED_IN_A_ROW:
                files.write_json(folder / "not_finite.json", {"samples": suspects})
                raise FloatingPointError(
                    f"{MAX_SKIPPED_IN_A_ROW} steps in a row had no finite gradient; "
                    f"their samples are in {folder / 'not_finite.json'}. Lower the "
                    "learning rate, or look at these samples."
                )
            if row.get("reward/unscored", 0.0) >= 1 and processes.leads():
                print(
                    f"step {step + 1}: no response could be scored, so nothing was "
                    "learnt; the warnings above say why.",
                    flush=True,
                )
            measured: Mapping[str, float] = {}
            due = stage.evaluate_every and (step + 1) % stage.evaluate_every == 0
            if due or step + 1 == stage.steps:
                write_rollouts(folder, stage.name, step + 1, played[:ROLLOUT_GROUPS])
                measured = measure(step + 1, learner)
                shown |= measured
            log(step + 1, {**row, **seconds, **measured})
            show(step + 1, headline({**row, **shown}))
            played.clear()
            tokens.clear()
            batches.drawn.clear()
            yield Taken(step + 1, learner, measured, suspects, batches.get_state())


def timed(recipe: Recipe, seconds: dict[str, float]) -> Recipe:
    """The same recipe; the seconds of `act` and `score` are noted in `seconds`."""

    def clocked(name: str, function: Callable) -> Callable:
        def call(*arguments: Any) -> Any:
            start = time.perf_counter()
            result = jax.block_until_ready(function(*arguments))
            seconds[name] = time.perf_counter() - start
            return result

        return call

    return recipe._replace(
        act=clocked("timing_s/gen", recipe.act),
        score=clocked("timing_s/score", recipe.score),
    )


def headline(row: Mapping[str, float]) -> str:
    """The numbers to watch."""
    names = {
        "sft/loss": "loss",
        "reward/accuracy": "sampled accuracy",
        "critic/score/mean": "sampled reward",
        "val/accuracy": "held-out accuracy",
    }
    if "reward/accuracy" in row or "sft/loss" in row:
        del names["critic/score/mean"]
    return " · ".join(f"{names[n]} {row[n]:.2f}" for n in names if n in row)
