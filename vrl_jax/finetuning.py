"""A released model trained on rows of one's own: what the scripts for it share.

A script adds the method, its claim, and the sizes that its paper used.
"""

import dataclasses
import functools
import itertools
import math
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax

from vrl_jax.engine.actor import Actor
from vrl_jax.engine.pretrained import (
    Read,
    load_actor,
    load_processor,
)
from vrl_jax.engine.processing import Fitting, encode_one, fitting
from vrl_jax.engine.reference import Anchor
from vrl_jax.evals import held_out
from vrl_jax.experiment import look, open_run, room_for, say
from vrl_jax.models import hub, lora, sharding
from vrl_jax.models.families import family_of
from vrl_jax.models.policy import Params
from vrl_jax.models.remat import REMATS
from vrl_jax.models.trained import Trains
from vrl_jax.report.page import write_report
from vrl_jax.rewards.combine import Reward
from vrl_jax.training import choices as chosen
from vrl_jax.training import processes
from vrl_jax.training.choices import Choices
from vrl_jax.training.data import DataReport, asked, evenly, read_samples
from vrl_jax.training.files import read_lines, write_json
from vrl_jax.training.identity import in_words
from vrl_jax.training.iteration import Recipe
from vrl_jax.training.learner import Learner
from vrl_jax.training.loop import Stage, ignore, run_files, train
from vrl_jax.training.trackers import Log, both, nowhere, tensorboard
from vrl_jax.types import Sample


class Rows(NamedTuple):
    """Rows to train on, rows to measure on, and what is said under each question."""

    train: Path
    test: Path
    instruction: str = ""
    images: Path | None = None


class Sizes(NamedTuple):
    """How large the run is; the scripts' flags."""

    steps: int = 60
    """training steps; with more of them a run that has ended goes on, unless its rate
    decays over them"""
    prompts: int = 128
    """distinct prompts a step: EasyR1's rollout_batch_size"""
    prompts_per_pack: int = 1
    """prompts whose pictures share one table: more, where pictures differ in size"""
    longest_prompt: int = 8192
    """tokens of a prompt, pictures included; longer rows are left out and reported"""
    response_tokens: int = 2048
    """most tokens of a response"""
    temperature: float = 1.0
    """temperature of the responses that are trained on"""
    min_pixels: int | None = None
    """smallest area of a picture, smaller ones are enlarged; by default the model's"""
    max_pixels: int | None = None
    """largest area of a picture, larger ones are shrunk; by default the model's"""
    learning_rate: float = 1e-6
    """AdamW's learning rate"""
    warmup_steps: int = 0
    """steps over which the learning rate rises from 0"""
    decay: str = "constant"
    """its course after them: constant, or linear or cosine to 0 after the last step"""
    weight_decay: float = 0.01
    """AdamW's weight decay"""
    evaluate_every: int = 10
    """steps between measurements on the test rows; 0: before and after alone"""
    test_rows: int | None = 512
    """rows of the test file that are measured, evenly spread; None: all"""
    checkpoint_every: int = 20
    """steps between checkpoints"""
    examples: int = 16
    """responses that the report shows with every token shaded"""


PACE = ("steps", "evaluate_every", "checkpoint_every", "examples")
"""Sizes that may differ when a run goes on."""

Rate = float | optax.Schedule

DECAYS: Mapping[str, Callable[[float, int], optax.Schedule]] = {
    "constant": lambda full, updates: optax.constant_schedule(full),
    "linear": lambda full, updates: optax.linear_schedule(full, 0.0, updates),
    "cosine": optax.cosine_decay_schedule,
}
"""Of the full rate and so many updates: f(0) is full, f(updates) is 0 or full."""

BYTES = 5 * 12
"""Of disk for a number that is trained, at most: it and both moments in float32, in the
newest three checkpoints, the best, and the one that is being written."""


class Outcome(NamedTuple):
    """What a run leaves: the trained actor, its measurements, its files."""

    actor: Actor
    evaluations: list[dict[str, Any]]
    report: Path
    policy: Path


def finetune(
    recipe: Callable[[Anchor], Recipe],
    *,
    name: str,
    claim: str,
    settings: Mapping[str, Any],
    model: str,
    rows: Rows,
    reward: Reward,
    out: Path,
    seed: int,
    sizes: Sizes,
    choices: Choices,
    kl_weight: float = 0.0,
    optimizer: Callable[[Rate], optax.GradientTransformation] | None = None,
    log: Log = nowhere,
) -> Outcome:
    """Data, model, measurement, `recipe`, measurement, export, report.

    `model` is a folder or a name of the hub. `recipe` is given what keeps it near the
    model that it starts from, with `kl_weight`, if the choices have a reference. `log`
    is told of each step as TensorBoard is: see `training.trackers`. Called again with
    the same arguments it resumes, with more steps and other choices of memory too; the
    script's own `settings` must be the same.

    `optimizer` makes one of the learning rate, in the place of AdamW with its clipped
    gradient, weight decay and moments, as does this one, which also tells its rate:

        def sgd(rate):
            clip = optax.clip_by_global_norm(1.0)
            return optax.chain(clip, optax.sgd(rate), learner.noted(rate))
    """
    chosen.check(choices)
    _check(sizes, choices, kl_weight)
    if optimizer and choices.moments != Choices().moments:
        raise ValueError(
            f"--moments {choices.moments} is of AdamW's, and the run has an optimizer "
            "of its own: leave one of them out."
        )
    kept = {
        "recipe": name,
        "model": model,
        "train": str(rows.train),
        "test": str(rows.test),
        "instruction": rows.instruction,
        "images": str(rows.images),
        "seed": seed,
        "kl_weight": kl_weight,
        **{name: x for name, x in sizes._asdict().items() if name not in PACE},
        **{name: getattr(choices, name) for name in chosen.KEPT},
        "decay_steps": None if sizes.decay == "constant" else sizes.steps,
        "optimizer": in_words(optimizer) if optimizer else None,
        "with_reference": choices.reference != "none",
        **settings,
    }
    with jax.set_mesh(chosen.mesh(choices)):
        folder = hub.local(model)
        open_run(out, kept, claim)
        return _finetune(
            recipe,
            model=model,
            folder=folder,
            rows=rows,
            reward=reward,
            out=out,
            seed=seed,
            sizes=sizes,
            choices=choices,
            kl_weight=kl_weight,
            optimizer=optimizer,
            log=log,
        )


def _check(sizes: Sizes, choices: Choices, kl_weight: float) -> None:
    pieces = choices.minibatches * choices.micro_batches
    packs = sizes.prompts // math.gcd(sizes.prompts, sizes.prompts_per_pack)
    if packs % pieces:
        raise ValueError(
            f"{sizes.prompts} prompts in {packs} packs do not make "
            f"{choices.minibatches} minibatches of {choices.micro_batches} equal "
            "pieces: choose --prompts, --prompts-per-pack, --minibatches and "
            "--micro-batches that divide."
        )
    if not sizes.temperature > 0 or sizes.warmup_steps < 0:
        raise ValueError(
            "--temperature must be above 0 and --warmup-steps at least 0, got "
            f"{sizes.temperature} and {sizes.warmup_steps}."
        )
    if sizes.steps < 1:
        raise ValueError(f"a run takes at least 1 step, got --steps {sizes.steps}.")
    if sizes.decay not in DECAYS:
        raise ValueError(
            f"there is no --decay {sizes.decay!r}; there are {', '.join(DECAYS)}."
        )
    if sizes.decay != "constant" and sizes.warmup_steps >= sizes.steps:
        raise ValueError(
            f"--warmup-steps {sizes.warmup_steps} of --steps {sizes.steps} leave none "
            f"for --decay {sizes.decay}."
        )
    if kl_weight and choices.reference == "none":
        raise ValueError(
            f"--kl-weight {kl_weight} is of the distance from a reference, and there "
            "is none: give --reference device or host, or leave it out."
        )


def _finetune(
    recipe: Callable[[Anchor], Recipe],
    *,
    model: str,
    folder: Path,
    rows: Rows,
    reward: Reward,
    out: Path,
    seed: int,
    sizes: Sizes,
    choices: Choices,
    kl_weight: float,
    optimizer: Callable[[Rate], optax.GradientTransformation] | None,
    log: Log,
) -> Outcome:
    start = time.monotonic()
    say("1/5 data: every picture is read once, to know the sizes")
    read, reports = read_rows(folder, rows, sizes)
    training, test = (fit.samples for fit in read.fits)
    _tell(out, read, reports)
    say(_shown(read, training[:3]))
    others = held_out.shuffle_images(test)
    others = fitting(read.processor, others).samples if others else []
    say(f"{len(others)} of the {len(test)} test rows are asked of other pictures too")

    say(f"2/5 {folder}; training")
    begun = [begin(folder, read, reward, sizes, choices)]
    leaves = jax.tree.leaves(begun[0].params)
    count = sum(leaf.size for leaf in leaves)
    say(f"{count / 1e6:,.1f} M parameters, {leaves[0].dtype}; {_devices(choices)}")
    spec, key = read.processor.front_end.spec, jax.random.key(seed)
    table = family_of(spec).parameter_table(spec)
    trains = chosen.trains(choices, table, key)
    trained, need = _need(trains, begun[0].params)
    say(f"{trained / 1e6:,.1f} M parameters are trained")
    room_for(out, max(need - _written(out), 0))
    anchor = chosen.anchor(choices, begun[0].params, weight=kl_weight)
    del leaves
    stage = Stage(
        name="rl",
        recipe=chosen.sampling(choices, recipe(anchor)),
        samples=training,
        steps=sizes.steps,
        prompts_per_step=sizes.prompts,
        optimizer=chosen.optimizer(
            choices,
            learning_rate(sizes, choices),
            key,
            weight_decay=sizes.weight_decay,
            make=optimizer,
        ),
        minibatches=choices.minibatches,
        micro_batches=choices.micro_batches,
        trains=trains,
        evaluate_every=sizes.evaluate_every,
        evaluate_first=True,
    )

    def save_adapters(stage: Stage, learner: Learner) -> None:
        adapters = sharding.on_host(learner.trained)
        if processes.leads():
            held = chosen.adapters(choices, adapters)
            lora.save(out / "adapters", held, table, base=model)

    actor = train(
        [stage],
        begun.pop(),  # so that its memory is the training's
        folder=out,
        seed=seed,
        evaluate=functools.partial(
            held_out.look_and_shuffle,
            samples=test,
            shuffled=others,
            key=jax.random.key(seed),
            size=sizes.prompts,  # what training plays at once
        ),
        checkpoint_every=sizes.checkpoint_every,
        ended=save_adapters if choices.lora_rank else ignore,
        log=both(tensorboard(out / "tensorboard"), log),
    )

    say("3/5 export")
    policy, params = out / "policy", sharding.on_host(actor.params)
    front_end = read.processor.front_end
    if processes.leads():
        hub.save(
            policy,
            front_end.spec,
            params,
            copy_from=folder,
            pixel_bounds=front_end.pixel_bounds,
        )
    processes.wait()
    say("4/5 which tokens look at the picture")
    shown = [sample for sample in test if sample.images][: sizes.examples]
    if shown:
        look(actor, shown, out, lambda tokens: [None] * len(tokens), seed=seed)
    say("5/5 report")
    report = out / "report.html"
    if processes.leads():
        report = write_report(out)
    processes.wait()
    outcome = Outcome(actor, read_lines(run_files(out).evaluations), report, policy)
    say(summary(outcome, time.monotonic() - start))
    return outcome


def learning_rate(sizes: Sizes, choices: Choices) -> Rate:
    """Of each update, of which a step has `minibatches`; neither first nor last is 0.

    rate (u + 1) / W over the W updates of the warm-up, then, over the other D, rate
    times 1, 1 - u / D or (1 + cos(pi u / D)) / 2, u = 0..D - 1.
    """
    updates = sizes.warmup_steps * choices.minibatches
    full = sizes.learning_rate
    if sizes.decay == "constant" and not updates:
        return full
    rest = sizes.steps * choices.minibatches - updates
    after = DECAYS[sizes.decay](full, rest)
    if not updates:
        return after
    warm = optax.linear_schedule(full / updates, full, updates - 1)
    return optax.join_schedules([warm, after], [updates])


def _need(trains: Trains, params: Params) -> tuple[int, int]:
    """How many numbers are trained, and the bytes of disk that this takes, at most.

    What is fixed and the exported policy are written once.
    """
    trained, fixed = jax.eval_shape(lambda tree: trains(tree)[:2], params)
    count = sum(x.size for x in jax.tree.leaves(trained))
    once = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves((fixed, params)))
    return count, BYTES * count + once


def _written(out: Path) -> int:
    """Bytes of that which are there already."""
    files = (out.glob(f"{part}/**/*") for part in ("checkpoints", "fixed", "policy"))
    return sum(file.stat().st_size for file in itertools.chain(*files))


def _devices(choices: Choices) -> str:
    used, found = choices.data * choices.fsdp * choices.tensor, jax.device_count()
    more = " (--data, --fsdp and --tensor use more)" if used < found else ""
    return f"{used} of {found} devices{more}"


def read_rows(
    folder: Path, rows: Rows, sizes: Sizes
) -> tuple[Read, tuple[DataReport, DataReport]]:
    """Samples of both files, with the instruction, and a processor that holds them.

    `ValueError` where the processes have not read the same.
    """
    training, of_training = read_samples(rows.train, image_root=rows.images)
    test, of_test = read_samples(rows.test, image_root=rows.images)
    test = evenly(test, sizes.test_rows)
    read = load_processor(
        folder,
        *(asked(samples, rows.instruction) for samples in (training, test)),
        prompts_per_step=sizes.prompts,
        prompts_per_pack=sizes.prompts_per_pack,
        longest_prompt=sizes.longest_prompt,
        min_pixels=sizes.min_pixels,
        max_pixels=sizes.max_pixels,
    )
    for fit in read.fits:
        _check_alike(fit)
    return read, (of_training, of_test)


def _check_alike(fit: Fitting) -> None:
    """Raises where a process has other rows: each reads and drops them by itself."""
    rows = [
        f"{sample.id} ({tokens} tokens, pictures of {patches} patches)"
        for sample, tokens, patches in zip(
            fit.samples, fit.tokens, fit.pictures, strict=True
        )
    ]
    first, *others = processes.gathered([zlib.crc32(row.encode()) for row in rows])
    for number, other in enumerate(others, start=1):
        if other == first:
            continue
        pairs = enumerate(itertools.zip_longest(first, other))
        place = next(place for place, (one, two) in pairs if one != two)
        said = processes.gathered(rows[place] if place < len(rows) else "no row")
        raise ValueError(
            f"process {number} has other rows than process 0: the first that differs, "
            f"row {place}, is {said[number]} and not {said[0]}. Give every machine the "
            "same files, pictures too."
        )


def begin(
    folder: Path, read: Read, reward: Reward, sizes: Sizes, choices: Choices
) -> Actor:
    """The model as it was released, playing as the choices say."""
    actor = load_actor(
        folder,
        read.processor,
        reward,
        max_new_tokens=sizes.response_tokens,
        dtype=chosen.dtype(choices),
        remat=REMATS[choices.remat],
    )
    return dataclasses.replace(
        actor,
        slots=choices.slots,
        prompts_per_pass=choices.per_pass,
        temperature=sizes.temperature,
    )


def _tell(out: Path, read: Read, reports: Sequence[DataReport]) -> None:
    """Says, and writes, what of the rows is used, and why others are not."""
    for report in reports:
        say(report.summary())
    used = {}
    for which, report, fit in zip(("train", "test"), reports, read.fits, strict=True):
        used[which] = {
            "used": len(fit.samples),
            "dropped": {**report.dropped, "not used": fit.dropped},
        }
        say(_left_out(which, fit))
    say(read.budgets.summary())
    room = read.budgets.room
    longest, patches = room.prompt_tokens[-1], room.block * room.blocks[-1]
    patches //= room.prompts_per_pack
    say(f"sizes for a plan: --prompt-tokens {longest} --patches {patches}")
    write_json(out / "data_report.json", used)


def _left_out(which: str, fit: Fitting) -> str:
    count = len(fit.dropped)
    lines = [f"{which}: {len(fit.samples)} rows, {count} cannot be used"]
    if count:
        lines += ["(--longest-prompt and --max-pixels bound what is too large)"]
    return "\n  ".join([*lines, *fit.dropped[:3]])


def _shown(read: Read, samples: Sequence[Sample]) -> str:
    """What the first rows come to: sizes of pictures, tokens of prompts."""
    lines = []
    for sample in samples:
        prompt = encode_one(read.processor, sample)
        pictures = ", ".join(
            f"{s.original_width} x {s.original_height} -> {s.width} x {s.height}"
            for s in prompt.image_sizes
        )
        count = len(prompt.unpadded.tokens)
        lines.append(f"  {sample.id}: {count} tokens; {pictures or 'no picture'}")
    return "\n".join(["the first rows, and their pictures in pixels:", *lines])


def summary(outcome: Outcome, seconds: float) -> str:
    """What was learned, and where the files are."""
    first, last = outcome.evaluations[0], outcome.evaluations[-1]
    names = {
        "reward": "val/reward_score",
        "accuracy": "val/accuracy",
        "with shuffled images": "val/accuracy_shuffled_images",
        "responses cut off": "val/response_length/clip_ratio",
    }

    def shown(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"  # nothing was scored

    rows = "\n".join(
        f"{title:21} {shown(first[key])} before, {shown(last[key])} after"
        for title, key in names.items()
    )
    return f"""
on {last["val/count"]} held-out rows
{rows}
report                {outcome.report}
policy                {outcome.policy} (a Hugging Face folder)
{seconds:.0f} s"""
