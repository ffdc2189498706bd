"""`vrl-jax eval`: a model's folder on a file of rows, every answer written down."""

import dataclasses
import importlib.metadata
import json as json_text
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from vrl_jax.engine.pretrained import asked, load_actor, load_processor
from vrl_jax.engine.processing import fitting
from vrl_jax.evals.benchmark import files, predict, summary
from vrl_jax.evals.held_out import shuffle_images
from vrl_jax.models import hub
from vrl_jax.models.sharding import parse_mesh
from vrl_jax.rewards.named import named_reward
from vrl_jax.training import processes
from vrl_jax.training.data import evenly, read_samples
from vrl_jax.training.files import write_json

DTYPES = ("bfloat16", "float32")


def evaluate(
    *,
    model: str,
    data: Path,
    reward: str,
    out: Path,
    instruction: str = "",
    images: Path | None = None,
    rows: int | None = None,
    each: int = 1,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    response_tokens: int = 2048,
    longest_prompt: int = 8192,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    shuffled: bool = False,
    dtype: str = "bfloat16",
    mesh: str = "",
    per_pass: int = 64,
    slots: int = 64,
    seed: int = 0,
    json: bool = False,
) -> int:
    """Answers every row, and says how many answers are right.

    Leaves manifest.json, predictions.jsonl and summary.json in --out; the same command
    again goes on where it stopped.

    Args:
        model: a Hugging Face folder, or owner/name of the hub.
        data: parquet or JSONL with the columns of EasyR1, TRL, R1-V or verl.
        reward: a name that `vrl-jax data check` knows, or path.py:function; its part
            "accuracy", if it has one, is what counts.
        out: folder of this evaluation.
        instruction: what is said under each question.
        images: folder at which relative picture paths start; by default the file's.
        rows: how many to use, evenly spread; by default all.
        each: responses to each row: mean@k, pass@k and maj@k are told of several.
        temperature: 0 takes the likeliest token, and is the same for all responses.
        top_p: the likeliest tokens of this much probability; 1: all.
        top_k: so many of the likeliest tokens; 0: all.
        response_tokens: of a response at most.
        longest_prompt: tokens of a prompt, pictures included; longer ones are left out
            and told.
        min_pixels: area of a picture: smaller ones are enlarged; by default the
            model's.
        max_pixels: area of a picture: larger ones are made smaller; by default the
            model's.
        shuffled: each question with another one's pictures: what is right then was not
            seen.
        dtype: of the weights: bfloat16 or float32.
        mesh: devices along each axis, data=2,fsdp=2,tensor=2.
        per_pass: questions that are read at a time.
        slots: responses that are written at a time.
        seed: of every draw.
        json: print one JSON object.
    """
    _check(each, temperature, dtype)
    folder = hub.local(model)
    samples, report = read_samples(data, image_root=images)
    samples = asked(evenly(samples, rows), instruction)
    with named_reward(reward) as function, jax.set_mesh(parse_mesh(mesh)):
        read = load_processor(
            folder,
            samples,
            prompts_per_step=min(per_pass, len(samples)),
            longest_prompt=longest_prompt,
            min_pixels=min_pixels,
            max_pixels=max_pixels,
        )
        (fit,) = read.fits
        samples, dropped = fit.samples, list(fit.dropped)
        if shuffled:
            fit = fitting(read.processor, shuffle_images(samples))
            samples = fit.samples
            dropped += fit.dropped
        actor = load_actor(
            folder,
            read.processor,
            function,
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
        manifest = {
            "harness": f"vrl-jax {importlib.metadata.version('vrl-jax')}",
            "model": str(folder),
            "data": str(data),
            "rows": rows,
            "reward": reward,
            "instruction": instruction,
            "each": each,
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            "response_tokens": response_tokens,
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
        )
    found = {
        **summary(predictions),
        "not_asked": len(dropped) + sum(map(len, report.dropped.values())),
    }
    if processes.leads():
        write_json(out / "summary.json", found)
        if json:
            print(json_text.dumps(found))
        else:
            print(report.summary())
            print("\n".join(dropped[:3]) + "\n" * bool(dropped) + page(found, out))
    return 0


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
            f"{name:20} accuracy {part['accuracy']:.3f} [{part['low']:.3f}, "
            f"{part['high']:.3f}] of {part['questions']} questions"
        )
        several = [key for key in part if "@" in key]
        lines += [f"{'':20} {key:8} {part[key]:.3f}" for key in several]
    lines += [
        f"{found['cut_off']:.1%} cut off, {found['unparsed']:.1%} without an answer "
        f"that could be read, {found['unscored']} unscored, {found['not_asked']} rows "
        "not asked",
        f"{found['tokens']:.0f} tokens a response",
        f"predictions          {files(out).predictions}",
    ]
    if math.isnan(found["accuracy"]):
        lines.append("no response was scored: look for the reward's error above")
    return "\n".join(lines)
