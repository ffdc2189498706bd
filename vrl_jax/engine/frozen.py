"""Models that are asked and never trained, from their folders: judges, readers.

A program names them, `Ask(..., model="judge")`. Each has the tokenizer, the pictures,
the stops and the sizes of its own folder, of any family, and its weights lie on the
mesh by the rules of the policy's, without optimiser or gradient.

    folders = frozen_folders({"judge": "google/gemma-3-4b-it"})
    read = frozen_processors(folders, folder, actor.processor, samples, said=2048)
    act(..., models=frozen_actors(folders, folder, actor, read[0]))
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp

from vrl_jax.engine.actor import Actor
from vrl_jax.engine.pretrained import bounds_pictures, load_actor, load_processor
from vrl_jax.engine.processing import Processor
from vrl_jax.engine.slots import Weights, unstack
from vrl_jax.models import hub
from vrl_jax.models.policy import Params, Policy
from vrl_jax.types import Episode, Sample

WORDS = 256
"""Tokens for a program's own words, around what it quotes to a frozen model."""


class Asking(NamedTuple):
    """How frozen models are asked, where the program does not say; flags."""

    frozen_tokens: int | None = None
    """most tokens of a frozen model's answer; by default --response-tokens, and no more
    than --row-tokens"""
    frozen_prompt_tokens: int | None = None
    """tokens of what a frozen model reads, pictures included, for which there is room;
    by default those of its longest row, 256 of the program's words and all that an
    episode may say"""
    frozen_temperature: float = 1.0
    """of its answers; 0 takes the likeliest token"""
    frozen_slots: int | None = None
    """its answers that are written at a time; by default --slots"""


ASKING = Asking()


def check_asking(asking: Asking, row_tokens: int | None) -> None:
    """Raises `ValueError`, by the name of the flag, for what cannot be."""
    for name in ("frozen_tokens", "frozen_prompt_tokens", "frozen_slots"):
        value = getattr(asking, name)
        if value is not None and value < 1:
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag} must be at least 1, got {value}.")
    if asking.frozen_temperature < 0:
        raise ValueError(
            f"--frozen-temperature is at least 0, got {asking.frozen_temperature}."
        )
    if row_tokens and (asking.frozen_tokens or 0) > row_tokens:
        raise ValueError(
            f"--frozen-tokens {asking.frozen_tokens} are more than --row-tokens "
            f"{row_tokens}, which bound every model's answers: raise these."
        )


def frozen_names(pairs: Sequence[str]) -> dict[str, str]:
    """Of NAME=FOLDER, as --frozen takes them. `ValueError` for anything else."""
    found: dict[str, str] = {}
    for pair in pairs:
        name, equals, folder = pair.partition("=")
        if not (name and equals and folder):
            raise ValueError(f"--frozen is NAME=FOLDER, got {pair!r}.")
        if name in found:
            raise ValueError(f"--frozen names {name!r} twice: {found[name]}, {folder}.")
        found[name] = folder
    return found


def frozen_folders(frozen: Mapping[str, str | Path]) -> dict[str, Path]:
    """Where each of them lies; a folder, or a name of the hub as for the policy.

    `ValueError`, which names it, for a name that no program can ask by, a folder that
    is not there, and a family that is not supported. No weight is read.
    """
    found = {}
    for name, model in frozen.items():
        if not name.isidentifier() or name == "policy":
            raise ValueError(
                f"a frozen model has a name such as judge or reader, got {name!r}"
                f"{': that is who is trained' if name == 'policy' else ''}."
            )
        try:
            found[name] = hub.local(model)
            hub.read_spec(found[name])
        except ValueError as error:
            raise ValueError(f"the frozen model {name!r}: {error}") from error
    return found


def frozen_processors(
    folders: Mapping[str, Path],
    folder: Path,
    processor: Processor,
    *samples: Sequence[Sample],
    said: int,
    asking: Asking = ASKING,
    longest_prompt: int = 8192,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    parts: bool = False,
) -> tuple[dict[str, Processor], str]:
    """Of each of them, with sizes for these samples and what is said of them; in words.

    `processor` is that of the policy in `folder`; for another folder each sample is
    read once more, its pictures within the bounds where the family has any. What does
    not fit `longest_prompt` is only told: who knows whether a program asks it. `said`
    tokens, and `WORDS` more, may stand beside the longest row.
    """
    found, lines, known = {}, [], {folder.resolve(): (processor, [])}
    for name, place in folders.items():
        if place.resolve() not in known:
            bounds = {"min_pixels": min_pixels, "max_pixels": max_pixels}
            try:
                read = load_processor(
                    place,
                    *samples,
                    prompts_per_step=1,
                    longest_prompt=longest_prompt,
                    parts=parts,
                    **(bounds if bounds_pictures(place) else {}),
                )
            except ValueError as error:
                raise ValueError(f"the frozen model {name!r}: {error}") from error
            dropped = [why for fit in read.fits for why in fit.dropped]
            known[place.resolve()] = read.processor, dropped
        own, dropped = known[place.resolve()]
        rows = own.room.prompt_tokens
        longest = asking.frozen_prompt_tokens or rows[-1] + WORDS + said
        room = own.room._replace(prompt_tokens=context_sizes(rows, longest))
        found[name] = dataclasses.replace(own, room=room, prepared={})
        sizes = " or ".join(map(str, room.prompt_tokens))
        lines.append(f"frozen {name}: {place}; contexts of {sizes} tokens")
        if dropped:
            lines.append(f"  {len(dropped)} rows are too large for it")
            lines += [f"  {why}" for why in dropped[:3]]
    return found, "\n".join(lines)


def context_sizes(rows: Sequence[int], longest: int) -> tuple[int, ...]:
    """Those of the rows, the last one doubled on and on, as far as the longest."""
    sizes = [size for size in rows if size < longest]
    while sizes and 2 * sizes[-1] < longest:
        sizes.append(2 * sizes[-1])
    return (*sizes, longest)


def frozen_actors(
    folders: Mapping[str, Path],
    folder: Path,
    policy: Actor,
    processors: Mapping[str, Processor],
    *,
    asking: Asking = ASKING,
    dtype: jnp.dtype = jnp.float32,
    weights: Callable[[Policy, Params], Weights] = unstack,
) -> dict[str, Actor]:
    """The models on the mesh that is set, as who is asked; sizes are the policy's.

    `policy` is the model of `folder` before any training. Models of one folder have the
    same parameters, the policy's too: none is loaded twice.
    """
    found, known = {}, {folder.resolve(): policy}
    tokens = asking.frozen_tokens or policy.max_new_tokens
    for name, place in folders.items():
        if place.resolve() not in known:
            known[place.resolve()] = load_actor(
                place, processors[name], unpaid, max_new_tokens=tokens, dtype=dtype
            )
        found[name] = dataclasses.replace(
            known[place.resolve()],
            processor=processors[name],
            reward=unpaid,
            max_new_tokens=tokens,
            temperature=asking.frozen_temperature or 1.0,
            top_k=0 if asking.frozen_temperature else 1,
            top_p=1.0,
            slots=asking.frozen_slots or policy.slots,
            prompts_per_pass=policy.prompts_per_pass,
            weights=weights,
        )
    return found


def unpaid(episodes: Sequence[Episode]) -> list[float]:
    """The reward of who is asked alone: there is none."""
    return [float("nan")] * len(episodes)
