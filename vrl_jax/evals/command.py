"""`vrl-jax eval`: a model's folder on a file of rows, every answer written down."""

import dataclasses
import functools
import hashlib
import importlib.metadata
import json as json_text
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from tyro.conf import OmitArgPrefixes, UseAppendAction

from vrl_jax.engine.desk import Limits, OutOfRoom
from vrl_jax.engine.episode import Program, check_models, opening
from vrl_jax.engine.frozen import (
    ASKING,
    Asking,
    check_asking,
    frozen_actors,
    frozen_folders,
    frozen_names,
    frozen_processors,
)
from vrl_jax.engine.pretrained import load_actor, load_processor
from vrl_jax.engine.processing import fitting, prompt_size
from vrl_jax.evals.benchmark import files, predict, summary
from vrl_jax.evals.held_out import shuffle_images
from vrl_jax.models import hub
from vrl_jax.models.sharding import parse_mesh
from vrl_jax.programs.acting import measured
from vrl_jax.programs.named import named_program
from vrl_jax.programs.single_turn import single_turn
from vrl_jax.rewards.named import named_reward
from vrl_jax.training import processes
from vrl_jax.training.data import asked, evenly, files_of, read_samples
from vrl_jax.training.files import write_json
from vrl_jax.training.tsv import write_predictions

DTYPES = ("bfloat16", "float32")


def evaluate(
    *,
    model: str,
    data: Path,
    reward: str,
    out: Path,
    style: str | None = None,
    frame: str | None = None,
    gold_frame: str = "original",
    instruction: str = "",
    system: str = "",
    images: Path | None = None,
    rows: int | None = None,
    each: int = 1,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    response_tokens: int = 2048,
    program: str | None = None,
    row_tokens: int | None = None,
    pictures: int = 0,
    frozen: Annotated[tuple[str, ...], UseAppendAction] = (),
    asking: Annotated[Asking, OmitArgPrefixes] = ASKING,
    longest_prompt: int = 8192,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    shuffled: bool = False,
    dtype: str = "bfloat16",
    mesh: str = "",
    prompts: int = 256,
    per_pass: int = 64,
    slots: int = 256,
    seed: int = 0,
    table: Path | None = None,
    json: bool = False,
) -> int:
    """Answers every row, and says how many answers are right.

    Leaves manifest.json, predictions.jsonl and summary.json in --out; the same command
    again goes on where it stopped.

    Args:
        model: a Hugging Face folder, or owner/name of the hub.
        data: parquet, JSONL, JSON or CSV with the columns of EasyR1, TRL, R1-V or verl,
            FOLDER@SPLIT of TensorFlow Datasets with these, or a benchmark of VLMEvalKit
            as TSV.
        reward: a name that `vrl-jax data check` knows, or path.py:function; its part
            "accuracy", if it has one, is what counts.
        out: folder of this evaluation.
        style: whose signature a function of your own has, as in `vrl-jax data check`.
        frame: unit of boxes and points in responses, for rewards that read them:
            original or resized (pixels), norm1000 or norm1.
        gold_frame: unit of boxes in the rows' answers.
        instruction: words under each question: those of training.
        system: system message of rows that have none: that of training; by default the
            template's own.
        images: folder at which relative picture paths start; by default the file's.
        rows: how many to use, evenly spread; by default all.
        each: responses to each row: mean@k, pass@k and maj@k are told of several.
        temperature: 0 takes the likeliest token, and is the same for all responses.
        top_p: the likeliest tokens of this much probability; 1: all.
        top_k: so many of the likeliest tokens; 0: all.
        response_tokens: most tokens of a response, with a program of each of its turns.
        program: how questions are answered, path.py:function or
            package.module:function such as vrl_jax.programs.tool_turns:tool_turns, a
            generator as in training that asks the policy and, by their names, frozen
            models; by default in a single turn.
        row_tokens: with a program, most tokens of the answers of one conversation with
            what is said between them; by default --response-tokens.
        pictures: with a program, how many it may show besides the row's: parts of
            these, or others that are no larger.
        frozen: with a program, the other models that it asks, --frozen NAME=FOLDER for
            each, or NAME=owner/name; loaded once where it is the --model.
        asking: how these are asked.
        longest_prompt: tokens of a prompt, pictures included; longer rows are left out
            and reported.
        min_pixels: smallest area of a picture, smaller ones are enlarged; by default
            the model's.
        max_pixels: largest area of a picture, larger ones are shrunk; by default the
            model's.
        shuffled: each question with another one's pictures: what is right then was not
            seen.
        dtype: type of the weights: bfloat16 or float32.
        mesh: devices along each axis, data=2,fsdp=2,tensor=2.
        prompts: questions that are asked at a time; their answers are written down
            before the next are asked.
        per_pass: questions that are read at a time.
        slots: responses that are written at a time.
        seed: seed of every random draw.
        table: for a benchmark's TSV: file to write the rows to with what the model
            said, as VLMEvalKit's scorers read them.
        json: print one JSON object.
    """
    processes.start()
    _check(each, temperature, dtype)
    limits = Limits(row_tokens=row_tokens, pictures=pictures)
    function, told = _playing(program, limits, frozen, asking)
    if table is not None and data.suffix != ".tsv":
        raise ValueError(f"--table is for a benchmark's TSV, and --data is {data}.")
    folder, folders = hub.local(model), frozen_folders(frozen_names(frozen))
    samples, report = read_samples(data, image_root=images)
    samples = asked(evenly(samples, rows), instruction, system)
    measure = prompt_size
    if function:
        check_models(function, samples[0], {"policy", *folders})
        asks = functools.partial(opening, function)
        measure = functools.partial(prompt_size, opening=asks)
    frames = {"frame": frame, "gold_frame": gold_frame}
    with (
        named_reward(reward, style=style, **frames) as paid,
        jax.set_mesh(parse_mesh(mesh)),
    ):
        if processes.leads() and not json:
            print(report.summary(), flush=True)
            print("every picture is read once, to know the sizes", flush=True)
        read = load_processor(
            folder,
            samples,
            prompts_per_step=min(prompts, len(samples)),
            longest_prompt=longest_prompt,
            min_pixels=min_pixels,
            max_pixels=max_pixels,
            parts=pictures > 0,
            measures=[lambda _: measure],
        )
        (fit,) = read.fits
        samples, dropped = fit.samples, list(fit.dropped)
        if shuffled:
            others = shuffle_images(samples)
            alone = {sample.id for sample in samples} - {s.id for s in others}
            dropped += [
                f"{name}: there are no other pictures" for name in sorted(alone)
            ]
            if not others:
                raise ValueError(
                    f"--shuffled needs rows with as many pictures, but other ones: "
                    f"{data} has none such."
                )
            fit = fitting(read.processor, others, measure=measure)
            samples = fit.samples
            dropped += fit.dropped
        processors, line = frozen_processors(
            folders,
            folder,
            read.processor,
            samples,
            said=row_tokens or response_tokens,
            asking=asking,
            longest_prompt=longest_prompt,
            min_pixels=min_pixels,
            max_pixels=max_pixels,
            parts=pictures > 0,
        )
        if folders and processes.leads() and not json:
            print(line, flush=True)
        actor = load_actor(
            folder,
            read.processor,
            paid,
            max_new_tokens=response_tokens,
            dtype=jnp.dtype(dtype),
        )
        actor = dataclasses.replace(
            actor,
            temperature=temperature or 1.0,
            top_p=top_p,
            top_k=top_k,
            prompts_per_pass=per_pass,
            slots=slots,
        )
        models = frozen_actors(
            folders, folder, actor, processors, asking=asking, dtype=jnp.dtype(dtype)
        )
        act = single_turn
        if function:
            played = {"program": function, "limits": limits, "models": models}
            act = functools.partial(measured, **played)
        if folders:
            told["frozen_weights"] = {
                name: _stamps(place, "*.safetensors") for name, place in folders.items()
            }
        own = ":" in reward
        manifest = {
            "harness": f"vrl-jax {importlib.metadata.version('vrl-jax')}",
            "model": model,
            "weights": _stamps(folder, "*.safetensors"),
            "data": str(data),
            "data_files": _digests(data),
            "images": str(images),
            "rows": rows,
            "reward": reward,
            "reward_file": _digests(Path(reward.partition(":")[0])) if own else {},
            "style": style,
            **frames,
            "instruction": instruction,
            **({"system": system} if system else {}),
            "each": each,
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            "response_tokens": response_tokens,
            **told,
            "longest_prompt": longest_prompt,
            "pixel_bounds": list(read.processor.front_end.pixel_bounds),
            "shuffled": shuffled,
            "dtype": dtype,
            "seed": seed,
        }
        predictions = predict(
            actor,
            samples,
            jax.random.key(seed),
            folder=out,
            manifest=manifest,
            each=each,
            greedy=temperature == 0,
            size=prompts,
            act=act,
        )
    found = {
        **summary(predictions),
        "not_asked": len(dropped),
        "bad_rows": sum(map(len, report.dropped.values())),
    }
    if processes.leads():
        write_json(out / "summary.json", found)
        if table is not None:
            write_predictions(table, data, predictions)
        if json:
            print(json_text.dumps(found))
        else:
            print("\n".join([*dropped[:3], page(found, out)]))
    return 0


def _playing(
    program: str | None, limits: Limits, frozen: Sequence[str], asking: Asking
) -> tuple[Program | None, dict[str, Any]]:
    """How questions are answered, and what the manifest says of it."""
    row_tokens, pictures = limits[:2]
    if (row_tokens is not None and row_tokens < 1) or pictures < 0:
        raise ValueError(
            "--row-tokens is at least 1 and --pictures at least 0, got "
            f"{row_tokens} and {pictures}."
        )
    if program is None:
        if limits != Limits():
            raise ValueError(
                "--row-tokens and --pictures bound what a --program says and shows: "
                f"without one there are single turns, got {row_tokens} and {pictures}."
            )
        if frozen or asking != ASKING:
            raise ValueError(
                "--frozen models are asked by a --program: without one there are "
                "single turns, leave --frozen and what begins so out."
            )
        return None, {}
    check_asking(asking, row_tokens)
    function, file = named_program(program)
    told = {
        "program": program,
        "program_file": _digests(file),
        "row_tokens": row_tokens,
        "pictures": pictures,
    }
    if frozen:
        told |= {"frozen": frozen_names(frozen), **asking._asdict()}
        del told["frozen_slots"]
    return function, told


def _digests(path: Path) -> dict[str, str]:
    """SHA-256 of a file, or of the data files of a folder."""
    found = {}
    for file in [path] if path.is_file() else files_of(path):
        with file.open("rb") as content:
            found[file.name] = hashlib.file_digest(content, "sha256").hexdigest()
    return found


def _stamps(folder: Path, pattern: str) -> dict[str, list[int]]:
    """Size and time of files that are too large to be read for it."""
    files = sorted(folder.glob(pattern))
    return {f.name: [f.stat().st_size, f.stat().st_mtime_ns] for f in files}


def _check(each: int, temperature: float, dtype: str) -> None:
    if each < 1:
        raise ValueError(f"each row is answered at least once, got --each {each}.")
    if each > 1 and temperature == 0:
        raise ValueError(
            f"{each} responses at temperature 0 would all be the same: give "
            "--temperature, 0.6 or 1.0 for example."
        )
    if temperature < 0:
        raise ValueError(f"a temperature is at least 0, got {temperature}.")
    if dtype not in DTYPES:
        raise ValueError(f"dtypes are {', '.join(DTYPES)}, got {dtype!r}.")


def page(found: dict[str, Any], out: Path) -> str:
    """The summary as text."""
    lines = []
    for name, part in {"all": found, **found.get("benchmarks", {})}.items():
        lines.append(
            f"{name:20} accuracy {_shown(part['accuracy'])} [{_shown(part['low'])}, "
            f"{_shown(part['high'])}] of {part['questions']} questions"
        )
        several = [key for key in part if "@" in key]
        lines += [f"{'':20} {key:8} {_shown(part[key])}" for key in several]
    lines += [
        f"{found['cut_off']:.1%} cut off, {found['unread']:.1%} without an answer "
        f"that can be read, {found['unscored']} unscored; {found['not_asked']} rows "
        f"not asked, {found['bad_rows']} of the file unusable",
        f"{found['tokens']:.0f} tokens a response",
        *_ended(found),
        f"predictions          {files(out).predictions}",
    ]
    if found["accuracy"] is None:
        lines.append("no response was scored: look for the reward's error above")
    return "\n".join(lines)


def _ended(found: dict[str, Any]) -> list[str]:
    """How many episodes ended early, and why; what frozen models had no room for."""
    reasons = {
        name.removeprefix("fact/ended/"): round(share * found["responses"])
        for name, share in found.items()
        if name.startswith("fact/ended/") and share
    }
    lines = [
        f"no room              {asks * found['responses']:.0f} asks of "
        f"{name.removeprefix('fact/no_room/')}: raise --frozen-prompt-tokens, or "
        "--pictures where it is shown some"
        for name, asks in found.items()
        if name.startswith("fact/no_room/") and asks
    ]
    if reasons:
        told = ", ".join(f"{count} for {reason}" for reason, count in reasons.items())
        line = f"ended early          {told}, of {found['responses']} episodes"
        if OutOfRoom.__name__ in reasons:
            line += "; where the policy had no room, raise --row-tokens or --pictures"
        lines.append(line)
    return lines


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
