"""A released model trained on rows of one's own: what the scripts for it share.

A script adds the method, its claim, and the sizes that its paper used.
"""

import dataclasses
import functools
import itertools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax

from vrl_jax.engine.actor import Actor
from vrl_jax.engine.budgets import row_limits
from vrl_jax.engine.desk import Limits
from vrl_jax.engine.episode import Program, check_models, opening
from vrl_jax.engine.frozen import (
    ASKING,
    Asking,
    check_asking,
    frozen_actors,
    frozen_folders,
    frozen_processors,
)
from vrl_jax.engine.pretrained import Read, load_actor, weightless_actor
from vrl_jax.engine.processing import Measure, Processor, fitting, prompt_size
from vrl_jax.evals import dependency, held_out
from vrl_jax.experiment import judged, look, open_run, room_for, say
from vrl_jax.finetuning_flags import (
    PACE,
    Rate,
    Rows,
    Sizes,
    check,
    enough,
    first_rows,
    learning_rate,
    read_rows,
    tell,
)
from vrl_jax.models import experts, hub, lora, sharding
from vrl_jax.models.critic import Critic
from vrl_jax.models.families import family_of
from vrl_jax.models.policy import Params
from vrl_jax.models.remat import REMATS
from vrl_jax.models.trained import Trains, also, critic
from vrl_jax.programs.acting import act, measured
from vrl_jax.programs.recital import recital_size
from vrl_jax.programs.single_turn import single_turn
from vrl_jax.report.page import write_report
from vrl_jax.rewards.combine import Reward
from vrl_jax.training import choices as chosen
from vrl_jax.training import processes
from vrl_jax.training.choices import Choices
from vrl_jax.training.data import read_dialogues, read_samples
from vrl_jax.training.files import read_lines
from vrl_jax.training.identity import in_words
from vrl_jax.training.iteration import Act, Recipe
from vrl_jax.training.learner import Learner
from vrl_jax.training.loop import Stage, ignore, run_files, train
from vrl_jax.training.trackers import Log, both, nowhere, tensorboard
from vrl_jax.types import Sample

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
    recipe: Callable[..., Recipe],
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
    critics: Mapping[str, Critic] | None = None,
    critic_learning_rate: float = 1e-5,
    program: Program | None = None,
    recital: Program | None = None,
    limits: Limits | None = None,
    frozen: Mapping[str, str | Path] | None = None,
    asking: Asking = ASKING,
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

    `critics` are what `recipe` reads by their names: float32, trained beside whatever
    the choices train of the policy, by another optimizer of the kind, whose rate,
    `critic_learning_rate`, has the same warm-up and decay. They lie in the checkpoints
    and not in the exported folder.

    `frozen` are the folders, or names of the hub, of models that the method asks by
    these names and never trains: each is loaded in the policy's precision, once with
    the policy where it is the same folder, and `recipe` is given its actor,
    recipe(anchor, judge=...). `asking` is how they are asked.

    Rows are measured by single answers or, where a method takes several turns, by its
    `program` within its `limits`, which may ask the frozen models. Where what is
    trained on are demonstrations, `recital` is the program that is to recite them; the
    rows are read by `training.data.read_dialogues`, and those that cannot be recited
    within `row_tokens` of the `limits` are left out and told. Of a recital, the act of
    the `recipe` is given the `limits` that the longest of the others needs, as
    `programs.recital.recited` takes them.
    """
    chosen.check(choices)
    check(sizes, choices, kl_weight)
    if bool(program or recital) != bool(limits):
        raise ValueError("a program needs its limits, and limits are a program's.")
    row_tokens, pictures = (limits or Limits())[:2]
    if (row_tokens is not None and row_tokens < 1) or pictures < 0:
        raise ValueError(
            "--row-tokens is at least 1 and --pictures at least 0, got "
            f"{row_tokens} and {pictures}."
        )
    if optimizer and choices.moments != Choices().moments:
        raise ValueError(
            f"--moments {choices.moments} is of AdamW's, and the run has an optimizer "
            "of its own: leave one of them out."
        )
    check_asking(asking, row_tokens)
    programs = {"program": program, "recital": recital}
    kept = {
        "recipe": name,
        "model": model,
        "train": str(rows.train),
        "test": str(rows.test),
        "instruction": rows.instruction,
        "images": str(rows.images),
        "seed": seed,
        "kl_weight": kl_weight,
        "system": rows.system or None,
        **{name: x for name, x in sizes._asdict().items() if name not in PACE},
        **{name: getattr(choices, name) for name in chosen.KEPT},
        "decay_steps": None if sizes.decay == "constant" else sizes.steps,
        "optimizer": in_words(optimizer) if optimizer else None,
        "with_reference": choices.reference != "none",
        # None where there is none: what a resumed run leaves out is a change too.
        **dict.fromkeys(programs),
        "frozen": {name: str(one) for name, one in frozen.items()} if frozen else None,
        **settings,
    }
    if frozen:
        kept |= {name: x for name, x in asking._asdict().items() if name not in PACE}
    if limits:
        kept |= {name: in_words(one) for name, one in programs.items() if one}
        kept |= limits._asdict()
    if critics:
        told = {
            name: [in_words(one.init), in_words(one.values)]
            for name, one in critics.items()
        }
        kept |= {"critics": told, "critic_learning_rate": critic_learning_rate}
    with jax.set_mesh(chosen.mesh(choices)):
        folder, start = hub.local(model), time.monotonic()
        folders = frozen_folders(frozen or {})
        open_run(out, kept, claim)
        say("1/5 data: every picture is read once, to know the sizes")
        read, others, behind = _data(
            out, folder, rows, reward, sizes, program, recital, [*folders], limits
        )
        training, test = (fit.samples for fit in read.fits)
        enough(training, sizes.prompts)
        for one in filter(None, programs.values()):
            check_models(one, training[0], {"policy", *folders})
        processors, told = frozen_processors(
            folders,
            folder,
            read.processor,
            *(fit.samples for fit in read.fits),
            said=row_tokens or sizes.response_tokens,
            asking=asking,
            longest_prompt=sizes.longest_prompt,
            min_pixels=sizes.min_pixels,
            max_pixels=sizes.max_pixels,
            parts=pictures > 0,
        )
        if folders:
            say(told)
        say(f"2/5 {folder}; training")
        begun = [begin(folder, read, reward, sizes, choices)]
        say(_counted(begun[0].params, choices))
        models = frozen_actors(
            folders,
            folder,
            begun[0],
            processors,
            asking=asking,
            dtype=chosen.dtype(choices),
            weights=chosen.written_from(choices),
        )
        for who, one in models.items():
            shared = one.params is begun[0].params
            count = (
                "the model as it is now" if shared else _counted(one.params, choices)
            )
            say(f"frozen {who}: {count}")
        spec, key = read.processor.front_end.spec, jax.random.key(seed)
        asked = [one.processor.front_end.spec for one in models.values()]
        if any(map(experts.are_in, [spec, *asked])) and _multiplies_densely():
            say(f"experts: slow without LIBTPU_INIT_ARGS=--{experts.KERNEL}=true")
        table = family_of(spec).parameter_table(spec)
        trains = chosen.trains(choices, table, key)
        anchor = chosen.anchor(choices, begun[0].params, weight=kl_weight)
        critic_rate = None
        if critics:  # the reference has none
            begun = [judged(begun.pop(), critics, seed=seed)]
            trains = also(critic, trains)
            other = sizes._replace(learning_rate=critic_learning_rate)
            critic_rate = learning_rate(other, choices)
        trained, need = _need(trains, begun[0].params)
        say(f"{trained / 1e6:,.1f} M parameters are trained")
        room_for(out, max(need - _written(out), 0))
        stage = Stage(
            name="sft" if recital else "rl",
            recipe=chosen.sampling(choices, _within(recipe(anchor, **models), behind)),
            samples=training,
            steps=sizes.steps,
            prompts_per_step=sizes.prompts,
            optimizer=chosen.optimizer(
                choices,
                learning_rate(sizes, choices),
                key,
                weight_decay=sizes.weight_decay,
                make=optimizer,
                critic_rate=critic_rate,
            ),
            minibatches=choices.minibatches,
            micro_batches=choices.micro_batches,
            trains=trains,
            evaluate_every=sizes.evaluate_every,
            evaluate_first=True,
        )

        def save_adapters(stage: Stage, learner: Learner) -> None:
            own = learner.trained[1] if critics else learner.trained
            adapters = sharding.on_host(own)
            if processes.leads():
                held = chosen.adapters(choices, adapters)
                lora.save(out / "adapters", held, table, base=model)

        asks, looks = _asking(program, models, limits)
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
                act=asks,
                size=sizes.prompts,  # what training plays at once
            ),
            checkpoint_every=sizes.checkpoint_every,
            ended=save_adapters if choices.lora_rank else ignore,
            log=both(tensorboard(out / "tensorboard"), log),
        )
        say("3/5 export")
        policy = _export(actor, folder, out)
        say("4/5 which tokens look at the picture")
        shown = [sample for sample in test if sample.images][: sizes.examples]
        try:
            if shown:
                look(actor, shown, out, dependency.unmarked, seed=seed, act=looks)
        except ValueError as error:
            if not program:
                raise
            say(f"the report shades no tokens: {error}")  # of several conversations
        say("5/5 report")
        report = out / "report.html"
        if processes.leads():
            report = write_report(out)
        processes.wait()
        outcome = Outcome(actor, read_lines(run_files(out).evaluations), report, policy)
        say(summary(outcome, time.monotonic() - start))
        return outcome


def _data(
    out: Path,
    folder: Path,
    rows: Rows,
    reward: Reward,
    sizes: Sizes,
    program: Program | None,
    recital: Program | None,
    models: Sequence[str],
    limits: Limits | None,
) -> tuple[Read, list[Sample], Limits | None]:
    """What can be used of the rows, the test rows with other pictures, and a recital's.

    The last are the limits of what is recited.
    """
    measure = prompt_size
    if program:
        measure = functools.partial(
            prompt_size, opening=functools.partial(opening, program)
        )
    reader, by_heart = read_samples, None
    if recital:
        reader = read_dialogues
        by_heart = functools.partial(
            _recital_size,
            folder,
            reward=reward,
            most=sizes.response_tokens,
            recital=recital,
            models=models,
            limits=limits,
        )
    parts = limits is not None and limits.pictures > 0
    told = {"measure": measure, "by_heart": by_heart, "reader": reader}
    read, reports = read_rows(folder, rows, sizes, parts=parts, **told)
    training, test = read.fits
    behind = None
    if limits and recital:
        need = row_limits(training, read.budgets.room)
        behind = need._replace(asks=limits.asks)
    tell(out, read, reports, behind)
    say(first_rows(read.processor, training))
    others = held_out.shuffle_images(test.samples)
    if others:
        others = fitting(read.processor, others, measure=measure).samples
    count = len(test.samples)
    say(f"{len(others)} of the {count} test rows are asked of other pictures too")
    return read, others, behind


def _recital_size(
    folder: Path,
    processor: Processor,
    *,
    reward: Reward,
    most: int,
    recital: Program,
    models: Sequence[str],
    limits: Limits | None,
) -> Measure:
    """How large demonstrations are, before there are weights, whatever they show."""
    actor = weightless_actor(folder, processor, reward, max_new_tokens=most)
    return recital_size(actor, program=recital, models=models, limits=limits)


def _within(recipe: Recipe, limits: Limits | None) -> Recipe:
    """The recipe whose act is given the limits, if there are any."""
    if limits is None:
        return recipe
    return recipe._replace(act=functools.partial(recipe.act, limits=limits))


def _asking(
    program: Program | None, models: Mapping[str, Actor], limits: Limits | None
) -> tuple[held_out.GroupAct, Act]:
    """How rows are measured, and how they are played where tokens are looked at."""
    if program is None:
        return single_turn, single_turn
    told = {"program": program, "models": models, "limits": limits}
    return functools.partial(measured, **told), functools.partial(act, **told)


def _export(actor: Actor, folder: Path, out: Path) -> Path:
    """The policy as a folder, with what else is in the model's."""
    policy, params = out / "policy", sharding.on_host(actor.params)
    front_end = actor.processor.front_end
    if processes.leads():
        hub.save(
            policy,
            front_end.spec,
            params,
            copy_from=folder,
            pixel_bounds=front_end.pixel_bounds,
        )
    processes.wait()
    return policy


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


def _counted(params: Params, choices: Choices) -> str:
    """How large the model is, and on how many devices."""
    leaves = jax.tree.leaves(params)
    count = sum(leaf.size for leaf in leaves)
    return f"{count / 1e6:,.1f} M parameters, {leaves[0].dtype}; {_devices(choices)}"


def _multiplies_densely() -> bool:
    """Whether these are TPUs whose compiler was not told of its kernel for experts."""
    kind = jax.devices()[0].device_kind
    told = f"{experts.KERNEL}=true" in os.environ.get("LIBTPU_INIT_ARGS", "")
    return kind.startswith("TPU") and kind not in ("TPU v5", "TPU v5p") and not told


def _devices(choices: Choices) -> str:
    used, found = choices.data * choices.fsdp * choices.tensor, jax.device_count()
    more = " (--data, --fsdp and --tensor use more)" if used < found else ""
    return f"{used} of {found} devices{more}"


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


def summary(outcome: Outcome, seconds: float) -> str:
    """What was learned, and where the files are."""
    first, last = outcome.evaluations[0], outcome.evaluations[-1]
    names = {
        "reward": "val/reward_score",
        "accuracy": "val/accuracy",
        "with shuffled images": "val/accuracy_shuffled_images",
        "responses cut off": "val/response_length/clip_ratio",
    }
    ended = sorted({name for row in (first, last) for name in row if "/ended/" in name})
    names |= {f"  by {name.removeprefix('val/ended/')}": name for name in ended}
    full = sorted(
        {name for row in (first, last) for name in row if "/no_room/" in name}
    )
    names |= {f"no room: {name.removeprefix('val/no_room/')}": name for name in full}
    way = "\nwhere a frozen model has no room, raise --frozen-prompt-tokens"

    def shown(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"  # nothing was scored

    rows = "\n".join(
        f"{title:21} {shown(first.get(key, 0))} before, {shown(last.get(key, 0))} after"
        for title, key in names.items()
    )
    return f"""
on {last["val/count"]} held-out rows
{rows}{way if full else ""}
report                {outcome.report}
policy                {outcome.policy} (a Hugging Face folder)
{seconds:.0f} s"""
