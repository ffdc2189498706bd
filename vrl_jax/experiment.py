"""An experiment from data to report: the digits world and the tiny policy.

What the scripts in `experiments/` share. A script adds the method, its claim, and its
flags.
"""

import dataclasses
import functools
import json
import os
import resource
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import tyro

from vrl_jax import views
from vrl_jax.engine.actor import Actor, allowed_ids
from vrl_jax.engine.budgets import budgets
from vrl_jax.engine.packing import Room
from vrl_jax.engine.processing import Processor, fitting
from vrl_jax.evals import dependency, held_out
from vrl_jax.models import hub, sharding
from vrl_jax.models.critic import Critic, with_critics
from vrl_jax.models.parameters import init_params
from vrl_jax.models.qwen_vl.front_end import front_end
from vrl_jax.models.qwen_vl.parameters import parameter_table
from vrl_jax.models.qwen_vl.policy import policy as qwen_policy
from vrl_jax.programs.dynamic_sampling import TooFewGroups
from vrl_jax.programs.recital import demonstrated
from vrl_jax.programs.single_turn import single_turn
from vrl_jax.recipes.sft import sft
from vrl_jax.report.page import write_report
from vrl_jax.rewards.boxed import boxed_exact
from vrl_jax.rewards.combine import Reward, weighted
from vrl_jax.training import processes
from vrl_jax.training.data import read_samples
from vrl_jax.training.files import read_lines, write_json, write_lines
from vrl_jax.training.iteration import Recipe
from vrl_jax.training.learner import adamw
from vrl_jax.training.loop import Stage, run_files, train
from vrl_jax.training.preemption import Preempted
from vrl_jax.training.trackers import tensorboard
from vrl_jax.types import Rollout, Sample
from vrl_jax.worlds import digits, tiny
from vrl_jax.worlds.writing import write_parquet

FREE_BYTES = 300_000_000


class Sizes(NamedTuple):
    """How large a run on the digits is.

    The cold start sees the first `demonstrations` training samples with their
    demonstrations, the second stage the first `questions`.
    """

    train: int = 4096
    test: int = 512
    demonstrations: int = 128
    questions: int = 4096
    cold_start_steps: int = 40
    rl_steps: int = 60
    prompts_per_step: int = 64
    minibatches: int = 2
    micro_batches: int = 4
    evaluate_every: int = 20
    examples: int = 128


SMOKE = Sizes(
    train=64,
    test=16,
    demonstrations=16,
    questions=64,
    cold_start_steps=2,
    rl_steps=2,
    prompts_per_step=8,
    micro_batches=2,
    evaluate_every=1,
    examples=8,
)


class World(NamedTuple):
    """What is learned: samples(count, split=, seed=), what is paid, kinds of tokens.

    `chance` is what one is paid on average who has the layout and does not look.
    """

    samples: Callable[..., list[Sample]]
    reward: Reward
    kinds: dependency.Kinds
    chance: Callable[[Sequence[Sample]], float]


SUMS = World(
    samples=digits.sums,
    reward=weighted({"accuracy": (boxed_exact, 1.0)}),
    kinds=digits.sum_token_kinds,
    chance=held_out.chance,
)
"""Two handwritten digits: what is their sum?"""


class Outcome(NamedTuple):
    """What a run leaves: the trained actor, its measurements, its files."""

    actor: Actor
    evaluations: list[dict[str, Any]]
    dependency: dict[str, Any]
    report: Path
    policy: Path


def tiny_digits(
    recipe: Recipe,
    *,
    name: str,
    claim: str,
    out: Path,
    seed: int,
    sizes: Sizes,
    mesh: str = "",
    world: World = SUMS,
    critics: Mapping[str, Critic] | None = None,
) -> Outcome:
    """Data, cold start, measurement, `recipe`, measurement, report, export.

    The cold start learns from a few demonstrations; `recipe` then gets many questions
    with their answers, and what `critics` say if it reads any. Called again with the
    same arguments it resumes or, once it has ended, measures and reports again; on
    another `mesh` ("data=2,fsdp=4") too.
    """
    if not mesh and jax.process_count() > 1:
        raise ValueError(
            f"{jax.process_count()} processes with {jax.device_count()} devices need a "
            "mesh: give --mesh, data=2,fsdp=4 for example."
        )
    with jax.set_mesh(sharding.parse_mesh(mesh)):
        return _tiny_digits(
            recipe,
            world,
            critics,
            name=name,
            claim=claim,
            out=out,
            seed=seed,
            sizes=sizes,
        )


def _tiny_digits(
    recipe: Recipe,
    world: World,
    critics: Mapping[str, Critic] | None,
    *,
    name: str,
    claim: str,
    out: Path,
    seed: int,
    sizes: Sizes,
) -> Outcome:
    start = time.monotonic()
    open_run(out, {"recipe": name, "seed": seed, **sizes._asdict()}, claim)
    say("1/5 data: real handwritten digits, written as parquet and read back")
    samples, test = world_data(
        out / "data", train=sizes.train, test=sizes.test, seed=seed, make=world.samples
    )
    actor = tiny_actor(samples, world.reward, seed=seed)
    if critics:
        actor = judged(actor, critics, seed=seed)

    count = sum(leaf.size for leaf in jax.tree.leaves(actor.params))
    say(f"2/5 policy: Qwen2.5-VL with {count / 1e6:.1f} M parameters; training")
    actor = train(
        tiny_stages(recipe, samples, sizes),
        actor,
        folder=out,
        seed=seed,
        evaluate=functools.partial(
            held_out.look_and_shuffle, samples=test, key=jax.random.key(seed)
        ),
        log=tensorboard(out / "tensorboard"),
    )

    say("3/5 which tokens look at the picture")
    looked = look(actor, test[: sizes.examples], out, world.kinds, seed=seed)
    say("4/5 export, 5/5 report")
    report, policy = export_and_report(actor, out)
    evaluations = read_lines(run_files(out).evaluations)
    outcome = Outcome(actor, evaluations, looked, report, policy)
    say(summary(outcome, world.chance(test), time.monotonic() - start))
    return outcome


def export_and_report(actor: Actor, out: Path) -> tuple[Path, Path]:
    """The report, and the policy as a Hugging Face folder."""
    report, policy = out / "report.html", out / "policy"
    params = sharding.on_host(actor.params)
    if processes.leads():
        hub.save(
            policy,
            actor.processor.front_end.spec,
            params,
            tokenizer=actor.processor.tokenizer,
            pixel_bounds=actor.processor.front_end.pixel_bounds,
        )
        report = write_report(out)
    return report, policy


def open_run(out: Path, settings: Mapping[str, Any], claim: str) -> None:
    """Makes the run folder, or checks that it holds a run with these settings.

    Settings of a run that never saved a step are written over: it failed at once.
    Raises `ValueError` where the folder holds another run, `OSError` where the disk is
    nearly full: better now than in the middle of a checkpoint.
    """
    out.mkdir(parents=True, exist_ok=True)
    room_for(out, FREE_BYTES)
    file, changed = out / "config.json", []
    if file.exists():
        before = json.loads(file.read_text())
        changed = [
            f"{key} was {before.get(key)!r} and is {value!r}"
            for key, value in settings.items()
            if before.get(key) != value
        ]
        if changed and any(out.rglob("global_step_*")):
            raise ValueError(
                f"{out} holds a run with other settings ({'; '.join(changed)}). Choose "
                "another --out, or delete the folder to start over."
            )
    # Before the first process writes it, all must have looked.
    processes.wait()
    if not file.exists() or changed:
        command = shlex.join(["python", *sys.argv])
        write_json(file, {**settings, "claim": claim, "command": command})


def room_for(out: Path, need: float) -> None:
    """Raises `OSError` where the disk has less than so many bytes left."""
    free = shutil.disk_usage(out).free
    if free < need:
        raise OSError(
            f"a run needs {need / 1e6:,.0f} MB, and {out} has {free / 1e6:,.0f} MB "
            "left; make room, or choose another --out."
        )


def world_data(
    folder: Path,
    *,
    train: int,
    test: int,
    seed: int,
    make: Callable[..., list[Sample]] = digits.sums,
) -> tuple[list[Sample], list[Sample]]:
    """Training and held-out samples, through parquet and the reader of users' files."""
    folder.mkdir(parents=True, exist_ok=True)
    counts = {"train": train, "test": test}
    files = {split: folder / f"{split}.parquet" for split in counts}
    for split, file in files.items() if processes.leads() else ():
        write_parquet(make(counts[split], split=split, seed=seed), file)
    processes.wait()
    samples, report = read_samples(files["train"])
    held_back, _ = read_samples(files["test"])
    say(report.summary())
    write_json(
        folder.parent / "data_report.json",
        {
            "used": report.used,
            "dropped": dict(report.dropped),
            "held_out": len(held_back),
        },
    )
    return samples, held_back


def tiny_actor(
    samples: Sequence[Sample],
    reward: Reward,
    *,
    seed: int,
    texts: Sequence[str] = (),
    max_pixels: int = 1280 * 28 * 28,
) -> Actor:
    """An untrained tiny policy whose tokenizer and budgets fit the samples.

    Their `demonstration` is one answer or, turn by turn, a list of them. `texts` are
    what it will read besides. It is shown at most `max_pixels` of a picture, 28 x 28 a
    token.
    """
    demonstrations = [text for sample in samples for text in demonstrated(sample)]
    questions = [sample.question for sample in samples]
    tokenizer = tiny.tokenizer([*questions, *demonstrations, *texts])
    spec = tiny.spec(tokenizer)
    table = parameter_table(spec)
    pictures = front_end(spec, min_pixels=28 * 28, max_pixels=max_pixels)
    room = Room(prompt_tokens=(1024,), block=64)
    processor = Processor(tokenizer, pictures, room)
    # One picture a question, and questions nearly of one length: one size is enough.
    found = budgets(fitting(processor, samples), prompts_per_step=1, most=1)
    say(found.summary())
    responses = tokenizer(demonstrations, add_special_tokens=False)["input_ids"]
    stops = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    return Actor(
        policy=qwen_policy(spec),
        params=sharding.spread(init_params(jax.random.key(seed), table), table),
        processor=dataclasses.replace(processor, room=found.room),
        allowed=allowed_ids(processor, spec.text.vocabulary),
        stop_ids=jnp.array(stops),
        reward=reward,
        max_new_tokens=max(map(len, responses)) + 2,
    )


def judged(actor: Actor, critics: Mapping[str, Critic], *, seed: int) -> Actor:
    """The actor with these critics of its states."""
    key = jax.random.fold_in(jax.random.key(seed), 1)
    policy, params = with_critics(actor.policy, actor.params, key, critics)
    return dataclasses.replace(actor, policy=policy, params=params)


def tiny_stages(recipe: Recipe, samples: Sequence[Sample], sizes: Sizes) -> list[Stage]:
    """Supervised steps on a few demonstrations, then `recipe`."""
    return [
        Stage(
            name="cold start",
            recipe=sft(),
            samples=samples[: sizes.demonstrations],
            steps=sizes.cold_start_steps,
            prompts_per_step=sizes.prompts_per_step,
            optimizer=flat(adamw(1e-3)),
        ),
        Stage(
            name="rl",
            recipe=recipe,
            samples=samples[: sizes.questions],
            steps=sizes.rl_steps,
            prompts_per_step=sizes.prompts_per_step,
            optimizer=flat(adamw(3e-4)),
            minibatches=sizes.minibatches,
            micro_batches=sizes.micro_batches,
            evaluate_every=sizes.evaluate_every,
        ),
    ]


def supervised(
    name: str, recipe: Recipe, samples: Sequence[Sample], steps: int
) -> Stage:
    """Steps on demonstrations, 64 of them each where there are as many."""
    prompts = min(64, len(samples))
    return Stage(name, recipe, samples, steps, prompts, flat(adamw(1e-3)))


def measured(actor: Actor, samples: Sequence[Sample], seed: int) -> dict[str, float]:
    """Held-out means of single answers."""
    return held_out.measurements(held_out.answers(actor, samples, jax.random.key(seed)))


def flat(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """One array for all parameters: half the compilation, faster on a CPU.

    On a mesh each parameter's state lies where the parameter does.
    """
    alone = jax.sharding.get_mesh().empty
    return optax.flatten(optimizer) if alone else optimizer


def look(
    actor: Actor,
    samples: Sequence[Sample],
    out: Path,
    kinds: dependency.Kinds,
    *,
    seed: int,
    act: Callable[..., Rollout] = single_turn,
) -> dict[str, Any]:
    """Measures visual dependency on held-out samples, for the report."""
    view = actor.painting(views.blacken_patches)
    key = jax.random.key(seed + 1)
    measured = dependency.measure(actor, samples, view, key, act=act)
    means = dependency.by_kind(actor, measured, kinds)
    write_json(out / "dependency.json", means)
    write_lines(
        out / "examples.jsonl", dependency.example_rows(actor, samples, measured, kinds)
    )
    return means


def before_and_after(outcome: Outcome, names: Mapping[str, str]) -> str:
    """What was learned, a line a measurement, and where the files are."""
    cold, *_, last = outcome.evaluations
    lines = [
        f"{what:34} {cold[name]:.2f} after the cold start, {last[name]:.2f} at the end"
        for name, what in names.items()
    ]
    report = f"{'report':34} {outcome.report}"
    policy = f"{'policy':34} {outcome.policy} (a Hugging Face folder)"
    return "\n".join([*lines, report, policy])


def summary(outcome: Outcome, chance: float, seconds: float) -> str:
    """What was learned, where the files are, and what to try next."""
    cold, *_, last = outcome.evaluations
    seen, derived = (
        outcome.dependency.get(kind, {}).get("mean", float("nan"))
        for kind in ("seen", "derived")
    )
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return f"""
held-out accuracy     {cold["val/accuracy"]:.2f} after the cold start, \
{last["val/accuracy"]:.2f} at the end
with shuffled images  {last["val/accuracy_shuffled_images"]:.2f} \
(without looking {chance:.2f}, by chance)
visual dependency     {seen:.2f} for tokens read off the picture, \
{derived:.2f} for tokens that could follow from the text
report                {outcome.report}
policy                {outcome.policy} (a Hugging Face folder)
{seconds:.0f} s, peak memory {memory:.1f} GB

Try next: open the report; compare with the other scripts in experiments/; change the
question, the reward or the method in colab/quickstart.ipynb; go on from this policy, or
from a released model on rows of your own, with experiments/grpo_qwen_geometry3k.py."""


def command_line(main: Callable[..., Any]) -> None:
    """Runs `main` with its keyword arguments as flags; a user's error is one line."""
    try:
        processes.start()
        tyro.cli(main)
    except Preempted as reason:
        say(str(reason))
        sys.exit(128 + signal.SIGTERM)
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        # Not sys.exit: jax would wait for all processes to leave together.
        print(
            f"error: process {jax.process_index()} stops, it has lost the others "
            f"({str(error).splitlines()[0]}). Start the same command again in all: it "
            "goes on from the newest checkpoint.",
            flush=True,
        )
        os._exit(1)
    except (ValueError, OSError, FloatingPointError, TooFewGroups) as error:
        if os.environ.get("VRL_JAX_TRACEBACK"):
            raise
        sys.exit(f"error: {error}\n(VRL_JAX_TRACEBACK=1 shows where it was raised)")


def say(text: str) -> None:
    """A line for the person who watches, of the first process alone."""
    if processes.leads():
        print(text, flush=True)
